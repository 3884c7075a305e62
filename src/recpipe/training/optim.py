"""Optimisers by conf name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from recpipe.config import ConfigError, check_arguments, check_known

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adafactor": torch.optim.Adafactor,  # steps in proportion to each tensor's size, as T5 and TIGER were trained
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def make_optimiser(parameters: Iterable[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """``{"name": ..., "learning_rate": ..., "decay_vectors": true, <torch's own arguments>}``.

    ``decay_vectors: false`` spares biases and norms (all parameters of one dimension) the ``weight_decay``. Frozen
    parameters are left out. Raises ValueError for an unknown name or argument.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    check_known(name, sorted(OPTIMISERS), what="optimiser", also=" (train.optimiser.name)")
    added, internal = ("learning_rate", "decay_vectors"), ("params", "lr", "foreach")
    check_arguments(
        OPTIMISERS[name], arguments, what=f"{name} (train.optimiser)", internal=internal, added=added
    )
    if "learning_rate" in arguments:
        arguments["lr"] = arguments.pop("learning_rate")
    for pair in ("betas", "eps"):
        if isinstance(arguments.get(pair), list):
            arguments[pair] = tuple(arguments[pair])
    trained = [weight for weight in parameters if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not arguments.pop("decay_vectors", True):
        groups = [
            {"params": [weight for weight in trained if weight.ndim > 1]},
            {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
        ]
    try:
        return OPTIMISERS[name]([group for group in groups if group["params"]], foreach=True, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {name} (train.optimiser): {error}") from None
