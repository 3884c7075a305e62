"""Matrix factorisation: losses against loops, user factors against numpy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.layers.interactions import user_item_pairs
from recpipe.models.registry import build

ITEMS, DIM = 20, 6
DATA = random_sequences(50, ITEMS, longest=15, seed=3)


def model_with_factors(loss: str, **config):
    """A model with random factors of 50 users and 20 items."""
    model = build("mf", {"loss": loss, "dim": DIM, **config}, n_items=ITEMS, max_length=20)
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, DIM, generator=generator) for n in (len(DATA), ITEMS + 1))
    model.set_factors(users, items, user_item_pairs(DATA, ITEMS, torch.device("cpu")))
    return model, users.double().numpy(), model.items.double().numpy()


@pytest.mark.parametrize("loss", ["squared", "bpr"])
def test_the_loss_is_what_a_loop_says(loss):
    model, users, items = model_with_factors(loss, penalty=0.3)
    user, offered = np.array([3, 7, 3]), np.array([[1, 2, 9], [4, 5, 6], [8, 8, 1]])
    whole = 0.0
    for u, (item, *negatives) in zip(user, offered, strict=True):
        score = users[u] @ items[item]
        for j in negatives:
            other = users[u] @ items[j]
            whole += math.log(1 + math.exp(other - score)) if loss == "bpr" else other**2
        whole += (score - 1) ** 2 if loss == "squared" else 0.0
        whole += 0.15 * (users[u] @ users[u] + sum(items[j] @ items[j] for j in (item, *negatives)))
    ours = model.pair_loss(torch.from_numpy(users[user]), torch.from_numpy(items[offered]))
    assert float(ours) == pytest.approx(whole / 3)


def test_squared_folds_in_by_least_squares():
    model, _, items = model_with_factors("squared", negatives=3, penalty=0.2)
    history = sequences([[5, 2, 5, 11], [7]])  # an item counts once
    folded = model.user_factors(torch.tensor([[5, 2, 5, 11], [7, 0, 0, 0]])).numpy()
    for u in range(2):
        own = sorted(set(history.row(u).tolist()))
        drawn = math.sqrt(3 * len(own) / ITEMS) * items[1:]  # each item, weighed by how often it would be drawn
        prior = math.sqrt(len(own) * 0.2 / 2) * np.eye(DIM)
        system = np.concatenate([items[own], drawn, prior])
        wanted = np.concatenate([np.ones(len(own)), np.zeros(ITEMS + DIM)])
        np.testing.assert_allclose(folded[u], np.linalg.lstsq(system, wanted)[0], rtol=1e-4, atol=1e-5)


def test_bpr_folds_in_by_the_ridge_regression_of_trained_users():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a dev dependency")
    model, users, items = model_with_factors("bpr")
    own = [sorted(set(DATA.row(u).tolist())) for u in range(len(DATA))]
    read = np.array([[*(items[history_items].sum(0) / math.sqrt(len(history_items))), 1.0] for history_items in own])
    ridge = linear.Ridge(1e-3 * (read**2).sum(0).mean(), fit_intercept=False).fit(read, users)
    for rows, scores in model.score_batches(DATA, exclude_seen=False):
        np.testing.assert_allclose(scores[:, 1:], ridge.predict(read[rows]) @ items[1:].T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [{"loss": "squared"}, {"loss": "bpr", "negatives": 1, "penalty": 1e-3}])
def test_training_learns_two_tastes_and_serves_a_new_user(config):
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(10)[:6] + 1 + 10 * (u % 2)).tolist() for u in range(80)]
    model = build("mf", {"dim": 8, "batch": 64, "epochs": 15, **config}, n_items=ITEMS, max_length=20)
    torch.manual_seed(0)
    losses = list(model.epochs(sequences(rows)))
    assert len(losses) == 15 and losses[-1] < 0.8 * losses[0]
    items, _ = model.recommend(sequences([[1, 2, 3], [11, 12, 13], [20, 12, 15]]), 3)
    assert (items[0] <= 10).all() and (items[1:] > 10).all()


def test_a_model_can_be_asked_after_every_epoch():
    model = build("mf", {"dim": 8, "epochs": 3}, n_items=ITEMS, max_length=20)
    sums = [model.recommend(DATA, 3, exclude_seen=False)[1].sum() for _ in model.epochs(DATA)]
    assert len(set(sums)) == 3 and np.isfinite(sums).all()


@pytest.mark.parametrize("config", [{"loss": "hinge"}, {"dim": 0}, {"negatives": 0}, {"penalty": 0.0}])
def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        build("mf", config, n_items=ITEMS, max_length=20)


@pytest.mark.parametrize("loss", ["squared", "bpr"])
def test_a_whole_weight_is_a_pair_that_occurs_as_often(loss):
    model, users, items = model_with_factors(loss)
    user, offered, times = np.array([3, 7, 4]), np.array([[1, 2, 9], [4, 5, 6], [8, 8, 1]]), np.array([3, 0, 2])
    repeated = (users[user.repeat(times)], items[offered.repeat(times, 0)])
    expected = model.pair_loss(*map(torch.from_numpy, repeated)) * (times.sum() / 3)
    ours = model.pair_loss(torch.from_numpy(users[user]), torch.from_numpy(items[offered]), torch.from_numpy(times))
    torch.testing.assert_close(ours, expected)


def test_squared_folds_in_by_weighted_least_squares():
    model, _, items = model_with_factors("squared", negatives=3, penalty=0.2)
    rows, weights = torch.tensor([[5, 2, 5, 11], [7, 0, 0, 0]]), torch.tensor([[0.5, 2, 3, 0.1], [0.01, 0, 0, 0]])
    folded = model.user_factors(rows, weights).numpy()
    for own, w, factors in (([2, 5, 11], np.array([2, 3, 0.1]), folded[0]), ([7], np.array([0.01]), folded[1])):
        drawn, prior = math.sqrt(3 * w.sum() / ITEMS) * items[1:], math.sqrt(w.sum() * 0.2 / 2) * np.eye(DIM)
        system = np.concatenate([np.sqrt(w)[:, None] * items[own], drawn, prior])
        expected = np.linalg.lstsq(system, np.concatenate([np.sqrt(w), np.zeros(ITEMS + DIM)]))[0]
        np.testing.assert_allclose(factors, expected, rtol=1e-3, atol=1e-5)
