"""Ids for a catalogue and for items that come later: what is given stays given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from recpipe.content.embeddings import Embeddings
from recpipe.semantic_ids import quantizer as quantizers
from recpipe.semantic_ids.assign import assign, reuse_obstacle
from recpipe.semantic_ids.collisions import POLICIES
from recpipe.semantic_ids.ids import SemanticIds

TYPE = "residual_kmeans"
SETTINGS = {"levels": 3, "codes": 16, "steps": 1, "iterations": 5}


def catalogue(n: int, *, absent: tuple[int, ...] = (), space: str = "a" * 64, width: int = 8) -> Embeddings:
    """n items around a few centres, so that codes collide; the first m of any two catalogues are equal."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, width))
    x = np.array([centres[i % 60] + 0.05 * rng.normal(size=width) for i in range(n)], np.float32)
    present = ~np.isin(np.arange(n), absent)
    x[~present] = 0
    keys = np.array([f"key {i}" if there else "" for i, there in enumerate(present)], object)
    return Embeddings(np.array([f"i{i}" for i in range(n)], object), x, present, keys, space, {"modality": "text"})


def fitted(embeddings: Embeddings, **changed) -> quantizers.Quantizer:
    quantizer = quantizers.build_quantizer(TYPE, {**SETTINGS, **changed})
    quantizer.fit(embeddings.vectors[embeddings.present], seed=3)
    quantizer.about = {"space": embeddings.space, "embeddings": embeddings.hash, "seed": 3, "modality": "text"}
    return quantizer


@pytest.fixture(scope="module")
def quantizer() -> quantizers.Quantizer:
    return fitted(catalogue(1000))


def extends(newer: SemanticIds, older: SemanticIds) -> bool:
    """Whether every item of ``older`` has the same codes in ``newer``."""
    rows = newer.rows(older.item_ids)
    return newer.sizes == older.sizes and (rows >= 0).all() and (newer.codes[rows] == older.codes).all()


def select(embeddings: Embeddings, rows: np.ndarray) -> Embeddings:
    fields = {name: getattr(embeddings, name)[rows] for name in ("item_ids", "vectors", "present", "keys")}
    return dataclasses.replace(embeddings, **fields)


def rewritten(embeddings: Embeddings, row: int) -> Embeddings:
    """One item with the vector of another and a new key."""
    vectors, keys = embeddings.vectors.copy(), embeddings.keys.copy()
    vectors[row], keys[row] = vectors[row + 1], "new content"
    return dataclasses.replace(embeddings, vectors=vectors, keys=keys)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_hundred_new_items_leave_a_thousand_ids_as_they_are(quantizer, policy):
    before, after = catalogue(1000), catalogue(1200)
    older = assign(before, quantizer, policy=policy)
    newer = assign(after, quantizer, policy=policy, earlier=older)
    assert older.about["counts"]["colliding"] > 100
    assert extends(newer, older)
    assert newer.sizes == older.sizes == ((16, 16, 16, 256) if policy == "extra_digit" else (16, 16, 16))
    assert newer.item_ids[:1000].tolist() == older.item_ids.tolist()
    assert (newer.quantized == quantizer.encode(after.vectors)).all()
    assert newer.added.tolist() == [False] * 1000 + [True] * 200
    assert newer.about["counts"]["new"] == 200
    if policy in ("extra_digit", "reallocate"):
        assert older.unique
        assert newer.unique
    if policy == "keep":
        assert (newer.codes == newer.quantized).all()


@pytest.mark.parametrize("policy", ["extra_digit", "reallocate"])
@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_arrivals_departures_and_changes_keeps_every_id(quantizer, policy, seed):
    rng, whole = np.random.default_rng(seed), catalogue(400)
    ids = None
    for _ in range(6):
        part = select(whole, rng.permutation(400)[: rng.integers(1, 300)])
        newer = assign(part, quantizer, policy=policy, earlier=ids)
        assert newer.unique
        assert set(newer.item_ids) == set(part.item_ids) | set([] if ids is None else ids.item_ids)
        assert ids is None or extends(newer, ids)
        ids, whole = newer, rewritten(whole, int(rng.integers(399)))


def test_nothing_new_gives_equal_ids(quantizer, tmp_path):
    older = assign(catalogue(300), quantizer)
    older.write(tmp_path / "ids.parquet")
    again = assign(catalogue(300), quantizer, earlier=SemanticIds.read(tmp_path / "ids.parquet"))
    assert again.hash == older.hash
    assert again.about["counts"]["new"] == 0


def test_a_saved_and_loaded_quantizer_extends_ids(quantizer, tmp_path):
    older = assign(catalogue(300), quantizer, policy="reallocate")
    quantizers.save_quantizer(quantizer, tmp_path)
    newer = assign(catalogue(310), quantizers.load_quantizer(tmp_path), policy="reallocate", earlier=older)
    assert extends(newer, older)
    assert len(newer) == 310


def test_an_item_with_other_content_keeps_its_id_and_is_counted(quantizer):
    before = catalogue(300)
    older = assign(before, quantizer)
    after = rewritten(before, 7)
    newer = assign(after, quantizer, earlier=older)
    assert (newer.codes == older.codes).all()
    assert newer.about["counts"]["changed"] == 1
    assert newer.keys[7] == "key 7"  # what the codes were made from: it is counted until ids are given anew
    assert newer.about["embeddings"] == after.hash != older.about["embeddings"]


