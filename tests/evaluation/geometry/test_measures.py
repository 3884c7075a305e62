"""Measures of item vectors against scikit-learn, scipy, closed forms and the steps of the papers."""

import numpy as np
import pytest
from scipy.stats import entropy, skew
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from recpipe.evaluation.geometry import measures as module
from recpipe.evaluation.geometry.measures import (
    CURVE_POINTS,
    cumulative_variance,
    effective_rank,
    hubness,
    iso_score,
    linear_cka,
    mean_cosine,
    nearest,
    norm_curve,
    norm_popularity,
    occurrences,
    overlap,
    participation_ratio,
    partition_isotropy,
    relative_norms,
    spectrum,
    two_nn,
    unit,
)

CORRELATED = np.random.default_rng(0).normal(size=(200, 12)) @ np.random.default_rng(1).normal(size=(12, 12)) + 3


def test_eigenvalues_are_those_of_principal_components() -> None:
    fitted = PCA().fit(CORRELATED)
    values = spectrum(CORRELATED)
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
    values = spectrum(CORRELATED)
    assert effective_rank(values) == pytest.approx(np.exp(entropy(values)))


def test_iso_score_is_that_of_the_papers_steps() -> None:
    values, d = spectrum(CORRELATED), CORRELATED.shape[1]
    normalised = np.sqrt(d) * values / np.linalg.norm(values)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    share = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    assert iso_score(values) == pytest.approx((d * share - 1) / (d - 1))


def test_nothing_depends_on_rotation_scale_or_place() -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    for measure in (participation_ratio, effective_rank, iso_score):
        assert measure(spectrum(5 * CORRELATED @ turn - 1)) == pytest.approx(measure(spectrum(CORRELATED)))


def test_a_table_that_does_not_vary_has_none_of_it() -> None:
    values = spectrum(np.ones((5, 3)))
    assert np.isnan(cumulative_variance(values)).all()
    assert np.isnan([participation_ratio(values), effective_rank(values), iso_score(values)]).all()
    assert np.isnan(iso_score(spectrum(np.arange(4.0)[:, None])))  # one dimension
    assert np.isnan(participation_ratio(spectrum(np.ones((1, 3)))))  # one item


SHIFTED = np.random.default_rng(0).normal(0.4, 1, size=(60, 7))


def test_mean_cosine_is_that_of_all_pairs() -> None:
    pairs = cosine_similarity(SHIFTED)[np.triu_indices(len(SHIFTED), 1)]
    assert mean_cosine(SHIFTED) == pytest.approx(pairs.mean())
    with_nothing = np.concatenate([SHIFTED, np.zeros((3, 7))])  # rows of zeros make no pair
    assert mean_cosine(with_nothing) == pytest.approx(pairs.mean())
    assert np.isnan(mean_cosine(SHIFTED[:1]))


def test_a_cone_has_cosine_one_and_a_ball_zero() -> None:
    assert mean_cosine(np.ones((5, 3)) * np.arange(1, 6)[:, None]) == pytest.approx(1)
    assert mean_cosine(np.random.default_rng(1).normal(size=(4000, 16))) == pytest.approx(0, abs=2e-3)


