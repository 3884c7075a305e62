"""Codebooks against loops in float64, k-means against scikit-learn, Sinkhorn by brute force, losses by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from recpipe.semantic_ids.autoencoder import (
    Autoencoder,
    CodeOverrides,
    LearnedCodebooks,
    QuantizedAutoencoder,
    kmeans,
    sinkhorn,
)


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


def by_hand(z: torch.Tensor, codebooks: LearnedCodebooks) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes and the residual before every level, one item and one code at a time, float64."""
    codes, residuals = [], [np.zeros((len(z), z.shape[1])) for _ in codebooks.books]
    for item, latent in enumerate(z.double().numpy()):
        rest, own = latent.copy(), []
        for level, book in enumerate(codebooks.books):
            residuals[level][item] = rest
            distances = [((rest - code) ** 2).sum() for code in book.double().numpy()]
            own.append(int(np.argmin(distances)))
            rest = rest - book[own[-1]].double().numpy()
        codes.append(own)
    return np.array(codes), residuals


def test_choice_and_residuals_against_loops():
    z, codebooks = blobs(60), books()
    codes, residuals = by_hand(z, codebooks)
    assert (codebooks.encode(z).numpy() == codes).all()
    for mine, theirs in zip(codebooks.residuals(z, torch.from_numpy(codes)), residuals, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)


def test_chosen_codes_and_what_is_left_are_the_latent():
    z, codebooks = blobs(60), books()
    codes = codebooks.encode(z)
    *_, last = codebooks.residuals(z, codes)
    left = last - codebooks.books[-1][codes[:, -1]]
    torch.testing.assert_close(codebooks.decode(codes) + left, z)


def test_distances_against_loops_for_codes_that_were_not_chosen():
    z, codebooks = blobs(20), books()
    codes = torch.randint(5, (20, 3), generator=rng())
    rest = z - codebooks.books[0][codes[:, 0]] - codebooks.books[1][codes[:, 1]]
    expected = (rest[:, None] - codebooks.books[2]).square().sum(2)
    torch.testing.assert_close(codebooks.distances(z, codes, 2), expected)


def test_following_is_the_moving_average_of_what_chose_a_code():
    z, codebooks = blobs(60), books()
    codes = codebooks.encode(z)
    before = [book.clone().double() for book in codebooks.books]
    _, residuals = by_hand(z, codebooks)
    codebooks.update(z, codes, decay=0.9)
    for level, book in enumerate(codebooks.books):
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
    codebooks = kmeans(x, 7, generator=rng())
    assert codebooks.shape == (7, 3) and torch.cdist(x, codebooks).min(1).values.max() < 1e-6


def collapsed() -> tuple[LearnedCodebooks, torch.Tensor]:
    """Codebooks with one code near the data and all others too far for anybody."""
    z = blobs()
    values = [torch.full((16, 4), 1e3) for _ in range(2)]
    for book in values:
        book[0] = 0
    return LearnedCodebooks(values, torch.ones(2, 4)), z


def test_reset_of_dead_codes_ends_a_collapse():
    codebooks, z = collapsed()
    used = [len(codes.unique()) for codes in codebooks.encode(z).unbind(1)]
    error = (codebooks.decode(codebooks.encode(z)) - z).square().mean()
    assert used == [1, 1]
    assert codebooks.revive(z, generator=rng()) == 30
    codes = codebooks.encode(z)
    assert [len(level.unique()) for level in codes.unbind(1)] == [16, 16]
    assert (codebooks.decode(codes) - z).square().mean() < error / 3


def test_reset_leaves_living_codes_alone():
    z, codebooks = blobs(), LearnedCodebooks.from_kmeans(blobs(), (6, 6), torch.ones(2, 4), generator=rng())
    before = [book.clone() for book in codebooks.books]
    assert codebooks.revive(z, generator=rng()) == 0
    assert all((a == b).all() for a, b in zip(before, codebooks.books, strict=True))


