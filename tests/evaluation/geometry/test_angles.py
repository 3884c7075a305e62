"""Angles against all pairs and against the sum over directions as it is written."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from recpipe.evaluation.geometry.measures import mean_cosine, partition_isotropy, unit

TABLE = np.random.default_rng(0).normal(0.4, 1, size=(60, 7))


def test_mean_cosine_is_that_of_all_pairs() -> None:
    pairs = cosine_similarity(TABLE)[np.triu_indices(len(TABLE), 1)]
    assert mean_cosine(TABLE) == pytest.approx(pairs.mean())
    with_nothing = np.concatenate([TABLE, np.zeros((3, 7))])  # rows of zeros make no pair
    assert mean_cosine(with_nothing) == pytest.approx(pairs.mean())
    assert np.isnan(mean_cosine(TABLE[:1]))


def test_a_cone_has_cosine_one_and_a_ball_zero() -> None:
    assert mean_cosine(np.ones((5, 3)) * np.arange(1, 6)[:, None]) == pytest.approx(1)
    assert mean_cosine(np.random.default_rng(1).normal(size=(4000, 16))) == pytest.approx(0, abs=2e-3)


def test_partition_isotropy_is_the_ratio_of_sums_over_directions() -> None:
    x = unit(TABLE)
    directions = np.linalg.svd(x, full_matrices=False)[2]
    sums = [sum(np.exp(sign * c @ row) for row in x) for c in directions for sign in (1, -1)]
    assert partition_isotropy(TABLE) == pytest.approx(min(sums) / max(sums))
    assert partition_isotropy(1000 * TABLE) == pytest.approx(partition_isotropy(TABLE))
    assert partition_isotropy(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(1)
    assert partition_isotropy(np.ones((9, 4))) == pytest.approx(np.exp(-2))  # e^-1 against e
