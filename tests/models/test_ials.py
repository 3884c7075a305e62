"""iALS against its objective, numpy's solution of one user, and a dense alternating least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.models import ials
from recpipe.models.registry import build

ITEMS = 15
DATA, NEW = random_sequences(40, ITEMS, longest=14, seed=5), random_sequences(25, ITEMS, seed=8)
SETTINGS = {"dim": 5, "penalty": 0.02, "unobserved_weight": 0.2, "exponent": 0.7, "epochs": 4}


def untrained(**config):
    torch.manual_seed(0)
    return build("ials", {**SETTINGS, **config}, n_items=ITEMS, max_length=20)


def fitted(data=DATA, *, uses_weights: bool = False, **config):
    model = untrained(**config)
    model.uses_weights = uses_weights
    model.fit(data)
    return model


def confidence(data, train=None) -> np.ndarray:
    """1 for the items of each user (U, I), or the largest weight over the mean of these in ``train``."""
    if data.weights is None:
        table = np.zeros((len(data), ITEMS))
        for u in range(len(data)):
            table[u, data.row(u) - 1] = 1
        return table
    of_train = weights_by_pair(data if train is None else train, ITEMS)[1]
    return weights_by_pair(data, ITEMS)[1] / of_train[of_train > 0].mean()


def half_step(c: np.ndarray, others: np.ndarray, config: dict) -> np.ndarray:
    """Factors of the rows of ``c``, each by the normal equations with weights of all pairs."""
    factors = np.zeros((len(c), others.shape[1]))
    for row in np.flatnonzero(c.sum(1)):
        everything = c[row] + config["unobserved_weight"]  # (ŷ - 1)² has weight c, ŷ² has weight α₀
        frequency = c[row].sum() + config["unobserved_weight"] * c.shape[1]
        penalty = config["penalty"] * frequency ** config["exponent"]
        normal = others.T @ (everything[:, None] * others) + penalty * np.eye(others.shape[1])
        factors[row] = np.linalg.solve(normal, others.T @ c[row])
    return factors


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


@pytest.mark.parametrize("data", [DATA, weighted(DATA)], ids=["alike", "weighted"])
def test_epochs_are_alternating_least_squares(data):
    model = untrained()
    c, start = confidence(data), None
    for epoch, _ in enumerate(model.epochs(data)):
        if epoch == 0:
            start = model.items.double().numpy()[1:]
        else:
            users = half_step(c, start, SETTINGS)
            start = half_step(c.T, users, SETTINGS)
            np.testing.assert_allclose(model.items.numpy()[1:], start, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_known_and_new_users_get_the_factors_that_minimise_the_loss_of_their_history(is_weighted):
    train, new = (weighted(data) if is_weighted else data for data in (DATA, NEW))
    model = fitted(train, uses_weights=is_weighted)
    items = model.items.double().numpy()[1:]
    for data in (train, new):
        users = half_step(confidence(data, train), items, SETTINGS)
        np.testing.assert_allclose(scores(model, data), users @ items.T, rtol=1e-3, atol=1e-4)


def test_the_objective_falls_in_every_epoch():
    def objective(items: np.ndarray) -> float:
        c = confidence(DATA)
        users = half_step(c, items, SETTINGS)
        predicted, alpha = users @ items.T, SETTINGS["unobserved_weight"]
        value = (c * (predicted - 1) ** 2).sum() + alpha * (predicted**2).sum()
        for factors, table in ((users, c), (items, c.T)):
            frequency = table.sum(1) + alpha * table.shape[1]
            value += SETTINGS["penalty"] * (frequency ** SETTINGS["exponent"] * (factors**2).sum(1)).sum()
        return float(value)

    model = untrained(epochs=8)
    values = [objective(model.items.double().numpy()[1:]) for _ in model.epochs(DATA)]
    assert (np.diff(values) < 1e-6).all() and values[-1] < values[0]


@pytest.mark.parametrize("elements", [1, 60, 1 << 23])
def test_blocks_change_nothing(elements, monkeypatch):
    whole = scores(fitted(), NEW)
    monkeypatch.setattr(ials, "ELEMENTS", elements)
    np.testing.assert_allclose(scores(fitted(), NEW), whole, rtol=1e-3, atol=1e-4)


def test_items_without_events_and_users_without_history_have_the_score_zero():
    model = fitted(sequences([[3, 4], [5, 3], [4]]))
    assert (model.items[[0, 1, 2, 15]] == 0).all() and model.items[3].any()
    assert (scores(fitted(), sequences([[], [0]])) == 0).all()


def test_weights_of_events_change_the_factors():
    data = weighted(DATA)
    expected = half_step(confidence(data), fitted(data, uses_weights=True).items.double().numpy()[1:], SETTINGS)
    assert expected.shape == (len(DATA), 5)
    assert not np.allclose(fitted(data, uses_weights=True).items, fitted().items)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"penalty": 0.0}, "greater than 0"),
        ({"unobserved_weight": 0.0}, "greater than 0"),
        ({"exponent": -1.0}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        untrained(**config)
