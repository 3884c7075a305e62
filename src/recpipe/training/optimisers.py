"""Optimisers by conf name.

Learning-rate schedules by conf name: factors of the full rate, after a linear warm-up.

Each shape is an object with numbers only, so that torch's LambdaLR saves what it has become with a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


@dataclass
class Constant:
    """The full rate."""

    def at(self, step: int, steps: int, epoch_steps: int) -> float:
        """The factor at ``step`` of ``steps``, both counted from the end of the warm-up."""
        return 1.0


@dataclass
class Step:
    """The rate times ``factor`` after every ``epochs`` epochs."""

    epochs: int = 10
    factor: float = 0.5

    def at(self, step: int, steps: int, epoch_steps: int) -> float:
        return self.factor ** (step // (self.epochs * epoch_steps))


@dataclass
class Cosine:
    """From the full rate to ``final`` times it: Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, one period."""

    final: float = 0.0

    def at(self, step: int, steps: int, epoch_steps: int) -> float:
        return _between(1.0, self.final, step / max(steps, 1))


@dataclass
class OneCycle:
    """Smith & Topin 2018, cosines as in torch: from ``start`` up to 1 for ``rise`` of the time, then to ``final``."""

    rise: float = 0.3
    start: float = 0.04
    final: float = 4e-6

    def at(self, step: int, steps: int, epoch_steps: int) -> float:
        top, last = self.rise * steps - 1, steps - 1
        if step <= top:
            return _between(self.start, 1.0, step / top if top > 0 else 1.0)
        return _between(1.0, self.final, (step - top) / (last - top))


@dataclass
class Plateau:
    """The rate times ``factor`` after more than ``patience`` validations that were not better than the best one.

    Better is by more than ``threshold`` of the best; then ``cooldown`` validations do not count; never below
    ``least`` of the full rate. As torch's ReduceLROnPlateau.
    """

    factor: float = 0.5
    patience: int = 3
    threshold: float = 1e-4
    cooldown: int = 0
    least: float = 0.0
    now: float = dataclasses.field(default=1.0, init=False)
    best: float = dataclasses.field(default=-math.inf, init=False)
    bad: int = dataclasses.field(default=0, init=False)
    cooling: int = dataclasses.field(default=0, init=False)

    def at(self, step: int, steps: int, epoch_steps: int) -> float:
        return self.now

    def observe(self, metric: float) -> None:
        """One validation's metric, higher is better."""
        if self.best == -math.inf or metric > self.best + self.threshold * abs(self.best):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            self.now, self.cooling, self.bad = max(self.now * self.factor, self.least), self.cooldown, 0


SHAPES: dict[str, type[Any]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "one_cycle": OneCycle,
    "plateau": Plateau,
}
WITHOUT_END = ("constant", "step", "plateau")
"""Schedules that do not depend on the number of epochs."""


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """A shape after ``warmup`` steps that rise linearly to where it begins; stepped after every optimiser step."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, shape: Any, *, warmup: int, steps: int, epoch_steps: int
    ) -> None:
        self.shape, self.warmup, self.steps, self.epoch_steps = shape, warmup, steps, epoch_steps
        super().__init__(optimiser, self.factor)

    def factor(self, step: int) -> float:
        """What the full rate is multiplied by at ``step``."""
        rise = (step + 1) / (self.warmup + 1) if step < self.warmup else 1.0
        whole = max(self.steps - self.warmup, 1)
        place = min(max(step - self.warmup, 0), whole)
        return rise * float(self.shape.at(place, whole, self.epoch_steps))

    def observe(self, metric: float) -> None:
        """One validation's metric, higher is better; only a plateau schedule looks at it."""
        if isinstance(self.shape, Plateau):
            self.shape.observe(metric)
            for group, full in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = full * self.factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Numbers only: checkpoints hold no objects."""
        kept = ("last_epoch", "_step_count", "base_lrs", "_last_lr")
        return {key: getattr(self, key) for key in kept} | {"shape": dataclasses.asdict(self.shape)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for key, value in state.pop("shape").items():
            setattr(self.shape, key, value)
        self.__dict__.update(state)


def make_schedule(
    optimiser: torch.optim.Optimizer, settings: dict[str, Any], steps: int, epoch_steps: int = 1
) -> Schedule:
    """``{"name": ..., "warmup_steps": 0, <the shape's arguments>}`` over ``steps`` steps, ``epoch_steps`` an epoch.

    Raises ValueError for an unknown name or argument.
    """
    arguments = dict(settings)
    name, warmup = arguments.pop("name", None), int(arguments.pop("warmup_steps", 0))
    check_known(name, list(SHAPES), what="schedule", also=" (train.schedule.name)")
    check_arguments(SHAPES[name], arguments, what=f"{name} (train.schedule)", added=["warmup_steps"])
    shape = SHAPES[name](**arguments)
    return Schedule(optimiser, shape, warmup=warmup, steps=steps, epoch_steps=epoch_steps)


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
