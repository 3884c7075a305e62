"""RQ-VAE and PQ-VAE: codes by hand from the saved tensors, repeatability, faiss as a rival."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids.quantizer import build_quantizer
from recpipe.semantic_ids.rqvae import PQVAE, RQVAE


def steps(number: int) -> dict[str, int]:
    return {"least_steps": number, "most_steps": number}


SMALL = {"levels": 3, "codes": 8, "latent": 6, "widths": [16], "warm_up": 0.25, "batch": 64, **steps(120)}


def clusters(rows: int = 300, width: int = 12, *, seed: int = 0) -> np.ndarray:
    """Points around 20 centres, of a different spread in every dimension."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(20, width)) * 3
    points = centres[rng.integers(20, size=rows)] + rng.normal(size=(rows, width))
    return (points * np.geomspace(0.01, 100, width) + 5).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> RQVAE:
    quantizer = build_quantizer("rqvae", SMALL)
    quantizer.fit(clusters(), seed=3)
    assert isinstance(quantizer, RQVAE)
    return quantizer


def through_the_network(quantizer: RQVAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstruction from the saved tensors alone, in numpy and float64."""
    saved = {name: tensor.double().numpy() for name, tensor in quantizer.tensors().items()}

    def mlp(side: str, values: np.ndarray) -> np.ndarray:
        hidden = np.maximum(values @ saved[f"{side}.0.weight"].T + saved[f"{side}.0.bias"], 0)
        return hidden @ saved[f"{side}.2.weight"].T + saved[f"{side}.2.bias"]

    y = (x - saved["mean"]) / saved["scale"]
    rest = y @ saved["inward.weight"].T + mlp("encoder", y)
    total, codes = np.zeros_like(rest), []
    for level in (1, 2, 3):
        book = saved[f"book_{level}"]
        codes.append(((rest[:, None] - book) ** 2).sum(2).argmin(1))
        total, rest = total + book[codes[-1]], rest - book[codes[-1]]
    decoded = total @ saved["outward.weight"].T + mlp("decoder", total)
    return np.stack(codes, 1), decoded * saved["scale"] + saved["mean"]


def test_codes_and_reconstruction_follow_from_the_saved_tensors(fitted: RQVAE):
    x = clusters(seed=1)
    codes, decoded = through_the_network(fitted, x)
    assert (fitted.encode(x) == codes).all()
    np.testing.assert_allclose((fitted.decode(fitted.encode(x)) - decoded) / fitted.scale.numpy(), 0, atol=1e-4)


def test_the_nearest_code_of_level_distances_is_the_code(fitted: RQVAE):
    x = clusters()
    codes = fitted.encode(x)
    for level in range(3):
        distances = fitted.level_distances(x, codes[:, :level], level)
        assert (distances.argmin(1) == codes[:, level]).all() and (distances >= 0).all()


def test_items_are_encoded_alike_in_any_company(fitted: RQVAE):
    x = clusters()
    alone = np.concatenate([fitted.encode(row[None]) for row in x[:40]])
    assert (alone == fitted.encode(x)[:40]).all()


@pytest.mark.parametrize("more", [{}, {"sinkhorn": [0.0, 0.0, 0.05]}, {"precision": "bf16"}], ids=str)
def test_the_same_seed_gives_the_same_codes_bit_for_bit(more: dict):
    def fit(seed: int) -> RQVAE:
        quantizer = build_quantizer("rqvae", {**SMALL, **more})
        quantizer.fit(clusters(), seed=seed)
        return quantizer

    before = torch.get_rng_state()
    first, again, other = fit(3), fit(3), fit(4)
    assert first.hash == again.hash != other.hash
    assert (torch.get_rng_state() == before).all(), "the global generator is none of its business"


def test_codes_do_not_depend_on_how_many_threads_there_are(fitted: RQVAE):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = build_quantizer("rqvae", SMALL)
        again.fit(clusters(), seed=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert again.hash == fitted.hash


def test_equal_items_get_equal_codes():
    x = np.repeat(clusters(40), 5, 0)
    quantizer = build_quantizer("rqvae", {**SMALL, "codes": 16})
    quantizer.fit(x, seed=0)
    codes = quantizer.encode(x).reshape(40, 5, 3)
    assert (codes == codes[:, :1]).all()


def test_all_codes_are_used_and_vectors_come_back_as_well_as_from_faiss():
    import faiss

    x = clusters(800)
    y = (x - x.mean(0)) / x.std(0)
    quantizer = build_quantizer("rqvae", {**SMALL, "codes": 16, "latent": 12, **steps(400)})
    quantizer.fit(x, seed=0)
    codes = quantizer.encode(x)
    assert all(len(np.unique(level)) == 16 for level in codes.T)
    mine = (((quantizer.decode(codes) - x) / x.std(0)) ** 2).mean()
    rival = faiss.ResidualQuantizer(12, 3, 4)
    rival.train(y)
    assert mine <= 1.1 * ((rival.decode(rival.compute_codes(y)) - y) ** 2).mean()


def test_without_standardising_small_dimensions_are_lost():
    x, errors = clusters(), []
    for standardise in (True, False):
        quantizer = build_quantizer("rqvae", {**SMALL, "standardise": standardise})
        quantizer.fit(x, seed=0)
        errors.append((((quantizer.decode(quantizer.encode(x)) - x) / x.std(0)) ** 2).mean())
    assert errors[0] < 0.7 * errors[1]


SMALL_PQVAE = {"levels": 3, "codes": 8, "latent": 8, "widths": [16], "warm_up": 0.25, "batch": 64, **steps(120)}


def scaled_noise(rows: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, 12)) * np.geomspace(3, 0.1, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted_pqvae() -> PQVAE:
    quantizer = build_quantizer("pqvae", SMALL_PQVAE)
    quantizer.fit(scaled_noise(), seed=0)
    assert isinstance(quantizer, PQVAE)
    return quantizer


def test_slices_are_disjoint_and_cover_the_latent():
    masks = build_quantizer("pqvae", SMALL_PQVAE)._masks()
    assert (masks.sum(0) == 1).all() and masks.sum(1).tolist() == [3, 3, 2]


def test_principal_components_are_dealt_in_turn():
    quantizer = build_quantizer("pqvae", SMALL_PQVAE)
    order, masks = quantizer._order(), quantizer._masks()
    assert sorted(order.tolist()) == list(range(8))
    assert masks[:, order].argmax(0).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_codes_are_zero_outside_their_slice(fitted_pqvae: PQVAE):
    for book, mask in zip(fitted_pqvae.model.codebooks.books, fitted_pqvae._masks(), strict=True):
        assert (book[:, mask == 0] == 0).all() and (book[:, mask == 1] != 0).any()


def test_every_level_takes_the_nearest_code_of_its_slice(fitted_pqvae: PQVAE):
    x = torch.from_numpy(scaled_noise())
    z = fitted_pqvae.model.latent((x - fitted_pqvae.mean) / fitted_pqvae.scale).double()
    codes = fitted_pqvae.encode(scaled_noise())
    for level, (book, mask) in enumerate(zip(fitted_pqvae.model.codebooks.books, fitted_pqvae._masks(), strict=True)):
        own = mask == 1
        expected = torch.cdist(z[:, own], book[:, own].double())
        assert (expected.argmin(1).numpy() == codes[:, level]).all()
        distances = fitted_pqvae.level_distances(scaled_noise(), codes, level)
        np.testing.assert_allclose(distances, expected.square(), atol=1e-3)


def test_other_levels_do_not_matter(fitted_pqvae: PQVAE):
    codes = fitted_pqvae.encode(scaled_noise())
    other = (codes + 3) % 8
    for level in range(3):
        np.testing.assert_allclose(
            fitted_pqvae.level_distances(scaled_noise(), codes, level),
            fitted_pqvae.level_distances(scaled_noise(), other, level),
            atol=1e-4,
        )


def test_the_same_seed_gives_the_same_pqvae(fitted_pqvae: PQVAE):
    again = build_quantizer("pqvae", SMALL_PQVAE)
    again.fit(scaled_noise(), seed=0)
    assert again.hash == fitted_pqvae.hash


def test_pqvae_is_better_than_no_codes_and_uses_all(fitted_pqvae: PQVAE):
    x, codes = scaled_noise(), fitted_pqvae.encode(scaled_noise())
    error = (((fitted_pqvae.decode(codes) - x) / x.std(0)) ** 2).mean()
    assert error < 0.75 and all(len(np.unique(level)) == 8 for level in codes.T)
