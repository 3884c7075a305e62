"""Models with new items: known items keep their scores, new ones are scored as in a model trained with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import SIZES, catalogue_ids, random_sequences

from recpipe.config.run_config import ColdUsersConfig
from recpipe.content.embeddings import Embeddings
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.side import SideConfig
from recpipe.models.recommender import Scorer
from recpipe.models.registry import build, model_class
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.add_items import add_items
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.catalogue import extend_model, extended_vocabulary
from recpipe.training.job import ItemInputs, build_side

OLD, NEW = 20, 5
IDS = np.array([f"i{n:02}" for n in range(OLD)] + [f"a{n}" for n in range(NEW)], object)  # new ids sort first
DATA = random_sequences(40, OLD, seed=1, longest=6)
VECTORS = np.random.default_rng(3).normal(2, 3, (OLD + NEW, 6)).astype(np.float32)
CODES = catalogue_ids(OLD + NEW).codes[1:].astype(np.int32)
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
ALONE = {"vectors": "text", "combine": "alone", "items": "colour"}
GENERATORS = {
    "tiger": TINY | {"beam": 30},
    "parallel_tiger": TINY,
    "mql4grec": TINY | {"beam": 30},
    "rpg": SIZES["rpg"],
}
CONTENT = {
    "content_knn": {},
    "sasrec": {"dim": 8, "layers": 1},
    "hstu": {"dim": 8, "layers": 1},
    "bert4rec": {"dim": 8},
}


def item_inputs(n: int = OLD + NEW) -> ItemInputs:
    """Tables of the first ``n`` items, in another order than the vocabulary."""
    order = np.random.default_rng(5).permutation(n)
    columns = {"title": [f"title {i}" for i in order], "colour": [("red", "blue", None)[i % 3] for i in order]}
    vectors = Embeddings(IDS[order], VECTORS[order], np.ones(n, bool), IDS[order], "space")
    ids = SemanticIds(IDS[order], CODES[order], CODES[order], np.zeros(n, bool), (4, 4, 4), {"quantizer": "quantizer"})
    tree = PrefixTree.build(CODES[order], (4, 4, 4), source=ids.hash)
    kinds = {"text": (ids, tree), "image": (ids, tree)}
    return ItemInputs(pa.table({"item_id": IDS[order], **columns}), {"text": vectors}, kinds)


def trained(type_: str, config: dict, **side: str) -> Bundle:
    """A bundle of the first items; weights are random and all items have events."""
    torch.manual_seed(0)
    vocabulary, inputs = Vocabulary(IDS[:OLD]), item_inputs(OLD)
    kinds = ("text", "image") if type_ == "mql4grec" else ("text",)
    ids = {kind: replace(catalogue_ids(OLD + NEW), codes=catalogue_ids(OLD + NEW).codes[: OLD + 1]) for kind in kinds}
    reads_ids = model_class(type_).reads_ids
    model = build(
        type_,
        config,
        n_items=OLD,
        max_length=6,
        side=build_side(SideConfig(**side), DATA, vocabulary, inputs.items, inputs.vectors) if side else None,
        ids=ids if reads_ids else None,
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=OLD).fit(DATA, seed=0)
    events = np.bincount(DATA.items, minlength=OLD + 1)[1:]
    return Bundle(type_, type_, model, vocabulary, [None] * OLD, events, Protocol(dataset="tiny"))


def extended(bundle: Bundle) -> Bundle:
    return add_items(bundle, item_inputs(), stands_for={"run": "tiny/m/seed_1"})


def scores(model: Scorer, data: Sequences) -> np.ndarray:
    found = np.full((len(data), model.n_items + 1), -np.inf, np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        found[rows] = values.numpy()
    return found


@pytest.mark.parametrize("type_", GENERATORS)
def test_generative_models_find_new_items_and_give_known_ones_their_scores_among_themselves(type_: str) -> None:
    bundle = trained(type_, GENERATORS[type_])
    larger = extended(bundle)
    assert larger.vocabulary.ids.tolist() == IDS.tolist()
    known = torch.arange(OLD + NEW + 1) <= OLD
    before = bundle.model.recommend(DATA, 10, exclude_seen=False)
    after = larger.model.recommend(DATA, 10, exclude_seen=False, candidates=known)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(before[1], after[1], rtol=1e-6, atol=1e-6)
    items, _ = larger.model.recommend(DATA, OLD + NEW, exclude_seen=False)
    assert (items > OLD).any(1).all()


@pytest.mark.parametrize("type_", CONTENT)
def test_scores_of_known_items_by_content_are_those_of_before(type_: str) -> None:
    bundle = trained(type_, CONTENT[type_], **({"vectors": "text"} if type_ == "content_knn" else ALONE))
    larger = extended(bundle)
    after = scores(larger.model, DATA)
    np.testing.assert_allclose(after[:, 1 : OLD + 1], scores(bundle.model, DATA)[:, 1:], rtol=1e-6, atol=1e-6)
    assert np.isfinite(after[:, OLD + 1 :]).all() and after[:, OLD + 1 :].std() > 0
    items, _ = larger.model.recommend(DATA, 10, exclude_seen=False)
    assert (items > OLD).any()


def test_a_new_item_with_the_content_of_a_known_one_has_its_scores() -> None:
    bundle, inputs = trained("sasrec", CONTENT["sasrec"], **ALONE), item_inputs()
    vectors, twin = inputs.vectors["text"], 9  # both are red
    table = vectors.vectors.copy()
    table[vectors.rows([IDS[OLD + 1]])] = table[vectors.rows([IDS[twin]])]
    inputs = replace(inputs, vectors={"text": replace(vectors, vectors=table)})
    values = scores(add_items(bundle, inputs, stands_for={}).model, DATA)
    np.testing.assert_allclose(values[:, OLD + 2], values[:, twin + 1], rtol=1e-5)


def test_setrec_scores_new_items_by_content_and_keeps_the_order_of_known_ones() -> None:
    bundle = trained("setrec", {**TINY, "tokens": 2, "widths": (8,)}, vectors="text")
    before, after = (scores(each.model, DATA)[:, 1 : OLD + 1] for each in (bundle, extended(bundle)))
    shift = after - before  # of the probability that new items take
    assert (shift < 0).all()
    np.testing.assert_allclose(shift - shift[:, :1], 0, atol=1e-5)


def test_liger_takes_new_items_as_cold_ones_and_ranks_known_ones_as_before() -> None:
    bundle = trained("liger", TINY | {"beam": 3}, vectors="text")
    bundle.model.set_trained_items(torch.arange(OLD + 1) > 0)
    larger = extended(bundle).model
    assert larger.is_trained.nonzero()[:, 0].tolist() == list(range(1, OLD + 1))
    known = torch.arange(OLD + NEW + 1) <= OLD
    before = bundle.model.recommend(DATA, 3, exclude_seen=False)[0]
    np.testing.assert_array_equal(before, larger.recommend(DATA, 3, exclude_seen=False, candidates=known)[0])
    items, _ = larger.recommend(DATA, 3, exclude_seen=False, candidates=~known)
    assert (items > OLD).all()


def test_the_new_bundle_is_one_on_disk_and_says_what_it_stands_for(tmp_path) -> None:
    larger = extended(trained("tiger", GENERATORS["tiger"]))
    save_bundle(larger, tmp_path)
    loaded = load_bundle(tmp_path)
    assert loaded.training["production"] == {
        "made_by": "add_items", "stands_for": {"run": "tiny/m/seed_1"}, "items_before": OLD, "items": OLD + NEW,
    }  # fmt: skip
    assert loaded.titles[OLD:] == [f"title {n}" for n in range(OLD, OLD + NEW)]
    assert loaded.item_columns["colour"].to_pylist()[OLD:] == [None, "red", "blue", None, "red"]
    assert loaded.train_events[OLD:].tolist() == [0] * NEW
    for one, other in zip(larger.model.recommend(DATA, 5), loaded.model.recommend(DATA, 5), strict=True):
        np.testing.assert_allclose(one, other)
    with pytest.raises(ValueError, match="knows all items"):
        extended(loaded)


@pytest.mark.parametrize(
    ("type_", "config", "command"),
    [("sasrec", {"dim": 8}, "update"), ("svd", {"factors": 2}, "refit"), ("hstu", {"dim": 8, "tied": False}, "update")],
)
def test_models_that_know_items_by_learned_weights_name_the_command_that_helps(type_, config, command) -> None:
    side = ALONE if type_ == "hstu" else {}
    with pytest.raises(ValueError, match=f"--pipeline={command}"):
        extended(trained(type_, config, **side))


def test_items_without_content_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    inputs = item_inputs()
    ids, _ = inputs.ids["text"]
    rows = np.flatnonzero(ids.item_ids != "a2")
    ids = replace(
        ids, **{name: getattr(ids, name)[rows] for name in ("item_ids", "codes", "quantized", "added", "keys")}
    )
    tree = PrefixTree.build(ids.codes, ids.sizes, source=ids.hash)
    bundle = add_items(trained("tiger", GENERATORS["tiger"]), replace(inputs, ids={"text": (ids, tree)}), stands_for={})
    assert bundle.vocabulary.ids[OLD:].tolist() == ["a0", "a1", "a3", "a4"]
    assert "1 new items are left out" in caplog.text


def test_ids_of_another_quantizer_are_refused() -> None:
    inputs = item_inputs()
    ids = replace(inputs.ids["text"][0], about={"quantizer": "other"})
    tree = PrefixTree.build(ids.codes, ids.sizes, source=ids.hash)
    with pytest.raises(ValueError, match="not those that tiger was trained with.*refit"):
        add_items(trained("tiger", GENERATORS["tiger"]), replace(inputs, ids={"text": (ids, tree)}), stands_for={})


def test_vectors_of_another_encoder_are_refused() -> None:
    inputs = item_inputs()
    other = replace(inputs.vectors["text"], vectors=inputs.vectors["text"].vectors[::-1].copy())
    with pytest.raises(ValueError, match="other content than content_knn"):
        bundle = trained("content_knn", {}, vectors="text")
        add_items(bundle, replace(inputs, vectors={"text": other}), stands_for={})


@pytest.mark.parametrize(("type_", "extra"), [("sasrec", 0), ("bert4rec", 1)])
def test_learned_rows_of_known_items_and_symbols_stay_and_new_ones_begin_near_the_mean(type_: str, extra: int) -> None:
    bundle = trained(type_, {"dim": 8})
    bundle.train_events[3] = 0
    vocabulary = extended_vocabulary(bundle.vocabulary, ["i03", "a1", "a0", "a1"])
    assert vocabulary.ids[OLD:].tolist() == ["a0", "a1"]
    model = extend_model(bundle, vocabulary, item_inputs(), accelerate=False)
    old, new = bundle.model.items.weight.detach(), model.items.weight.detach()
    assert torch.equal(new[: OLD + 1], old[: OLD + 1]) and torch.equal(new[OLD + 3 :], old[OLD + 1 :])
    assert len(new) == OLD + 3 + extra
    mean = old[1 : OLD + 1][bundle.train_events > 0].mean(0)
    assert (new[OLD + 1 : OLD + 3] - mean).abs().max() < (1.5 if type_ == "bert4rec" else 0.1)
    assert not torch.equal(new[OLD + 1], new[OLD + 2])
    np.testing.assert_allclose(scores(model, DATA)[:, 1 : OLD + 1], scores(bundle.model, DATA)[:, 1:], rtol=1e-5)
