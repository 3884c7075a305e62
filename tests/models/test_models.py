"""Contract of all models; a new file under models/ is tested without further code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import SIZES, random_sequences, sequences, train_until, untrained, weighted

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.top_k import tie_order
from recpipe.models.generator import Generator
from recpipe.models.next_item import NextItem
from recpipe.models.recommender import Recommender, Scorer
from recpipe.models.registry import build, model_class, types
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS, WINDOW = 25, 10
DATA = random_sequences(60, ITEMS, longest=16, seed=1)
HISTORIES = random_sequences(16, ITEMS, longest=7, shortest=5, seed=3)  # to be learned by heart
NEURAL = [name for name in types() if not model_class(name).closed_form]
CAUSAL = [name for name in types() if issubclass(model_class(name), NextItem)]
DEEPER = {"dim": 64, "layers": 2, "decoder_layers": 2, "heads": 2, "feed_forward": 256}
BY_HEART = {
    "bert4rec": {"last_share": 1.0},  # masks the last event, as in recommendation
    "setrec": {**DEEPER, "alpha": 0.01},  # the auto-encoder's error is not part of the log-likelihood
    "tiger": DEEPER,
    "liger": {**DEEPER, "widths": (64,)},  # its cosines of 25 projected vectors of width 6 are too close otherwise
    "maskgr": DEEPER,
    "parallel_tiger": DEEPER,
    "mql4grec": DEEPER,
    "rpg": {"dim": 64, "feed_forward": 128, "attention_dropout": 0.0},
}
PRODUCTS = {
    *CAUSAL,
    "bert4rec",
    "ials",
    "lightgcn",
    "mf",
    "nmf",
    "svd",
}  # models whose scores are products of two vectors
TINY = {"dim": 32, "heads": 2, "head_dim": 16, "feed_forward": 64, "layers": 1, "decoder_layers": 1}
# T5's attention, which is not divided by the root of its width, learns slowly
RATES = {"setrec": 1e-3, "tiger": 2e-3, "liger": 2e-3, "maskgr": 3e-3, "parallel_tiger": 3e-3, "mql4grec": 2e-3}


def untrained_model(name: str, **config) -> Recommender:
    """A small model from the registry; a beam is as wide as the catalogue, so that search is exhaustive."""
    cls = model_class(name)
    wide = {"beam": ITEMS} if issubclass(cls, Generator) else {}
    small = SIZES.get(name, TINY) if cls.reads_ids else {}
    return untrained(name, {**small, **wide, **config}, DATA, n_items=ITEMS, max_length=WINDOW)


def build_model(name: str, *, seed: int = 0, **config) -> Recommender:
    """A fitted closed-form model, or a network with random weights."""
    torch.manual_seed(seed)
    model = untrained_model(name, **config)
    if model.closed_form:
        model.fit(DATA)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def scores(model: Recommender, data: Sequences) -> np.ndarray:
    whole = np.full((len(data), ITEMS + 1), -np.inf, np.float32)
    if isinstance(model, Generator):
        items, values = model.recommend(data, ITEMS, exclude_seen=False)
        np.put_along_axis(whole, items, values, 1)
        return whole
    assert isinstance(model, Scorer)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole


@pytest.mark.parametrize("name", types())
def test_recommendations_are_the_best_scores_in_strict_order(name):
    model = build_model(name)
    items, values = model.recommend(DATA, 5, exclude_seen=True)
    expected = scores(model, DATA)
    order = tie_order(ITEMS + 1).numpy()
    for u in range(len(DATA)):
        allowed = [i for i in range(1, ITEMS + 1) if i not in DATA.row(u)]
        best = sorted(allowed, key=lambda i: (-expected[u, i], order[i]))[:5]
        assert items[u].tolist() == best
        np.testing.assert_array_equal(values[u], expected[u, best])


@pytest.mark.parametrize("name", types())
def test_fewer_are_returned_where_fewer_can_be_had_and_none_from_outside(name):
    model = build_model(name)
    seen_all = sequences([list(range(1, ITEMS)), [3]])
    items, values = model.recommend(seen_all, 4, exclude_seen=True)
    assert items[0].tolist() == [ITEMS, 0, 0, 0]
    assert np.isneginf(values[0, 1:]).all()
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[[2, 3, 7]] = True
    items, _ = model.recommend(seen_all, 99, exclude_seen=False, candidates=candidates)
    assert items.shape == (2, ITEMS)
    assert all(set(row) == {0, 2, 3, 7} for row in items.tolist())
    with pytest.raises(ValueError, match="at least one"):
        model.recommend(DATA, 0)


@pytest.mark.parametrize("name", types())
def test_an_empty_history_gets_an_answer(name):
    items, values = build_model(name).recommend(sequences([[], [1, 2]]), 3)
    assert (items[0] > 0).all() and np.isfinite(values[0]).all()


@pytest.mark.parametrize("name", types())
def test_neighbours_in_a_batch_and_padding_do_not_matter(name):
    model = build_model(name)
    together = scores(model, DATA)
    rows = np.arange(len(DATA))
    for u in range(0, len(DATA), 7):
        alone = DATA.select(rows[u : u + 1], np.zeros(1, np.int64), DATA.lengths[u : u + 1])
        np.testing.assert_allclose(scores(model, alone)[0], together[u], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", types())
def test_only_the_window_is_seen(name):
    model = build_model(name)
    np.testing.assert_allclose(scores(model, DATA), scores(model, DATA.last(WINDOW)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", types())
def test_saved_tensors_restore_the_scores(name):
    model = build_model(name)
    other = untrained_model(name).eval()
    other.load_tensors(model.state_dict())
    np.testing.assert_array_equal(scores(model, DATA), scores(other, DATA))


@pytest.mark.parametrize("name", types())
def test_tables_of_items_have_a_row_for_each_and_what_scores_is_among_them(name):
    model = build_model(name)
    tables = model.item_tables()
    for table in tables.values():
        assert table.shape[0] == ITEMS + 1 and table.shape[1] > 0 and torch.isfinite(table).all()
        assert table[1:].any()
    try:
        vectors = model.item_vectors()
    except ValueError:
        return
    torch.testing.assert_close(tables.get("output", tables["input"]), vectors)


@pytest.mark.parametrize("name", [name for name in types() if not issubclass(model_class(name), Generator)])
def test_scores_by_product_are_the_products_of_query_and_output_vectors(name):
    model = build_model(name)
    assert isinstance(model, Scorer)
    assert model.scores_by_product == (name in PRODUCTS)
    if name not in PRODUCTS:
        with pytest.raises(TypeError, match="no product of two vectors"):
            model.output_vectors()
        return
    batch = model.on_device(DATA, window=WINDOW).batch(np.arange(len(DATA)))
    with torch.inference_mode():
        queries, vectors = model.query_vectors(batch).double().numpy(), model.output_vectors().double().numpy()
    assert vectors.shape == (ITEMS + 1, queries.shape[1])
    np.testing.assert_allclose((queries @ vectors.T)[:, 1:], scores(model, DATA)[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("hstu", {"normalise": True, "temperature": 0.1, "tied": False}),
        ("bert4rec", {"norm_first": False, "count_from": "end"}),
        ("mf", {"loss": "bpr"}),
        ("sasrec", {"block": "ligr"}),
    ],
    ids=["hstu", "bert4rec", "mf", "sasrec"],
)
def test_products_hold_for_other_settings(name, config):
    model = build_model(name, **config)
    batch = model.on_device(DATA, window=WINDOW).batch(np.arange(len(DATA)))
    with torch.inference_mode():
        queries, vectors = model.query_vectors(batch).double().numpy(), model.output_vectors().double().numpy()
    np.testing.assert_allclose((queries @ vectors.T)[:, 1:], scores(model, DATA)[:, 1:], rtol=1e-4, atol=1e-4)


def test_lists_that_are_decoded_item_by_item_are_no_products():
    assert not build_model("gpt", generate=2).scores_by_product


@pytest.mark.parametrize("name", types())
def test_same_seed_same_model(name):
    np.testing.assert_array_equal(scores(build_model(name, seed=3), DATA), scores(build_model(name, seed=3), DATA))


@pytest.mark.parametrize("name", NEURAL)
def test_loss_falls_to_little_on_one_batch_and_reaches_every_weight(name):
    torch.manual_seed(0)
    model = untrained_model(name, dropout=0.0, **BY_HEART.get(name, {}))
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(8))
    losses = train_until(model, batch, lambda loss: loss < 0.2, rate=RATES.get(name, 1e-2))
    if not model.reads_ids:  # T5's embeddings do not begin near uniform scores
        assert losses[0] == pytest.approx(np.log(ITEMS), rel=0.1)
    assert losses[-1] < 0.2
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", NEURAL)
def test_users_are_learned_by_heart(name):
    torch.manual_seed(0)
    one_task = {"fusion": 0.0, "alignment": 0.0} if name == "mql4grec" else {}
    model = untrained_model(name, dropout=0.0, **BY_HEART.get(name, {}), **one_task)
    users, lasts = np.arange(len(HISTORIES)), HISTORIES.items[HISTORIES.offsets[1:] - 1]
    histories = HISTORIES.select(users, np.zeros(len(users), np.int64), HISTORIES.lengths - 1)
    batch = model.on_device(HISTORIES, window=WINDOW + 1).batch(users)

    def learned(_loss: float) -> bool:
        best, _ = model.recommend(histories, 1, exclude_seen=False)
        return bool((best[:, 0] == lasts).all())

    train_until(model, batch, learned, rate=RATES.get(name, 5e-3), every=10)
    assert learned(0.0)


def test_what_is_to_be_learned_by_heart_does_not_contradict_itself():
    """No history is a prefix of one with another continuation, which a causal network could not learn."""
    follows = {}
    for user in range(len(HISTORIES)):
        row = HISTORIES.row(user).tolist()
        for length in range(1, len(row)):
            follows.setdefault(tuple(row[:length]), set()).add(row[length])
    histories = [tuple(HISTORIES.row(user)[:-1].tolist()) for user in range(len(HISTORIES))]
    assert all(len(follows[history]) == 1 for history in histories)


WEIGHTED = {
    **{name: (name, {}) for name in NEURAL},
    "bert4rec": ("bert4rec", {"last_share": 1.0}),
    "setrec": ("setrec", {"alpha": 0.0}),
    "setrec by prefixes": ("setrec", {"alpha": 0.0, "one_pass": False}),
    "mql4grec": ("mql4grec", {"alignment": 0.0}),
    "maskgr": ("maskgr", {"least_masked": 3}),  # all codes of an id: others are drawn
    "tiger of children": ("tiger", {"softmax": "children", "renormalise": True}),
    "tiger of last targets": ("tiger", {"one_pass": False}),
    "parallel_tiger of items": ("parallel_tiger", {"softmax": "items"}),
    "rpg of items": ("rpg", {"softmax": "items"}),
}


@pytest.mark.parametrize("case", WEIGHTED)
def test_the_loss_has_the_weights_of_the_targets(case):
    """Weights of last events only leave the loss of these, which is also that of batches with no other target."""
    name, config = WEIGHTED[case]
    torch.manual_seed(0)
    model = untrained_model(name, dropout=0.0, **config)
    model.uses_weights = True
    users, weights = np.arange(8), np.zeros(len(DATA.items), np.float32)
    weights[DATA.offsets[1:] - 1] = 1 + np.arange(len(DATA)) % 3
    batch = model.on_device(replace(DATA, weights=weights), window=WINDOW + 1).batch(users)
    count = len(users) if "last" in case or name == "bert4rec" else batch.n_targets
    singles = [model.on_device(DATA, window=WINDOW + 1).batch(users[u : u + 1]) for u in users]
    terms = [model.loss(replace(row, context=row.lengths - 1), FullSoftmax()) for row in singles]
    expected = sum((1 + u % 3) * term for u, term in enumerate(terms)) / count
    torch.testing.assert_close(model.loss(batch, FullSoftmax()), expected, rtol=1e-4, atol=1e-5)


def test_only_content_knn_does_not_use_weights():
    assert [name for name in types() if not model_class(name).takes_weights] == ["content_knn"]


@pytest.mark.parametrize("name", [name for name in types() if name not in NEURAL and name != "content_knn"])
def test_equal_weights_of_one_change_nothing_and_others_something(name):
    config = {"epochs": 2} if name in ("mf", "lightgcn") else {}
    result = {}
    for kind, weights in (("none", None), ("ones", np.ones(len(DATA.items))), ("others", weighted(DATA).weights)):
        torch.manual_seed(0)
        model = untrained_model(name, **config)
        model.uses_weights = weights is not None
        data = replace(DATA, weights=None if weights is None else weights.astype(np.float32))
        model.fit(data)
        result[kind] = scores(model, data)
    np.testing.assert_array_equal(result["ones"], result["none"])
    assert not np.allclose(result["others"], result["none"])


@pytest.mark.parametrize("name", ["popular", "svd", "mf", "lightgcn", "ials"])
def test_the_scale_of_weights_does_not_order_items_otherwise(name):
    config, lists = {"epochs": 2} if name in ("mf", "lightgcn") else {}, []
    for scale in (1, 64):
        torch.manual_seed(0)
        model, data = untrained_model(name, **config), weighted(DATA)
        data = replace(data, weights=scale * data.weights)
        model.uses_weights = True
        model.fit(data)
        lists.append(model.recommend(data, 5)[0])
    assert (lists[0] == lists[1]).mean() > 0.99  # but for rounding


@pytest.mark.parametrize("case", WEIGHTED)
def test_the_loss_is_of_target_events_only(case):
    """Where only last events may be targets, the loss is that of batches with no other target."""
    name, config = WEIGHTED[case]
    torch.manual_seed(0)
    model = untrained_model(name, dropout=0.0, **config)
    is_target = np.zeros(len(DATA.items), bool)
    is_target[DATA.offsets[1:] - 1] = True
    batch = model.on_device(replace(DATA, is_target=is_target), window=WINDOW + 1).batch(np.arange(8))
    singles = [model.on_device(DATA, window=WINDOW + 1).batch(np.array([u])) for u in range(8)]
    terms = [model.loss(replace(row, context=row.lengths - 1), FullSoftmax()) for row in singles]
    assert batch.n_targets == 8
    torch.testing.assert_close(model.loss(batch, FullSoftmax()), sum(terms) / 8, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NEURAL)
def test_nan_weights_are_refused(name):
    model = build_model(name)
    with torch.no_grad():
        next(model.parameters())[1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model.recommend(sequences([[1, 2, 3]]), 3)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_does_not_reach_the_past(name):
    model = build_model(name)
    batch = torch.randint(1, ITEMS + 1, (4, WINDOW), generator=torch.Generator().manual_seed(0))
    changed = batch.clone()
    changed[:, 6:] = changed[:, 6:] % ITEMS + 1
    before, after = (*(model.hidden(Batch(items, torch.full((4,), WINDOW), None)) for items in (batch, changed)),)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax((1, 2)).min() > 1e-3


def test_unknown_types_and_settings_are_named():
    with pytest.raises(ValueError, match="did you mean 'sasrec'"):
        build("sasrek", {}, n_items=3, max_length=3)
    with pytest.raises(ValueError, match=r"unknown setting 'sasrec.drop_out' \(did you mean 'dropout'\?\)"):
        build("sasrec", {"drop_out": 0.1}, n_items=3, max_length=3)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        build("sasrec", {"dim": 10, "heads": 3}, n_items=3, max_length=3)
