"""Optimisers and learning-rate schedules by conf name.

A schedule is a shape, a factor of the full learning rate per step, after a linear warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from recpipe.config import ConfigError, check_arguments, check_known
from recpipe.layers.large_tables import LARGE

OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "adafactor": torch.optim.Adafactor,  # steps in proportion to each tensor's size, as T5 and TIGER were trained
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
FUSED = ("adam", "adamw", "sgd")  # optimisers that torch has fused


def make_optimiser(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any]) -> Optimizer:
    """Build ``{"name": ..., "learning_rate": ..., "decay_vectors": true, <torch's own arguments>}``.

    ``fused`` updates all weights in one pass, for a table of 13 million on a CPU eight times as fast (Adam); the last
    bits of the weights differ. The default is yes on a CPU with a table of ``LARGE`` elements. ``decay_vectors: false``
    exempts parameters of one dimension (biases, norms) from ``weight_decay``; frozen ones are left out. Raises
    ConfigError for an unknown name or argument.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    check_known(name, sorted(OPTIMISERS), what="optimiser", hint=" (train.optimiser.name)")
    extra, internal = ("learning_rate", "decay_vectors"), ("params", "lr", "foreach")
    check_arguments(OPTIMISERS[name], arguments, what=f"{name} (train.optimiser)", internal=internal, extra=extra)
    if "learning_rate" in arguments:
        arguments["lr"] = arguments.pop("learning_rate")
    arguments |= {key: tuple(arguments[key]) for key in ("betas", "eps") if isinstance(arguments.get(key), list)}
    trainable = [weight for weight in parameters if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trainable}]
    if not arguments.pop("decay_vectors", True):
        matrices = [weight for weight in trainable if weight.ndim > 1]
        vectors = [weight for weight in trainable if weight.ndim < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    if arguments.get("fused") is None and name in FUSED:
        arguments["fused"] = any(weight.numel() >= LARGE and weight.device.type == "cpu" for weight in trainable)
    try:
        foreach = None if arguments.get("fused") else True  # torch allows one of the two
        optimiser = OPTIMISERS[name]([group for group in groups if group["params"]], foreach=foreach, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {name} (train.optimiser): {error}") from None
    # fused ones undo the scaling of float16, which is not used here, and Lightning would refuse to clip gradients
    optimiser._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimiser


# (step, steps, steps of an epoch) -> factor of the full rate; steps count from the end of the warm-up
Shape = Callable[[int, int, int], float]


def constant(step: int, steps: int, epoch_steps: int) -> float:
    """Return 1, the full rate."""
    return 1.0


def stepwise(step: int, steps: int, epoch_steps: int, *, epochs: int = 10, factor: float = 0.5) -> float:
    """Return the factor of the rate, multiplied by ``factor`` after every ``epochs`` epochs."""
    return factor ** (step // (epochs * epoch_steps))


def cosine(step: int, steps: int, epoch_steps: int, *, final: float = 0.0) -> float:
    """Return the factor from 1 down to ``final``: Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, one period."""
    return _cosine_between(1.0, final, step / max(steps, 1))


def one_cycle(
    step: int, steps: int, epoch_steps: int, *, rise: float = 0.3, start: float = 0.04, final: float = 4e-6
) -> float:
    """Return the factor from ``start`` up to 1 for ``rise`` of the time, then down to ``final``.

    Smith & Topin 2018, with cosines as in torch.
    """
    peak, last = rise * steps - 1, steps - 1
    if step <= peak:
        return _cosine_between(start, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine_between(1.0, final, (step - peak) / (last - peak))


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass
class Plateau:
    """Plateau schedule: the rate times ``factor`` after more than ``patience`` validations without a new best.

    A new best exceeds the old one by more than ``threshold`` of it. After a reduction, ``cooldown`` validations do not
    count. The factor is never below ``least``.
    """

    factor: float = 0.5
    patience: int = 3
    threshold: float = 1e-4
    cooldown: int = 0
    least: float = 0.0
    now: float = field(default=1.0, init=False)
    best: float = field(default=-math.inf, init=False)
    bad: int = field(default=0, init=False)
    cooling: int = field(default=0, init=False)

    def __call__(self, step: int, steps: int, epoch_steps: int) -> float:
        """Return the factor of the rate, which depends on ``observe`` only."""
        return self.now

    def observe(self, metric: float) -> None:
        """Take in the metric of a validation; higher is better."""
        if self.best == -math.inf or metric > self.best + self.threshold * abs(self.best):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            self.now, self.cooling, self.bad = max(self.now * self.factor, self.least), self.cooldown, 0


SHAPES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "step": stepwise,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": Plateau,
}
INDEPENDENT_OF_LENGTH = ("constant", "step", "plateau")  # schedules that ignore the number of epochs


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning-rate schedule: a linear rise over ``warmup`` steps, then a shape; stepped after every optimiser step."""

    def __init__(self, optimiser: Optimizer, shape: Shape, *, warmup: int, steps: int, epoch_steps: int) -> None:
        self.shape, self.warmup, self.steps, self.epoch_steps = shape, warmup, steps, epoch_steps
        super().__init__(optimiser, self.factor)

    def factor(self, step: int) -> float:
        """Return the factor of the full rate at ``step``."""
        rise = (step + 1) / (self.warmup + 1) if step < self.warmup else 1.0
        steps = max(self.steps - self.warmup, 1)
        return rise * float(self.shape(min(max(step - self.warmup, 0), steps), steps, self.epoch_steps))

    def observe(self, metric: float) -> None:
        """Take in the metric of a validation (higher is better), on which a plateau schedule depends."""
        if isinstance(self.shape, Plateau):
            self.shape.observe(metric)
            for group, full in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = full * self.factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers only: checkpoints hold no objects."""
        state = {key: getattr(self, key) for key in ("last_epoch", "_step_count", "base_lrs", "_last_lr")}
        return state | {"shape": asdict(self.shape) if isinstance(self.shape, Plateau) else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``."""
        if isinstance(self.shape, Plateau):
            vars(self.shape).update(state_dict["shape"])
        vars(self).update({key: value for key, value in state_dict.items() if key != "shape"})


def make_schedule(optimiser: Optimizer, settings: Mapping[str, Any], steps: int, epoch_steps: int = 1) -> Schedule:
    """Build ``{"name": ..., "warmup_steps": 0, <shape's arguments>}`` for ``steps`` steps, ``epoch_steps`` an epoch.

    Raises ConfigError for an unknown name or argument.
    """
    arguments = dict(settings)
    name, warmup = arguments.pop("name", None), int(arguments.pop("warmup_steps", 0))
    check_known(name, list(SHAPES), what="schedule", hint=" (train.schedule.name)")
    internal, extra = ("step", "steps", "epoch_steps"), ("warmup_steps",)
    check_arguments(SHAPES[name], arguments, what=f"{name} (train.schedule)", internal=internal, extra=extra)
    shape = Plateau(**arguments) if name == "plateau" else partial(SHAPES[name], **arguments)
    return Schedule(optimiser, shape, warmup=warmup, steps=steps, epoch_steps=epoch_steps)