def test_items_without_content_get_no_id_until_they_have_some(quantizer):
    older = assign(catalogue(50, absent=(0, 9)), quantizer)
    assert len(older) == 48
    assert older.rows(["i0", "i9", "i1"]).tolist() == [-1, -1, 0]
    assert older.about["counts"]["without_content"] == 2
    newer = assign(catalogue(50, absent=(0, 30)), quantizer, earlier=older)
    assert newer.item_ids[48:].tolist() == ["i9"]
    assert newer.rows(["i30"]).tolist() == older.rows(["i30"]).tolist()  # lost its content, not its id
    assert newer.about["counts"]["without_content"] == 1


def test_items_that_left_the_catalogue_keep_their_rows(quantizer):
    older = assign(catalogue(100), quantizer)
    newer = assign(select(catalogue(110), np.arange(60, 110)), quantizer, earlier=older)
    assert extends(newer, older)
    assert len(newer) == 110
    assert newer.about["counts"]["gone"] == 60


def test_no_content_at_all_leaves_the_earlier_ids(quantizer):
    older = assign(catalogue(100), quantizer)
    nothing = catalogue(20, absent=tuple(range(20)), width=0)
    assert assign(nothing, quantizer, earlier=older).hash == older.hash
    assert len(assign(nothing, quantizer)) == 0


def test_a_full_extra_digit_is_refused_with_numbers(quantizer):
    most = int(assign(catalogue(1000), quantizer).codes[:, -1].max()) + 1
    older = assign(catalogue(1000), quantizer, extra_codes=most)
    with pytest.raises(ValueError, match=rf"{most + 1} items share the codes .* has {most} values; raise"):
        crowd = select(catalogue(1000), np.flatnonzero(older.codes[:, -1] == most - 1)[:1])
        crowd = dataclasses.replace(crowd, item_ids=np.array(["late"], object))
        assign(crowd, quantizer, extra_codes=most, earlier=older)


def test_more_items_than_ids_are_refused_when_extending():
    small = fitted(catalogue(60), levels=2, codes=8)
    older = assign(catalogue(60), small, policy="reallocate")
    assert assign(catalogue(64), small, policy="reallocate", earlier=older).unique
    with pytest.raises(ValueError, match=r"65 items do not fit into 64 ids \(8x8\)"):
        assign(catalogue(65), small, policy="reallocate", earlier=older)


def test_embeddings_of_another_space_are_refused_with_both_fingerprints(quantizer):
    with pytest.raises(ValueError, match=rf"stale.*{'a' * 64}.*{'b' * 64}.*--params semantic_ids.refit=true"):
        assign(catalogue(10, space="b" * 64), quantizer)


@pytest.mark.parametrize(
    ("how", "what"),
    [({"levels": 2}, "quantizer"), ({"policy": "keep"}, "policy"), ({"extra_codes": 512}, "sizes")],
    ids=["another quantizer", "another policy", "more extra codes"],
)
def test_ids_given_otherwise_cannot_be_extended(quantizer, how, what):
    older = assign(catalogue(100), quantizer)
    if "levels" in how:
        quantizer, how = fitted(catalogue(1000), **how), {}
    with pytest.raises(ValueError, match=rf"cannot be extended: their {what} is .*refit=true"):
        assign(catalogue(110), quantizer, earlier=older, **how)


def test_a_quantizer_is_reused_for_the_same_settings_seed_and_space_only(quantizer):
    here, other = catalogue(1000), catalogue(10, space="b" * 64)
    assert reuse_obstacle(quantizer, here, TYPE, SETTINGS, seed=3) is None
    assert reuse_obstacle(quantizer, catalogue(1200), TYPE, SETTINGS, seed=3) is None  # new items do not matter
    changed = reuse_obstacle(quantizer, here, TYPE, {**SETTINGS, "codes": [16, 16, 16]}, seed=3)
    assert changed == "other settings: codes is [16, 16, 16], was 16"
    assert reuse_obstacle(quantizer, here, TYPE, SETTINGS, seed=4) == "seed is 4, was 3"
    assert "space is bbbbbbbbbbbb" in reuse_obstacle(quantizer, other, TYPE, SETTINGS, seed=3)
    assert "type is pq" in reuse_obstacle(quantizer, here, "pq", SETTINGS, seed=3)


MINILM = {"source": "minilm", "prefix": "", "precision": "fp32"}


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (MINILM, {**MINILM, "source": "e5", "prefix": "q:"}, "source is e5, was minilm; prefix is q:, was "),
        ("siglip", "siglip2", "source is siglip2, was siglip"),
        (MINILM, {**MINILM, "precision": "bf16"}, None),  # precision is not part of a space: other weights it is
        (None, MINILM, None),
        (MINILM, None, None),
    ],
    ids=["text", "image", "only precision", "not known then", "not known now"],
)
def test_another_space_is_told_in_words_where_both_are_described(before, now, message):
    quantizer = fitted(catalogue(100))
    quantizer.about |= {"encoder": before}
    other = dataclasses.replace(catalogue(10, space="b" * 64), about={"encoder": now})
    obstacle = reuse_obstacle(quantizer, other, TYPE, SETTINGS, seed=3)
    if message is None:
        assert obstacle == "the embeddings' space is bbbbbbbbbbbb, the quantizer was fitted in aaaaaaaaaaaa"
    else:
        assert obstacle == f"the encoder or its settings differ: {message}"


def test_another_template_is_told():
    quantizer = fitted(catalogue(100))
    quantizer.about |= {"encoder": MINILM, "template": "{title}"}
    about = {"encoder": MINILM, "template": "{title} {brand}"}
    other = dataclasses.replace(catalogue(10, space="b" * 64), about=about)
    assert reuse_obstacle(quantizer, other, TYPE, SETTINGS, seed=3).endswith(
        "differ: template is {title} {brand}, was {title}"
    )
