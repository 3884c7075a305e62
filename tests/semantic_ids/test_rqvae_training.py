"""Training of the RQ-VAE: early stopping, resets of dead codes, separation of colliding items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids import rqvae
from recpipe.semantic_ids.autoencoder import Autoencoder, QuantizedAutoencoder
from recpipe.semantic_ids.quantizer import build_quantizer
from recpipe.semantic_ids.rqvae_training import RQVAEConfig, Training


def steps(number: int) -> dict[str, int]:
    return {"least_steps": number, "most_steps": number}


SMALL = {"levels": 3, "codes": 8, "latent": 6, "widths": [16], "warm_up": 0.25, "batch": 64, **steps(120)}


def clusters(rows: int = 300, width: int = 12, *, seed: int = 0) -> np.ndarray:
    """Points around 20 centres, of a different spread in every dimension."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(20, width)) * 3
    points = centres[rng.integers(20, size=rows)] + rng.normal(size=(rows, width))
    return (points * np.geomspace(0.01, 100, width) + 5).astype(np.float32)


def noise(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed))


def overfit(**settings: object) -> Training:
    """Pure noise: after a while what is learned of some items makes others worse."""
    values = {**SMALL, **steps(1200), "lr": 0.02, "widths": (64,), "separate": 0.0, "settle": 0.0, **settings}
    config = RQVAEConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    torch.manual_seed(0)
    model = QuantizedAutoencoder(Autoencoder(10, 6, config.widths))
    training = Training(
        config, model, (8, 8, 8), torch.ones(3, 6), noise(120, 0), noise(100, 1), torch.Generator().manual_seed(0)
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

    def record(config, model, sizes, masks, train, held_out, *rest):
        parts.extend([held_out, train])
        raise InterruptedError

    monkeypatch.setattr(rqvae, "Training", record)
    for rows in (300, 12):
        with pytest.raises(InterruptedError):
            build_quantizer("rqvae", {**SMALL, "codes": 2, "held_out": 0.25}).fit(clusters(rows), seed=0)
    assert [len(part) for part in parts] == [75, 225, 12, 12]
    assert len(torch.cat(parts[:2]).unique(dim=0)) == 300
