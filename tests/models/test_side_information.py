"""Contract of all networks that read side information."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import FULL, VECTORS, described, random_sequences, side_of, train_until

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.layers.side import Side
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build, model_class, types
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS, WINDOW = 25, 10
DATA = described(random_sequences(60, ITEMS, longest=16, seed=1))
NETWORKS = [
    name
    for name in types()
    if model_class(name).takes_side and not model_class(name).closed_form and name not in VECTORS
]
COMBINE = ["add", "concat", "alone"]
BY_HEART = {"bert4rec": {"last_share": 1.0}}  # masks the last event, as in recommendation


def built(name: str, side: Side, **config) -> Recommender:
    torch.manual_seed(0)
    return build(name, config, n_items=ITEMS, max_length=WINDOW, side=side)


def build_model(name: str, side: Side, **config) -> Recommender:
    model = built(name, side, **config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def full(**settings) -> Side:
    return side_of(DATA, ITEMS, **{"vectors": "text", **FULL, **settings})


def scores(model: Recommender, data: Sequences) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole


def bundle_of(model: Recommender, name: str) -> Bundle:
    ids = np.array([f"i{n}" for n in range(ITEMS)], dtype=object)
    events = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    return Bundle(name, name, model, Vocabulary(ids), [None] * ITEMS, events, Protocol(dataset="x"))


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_falls_and_reaches_every_weight(name, combine):
    model = built(name, full(combine=combine, train_vectors=True), dropout=0.0, **BY_HEART.get(name, {}))
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(16))
    losses = train_until(model, batch, lambda loss: loss < 0.8, rate=1e-2, at_most=60)  # 8 steps and fewer do
    assert losses[0] == pytest.approx(np.log(ITEMS), rel=0.3)
    assert losses[-1] < 0.8
    for key, weight in model.named_parameters():
        assert weight.numel() == 0 or weight.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_neighbours_in_a_batch_and_padding_do_not_matter(name):
    model = build_model(name, full())
    together = scores(model, DATA)
    for u in range(0, len(DATA), 7):
        alone = DATA.select(np.array([u]), np.zeros(1, np.int64), DATA.lengths[u : u + 1])
        np.testing.assert_allclose(scores(model, alone)[0], together[u], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_bundle_gives_the_same_scores(name, combine, tmp_path):
    model = build_model(name, full(combine=combine, vectors="text+image"))
    save_bundle(bundle_of(model, name), tmp_path)
    actual = load_bundle(tmp_path).model
    np.testing.assert_array_equal(scores(actual, DATA), scores(model, DATA))


@pytest.mark.parametrize(
    "settings",
    [
        {"vectors": "text", "train_vectors": True},
        {"vectors": "text", "head": "ids"},
        {"items": "genres", "combine": "alone"},
        {"users": "age"},
        {"events": "rating"},
        {"events": "gap"},
        {},
    ],
    ids=str,
)
def test_a_bundle_keeps_every_kind_of_side_information(settings, tmp_path):
    model = build_model("sasrec", side_of(DATA, ITEMS, **settings))
    save_bundle(bundle_of(model, "sasrec"), tmp_path)
    np.testing.assert_array_equal(scores(load_bundle(tmp_path).model, DATA), scores(model, DATA))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_thing_known_of_users_and_events_moves_the_scores(name):
    model = build_model(name, full())
    before = scores(model, DATA)[:, 1:]
    later = DATA.timestamps + 3600 * 5
    changes = {
        "ratings": {"ratings": 6 - DATA.ratings},
        "times": {"timestamps": later},
        "country": {"profiles": {**DATA.profiles, "country": pa.array(["c1"] * len(DATA))}},
        "age": {"profiles": {**DATA.profiles, "age": pa.array(np.arange(len(DATA)) * 1.0 + 99)}},
    }
    for what, change in changes.items():
        assert np.abs(scores(model, replace(DATA, **change))[:, 1:] - before).max() > 1e-3, what


@pytest.mark.parametrize("name", NETWORKS)
def test_users_of_whom_only_items_are_known_get_finite_scores(name):
    model = build_model(name, full())
    bare = Sequences(DATA.users, DATA.items, None, DATA.offsets)
    actual = scores(model, bare)[:, 1:]
    assert np.isfinite(actual).all()
    unknown = {key: pa.nulls(len(DATA), column.type) for key, column in DATA.profiles.items()}
    nothing = replace(bare, profiles=unknown, ratings=np.full(len(DATA.items), np.nan, np.float32))
    np.testing.assert_array_equal(scores(model, nothing)[:, 1:], actual)
    empty = DATA.select(np.arange(2), np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert np.isfinite(scores(model, empty)[:, 1:]).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_alone_a_cold_item_is_scored_by_its_vector_and_by_no_id(name):
    """An item without training events scores like a trained item with the same vector."""
    side = full(combine="alone", items="none")
    twin, cold = 3, 20
    values = {key: value.copy() for key, value in side.values.items()}
    values["vectors.text"][cold] = values["vectors.text"][twin]
    assert values["vectors.text"][cold, -1] == 1
    seen = DATA.items != cold
    owner = np.repeat(np.arange(len(DATA)), DATA.lengths)[seen]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(DATA)))])
    warm = Sequences(DATA.users, DATA.items[seen], DATA.timestamps[seen], offsets, DATA.ratings[seen], DATA.profiles)
    model = built(name, replace(side, values=values))
    batch = model.on_device(warm, window=WINDOW + 1).batch(np.arange(16))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        model.loss(batch, FullSoftmax()).backward()
        optimiser.step()
    actual = scores(model, warm)
    np.testing.assert_allclose(actual[:, cold], actual[:, twin], rtol=1e-4, atol=1e-5)
    assert np.abs(actual[:, cold] - actual[:, 1]).max() > 1e-4
