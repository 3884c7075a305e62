"""RQ-VAE and PQ-VAE: codes by hand from the saved tensors, repeatability, faiss as a rival; early stopping, resets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids import rqvae
from recpipe.semantic_ids.autoencoder import Autoencoder, QuantizedAutoencoder
from recpipe.semantic_ids.quantizer import build_quantizer
from recpipe.semantic_ids.rqvae import PQVAE, RQVAE, RQVAEConfig, Training
from recpipe.semantic_ids.vector_rows import StandardisedRows, VectorRows


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


def noise(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed))


def overfit(**settings: object) -> Training:
    """Pure noise: after a while what is learned of some items makes others worse."""
    values = {**SMALL, **steps(1200), "lr": 0.02, "widths": (64,), "separate": 0.0, "settle": 0.0, **settings}
    config = RQVAEConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    torch.manual_seed(0)
    model = QuantizedAutoencoder(Autoencoder(10, 6, config.widths))
    train = StandardisedRows(VectorRows(noise(120, 0).numpy()), torch.zeros(10), torch.ones(10))
    training = Training(
        config, model, (8, 8, 8), torch.ones(3, 6), train, noise(100, 1), torch.Generator().manual_seed(0)
    )
    training.run()
    return training


def test_stops_early_and_keeps_the_best_state():
    training = overfit(patience=4)
    curve = [row["valid_reconstruction"] for row in training.history if "valid_reconstruction" in row]
    assert training.history[-1]["step"] < 1200, "nothing to stop: the test shows nothing"
    assert len(curve) - 1 - int(np.argmin(curve)) == 4, "stops after `patience` looks without a better one"
    assert training.model.reconstruction_error(training.held_out_ND) == min(curve) < curve[-1]


def test_one_epoch_is_enough_to_get_codes():
    quantizer = build_quantizer("rqvae", {**SMALL, **steps(1)})
    quantizer.fit(clusters(), seed=0)
    assert len(quantizer.history) == 1 and len(np.unique(quantizer.encode(clusters())[:, 0])) == 8


def test_no_reset_leaves_codes_dead_and_a_reset_does_not():
    used = []
    for until in (0.0, 0.7):
        values = {**SMALL, **steps(60), "codes": 64, "warm_up": 0.0, "dead_codes": {"every": 1, "until": until}}
        quantizer = build_quantizer("rqvae", values)
        quantizer.fit(clusters(), seed=0)
        used.append(len(np.unique(quantizer.encode(clusters())[:, 2])))
    assert used[1] > used[0]


def test_a_diverging_fit_says_so():
    with pytest.raises(ValueError, match="diverged.*lower lr"):
        build_quantizer("rqvae", {**SMALL, "lr": 1e12, "patience": 99}).fit(clusters(), seed=0)


def test_separated_items_learn_to_differ():
    x, distinct = clusters(600), []
    for separate in (0.0, 4.0):
        settings = {"codes": 12, "widths": [64], "separate": separate, "held_out": 0.0, **steps(300)}
        quantizer = build_quantizer("rqvae", {**SMALL, **settings})
        quantizer.fit(x, seed=0)
        distinct.append(len(np.unique(quantizer.encode(x), axis=0)))
    assert distinct[1] > distinct[0] + 20


def test_held_out_items_are_no_training_items(monkeypatch: pytest.MonkeyPatch):
    parts: list[torch.Tensor] = []

    def record(config, model, sizes, masks, train, held_out, *rest, **more):
        parts.extend([held_out, train.tensor(slice(None))])
        raise InterruptedError

    monkeypatch.setattr(rqvae, "Training", record)
    for rows in (300, 12):
        with pytest.raises(InterruptedError):
            build_quantizer("rqvae", {**SMALL, "codes": 2, "held_out": 0.25}).fit(clusters(rows), seed=0)
    assert [len(part) for part in parts] == [75, 225, 12, 12]
    assert len(torch.cat(parts[:2]).unique(dim=0)) == 300
