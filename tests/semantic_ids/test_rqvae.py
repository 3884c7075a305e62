"""RQ-VAE: losses and gradients in float64, codes by hand, early stopping, repeatability, faiss as a rival."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids.autoencoder import Autoencoder, CodedAutoencoder, Forced, VAEConfig
from recpipe.semantic_ids.codebooks import LearnedCodebooks
from recpipe.semantic_ids.quantizer import build_quantizer
from recpipe.semantic_ids.rqvae import RQVAE
from recpipe.semantic_ids.rqvae_training import Training


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


def in_float64(seed: int = 0) -> tuple[CodedAutoencoder, torch.Tensor]:
    torch.manual_seed(seed)
    network = Autoencoder(7, 5, (9,)).double()
    books = [torch.randn(4, 5, dtype=torch.float64) * 0.3 for _ in range(3)]
    return CodedAutoencoder(network, LearnedCodebooks(books, torch.ones(3, 5))), torch.randn(11, 7).double()


@pytest.mark.parametrize("pushed", [False, True], ids=["nearest", "some are given codes"])
def test_losses_and_gradients_against_a_reference(pushed: bool):
    coded, x = in_float64()
    forced, weights = None, torch.ones(11, dtype=torch.float64)
    codes = coded.choose(x)
    if pushed:
        forced = Forced(torch.randint(4, (11, 3)), torch.arange(11) % 3 == 0, 8.0)
        codes, weights[::3] = torch.where(forced.moved[:, None], forced.codes, codes), 8.0
    found = coded.losses(x, forced=forced)
    (found.reconstruction + 0.25 * found.commitment).backward()
    mine = [weight.grad.clone() for weight in coded.network.parameters()]

    coded.network.zero_grad()
    z = coded.network.encode(x)
    quantized = coded.books.sum(codes).requires_grad_()
    reconstruction = ((coded.network.decode(quantized) - x) ** 2).mean()
    reconstruction.backward()
    toward, commitment = quantized.grad.clone(), 0.0
    for level in range(3):
        left = z.detach() - sum(coded.books.books[k][codes[:, k]] for k in range(level + 1))
        commitment += (weights[:, None] * left**2).mean()
        toward += 0.25 * weights[:, None] * 2 * left / left.numel()
    z.backward(toward)  # the gradient at the codes goes straight to the latent
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.commitment, commitment)
    torch.testing.assert_close(mine, [weight.grad for weight in coded.network.parameters()])


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
    np.testing.assert_allclose(
        (fitted.decode(fitted.encode(x)) - decoded) / fitted.scale.numpy(), 0, atol=1e-4
    )


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


def noise(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed))


def overfit(**settings: object) -> Training:
    """Pure noise: after a while what is learned of some items makes others worse."""
    values = {**SMALL, **steps(1200), "lr": 0.02, "widths": (64,), "separate": 0.0, "settle": 0.0, **settings}
    config = VAEConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    torch.manual_seed(0)
    coded = CodedAutoencoder(Autoencoder(10, 6, config.widths))
    training = Training(
        config,
        coded,
        (8, 8, 8),
        torch.ones(3, 6),
        noise(120, 0),
        noise(100, 1),
        torch.Generator().manual_seed(0),
    )
    training.run()
    return training


def test_stops_early_and_keeps_the_best_state():
    training = overfit(patience=4)
    curve = [row["valid_reconstruction"] for row in training.history if "valid_reconstruction" in row]
    assert training.history[-1]["step"] < 1200, "nothing to stop: the test shows nothing"
    assert len(curve) - 1 - int(np.argmin(curve)) == 4, "stops after `patience` looks without a better one"
    assert training.coded.reconstruction(training.held_out_ND) == min(curve) < curve[-1]


def test_held_out_items_are_no_training_items():
    quantizer = build_quantizer("rqvae", {**SMALL, "held_out": 0.25})
    parts = quantizer._split(torch.arange(300.0)[:, None], torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [75, 225] and len(torch.cat(parts).unique()) == 300
    assert [len(part) for part in quantizer._split(torch.zeros(12, 1), torch.Generator())] == [12, 12]


def test_one_epoch_is_enough_to_get_codes():
    quantizer = build_quantizer("rqvae", {**SMALL, **steps(1)})
    quantizer.fit(clusters(), seed=0)
    assert len(quantizer.history) == 1 and len(np.unique(quantizer.encode(clusters())[:, 0])) == 8


def test_no_reset_leaves_codes_dead_and_a_reset_does_not():
    used = []
    for until in (0.0, 0.7):
        values = {
            **SMALL,
            **steps(60),
            "codes": 64,
            "warm_up": 0.0,
            "dead_codes": {"every": 1, "until": until},
        }
        quantizer = build_quantizer("rqvae", values)
        quantizer.fit(clusters(), seed=0)
        used.append(len(np.unique(quantizer.encode(clusters())[:, 2])))
    assert used[1] > used[0]


def test_a_diverging_fit_says_so():
    with pytest.raises(ValueError, match="diverged.*lower lr"):
        build_quantizer("rqvae", {**SMALL, "lr": 1e12, "patience": 99}).fit(clusters(), seed=0)


def test_separation_gives_no_two_items_the_same_codes():
    coded, x = in_float64()
    x = torch.cat([x, x + 1e-6, x - 1e-6]).float()
    coded = CodedAutoencoder(
        coded.network.float(), LearnedCodebooks([b.float() for b in coded.books.books], torch.ones(3, 5))
    )
    forced = coded.separated(x[:16], weight=2.0)
    assert len(forced.codes.unique(dim=0)) == 16
    stayed = ~forced.moved
    assert (forced.codes[stayed] == coded.choose(x[:16])[stayed]).all() and 0 < stayed.sum() < 16
    assert coded.separated(x, weight=2.0) is None, "33 of 64 places taken: no room"


def test_separated_items_learn_to_differ():
    x, distinct = clusters(600), []
    for separate in (0.0, 4.0):
        settings = {"codes": 12, "widths": [64], "separate": separate, "held_out": 0.0, **steps(300)}
        quantizer = build_quantizer("rqvae", {**SMALL, **settings})
        quantizer.fit(x, seed=0)
        distinct.append(len(np.unique(quantizer.encode(x), axis=0)))
    assert distinct[1] > distinct[0] + 20


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
