"""What a training cost, and what its numbers depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from recpipe.models.recommender import Recommender
from recpipe.training.memory import peak_memory_mib
from recpipe.training.module import TrainingModule
from recpipe.training.settings import TrainSettings


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning", "numpy")},
    }


def cost_of(module: TrainingModule, settings: TrainSettings, device: str) -> dict[str, Any]:
    """Of a training that has ended: seconds, epochs and the best of them, tokens per second, and ``size_of``."""
    epochs = len(module.curve)
    watched = f"valid_{settings.metric}"
    scored = [row for row in module.curve if watched in row]
    best = max(scored, key=lambda row: row[watched], default=None)
    return {
        "train_seconds": module.train_seconds,
        "epochs": epochs,
        **({} if best is None else {"best_epoch": best["epoch"], f"best_{watched}": best[watched]}),
        "seconds_per_epoch": module.train_seconds / epochs,
        "tokens_per_second": module.tokens_seen / module.train_seconds,
        "precision": "+".join(dict.fromkeys(precision for _, precision in module.ran)),
        "device": "+".join(dict.fromkeys(kind for kind, _ in module.ran)),
        **size_of(module.model, device),
    }


def size_of(model: Recommender, device: str) -> dict[str, Any]:
    """Numbers in the model, and the most memory since training began."""
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    return {"parameters": parameters, "peak_memory_mib": peak_memory_mib(device)}
