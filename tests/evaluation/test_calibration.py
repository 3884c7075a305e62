"""Reliability against scikit-learn and by simulation: honest probabilities are found honest, others are not."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.calibration import calibration_curve

from recpipe.evaluation.metrics import calibration


def simulated(users=4000, places=5, seed=0, claimed=lambda p: p):
    """Lists whose item at each place is the target with a known probability; `claimed` says another."""
    draw = np.random.default_rng(seed)
    chance = np.sort(draw.dirichlet([0.3] * (places + 1), users)[:, :places])[:, ::-1]
    reached = np.cumsum(chance, axis=1) > draw.random((users, 1))
    place = np.where(reached.any(1), reached.argmax(1), -1)  # -1: outside of the list
    names = [f"u{u}" for u in range(users)]
    recommendations = pa.table(
        {
            "user_id": np.repeat(names, places),
            "item_id": np.tile([f"i{p}" for p in range(places)], users),
            "probability": claimed(chance).ravel().astype(np.float32),
        }
    )
    ranks = pa.table({"user_id": names, "target": [f"i{p}" for p in place]})
    return recommendations, ranks, (place[:, None] == np.arange(places)).ravel()


def test_bins_are_those_of_scikit_learn():
    recommendations, ranks, hit = simulated(users=500)
    found = calibration(recommendations, ranks, bins=8)
    chance = recommendations["probability"].to_numpy().astype(float)
    so, said = calibration_curve(hit, chance, n_bins=8, strategy="quantile")
    np.testing.assert_allclose(found.frequency, so, atol=1e-9)
    np.testing.assert_allclose(found.probability, said, atol=1e-9)
    apart = np.abs(np.array(found.frequency) - found.probability)
    assert found.error == pytest.approx(np.average(apart, weights=found.recommendations), abs=1e-12)
    assert found.so == pytest.approx(hit.sum() / 500)
    assert found.said == pytest.approx(chance.sum() / 500)


def test_honest_probabilities_are_found_honest_and_boasts_are_not():
    honest = calibration(*simulated()[:2])
    boasting = calibration(*simulated(claimed=np.sqrt)[:2])
    assert honest.error < 0.012
    assert boasting.error > 0.14
    assert honest.said == pytest.approx(honest.so, abs=0.02)
    assert boasting.said > 1.5 * boasting.so


def test_order_of_rows_does_not_matter_and_equal_probabilities_share_a_bin():
    recommendations, ranks, _ = simulated(users=50)
    order = np.random.default_rng(1).permutation(recommendations.num_rows)
    assert calibration(recommendations.take(order), ranks).error == pytest.approx(
        calibration(recommendations, ranks).error
    )
    flat = recommendations.set_column(2, "probability", pa.array(np.full(250, 0.2)))
    found = calibration(flat, ranks)
    assert found.recommendations == [250]
    assert found.error == pytest.approx(abs(0.2 - found.so / 5))


def test_without_probabilities_or_with_several_targets_there_is_none():
    recommendations, ranks, _ = simulated(users=5)
    without = recommendations.set_column(2, "probability", pa.nulls(25, pa.float32()))
    assert calibration(without, ranks) is None
    assert calibration(recommendations, pa.concat_tables([ranks, ranks])) is None
