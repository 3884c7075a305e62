"""Intervals and tests against scipy, Holm against its definition; errors; one user and no difference."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.significance import UserMetric, bootstrap_means, compare, holm, sign_flip


def values(users=40, models=3, seed=0):
    """Like ndcg@10: mostly zero, else a discount, so that many values are tied."""
    ranks = np.random.default_rng(seed).geometric(0.05, (users, models))
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def of(values_UM):
    names = tuple("abcdefgh"[: values_UM.shape[1]])
    return UserMetric(names, np.array([f"u{u}" for u in range(len(values_UM))], dtype=object), values_UM)


def ranks_table(rank, users=None, targets=None):
    n = len(rank)
    return pa.table(
        {
            "user_id": users or [f"u{u}" for u in range(n)],
            "target": targets or [f"i{u}" for u in range(n)],
            "rank": rank,
            "cold": [False] * n,
        }
    )


def test_intervals_are_those_of_scipy():
    data = values()
    got = compare(of(data), baseline="a", resamples=2000, level=0.9, seed=3)
    for m, name in enumerate("abc"):
        for column, result in ((data[:, m], got.estimates[name]), (data[:, m] - data[:, 0], got.differences.get(name))):
            if result is not None:
                expected = stats.bootstrap(
                    (column,),
                    np.mean,
                    n_resamples=2000,
                    confidence_level=0.9,
                    method="percentile",
                    rng=np.random.default_rng(3),
                ).confidence_interval
                assert result.mean == pytest.approx(column.mean(), abs=1e-12)
                assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_chunks_of_resamples_do_not_change_them(monkeypatch):
    full = bootstrap_means(values(), resamples=500, seed=1)
    monkeypatch.setattr("recpipe.evaluation.significance.ELEMENTS_PER_CHUNK", 40 * 7)
    np.testing.assert_allclose(bootstrap_means(values(), resamples=500, seed=1), full, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_few_users_give_the_exact_p_of_scipy(seed):
    draw = np.random.default_rng(seed)
    data = draw.integers(0, 4, (11, 3)) / 3  # of few values: many sign patterns have the same mean
    differences = data[:, 1:] - data[:, :1]
    expected = [
        stats.permutation_test(
            (data[:, m], data[:, 0]),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        ).pvalue
        for m in (1, 2)
    ]
    np.testing.assert_allclose(sign_flip(differences, resamples=10_000, seed=0), expected, atol=1e-12)


def test_random_signs_approximate_the_exact_p():
    differences = np.random.default_rng(2).normal(0.3, 1, (16, 3))
    exact = sign_flip(differences, resamples=2**16, seed=0)
    sampled = sign_flip(differences, resamples=2**16 - 1, seed=0)
    np.testing.assert_allclose(sampled, exact, atol=4 * np.sqrt(0.25 / 2**16))
    assert (sampled > 0).all()


def test_without_a_difference_p_is_uniform_and_with_one_it_is_small():
    draw = np.random.default_rng(5)
    null = sign_flip(draw.normal(0, 1, (200, 300)), resamples=999, seed=1)
    assert stats.kstest(null, "uniform").pvalue > 0.01
    assert sign_flip(draw.normal(1, 1, (200, 1)), resamples=999, seed=1)[0] == pytest.approx(1 / 1000)


def test_holm_rejects_what_its_definition_rejects():
    draw = np.random.default_rng(0)
    for _ in range(50):
        p = draw.beta(0.4, 2, draw.integers(1, 8)).round(2)
        adjusted = holm(p)
        for alpha in (0.01, 0.05, 0.2, 0.5):
            rejected = np.zeros(len(p), bool)
            for step, m in enumerate(np.argsort(p, kind="stable")):
                if p[m] * (len(p) - step) > alpha:
                    break
                rejected[m] = True
            assert ((adjusted <= alpha) == rejected).all(), (p, alpha)
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])  # by hand
    assert holm([]).tolist() == []


def test_means_are_the_metrics_and_users_are_matched_by_id():
    a, b = ranks_table([1, 0, 3, 12]), ranks_table([2, 1, 0, 5])
    order = [2, 0, 3, 1]
    got = compare(UserMetric.of({"a": [a], "b": [b.take(order)]}, metric="ndcg@10"), baseline="a", resamples=100)
    for name, table in (("a", a), ("b", b)):
        assert got.estimates[name].mean == pytest.approx(metrics_from_ranks(table, cutoffs=[10])["ndcg@10"])
    exact = sign_flip(np.array([[1 / np.log2(3) - 1], [1], [-0.5], [1 / np.log2(6)]]), resamples=100, seed=0)
    assert got.differences["b"].p == exact[0]


def test_several_seeds_count_as_their_mean():
    tables = [ranks_table([1, 4, 0]), ranks_table([3, 0, 0])]
    result = UserMetric.of({"a": tables}, metric="mrr@10")
    assert result.values_UM[:, 0].tolist() == pytest.approx([(1 + 1 / 3) / 2, 1 / 8, 0])


def test_the_best_model_is_the_default_baseline():
    data = of(values())
    best = "abc"[int(data.values_UM.mean(0).argmax())]
    assert compare(data, resamples=50).baseline == best
    assert set(compare(data, baseline="b", resamples=50).differences) == {"a", "c"}
    with pytest.raises(ValueError, match="baseline is 'x'; the models are a, b, c, or best"):
        compare(data, baseline="x")


def test_one_user_and_equal_models_have_defined_answers():
    alone = compare(of(np.array([[0.5, 0.2]])), resamples=100)
    assert (alone.estimates["a"].mean, alone.differences["b"].p_holm) == (0.5, 1)
    assert np.isnan([alone.estimates["a"].low, alone.differences["b"].high]).all()
    equal = compare(of(np.full((30, 3), 0.25)), resamples=100)
    for each in (*equal.estimates.values(), *equal.differences.values()):
        assert each.low == each.mean == each.high
    assert {each.p_holm for each in equal.differences.values()} == {1}
    only = compare(of(values(models=1)), resamples=100)
    assert not only.differences and only.estimates["a"].low < only.estimates["a"].high


def test_different_protocols_users_and_targets_are_errors():
    a, b = ranks_table([1, 2]), ranks_table([1, 2])
    with pytest.raises(ValueError, match="protocols cannot be compared: a by p, b by q"):
        UserMetric.of({"a": [a], "b": [b]}, metric="ndcg@10", protocols={"a": ["p"], "b": ["q"]})
    with pytest.raises(ValueError, match="a and b cannot be compared: they differ in 2 users"):
        UserMetric.of({"a": [a], "b": [ranks_table([1, 2], users=["u0", "x"])]}, metric="ndcg@10")
    with pytest.raises(ValueError, match="differ in targets of the same users"):
        UserMetric.of({"a": [a, ranks_table([1, 2], targets=["i1", "i0"])]}, metric="ndcg@10")
    with pytest.raises(ValueError, match=r"unknown metric 'auc@10'; ranks give recall@10"):
        UserMetric.of({"a": [a]}, metric="auc@10")
    with pytest.raises(ValueError, match="no model to compare"):
        UserMetric.of({}, metric="ndcg@10")


def test_text_types_of_polars_are_the_same_text():
    large = ranks_table([1, 2]).cast(
        pa.schema(
            [("user_id", pa.large_string()), ("target", pa.large_string()), ("rank", pa.int32()), ("cold", pa.bool_())]
        )
    )
    assert UserMetric.of({"a": [large], "b": [ranks_table([2, 1])]}, metric="ndcg@1").values_UM.tolist() == [
        [1, 0],
        [0, 1],
    ]
