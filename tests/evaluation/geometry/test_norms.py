"""Lengths against popularity: rank correlation by its definition, a curve that adds up."""

import numpy as np
import pytest

from recpipe.evaluation.geometry.measures import POINTS, norm_curve, norm_popularity, relative_norms

EVENTS = np.random.default_rng(0).zipf(1.6, 500).clip(max=400)
TABLE = np.random.default_rng(1).normal(size=(500, 5)) * np.log1p(EVENTS)[:, None] ** 0.5


def test_correlation_is_pearsons_of_mean_ranks() -> None:
    norms = np.linalg.norm(TABLE, axis=1)

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    expected = np.corrcoef(ranks(norms), ranks(EVENTS))[0, 1]
    assert norm_popularity(relative_norms(TABLE), EVENTS) == pytest.approx(expected)
    assert expected > 0.2


def test_equal_lengths_or_events_have_none() -> None:
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    assert np.isnan(norm_popularity(relative_norms(unit), EVENTS))
    assert np.isnan(norm_popularity(relative_norms(TABLE), np.full(500, 3)))
    assert np.isnan(relative_norms(np.zeros((4, 2)))).all()


def test_the_curve_holds_every_item_once_and_equals_stay_together() -> None:
    norms = relative_norms(TABLE)
    curve = norm_curve(norms, EVENTS)
    assert sum(curve["items"]) == 500 and len(curve["items"]) <= POINTS
    assert np.dot(curve["norms"], curve["items"]) / 500 == pytest.approx(1)
    assert np.dot(curve["events"], curve["items"]) == pytest.approx(EVENTS.sum())
    assert curve["items"][0] >= (EVENTS == 1).sum() and curve["events"] == sorted(curve["events"])
    assert curve["norms"][-1] > curve["norms"][0]
    assert len(norm_curve(np.ones(6), np.full(6, 2))["items"]) == 1
