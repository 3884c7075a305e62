"""Published ids as a kind of ids: matched with the catalogue, inspected by the gate, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recpipe.config import ConfigError
from recpipe.config.schema import IdSource, SemanticIdsConfig
from recpipe.content.embeddings import Embeddings
from recpipe.semantic_ids import build
from recpipe.semantic_ids.foreign import import_ids, measure_foreign
from recpipe.semantic_ids.ids import CatalogueIds, SemanticIds

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "amazon-beauty"
ITEMS = np.array([f"B{number}" for number in range(8)], object)
INDEX = {item: [f"<a_{number % 2}>", f"<b_{number}>"] for number, item in enumerate(ITEMS)}


def config(collisions: str = "extra_digit", gate: dict | None = None, **source) -> SemanticIdsConfig:
    return SemanticIdsConfig(
        kind="foreign",
        quantizer="rqvae",
        collisions=collisions,
        extra_codes=8,
        seed=1,
        refit=False,
        gate=gate or {},
        quantizers={},
        source=IdSource(**{"file": "shop.index.json", **source}),
    )


def imported(folder: Path, index: object = INDEX, collisions: str = "keep", **source) -> SemanticIds:
    (folder / "shop.index.json").write_text(json.dumps(index), encoding="utf-8")
    return import_ids(ITEMS, folder, config(collisions, **source))


def test_ids_are_those_of_the_file_in_the_order_of_the_catalogue(tmp_path) -> None:
    shuffled = {item: INDEX[item] for item in [*ITEMS[::-1], "B99"] if item in INDEX} | {"B99": ["<a_0>", "<b_3>"]}
    ids = imported(tmp_path, shuffled)
    assert ids.item_ids.tolist() == ITEMS.tolist()
    assert ids.codes.tolist() == [[number % 2, number] for number in range(8)]
    assert ids.sizes == (2, 8) and ids.about["counts"]["unused"] == 1
    assert ids.about["quantizer"] == imported(tmp_path, dict(sorted(shuffled.items()))).about["quantizer"]


def test_dense_numbers_are_translated_by_an_item_map(tmp_path) -> None:
    numbers = {str(number): INDEX[item] for number, item in enumerate(ITEMS[::-1])}
    lines = [f"{item}\t{number}" for number, item in enumerate(ITEMS[::-1])]
    (tmp_path / "shop.item2id").write_text("\n".join(lines), encoding="utf-8")
    by_map = imported(tmp_path, numbers, item_map="shop.item2id")
    assert by_map.hash == imported(tmp_path).hash
    (tmp_path / "shop.item2id").write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="1 of 8 keys of shop.index.json are not in shop.item2id: '0'"):
        imported(tmp_path, numbers, item_map="shop.item2id")


def test_collisions_get_a_digit_stay_or_are_refused(tmp_path) -> None:
    index = {item: [number // 3] for number, item in enumerate(ITEMS)}
    digits = imported(tmp_path, index, "extra_digit")
    assert digits.codes.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]
    assert digits.unique and digits.quantized.tolist() == [[number // 3] for number in range(8)]
    assert not imported(tmp_path, index, "keep").unique
    with pytest.raises(ValueError, match="8 of 8 items share their codes .* set it to extra_digit or keep"):
        imported(tmp_path, index, "refuse")
    assert imported(tmp_path, INDEX, "refuse").unique
    with pytest.raises(ConfigError, match="'reallocate'.*extra_digit, keep, refuse"):
        imported(tmp_path, index, "reallocate")


def test_missing_items_are_refused_or_have_no_id(tmp_path) -> None:
    index = {item: INDEX[item] for item in ITEMS[:-1]}
    with pytest.raises(ValueError, match="1 of 8 items have no id in .* such as 'B7'.*missing to 0.125 or more"):
        imported(tmp_path, index)
    ids = imported(tmp_path, index, missing=0.125)
    assert len(ids) == 7 and CatalogueIds.of(ids, ITEMS).codes[8].tolist() == [-1, -1]


def test_an_index_of_another_catalogue_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="has ids of 1 of 8 items: another catalogue. Its keys are 'B0', 'X1'"):
        imported(tmp_path, {"B0": [1], "X1": [2], "X2": [3]}, missing=1.0)
    with pytest.raises(
        ValueError, match="counts items from 0: name their ids in semantic_ids.kinds.foreign.source.item_map"
    ):
        imported(tmp_path, {str(number): [number] for number in range(8)})


@pytest.mark.parametrize(
    ("items", "numbers"),
    [
        (range(1, 9), 8),  # the same items, counted from 1: each would have the id of its neighbour
        (range(1, 9), 20),  # a larger catalogue has them all
        (range(8), 7),
    ],
)
def test_numbers_of_a_file_are_no_item_ids_unless_they_are_the_same(tmp_path, items: range, numbers: int) -> None:
    """Whatever ``missing`` allows; item ids of Amazon Beauty are 1 to 12,101, and those of an index.json begin at 0."""
    ids = np.array([str(number) for number in items], object)
    (tmp_path / "shop.index.json").write_text(json.dumps({str(number): [number] for number in range(numbers)}))
    with pytest.raises(ValueError, match=f"keys 0 to {numbers - 1}, and the 8 item ids are .*source.item_map"):
        import_ids(ids, tmp_path, config("keep", missing=0.5))
    (tmp_path / "map").write_text("".join(f"{number}\t{number}\n" for number in range(numbers)))
    assert len(import_ids(ids, tmp_path, config("keep", missing=0.5, item_map="map"))) >= 7
    own = np.array([str(number) for number in range(numbers)], object)
    assert len(import_ids(own, tmp_path, config("keep"))) == numbers


def test_codes_above_those_allowed_are_refused(tmp_path) -> None:
    assert imported(tmp_path, codes=16).sizes == (16, 16)
    assert imported(tmp_path, codes=[2, 9]).sizes == (2, 9)
    with pytest.raises(ValueError, match="item 'B7' has code 7 at level 2; .*source.codes allows 0 to 3"):
        imported(tmp_path, codes=[2, 4])
    with pytest.raises(ValueError, match="source.codes has 3 numbers, and ids of shop.index.json 2 levels"):
        imported(tmp_path, codes=[2, 4, 4])


def test_files_outside_the_raw_folder_are_refused(tmp_path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (raw / "link.json").symlink_to(tmp_path / "secret.json")
    for name in ("../secret.json", str(tmp_path / "secret.json"), "link.json"):
        with pytest.raises(ValueError, match="source.file is .* which is outside"):
            import_ids(ITEMS, raw, config(file=name))
    with pytest.raises(ValueError, match="source.file is 'gone.json', which is not in"):
        import_ids(ITEMS, raw, config(file="gone.json"))
    with pytest.raises(ConfigError, match="source.file is not set"):
        import_ids(ITEMS, raw, config(file=None))


def embeddings_of(vectors: np.ndarray) -> Embeddings:
    items = np.array([f"i{number}" for number in range(len(vectors))], object)
    present = np.ones(len(items), bool)
    return Embeddings(items, vectors.astype(np.float32), present, np.full(len(items), "k", object), "s", {"width": 4})


def test_the_gate_inspects_imported_ids_with_vectors_and_without(tmp_path) -> None:
    rng = np.random.default_rng(0)
    cluster = np.arange(200) % 4
    embeddings = embeddings_of(rng.normal(size=(4, 6))[cluster] * 10 + rng.normal(size=(200, 6)))
    index = {item: [int(cluster[n]), n] for n, item in enumerate(embeddings.item_ids)}
    (tmp_path / "shop.index.json").write_text(json.dumps(index))
    ids = import_ids(embeddings.item_ids, tmp_path, config("keep"))
    quality = measure_foreign(ids, config("keep"), embeddings=embeddings)
    assert quality["neighbours"]["by_depth"][0]["overlap"] == 1 and quality["passed"]
    assert quality["reconstruction"] is None and quality["modality"] == "foreign"
    without = measure_foreign(ids, config("keep"))
    assert without["neighbours"] is None and {check["name"] for check in without["checks"]} == {
        "usage", "perplexity", "sharing", "largest",
    }  # fmt: skip
    build.build_tree(ids, build.check_ids(quality))


def test_ids_of_another_numbering_do_not_pass_the_gate(tmp_path) -> None:
    """An item map of another data set: every item has an id, and none its own."""
    rng = np.random.default_rng(0)
    cluster = np.arange(200) % 4
    embeddings = embeddings_of(rng.normal(size=(4, 6))[cluster] * 10 + rng.normal(size=(200, 6)))
    index = {
        item: [int(code), n]
        for n, (item, code) in enumerate(zip(embeddings.item_ids, rng.permutation(cluster), strict=True))
    }
    (tmp_path / "shop.index.json").write_text(json.dumps(index))
    ids = import_ids(embeddings.item_ids, tmp_path, config("keep"))
    with pytest.raises(
        build.QualityGateError,
        match=r"foreign ids did not pass.*\n  neighbours is .*ids of shop.index.json do not change here",
    ):
        build.check_ids(measure_foreign(ids, config("keep"), embeddings=embeddings))


def test_items_without_a_vector_count_for_all_but_the_neighbours(tmp_path) -> None:
    """The half without vectors has equal ids, which the gate must see."""
    rng = np.random.default_rng(0)
    embeddings = embeddings_of(rng.normal(size=(200, 6)))
    embeddings.present[100:] = False
    index = {item: [n % 4 if n < 100 else 5, n if n < 100 else 100] for n, item in enumerate(embeddings.item_ids)}
    (tmp_path / "shop.index.json").write_text(json.dumps(index))
    ids = import_ids(embeddings.item_ids, tmp_path, config("keep"))
    quality = measure_foreign(ids, config("keep"), embeddings=embeddings)
    assert quality["items"] == 200 and quality["collisions"]["before"]["largest"] == 100
    assert quality["neighbours"]["sample"] == 100
    failed = {check["name"] for check in quality["checks"] if not check["passed"]}
    assert "largest" in failed


def test_an_extra_digit_of_large_codes_needs_no_table_of_items_and_codes(tmp_path) -> None:
    """8,192 x 1,048,576 distances would be 32 GiB."""
    items = np.array([f"i{number}" for number in range(9000)], object)
    (tmp_path / "shop.index.json").write_text(json.dumps({item: [n // 2 * 200] for n, item in enumerate(items)}))
    ids = import_ids(items, tmp_path, config("extra_digit", codes=1 << 20))
    assert ids.unique and ids.codes[:, 1].tolist() == [0, 1] * 4500


@pytest.mark.skipif(not BEAUTY.is_dir(), reason="needs ../shared/data/amazon-beauty")
def test_the_published_ids_of_letter_for_beauty() -> None:
    items = np.array(pq.read_table(BEAUTY / "items.parquet")["item_id"].cast("string").to_pylist(), object)
    ids = import_ids(items, BEAUTY, config("keep", file="items.parquet", column="reference_semantic_id", codes=256))
    assert len(ids) == 12_101 and ids.sizes == (256,) * 4 and ids.about["letters"] == "abcd"
    assert measure_foreign(ids, config("keep"))["collisions"]["before"]["distinct"] == 12_088
