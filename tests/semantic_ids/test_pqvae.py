"""PQ-VAE: every level has its own slice of the latent and knows nothing of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids.quantizer import build_quantizer
from recpipe.semantic_ids.rqvae import PQVAE


def steps(number: int) -> dict[str, int]:
    return {"least_steps": number, "most_steps": number}


SMALL = {"levels": 3, "codes": 8, "latent": 8, "widths": [16], "warm_up": 0.25, "batch": 64, **steps(120)}


def vectors(rows: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, 12)) * np.geomspace(3, 0.1, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> PQVAE:
    quantizer = build_quantizer("pqvae", SMALL)
    quantizer.fit(vectors(), seed=0)
    assert isinstance(quantizer, PQVAE)
    return quantizer


def test_slices_are_disjoint_and_cover_the_latent():
    masks = build_quantizer("pqvae", SMALL)._masks()
    assert (masks.sum(0) == 1).all() and masks.sum(1).tolist() == [3, 3, 2]


def test_principal_components_are_dealt_in_turn():
    quantizer = build_quantizer("pqvae", SMALL)
    order, masks = quantizer._order(), quantizer._masks()
    assert sorted(order.tolist()) == list(range(8))
    assert masks[:, order].argmax(0).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_codes_are_zero_outside_their_slice(fitted: PQVAE):
    for book, mask in zip(fitted.coded.books.books, fitted._masks(), strict=True):
        assert (book[:, mask == 0] == 0).all() and (book[:, mask == 1] != 0).any()


def test_every_level_takes_the_nearest_code_of_its_slice(fitted: PQVAE):
    x = torch.from_numpy(vectors())
    z = fitted.coded.latent((x - fitted.mean) / fitted.scale).double()
    codes = fitted.encode(vectors())
    for level, (book, mask) in enumerate(zip(fitted.coded.books.books, fitted._masks(), strict=True)):
        own = mask == 1
        expected = torch.cdist(z[:, own], book[:, own].double())
        assert (expected.argmin(1).numpy() == codes[:, level]).all()
        found = fitted.level_distances(vectors(), codes, level)
        np.testing.assert_allclose(found, expected.square(), atol=1e-3)


def test_other_levels_do_not_matter(fitted: PQVAE):
    codes = fitted.encode(vectors())
    other = (codes + 3) % 8
    for level in range(3):
        np.testing.assert_allclose(
            fitted.level_distances(vectors(), codes, level),
            fitted.level_distances(vectors(), other, level),
            atol=1e-4,
        )


def test_the_same_seed_gives_the_same_codes(fitted: PQVAE):
    again = build_quantizer("pqvae", SMALL)
    again.fit(vectors(), seed=0)
    assert again.hash == fitted.hash


def test_better_than_no_codes_at_all_and_all_codes_are_used(fitted: PQVAE):
    x, codes = vectors(), fitted.encode(vectors())
    error = (((fitted.decode(codes) - x) / x.std(0)) ** 2).mean()
    assert error < 0.75 and all(len(np.unique(level)) == 8 for level in codes.T)