def test_reset_without_enough_items_to_place_codes_on():
    z = torch.eye(4)[:2]
    codebooks = LearnedCodebooks([torch.full((8, 4), 1e3)], torch.ones(1, 4))
    assert codebooks.revive(z, generator=rng()) == 2
    assert len(codebooks.encode(z).unique()) == 2


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
    np.testing.assert_allclose(sinkhorn(distances, epsilon=0.2, rounds=7), slowly(distances.numpy(), 0.2, 7), rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_sinkhorn_balances_rows_and_columns(epsilon: float):
    shares = sinkhorn(torch.rand(40, 8, generator=rng()), epsilon=epsilon, rounds=300)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(shares.sum(0), 5, rtol=1e-3)


def test_sinkhorn_of_distances_that_do_not_differ():
    assert sinkhorn(torch.zeros(6, 3), epsilon=0.003).isfinite().all()


def test_a_balanced_level_uses_codes_that_the_nearest_would_not():
    codebooks, z = collapsed()
    codebooks.books[0][1:] = torch.randn(15, 4, generator=rng()) * 0.1 + 3
    nearest, balanced = codebooks.encode(z)[:, 0], codebooks.encode(z, (0.01, 0.0))[:, 0]
    most = [torch.bincount(codes, minlength=16).max().item() for codes in (nearest, balanced)]
    assert most[1] < most[0] / 2
    assert (codebooks.encode(z, (0.0, 0.0)) == codebooks.encode(z)).all()
    assert (codebooks.encode(z, None) == codebooks.encode(z)).all()


def in_float64(seed: int = 0) -> tuple[QuantizedAutoencoder, torch.Tensor]:
    torch.manual_seed(seed)
    network = Autoencoder(7, 5, (9,)).double()
    books = [torch.randn(4, 5, dtype=torch.float64) * 0.3 for _ in range(3)]
    return QuantizedAutoencoder(network, LearnedCodebooks(books, torch.ones(3, 5))), torch.randn(11, 7).double()


@pytest.mark.parametrize("pushed", [False, True], ids=["nearest", "some are given codes"])
def test_losses_and_gradients_against_a_reference(pushed: bool):
    model, x = in_float64()
    overrides, weights = None, torch.ones(11, dtype=torch.float64)
    codes = model.encode(x)
    if pushed:
        overrides = CodeOverrides(torch.randint(4, (11, 3)), torch.arange(11) % 3 == 0, 8.0)
        codes, weights[::3] = torch.where(overrides.mask[:, None], overrides.codes, codes), 8.0
    losses = model.losses(x, overrides=overrides)
    (losses.reconstruction + 0.25 * losses.commitment).backward()
    mine = [weight.grad.clone() for weight in model.network.parameters()]

    model.network.zero_grad()
    z = model.network.encode(x)
    quantized = model.codebooks.decode(codes).requires_grad_()
    reconstruction = ((model.network.decode(quantized) - x) ** 2).mean()
    reconstruction.backward()
    toward, commitment = quantized.grad.clone(), 0.0
    for level in range(3):
        left = z.detach() - sum(model.codebooks.books[k][codes[:, k]] for k in range(level + 1))
        commitment += (weights[:, None] * left**2).mean()
        toward += 0.25 * weights[:, None] * 2 * left / left.numel()
    z.backward(toward)  # the gradient at the codes goes straight to the latent
    torch.testing.assert_close(losses.reconstruction, reconstruction)
    torch.testing.assert_close(losses.commitment, commitment)
    torch.testing.assert_close(mine, [weight.grad for weight in model.network.parameters()])


def test_separation_gives_no_two_items_the_same_codes():
    model, x = in_float64()
    x = torch.cat([x, x + 1e-6, x - 1e-6]).float()
    model = QuantizedAutoencoder(
        model.network.float(), LearnedCodebooks([b.float() for b in model.codebooks.books], torch.ones(3, 5))
    )
    overrides = model.separating_codes(x[:16], weight=2.0)
    assert len(overrides.codes.unique(dim=0)) == 16
    stayed = ~overrides.mask
    assert (overrides.codes[stayed] == model.encode(x[:16])[stayed]).all() and 0 < stayed.sum() < 16
    assert model.separating_codes(x, weight=2.0) is None, "33 of 64 places taken: no room"
