"""Semantic ids step by step without Kedro: fitted, reused, lent, judged, and the tree of what passed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recpipe.config import ConfigError, DataPaths
from recpipe.config.schema import Category, SemanticIdsConfig
from recpipe.content.embeddings import Embeddings, text_space
from recpipe.data.protocol import Protocol
from recpipe.semantic_ids import build
from recpipe.semantic_ids.assign import alignment_targets
from recpipe.semantic_ids.build import EarlierResults, QualityGateError, UnreadableError
from recpipe.semantic_ids.quantizer import save_quantizer

CONFIG = SemanticIdsConfig(
    kind="text",
    quantizer="residual_kmeans",
    collisions="extra_digit",
    extra_codes=64,
    seed=1,
    refit=False,
    gate={"neighbours": None},
    quantizers={
        "residual_kmeans": {"type": "residual_kmeans", "levels": 2, "codes": 16},
        "pq": {"type": "pq", "levels": 2, "codes": 16},
    },
)
TEMPLATE = "{title}"
PROTOCOL = Protocol.from_dict({
    "dataset": "shop", "fingerprint": "x", "steps": [], "split": "leave_one_out", "valid": 0.1, "test": 0.1,
    "targets": "next", "ties": "source", "seed": 1, "held_out_items": 0.0, "history": 50, "exclude_seen": False,
    "candidates": "full", "time": "none", "cutoffs": [10],
})  # fmt: skip


def changed(**fields) -> SemanticIdsConfig:
    return CONFIG.model_copy(update=fields)


def catalogue(count: int, template: str = TEMPLATE, encoder: str = "minilm", seed: int = 0) -> Embeddings:
    """Every fifth item has no content."""
    rng = np.random.default_rng(seed)
    items = np.array([f"i{number}" for number in range(count)], object)
    present = np.arange(count) % 5 > 0
    keys = np.where(present, "k", "").astype(object)
    vectors = rng.normal(size=(count, 6)).astype(np.float32) * present[:, None]
    about = {"template": template, "fingerprint": encoder}
    return Embeddings(items, vectors, present, keys, text_space(encoder, template), about)


@pytest.fixture
def embeddings() -> Embeddings:
    return catalogue(300)


@pytest.fixture
def folder(tmp_path, embeddings) -> Path:
    """Where an earlier run left its quantizer and ids."""
    return earlier_run(tmp_path / "text_ids", embeddings)


def earlier_run(folder: Path, embeddings: Embeddings, others: dict[str, Path] | None = None) -> Path:
    (folder / "quantizer").mkdir(parents=True)
    earlier = EarlierResults(joint_paths=others or {})
    quantizer = build.fit_quantizer(embeddings, earlier, CONFIG)
    save_quantizer(quantizer, folder / "quantizer")
    build.assign_ids(embeddings, quantizer, earlier, CONFIG).write(folder / "semantic_ids.parquet")
    return folder


def write(path: Path, embeddings: Embeddings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    embeddings.write(path)
    return path


def items_of(embeddings: Embeddings) -> pa.Table:
    """In another order than the embeddings, without the last item."""
    ids = embeddings.item_ids[:-1][::-1].tolist()
    kinds = [["things", f"kind {int(item[1:]) % 3}"] for item in ids]
    return pa.table({"item_id": ids, "title": [f"title of {item}" for item in ids], "kinds": kinds})


def test_from_vectors_to_the_tree(embeddings) -> None:
    epochs: list = []
    quantizer = build.fit_quantizer(embeddings, EarlierResults(), CONFIG, on_epoch=epochs.append)
    ids = build.assign_ids(embeddings, quantizer, EarlierResults(), CONFIG)
    assert len(ids) == embeddings.present.sum() == 240
    quality = build.measure_ids(embeddings, quantizer, ids, items_of(embeddings), CONFIG)
    assert (quality["modality"], quality["ids"], quality["items"]) == ("text", ids.hash, 240)
    assert quality["quantizer"]["name"] == "residual_kmeans" and quality["without_content"] == 60
    assert quality["passed"] and quality["purity"] is None
    gate = build.check_ids(quality)
    tree = build.build_tree(ids, gate)
    assert tree.source == ids.hash
    with pytest.raises(ValueError, match="passed other ids than those on disk"):
        build.build_tree(ids, {**gate, "ids": "others"})


def test_categories_stand_beside_their_ids_in_whatever_order_items_are(embeddings) -> None:
    quantizer = build.fit_quantizer(embeddings, EarlierResults(), CONFIG)
    ids = build.assign_ids(embeddings, quantizer, EarlierResults(), CONFIG)
    items, category = items_of(embeddings), Category(column="kinds")
    categories = build.categories_of(ids, items, category)
    assert categories == [None if item == "i299" else f"kind {int(item[1:]) % 3}" for item in ids.item_ids.tolist()]
    assert build.column_of(ids, items, "title").to_pylist()[:2] == ["title of i1", "title of i2"]
    quality = build.measure_ids(embeddings, quantizer, ids, items, CONFIG, category=category)
    assert quality["purity"]["items"] == 239
    with pytest.raises(ValueError, match="column is 'sort'; items have item_id, title, kinds"):
        build.measure_ids(embeddings, quantizer, ids, items, CONFIG, category=Category(column="sort"))


def test_the_gate_says_what_failed_and_where_the_figures_are(embeddings) -> None:
    config = changed(gate={"sharing": 0.0, "neighbours": None})
    quantizer = build.fit_quantizer(embeddings, EarlierResults(), config)
    ids = build.assign_ids(embeddings, quantizer, EarlierResults(), config)
    quality = build.measure_ids(embeddings, quantizer, ids, items_of(embeddings), config)
    with pytest.raises(QualityGateError, match=r"the text ids did not pass.*\n  sharing is .*\n.*08_reporting/shop"):
        build.check_ids(quality, "shop")
    with pytest.raises(ConfigError, match="sharin"):
        build.measure_ids(embeddings, quantizer, ids, items_of(embeddings), changed(gate={"sharin": 0.5}))


def test_a_quantizer_and_ids_of_an_earlier_run_are_reused(folder, embeddings) -> None:
    earlier = EarlierResults(folder)
    quantizer = build.fit_quantizer(embeddings, earlier, CONFIG)
    assert quantizer is earlier.quantizer
    larger = catalogue(310)  # its first 300 items have other vectors
    larger.vectors[:300] = embeddings.vectors
    ids = build.assign_ids(larger, quantizer, earlier, CONFIG)
    before = earlier.ids
    assert before is not None and len(ids) == 248
    np.testing.assert_array_equal(ids.codes[: len(before)], before.codes)
    assert ids.added.sum() == 8


@pytest.mark.parametrize("fields", [{"seed": 2}, {"quantizer": "pq"}, {"refit": True}])
def test_a_quantizer_of_other_settings_is_fitted_anew(folder, embeddings, fields, caplog) -> None:
    earlier, config = EarlierResults(folder), changed(**fields)
    with caplog.at_level(logging.WARNING, logger="recpipe.semantic_ids"):
        quantizer = build.fit_quantizer(embeddings, earlier, config)
        assert quantizer is not earlier.quantizer
        assert "anew, all ids may change" in caplog.text
        build.assign_ids(embeddings, quantizer, earlier, config)
    assert "all 240 ids are assigned anew" in caplog.text


def test_ids_of_another_policy_are_given_anew(folder, embeddings, caplog) -> None:
    earlier, config = EarlierResults(folder), changed(collisions="keep")
    ids = build.assign_ids(embeddings, build.fit_quantizer(embeddings, earlier, config), earlier, config)
    assert len(ids.sizes) == 2 and "collisions is keep, was extra_digit" in caplog.text


@pytest.mark.parametrize("file", ["quantizer/model.safetensors", "semantic_ids.parquet"])
def test_damaged_earlier_files_stop_the_run_unless_all_is_made_anew(folder, embeddings, file) -> None:
    (folder / file).write_bytes(b"PAR1")
    refit = changed(refit=True)

    def ids(config: SemanticIdsConfig):
        earlier = EarlierResults(folder, refit=config.refit)
        return build.assign_ids(embeddings, build.fit_quantizer(embeddings, earlier, config), earlier, config)

    with pytest.raises(UnreadableError, match=r"cannot be read .*Restore a copy.*semantic_ids.refit=true"):
        ids(CONFIG)
    assert len(ids(refit)) == 240


def test_nothing_is_read_before_it_is_asked_for(tmp_path) -> None:
    earlier = EarlierResults(tmp_path / "none", False, "lender", tmp_path / "no", {"e": tmp_path / "e.parquet"})
    assert (earlier.quantizer, earlier.ids, earlier.source_quantizer) == (None, None, None)
    with pytest.raises(ValueError, match=r"e has no e.parquet; run `kedro run --pipelines=ingest,embed"):
        _ = earlier.joint_embeddings


def test_a_quantizer_of_two_data_sets_is_that_of_all_their_vectors(tmp_path) -> None:
    shop, other = catalogue(200), catalogue(100, "{title}. {brand}", seed=1)
    others = {"e": write(tmp_path / "e" / "text_embeddings.parquet", other)}
    alone = build.fit_quantizer(shop, EarlierResults(), CONFIG)
    joint = build.fit_quantizer(shop, EarlierResults(joint_paths=others), CONFIG)
    everything = np.concatenate([shop.vectors[shop.present], other.vectors[other.present]])
    items, keys = np.arange(240).astype(str).astype(object), np.array(["k"] * 240, object)
    whole = Embeddings(items, everything, np.ones(240, bool), keys, shop.space, shop.about)
    assert joint.hash == build.fit_quantizer(whole, EarlierResults(), CONFIG).hash != alone.hash
    together = earlier_run(tmp_path / "together", shop, others)
    for named in ({}, others):  # a run that does not name the other, or names it again
        earlier = EarlierResults(together, joint_paths=named)
        assert build.fit_quantizer(shop, earlier, CONFIG) is earlier.quantizer
    apart = EarlierResults(earlier_run(tmp_path / "apart", shop), joint_paths=others)
    assert build.fit_quantizer(shop, apart, CONFIG).hash == joint.hash
    lent = build.fit_quantizer(other, EarlierResults(source_dataset="d", source_folder=together), CONFIG)
    assert lent.hash == joint.hash and lent.about["lent_by"] == "d"
    foreign = {"f": write(tmp_path / "f" / "text_embeddings.parquet", catalogue(50, TEMPLATE, "e5"))}
    with pytest.raises(ValueError, match="quantizer_with=f: its vectors are not of one encoder with these"):
        build.fit_quantizer(shop, EarlierResults(joint_paths=foreign), CONFIG)
    with pytest.raises(ValueError, match="set one of them"):
        build.fit_quantizer(
            shop, EarlierResults(source_dataset="d", source_folder=together, joint_paths=others), CONFIG
        )


def test_a_source_quantizer_is_used_as_it_is_and_only_for_vectors_of_its_encoder(tmp_path) -> None:
    lender = catalogue(300, "{title}. {brand}")
    lent = EarlierResults(source_dataset="lender", source_folder=earlier_run(tmp_path / "lender", lender))
    other = replace(lender, vectors=lender.vectors.copy())
    other.vectors[other.present] = lender.vectors[lender.present][::-1]
    assert build.fit_quantizer(other, lent, CONFIG).hash == lent.source_quantizer.hash
    about = {**lender.about, "template": TEMPLATE}
    elsewhere = replace(other, space=text_space("minilm", TEMPLATE), about=about)
    moved = build.fit_quantizer(elsewhere, lent, CONFIG)
    assert moved.hash == lent.source_quantizer.hash
    assert lent.source_quantizer.about["space"] == lender.space  # the original does not change
    ids = build.assign_ids(elsewhere, moved, lent, CONFIG)
    assert len(ids) == 240
    quality = build.measure_ids(elsewhere, moved, ids, items_of(elsewhere), CONFIG)
    assert quality["quantizer"]["lent_by"] == "lender"
    (tmp_path / "shop" / "quantizer").mkdir(parents=True)
    save_quantizer(moved, tmp_path / "shop" / "quantizer")
    again = EarlierResults(tmp_path / "shop")
    assert build.fit_quantizer(elsewhere, again, CONFIG) is again.quantizer  # a run without a lender keeps it
    weights = {**elsewhere.about, "fingerprint": "of other weights"}
    for unlike in (
        replace(elsewhere, about=weights),
        replace(elsewhere, about={"template": TEMPLATE}),
        replace(lender, space="elsewhere"),
    ):
        with pytest.raises(ValueError, match="quantizer_from=lender: .*both need vectors of one encoder"):
            build.fit_quantizer(unlike, lent, CONFIG)
    nothing = EarlierResults(source_dataset="lender", source_folder=tmp_path / "nothing")
    with pytest.raises(ValueError, match="quantizer_from=lender: it has no quantizer"):
        build.fit_quantizer(lender, nothing, CONFIG)


def named(folder: Path, **fields) -> EarlierResults:
    return EarlierResults.of(DataPaths(folder, folder / "raw", "shop"), changed(kind="text_parts", **fields))


def test_what_can_be_reused_lies_in_the_data_folder(tmp_path) -> None:
    earlier = named(tmp_path)
    assert earlier.folder == tmp_path / "05_model_input" / "shop" / "semantic_ids" / "text_parts_ids"
    assert (earlier.source_dataset, earlier.source_folder, dict(earlier.joint_paths)) == (None, None, {})
    lent = named(tmp_path, quantizer_from="ml-1m")
    assert lent.source_dataset == "ml-1m"
    assert lent.source_folder == tmp_path / "05_model_input" / "ml-1m" / "semantic_ids" / "text_parts_ids"
    vectors = catalogue(5)
    write(tmp_path / "04_feature" / "ml-1m" / "text_embeddings.parquet", vectors)
    assert named(tmp_path, quantizer_with="ml-1m").joint_embeddings["ml-1m"].hash == vectors.hash
    with pytest.raises(ValueError, match="steam has no text_embeddings.parquet; run `kedro run"):
        _ = named(tmp_path, quantizer_with="ml-1m+steam").joint_embeddings


@pytest.mark.parametrize("name", ["..", "../ml-1m", "ml-1m+", "/etc"])
@pytest.mark.parametrize("key", ["quantizer_from", "quantizer_with"])
def test_what_is_no_name_of_a_data_set_is_refused(tmp_path, key, name) -> None:
    with pytest.raises(ValueError, match="is no name of a data set"):
        named(tmp_path, **{key: name})


def test_a_data_set_is_not_fitted_together_with_itself_or_lent_by_two(tmp_path) -> None:
    with pytest.raises(ValueError, match="quantizer_with=shop is the data set itself"):
        named(tmp_path, quantizer_with="ml-1m+shop")
    with pytest.raises(ValueError, match=r"quantizer_from=a\+b: name one data set"):
        named(tmp_path, quantizer_from="a+b")


def alike(share: float, groups: int) -> Embeddings:
    """A catalogue in which a share of the items with content have the vector of one of ``groups`` items."""
    whole = catalogue(1000)
    rows = np.flatnonzero(whole.present)
    same = rows[: round(share * len(rows))]
    vectors = whole.vectors.copy()
    vectors[same] = vectors[same[np.arange(len(same)) % groups]]
    return replace(whole, vectors=vectors)


def test_items_with_the_same_text_are_counted_before_a_quantizer_is_fitted(caplog) -> None:
    build.fit_quantizer(alike(0.5, groups=100), EarlierResults(), CONFIG)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "400 of 800 items have the same text as others, the largest group is 4 such as 'i" in warning
    assert "add columns to content.text.template" in warning and "extra_digit" in warning
    caplog.clear()
    build.fit_quantizer(catalogue(1000), EarlierResults(), changed(kind="image"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("vectors", "config", "message"),
    [
        (alike(0.95, groups=300), CONFIG, "760 of 800 items .*semantic_ids.gate.sharing"),
        (
            alike(0.2, groups=1),
            changed(collisions="keep"),
            "the largest group is 160 such as .*semantic_ids.gate.largest",
        ),
        (alike(0.09, groups=1), CONFIG, "raise semantic_ids.extra_codes .64."),
    ],
    ids=["sharing", "largest", "extra digit"],
)
def test_ids_that_the_gate_would_refuse_for_equal_texts_are_refused_before_the_fit(
    vectors, config, message, monkeypatch
) -> None:
    monkeypatch.setattr(build, "build_quantizer", lambda *_: pytest.fail("fitted"))
    with pytest.raises(ValueError, match=message):
        build.fit_quantizer(vectors, EarlierResults(), config)


def test_equal_texts_are_no_error_where_the_gate_allows_them() -> None:
    config = changed(gate={"neighbours": None, "largest": None, "sharing": None}, extra_codes=1024)
    build.fit_quantizer(alike(0.95, groups=1), EarlierResults(), config)


@pytest.mark.parametrize(
    ("kind", "vectors"),
    [("text", "text"), ("image", "image"), ("text_image", "text_image"), ("text_collaborative", "text")],
)
def test_kinds_of_other_data_sets_have_the_same_vectors(tmp_path, kind, vectors) -> None:
    earlier = EarlierResults.of(DataPaths(tmp_path, tmp_path, "shop"), changed(kind=kind, quantizer_with="ml-1m"))
    assert earlier.joint_paths["ml-1m"].name == f"{vectors}_embeddings.parquet"


def item_vectors(embeddings: Embeddings, split: str = "leave_one_out") -> Embeddings:
    """Item vectors of a model: in another order, without the first items, and of one item that has no text."""
    items = embeddings.item_ids[:2:-1]
    vectors = np.random.default_rng(7).normal(size=(len(items), 4)).astype(np.float32)
    runs = [{"name": "sasrec", "protocol": {**PROTOCOL.to_dict(), "split": split}, "train_on_validation": False}]
    keys = np.full(len(items), "k", object)
    return Embeddings(items, vectors, np.ones(len(items), bool), keys, "s", {"model": "sasrec", "runs": runs})


def test_collaborative_ids_carry_the_training_of_their_item_vectors_and_change_only_with_its_split(embeddings) -> None:
    rqvae = {"type": "rqvae", "levels": 2, "codes": 8, "latent": 4, "widths": [8], "least_steps": 20, "most_steps": 20}
    config = changed(quantizer="rqvae", quantizers={"rqvae": {**rqvae, "collaborative": {"model": "sasrec"}}})
    vectors = item_vectors(embeddings)
    quantizer = build.fit_quantizer(embeddings, EarlierResults(), config, collaborative=vectors)
    ids = build.assign_ids(embeddings, quantizer, EarlierResults(), config)
    assert ids.about["collaborative"] == vectors.about
    quality = build.measure_ids(embeddings, quantizer, ids, items_of(embeddings), config, collaborative=vectors)
    assert quality["collaborative"]["model"] == "sasrec" and len(quality["collaborative"]["by_depth"]) == 2
    earlier = EarlierResults()
    earlier.__dict__["quantizer"] = quantizer
    retrained = replace(vectors, vectors=vectors.vectors + 1)
    assert build.fit_quantizer(embeddings, earlier, config, collaborative=retrained) is quantizer
    other = build.fit_quantizer(embeddings, earlier, config, collaborative=item_vectors(embeddings, "ratio"))
    assert other is not quantizer
    with pytest.raises(ValueError, match="fit got no item vectors"):
        build.fit_quantizer(embeddings, EarlierResults(), config)


def test_item_vectors_lie_beside_their_own_items(embeddings) -> None:
    vectors = item_vectors(embeddings)
    targets = alignment_targets(embeddings, vectors, 260)  # 240 items here, 20 of another data set
    present = embeddings.item_ids[embeddings.present]
    for row, item in enumerate(present):
        place = np.flatnonzero(vectors.item_ids == item)
        assert targets.present[row] == (len(place) == 1)
        expected = vectors.vectors[place[0]] if len(place) else 0
        np.testing.assert_array_equal(targets.vectors[row], expected)
    assert not targets.present[240:].any()
