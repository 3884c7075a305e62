"""Intrinsic dimension of what has a known one, and against the paper's recipe by other means."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from recpipe.evaluation.geometry.measures import two_nn


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_a_cube_in_a_wider_space_has_its_own_dimension(dimension: int) -> None:
    draw = np.random.default_rng(dimension)
    cube = draw.random((3000, dimension))
    turned = cube @ np.linalg.qr(draw.normal(size=(20, 20)))[0][:dimension] + 5
    assert two_nn(turned) == pytest.approx(dimension, rel=0.12)  # edges make it less, the more the dimensions
    assert two_nn(1e-3 * turned) == pytest.approx(two_nn(turned), rel=1e-3)


def test_it_is_the_papers_recipe() -> None:
    table = np.random.default_rng(0).normal(size=(400, 6))
    distances, _ = NearestNeighbors(n_neighbors=3).fit(table).kneighbors(table)
    ratio = np.sort(distances[:, 2] / distances[:, 1])
    kept = int(0.9 * len(ratio))
    empirical = np.arange(1, len(ratio) + 1) / len(ratio)
    line = LinearRegression(fit_intercept=False)
    line.fit(np.log(ratio[:kept, None]), -np.log(1 - empirical[:kept]))
    assert two_nn(table) == pytest.approx(line.coef_[0])


def test_items_at_the_same_place_count_once_and_too_few_say_nothing() -> None:
    table = np.random.default_rng(0).normal(size=(300, 4))
    assert two_nn(np.concatenate([table, table[:50]])) == pytest.approx(two_nn(table))
    assert np.isnan(two_nn(table[:9]))
    assert np.isnan(two_nn(np.ones((50, 4))))
