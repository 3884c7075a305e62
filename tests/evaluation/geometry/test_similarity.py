"""CKA: its invariances, and the same by kernels."""

import numpy as np
import pytest

from recpipe.evaluation.geometry.measures import linear_cka

DRAW = np.random.default_rng(0)
ONE = DRAW.normal(size=(80, 6)) * [5, 3, 2, 1, 1, 1]
OTHER = ONE[:, :4] @ DRAW.normal(size=(4, 9)) + DRAW.normal(size=(80, 9))


def test_it_is_what_hsic_of_centred_kernels_gives() -> None:
    n = len(ONE)
    centre = np.eye(n) - 1 / n
    kernels = [centre @ table @ table.T @ centre for table in (ONE, OTHER)]
    hsic = [[np.trace(a @ b) for b in kernels] for a in kernels]
    assert linear_cka(ONE, OTHER) == pytest.approx(hsic[0][1] / np.sqrt(hsic[0][0] * hsic[1][1]))


def test_rotation_scale_and_place_do_not_matter_but_stretching_does() -> None:
    turn = np.linalg.qr(DRAW.normal(size=(6, 6)))[0]
    assert linear_cka(ONE, ONE) == pytest.approx(1)
    assert linear_cka(ONE, 7 * ONE @ turn + 3) == pytest.approx(1)
    assert linear_cka(7 * ONE @ turn, OTHER) == pytest.approx(linear_cka(ONE, OTHER))
    assert linear_cka(ONE, ONE * [1, 1, 1, 1, 1, 9]) < 0.9


def test_what_has_nothing_in_common_is_near_zero_when_items_are_many() -> None:
    drawn = [np.random.default_rng(seed).normal(size=(5000, 8)) for seed in (1, 2)]
    assert linear_cka(*drawn) < 0.01


def test_tables_that_cannot_be_compared() -> None:
    assert np.isnan(linear_cka(ONE, np.ones((80, 2))))
    with pytest.raises(ValueError, match="80 and 79 rows"):
        linear_cka(ONE, OTHER[1:])
