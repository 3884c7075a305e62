"""Neighbours against scikit-learn's search, hubs against scipy and a loop."""

import numpy as np
import pytest
from scipy.stats import skew
from sklearn.neighbors import NearestNeighbors

from recpipe.evaluation.geometry import measures as neighbours
from recpipe.evaluation.geometry.measures import (
    hubs,
    nearest,
    nearest_by_distance,
    occurrences,
    overlap,
    skewness,
)

TABLE = np.random.default_rng(0).normal(0.3, 1, size=(150, 9))


def searched(metric: str, k: int) -> np.ndarray:
    """Without the item itself, which comes first."""
    fitted = NearestNeighbors(n_neighbors=k + 1, metric=metric, algorithm="brute").fit(TABLE)
    return fitted.kneighbors(TABLE, return_distance=False)[:, 1:]


@pytest.mark.parametrize("at_once", [1 << 24, 400], ids=["whole", "in chunks"])
def test_neighbours_are_the_nearest(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    np.testing.assert_array_equal(nearest(TABLE, 10), searched("cosine", 10))
    np.testing.assert_array_equal(nearest_by_distance(TABLE, 10), searched("euclidean", 10))
    few = np.array([3, 140])
    np.testing.assert_array_equal(nearest(TABLE, 4, of=few), searched("cosine", 4)[few])


def test_a_far_origin_does_not_blur_distances() -> None:
    np.testing.assert_array_equal(nearest_by_distance(TABLE + 1e4, 5), searched("euclidean", 5))


@pytest.mark.parametrize("k", [0, 150])
def test_there_are_no_more_neighbours_than_others(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; among 150 items there are at most 149"):
        nearest(TABLE, k)


def test_hubs_are_counted_and_measured_as_elsewhere() -> None:
    near = nearest(TABLE, 10)
    counts = [sum(item in row for row in near.tolist()) for item in range(len(TABLE))]
    assert occurrences(near).tolist() == counts
    found = hubs(occurrences(near))
    assert found["skewness"] == pytest.approx(skew(counts))
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert found["gini"] == pytest.approx(pairs / (2 * len(counts) ** 2 * np.mean(counts)))
    assert found["orphans"] == counts.count(0) / len(counts)
    assert skewness(np.full(5, 10)) == 0
    assert np.isnan(hubs(np.zeros(4, int))["gini"])


def test_a_hub_shows() -> None:
    """Items on a circle are each near their neighbours; one in the middle direction of a cone is near all."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(40)], 1)
    cone = np.concatenate([circle[::10] + np.array([0, 0, 2]), [[0, 0, 1]]])
    even, hub = (hubs(occurrences(nearest(*each))) for each in ((circle, 2), (cone, 1)))
    assert (even["gini"], even["orphans"], even["skewness"]) == (0, 0, 0)
    assert hub["gini"] > 0.6 and hub["skewness"] > 1 and hub["orphans"] == 0.6


def test_overlap_is_the_share_of_common_neighbours() -> None:
    one, other = nearest(TABLE, 10), nearest(TABLE[:, :5], 10)
    expected = [len({*a} & {*b}) / 10 for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    np.testing.assert_allclose(overlap(one, other), expected)
    assert overlap(one, one[:, ::-1]).min() == 1
    random = nearest(np.random.default_rng(1).normal(size=(2000, 8)), 10)
    shuffled = nearest(np.random.default_rng(2).normal(size=(2000, 8)), 10)
    assert overlap(random, shuffled).mean() == pytest.approx(10 / 1999, rel=0.3)  # what the page calls chance
