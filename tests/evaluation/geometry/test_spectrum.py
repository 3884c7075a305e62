"""Spectra against scikit-learn, scipy, closed forms, and IsoScore's steps as its paper has them."""

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.decomposition import PCA

from recpipe.evaluation.geometry.measures import (
    cumulative_variance,
    effective_rank,
    iso_score,
    participation_ratio,
    spectrum,
)

TABLE = np.random.default_rng(0).normal(size=(200, 12)) @ np.random.default_rng(1).normal(size=(12, 12)) + 3


def test_eigenvalues_are_those_of_principal_components() -> None:
    fitted = PCA().fit(TABLE)
    values = spectrum(TABLE)
    np.testing.assert_allclose(values, fitted.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(cumulative_variance(values), np.cumsum(fitted.explained_variance_ratio_))


def test_a_ball_uses_all_dimensions_and_a_line_one() -> None:
    ball = np.concatenate([np.eye(7), -np.eye(7)])
    line = np.outer(np.arange(9.0), np.arange(1.0, 6))
    for table, used, score in ((ball, 7, 1), (line, 1, 0)):
        values = spectrum(table)
        assert participation_ratio(values) == pytest.approx(used)
        assert effective_rank(values) == pytest.approx(used, rel=1e-6)
        assert iso_score(values) == pytest.approx(score, abs=1e-9)
    many = spectrum(np.random.default_rng(2).normal(size=(50_000, 10)))
    assert participation_ratio(many) == pytest.approx(10, rel=0.01)


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    values = spectrum(TABLE)
    assert effective_rank(values) == pytest.approx(np.exp(entropy(values)))


def test_iso_score_is_that_of_the_papers_steps() -> None:
    values, d = spectrum(TABLE), TABLE.shape[1]
    normalised = np.sqrt(d) * values / np.linalg.norm(values)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    share = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    assert iso_score(values) == pytest.approx((d * share - 1) / (d - 1))


def test_nothing_depends_on_rotation_scale_or_place() -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    for measure in (participation_ratio, effective_rank, iso_score):
        assert measure(spectrum(5 * TABLE @ turn - 1)) == pytest.approx(measure(spectrum(TABLE)))


def test_a_table_that_does_not_vary_has_none_of_it() -> None:
    values = spectrum(np.ones((5, 3)))
    assert np.isnan(cumulative_variance(values)).all()
    assert np.isnan([participation_ratio(values), effective_rank(values), iso_score(values)]).all()
    assert np.isnan(iso_score(spectrum(np.arange(4.0)[:, None])))  # one dimension
    assert np.isnan(participation_ratio(spectrum(np.ones((1, 3)))))  # one item
