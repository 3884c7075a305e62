"""Optimisers and learning-rate schedules by conf name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimiser(parameters: Iterable[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """``{"name": ..., "learning_rate": ..., <arguments>}``. Raises ValueError for an unknown name or argument."""
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in OPTIMISERS:
        raise ValueError(
            f"unknown optimiser {name!r} (conf: train.optimiser.name); there are {', '.join(sorted(OPTIMISERS))}"
        )
    if "learning_rate" in arguments:
        arguments["lr"] = arguments.pop("learning_rate")
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    try:
        return OPTIMISERS[name](parameters, foreach=True, **arguments)
    except TypeError as error:
        raise ValueError(f"optimiser {name}: {error} (conf: train.optimiser)") from None


def make_schedule(
    optimiser: torch.optim.Optimizer, settings: dict[str, Any], steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """``{"name": constant | cosine, "warmup_steps": 0, "final": 0.0}`` over ``steps`` optimiser steps.

    ``cosine`` falls from the full rate to ``final`` times it (Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, one
    period); both rise linearly over the warm-up. Raises ValueError for an unknown name or argument.
    """
    arguments = {"warmup_steps": 0, "final": 0.0, **settings}
    name = arguments.pop("name", None)
    if name not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {name!r} (conf: train.schedule.name); there are constant, cosine")
    if unknown := set(arguments) - {"warmup_steps", "final"}:
        raise ValueError(f"schedule {name}: unknown {sorted(unknown)} (conf: train.schedule)")
    warmup, final = int(arguments["warmup_steps"]), float(arguments["final"])

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if name == "constant":
            return 1.0
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
