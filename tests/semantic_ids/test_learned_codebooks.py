"""Moving codebooks against loops in float64, scikit-learn's k-means and a brute-force Sinkhorn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from recpipe.semantic_ids.autoencoder import balanced_choice
from recpipe.semantic_ids.codebooks import LearnedCodebooks, kmeans, sinkhorn


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int = 300, width: int = 4, centres: int = 6) -> torch.Tensor:
    generator = np.random.default_rng(0)
    middle = generator.normal(size=(centres, width)) * 4
    return torch.from_numpy(
        middle[generator.integers(centres, size=rows)] + generator.normal(size=(rows, width))
    ).float()


def books(levels: int = 3, codes: int = 5, width: int = 4) -> LearnedCodebooks:
    values = [torch.randn(codes, width, generator=rng(level)) for level in range(levels)]
    return LearnedCodebooks(values, torch.ones(levels, width))


def by_hand(z: torch.Tensor, found: LearnedCodebooks) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes and the residual before every level, one item and one code at a time, float64."""
    codes, residuals = [], [np.zeros((len(z), z.shape[1])) for _ in found.books]
    for item, latent in enumerate(z.double().numpy()):
        rest, own = latent.copy(), []
        for level, book in enumerate(found.books):
            residuals[level][item] = rest
            distances = [((rest - code) ** 2).sum() for code in book.double().numpy()]
            own.append(int(np.argmin(distances)))
            rest = rest - book[own[-1]].double().numpy()
        codes.append(own)
    return np.array(codes), residuals


def test_choice_and_residuals_against_loops():
    z, found = blobs(60), books()
    codes, residuals = by_hand(z, found)
    assert (found.choose(z).numpy() == codes).all()
    for mine, theirs in zip(found.residuals(z, torch.from_numpy(codes)), residuals, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)


def test_chosen_codes_and_what_is_left_are_the_latent():
    z, found = blobs(60), books()
    codes = found.choose(z)
    *_, last = found.residuals(z, codes)
    left = last - found.books[-1][codes[:, -1]]
    torch.testing.assert_close(found.sum(codes) + left, z)


def test_distances_against_loops_for_codes_that_were_not_chosen():
    z, found = blobs(20), books()
    codes = torch.randint(5, (20, 3), generator=rng())
    rest = z - found.books[0][codes[:, 0]] - found.books[1][codes[:, 1]]
    expected = (rest[:, None] - found.books[2]).square().sum(2)
    torch.testing.assert_close(found.distances(z, codes, 2), expected)


def test_following_is_the_moving_average_of_what_chose_a_code():
    z, found = blobs(60), books()
    codes = found.choose(z)
    before = [book.clone().double() for book in found.books]
    _, residuals = by_hand(z, found)
    found.follow(z, codes, decay=0.9)
    for level, book in enumerate(found.books):
        for code in range(len(book)):
            mine = residuals[level][codes[:, level].numpy() == code]
            count = 0.9 * 1 + 0.1 * len(mine)
            total = 0.9 * before[level][code].numpy() + 0.1 * mine.sum(0)
            np.testing.assert_allclose(book[code].numpy(), total / count, atol=1e-5)


def test_kmeans_is_as_good_as_scikit_learns_from_random_rows():
    x = blobs(600)
    seeds = range(15)  # and the median, as one start in ten ends in a far worse optimum
    theirs = np.median(
        [KMeans(12, init="random", n_init=1, max_iter=10, random_state=s).fit(x).inertia_ for s in seeds]
    )
    centroids = [kmeans(x, 12, generator=rng(seed)) for seed in seeds]
    mine = np.median([torch.cdist(x, c).min(1).values.square().sum().item() for c in centroids])
    assert mine <= 1.05 * theirs


def test_kmeans_uses_every_code_it_can():
    x = torch.cat([blobs(50), blobs(50)[:1].expand(500, -1)])  # one row far more often than others
    chosen = torch.cdist(x, kmeans(x, 30, generator=rng())).argmin(1)
    assert len(chosen.unique()) == 30


def test_kmeans_with_fewer_kinds_of_rows_than_codes():
    x = torch.eye(3).repeat(5, 1)
    found = kmeans(x, 7, generator=rng())
    assert found.shape == (7, 3) and torch.cdist(x, found).min(1).values.max() < 1e-6


def collapsed() -> tuple[LearnedCodebooks, torch.Tensor]:
    """Codebooks with one code near the data and all others too far for anybody."""
    z = blobs()
    values = [torch.full((16, 4), 1e3) for _ in range(2)]
    for book in values:
        book[0] = 0
    return LearnedCodebooks(values, torch.ones(2, 4)), z


def test_reset_of_dead_codes_ends_a_collapse():
    found, z = collapsed()
    used = [len(codes.unique()) for codes in found.choose(z).unbind(1)]
    error = (found.sum(found.choose(z)) - z).square().mean()
    assert used == [1, 1]
    assert found.revive(z, generator=rng()) == 30
    codes = found.choose(z)
    assert [len(level.unique()) for level in codes.unbind(1)] == [16, 16]
    assert (found.sum(codes) - z).square().mean() < error / 3


def test_reset_leaves_living_codes_alone():
    z, found = blobs(), LearnedCodebooks.start(blobs(), (6, 6), torch.ones(2, 4), generator=rng())
    before = [book.clone() for book in found.books]
    assert found.revive(z, generator=rng()) == 0
    assert all((a == b).all() for a, b in zip(before, found.books, strict=True))


def test_reset_without_enough_items_to_place_codes_on():
    z = torch.eye(4)[:2]
    found = LearnedCodebooks([torch.full((8, 4), 1e3)], torch.ones(1, 4))
    assert found.revive(z, generator=rng()) == 2
    assert len(found.choose(z).unique()) == 2


def slowly(distances: np.ndarray, epsilon: float, rounds: int) -> np.ndarray:
    """Sinkhorn's alternation one cell at a time."""
    least, most = distances.min(), distances.max()
    shares = np.exp(-(2 * (distances - least) / (most - least)) / epsilon)
    n, v = shares.shape
    for _ in range(rounds):
        for column in range(v):
            shares[:, column] *= n / v / sum(shares[row, column] for row in range(n))
        for row in range(n):
            shares[row] /= sum(shares[row, column] for column in range(v))
    return shares


def test_sinkhorn_against_loops():
    distances = torch.rand(12, 4, generator=rng(), dtype=torch.float64)
    np.testing.assert_allclose(
        sinkhorn(distances, epsilon=0.2, rounds=7), slowly(distances.numpy(), 0.2, 7), rtol=1e-9
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_sinkhorn_balances_rows_and_columns(epsilon: float):
    shares = sinkhorn(torch.rand(40, 8, generator=rng()), epsilon=epsilon, rounds=300)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(shares.sum(0), 5, rtol=1e-3)


def test_sinkhorn_of_distances_that_do_not_differ():
    assert sinkhorn(torch.zeros(6, 3), epsilon=0.003).isfinite().all()


def test_a_balanced_level_uses_codes_that_the_nearest_would_not():
    found, z = collapsed()
    found.books[0][1:] = torch.randn(15, 4, generator=rng()) * 0.1 + 3
    nearest, balanced = found.choose(z)[:, 0], balanced_choice(found, z, (0.01, 0.0))[:, 0]
    most = [torch.bincount(codes, minlength=16).max().item() for codes in (nearest, balanced)]
    assert most[1] < most[0] / 2
    assert (balanced_choice(found, z, (0.0, 0.0)) == found.choose(z)).all()
    assert (balanced_choice(found, z, None) == found.choose(z)).all()