def test_partition_isotropy_is_the_ratio_of_sums_over_directions() -> None:
    x = unit(SHIFTED)
    directions = np.linalg.svd(x, full_matrices=False)[2]
    sums = [sum(np.exp(sign * c @ row) for row in x) for c in directions for sign in (1, -1)]
    assert partition_isotropy(SHIFTED) == pytest.approx(min(sums) / max(sums))
    assert partition_isotropy(1000 * SHIFTED) == pytest.approx(partition_isotropy(SHIFTED))
    assert partition_isotropy(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(1)
    assert partition_isotropy(np.ones((9, 4))) == pytest.approx(np.exp(-2))  # e^-1 against e


EVENTS = np.random.default_rng(0).zipf(1.6, 500).clip(max=400)
POPULAR = np.random.default_rng(1).normal(size=(500, 5)) * np.log1p(EVENTS)[:, None] ** 0.5


def test_correlation_is_pearsons_of_mean_ranks() -> None:
    norms = np.linalg.norm(POPULAR, axis=1)

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    expected = np.corrcoef(ranks(norms), ranks(EVENTS))[0, 1]
    assert norm_popularity(relative_norms(POPULAR), EVENTS) == pytest.approx(expected)
    assert expected > 0.2


def test_equal_lengths_or_events_have_none() -> None:
    directions = POPULAR / np.linalg.norm(POPULAR, axis=1, keepdims=True)
    assert np.isnan(norm_popularity(relative_norms(directions), EVENTS))
    assert np.isnan(norm_popularity(relative_norms(POPULAR), np.full(500, 3)))
    assert np.isnan(relative_norms(np.zeros((4, 2)))).all()


def test_the_curve_holds_every_item_once_and_equals_stay_together() -> None:
    norms = relative_norms(POPULAR)
    curve = norm_curve(norms, EVENTS)
    assert sum(curve["items"]) == 500 and len(curve["items"]) <= CURVE_POINTS
    assert np.dot(curve["norms"], curve["items"]) / 500 == pytest.approx(1)
    assert np.dot(curve["events"], curve["items"]) == pytest.approx(EVENTS.sum())
    assert curve["items"][0] >= (EVENTS == 1).sum() and curve["events"] == sorted(curve["events"])
    assert curve["norms"][-1] > curve["norms"][0]
    assert len(norm_curve(np.ones(6), np.full(6, 2))["items"]) == 1


TABLE = np.random.default_rng(0).normal(0.3, 1, size=(150, 9))


def brute_force(metric: str, k: int) -> np.ndarray:
    """Without the item itself, which comes first."""
    fitted = NearestNeighbors(n_neighbors=k + 1, metric=metric, algorithm="brute").fit(TABLE)
    return fitted.kneighbors(TABLE, return_distance=False)[:, 1:]


@pytest.mark.parametrize("rows", [3, 11, 64])
def test_blocks_of_a_large_table_give_the_same_neighbours(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    np.testing.assert_array_equal(nearest(TABLE, 10), brute_force("cosine", 10))
    of = np.array([5, 60, 2])
    np.testing.assert_array_equal(nearest(TABLE.astype(np.float32), 4, of=of), brute_force("cosine", 4)[of])


@pytest.mark.parametrize("at_once", [1 << 24, 400], ids=["whole", "in chunks"])
def test_neighbours_are_the_nearest(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "SIMILARITIES_PER_CHUNK", at_once)
    np.testing.assert_array_equal(nearest(TABLE, 10), brute_force("cosine", 10))
    rows = np.array([3, 140])
    np.testing.assert_array_equal(nearest(TABLE, 4, of=rows), brute_force("cosine", 4)[rows])


@pytest.mark.parametrize("k", [0, 150])
def test_there_are_no_more_neighbours_than_others(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; among 150 items there are at most 149"):
        nearest(TABLE, k)


def test_hubs_are_counted_and_measured_as_elsewhere() -> None:
    neighbours_IK = nearest(TABLE, 10)
    counts = [sum(item in row for row in neighbours_IK.tolist()) for item in range(len(TABLE))]
    assert occurrences(neighbours_IK).tolist() == counts
    measures = hubness(occurrences(neighbours_IK))
    assert measures["skewness"] == pytest.approx(skew(counts))
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert measures["gini"] == pytest.approx(pairs / (2 * len(counts) ** 2 * np.mean(counts)))
    assert measures["orphans"] == counts.count(0) / len(counts)
    assert hubness(np.full(5, 10))["skewness"] == 0
    assert np.isnan(hubness(np.zeros(4, int))["gini"])


def test_a_hub_shows() -> None:
    """Items on a circle have two neighbours each; one in the middle of a cone is a neighbour of all others."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(40)], 1)
    cone = np.concatenate([circle[::10] + np.array([0, 0, 2]), [[0, 0, 1]]])
    even, hub = (hubness(occurrences(nearest(*each))) for each in ((circle, 2), (cone, 1)))
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
    tables = [np.random.default_rng(seed).normal(size=(5000, 8)) for seed in (1, 2)]
    assert linear_cka(*tables) < 0.01


def test_tables_that_cannot_be_compared() -> None:
    assert np.isnan(linear_cka(ONE, np.ones((80, 2))))
    with pytest.raises(ValueError, match="80 and 79 rows"):
        linear_cka(ONE, OTHER[1:])


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
    n = int(0.9 * len(ratio))
    empirical = np.arange(1, len(ratio) + 1) / len(ratio)
    line = LinearRegression(fit_intercept=False)
    line.fit(np.log(ratio[:n, None]), -np.log(1 - empirical[:n]))
    assert two_nn(table) == pytest.approx(line.coef_[0])


def test_items_at_the_same_place_count_once_and_too_few_say_nothing() -> None:
    table = np.random.default_rng(0).normal(size=(300, 4))
    assert two_nn(np.concatenate([table, table[:50]])) == pytest.approx(two_nn(table))
    assert np.isnan(two_nn(table[:9]))
    assert np.isnan(two_nn(np.ones((50, 4))))
