"""Settings of training (conf block ``train``), and the meaning of their `auto` values on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recpipe.config import RunConfig, build_config
from recpipe.config.run_config import ColdUsersConfig

if TYPE_CHECKING:
    from recpipe.data.protocol import Protocol
    from recpipe.models.recommender import Recommender

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
LAYOUTS = ("padded", "packed")
LOGGERS = ("tensorboard", "csv", "wandb")
STRATEGIES = ("auto", "ddp")
MACHINE = ("devices", "strategy", "num_nodes", "accumulate")  # how a step is shared out, which leaves it the same
COUNTS = ("batch_tokens", "max_epochs", "validate_every", "patience", "log_every", "num_nodes", "accumulate")
OPTIONAL = ("window", "row", "validate_users", "stride", "max_minutes", "gradient_clip", "ema")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The conf block ``train``; a model's own ``train`` block overrides it key by key.

    window: events of a history that the model reads, at most and by default the protocol's ``history``.
    windows: ``last`` trains on the last window of a long history; ``all`` on every window, ``stride`` events apart (by
        default without overlap; events of an overlap are context only).
    layout: ``padded``, a history per row, or ``packed``, several per row of ``row`` events (by default a window).
    batch_tokens: events of a step.
    weights: use the weights of events, where the log has the column ``weight``; false: all events count alike.
    history_bias: added to the scores of items in the history, in validation and whenever the model is used: negative
        where users do not repeat items, positive where they do. For models that score the whole catalogue.
    train_on_validation: train on training and validation events, for as many steps as without, and keep the last state.
    patience: validations without a new best ``metric`` that end training; ``validate_users`` limits them to this number
        of users, always the same.
    max_minutes: end training, without the time of validations, at the next epoch that is validated.
    ema: decay of a moving average of the weights over steps, which is validated and kept instead.
    precision: ``auto`` is bf16 on a GPU that has it, else fp32.
    devices: processes of a machine that share every step, a GPU each or a part of the CPU's cores; ``auto`` is all GPUs
        of the machine, and 1 on a CPU. ``num_nodes``: machines, each with ``devices``; more than one by torchrun.
    strategy: how they share it; ``auto`` is ``ddp``, a copy of the model for each device.
    accumulate: micro-batches of a step, one after the other, so that a step needs less memory.
    resume: continue an unfinished run with equal settings and data.
    loggers: destinations of the curves, of tensorboard, csv, wandb.
    """

    loss: dict[str, Any] = field(default_factory=lambda: {"name": "full_softmax", "chunk": 512})
    optimiser: dict[str, Any] = field(default_factory=lambda: {"name": "adam", "learning_rate": 1e-3})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    window: int | None = None
    windows: str = "last"
    stride: int | None = None
    layout: str = "padded"
    row: int | None = None
    weights: bool = True
    history_bias: float = 0.0
    train_on_validation: bool = False
    batch_tokens: int = 12_800
    max_epochs: int = 100
    max_minutes: float | None = None
    validate_every: int = 1
    validate_users: int | None = None
    patience: int = 10
    metric: str = "ndcg@10"
    gradient_clip: float | None = None
    ema: float | None = None
    precision: str = "auto"
    device: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1
    accumulate: int = 1
    resume: bool = True
    log_every: int = 5
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        allowed = {"precision": ("auto", *PRECISIONS), "windows": ("last", "all"), "layout": LAYOUTS}
        allowed["strategy"] = STRATEGIES
        for name, choices in allowed.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"train.{name} is {value!r}; allowed: {', '.join(choices)}")
        if unknown := set(self.loggers) - set(LOGGERS):
            raise ValueError(f"train.loggers has {sorted(unknown)}; allowed: {', '.join(LOGGERS)}")
        self._check_numbers()
        stride, windows, validate_every, max_epochs = self.stride, self.windows, self.validate_every, self.max_epochs
        if stride is not None and windows != "all":
            raise ValueError(f"train.stride is {stride} with train.windows {windows}; set windows: all, or null")
        if self.train_on_validation and self.schedule.get("name") == "plateau":
            raise ValueError(
                "train.train_on_validation leaves no validation for train.schedule plateau; choose another"
            )
        if validate_every > max_epochs:
            numbers = f"train.validate_every is {validate_every}, more than train.max_epochs {max_epochs}"
            raise ValueError(f"{numbers}: no epoch would be validated")

    def _check_numbers(self) -> None:
        if not isinstance(self.weights, bool):
            raise ValueError(f"train.weights is {self.weights!r}; allowed: true, false")
        devices = self.devices
        if devices != "auto" and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
            raise ValueError(f"train.devices is {devices!r}; it must be a number, at least 1, or auto")
        bias = self.history_bias
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError(f"train.history_bias is {bias!r}; it must be a finite number, such as 0 or -20")
        for name in (*COUNTS, *OPTIONAL):
            value, or_null = getattr(self, name), ", or null" if name in OPTIONAL else ""
            if value is None and or_null:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"train.{name} is {value!r}; it must be a number{or_null}")
            if name not in ("max_minutes", "gradient_clip", "ema") and value < 1:
                raise ValueError(f"train.{name} is {value}; it must be at least 1{or_null}")
            if not value > 0:
                raise ValueError(f"train.{name} is {value}; it must be more than 0{or_null}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema is {self.ema}; it is a decay between 0 and 1 (.999, say), or null")


def check_model(run: RunConfig, protocol: Protocol | None = None) -> None:
    """Raise ValueError for settings that the model, its training or its fallback for new users does not allow."""
    from recpipe.models.registry import model_class, side_config

    where, cls = f"models.{run.name}", model_class(run.type)
    config = build_config(cls.Config, run.settings, where=where)
    side = side_config(run.type, run.side, where=where)
    settings = build_config(TrainSettings, run.train, where=f"{where}.train")
    build_config(ColdUsersConfig, run.cold_users, where="cold_users")
    if protocol is not None:
        protocol.check_time(getattr(config, "time_mode", "none"), model=run.name)
        protocol.check_time(side.requires_time, model=run.name)
    check_settings(settings, cls)


def check_settings(settings: TrainSettings, model: type[Recommender]) -> None:
    """Raise ValueError for a layout or loss unfit for a model, and bad arguments of loss, optimiser or schedule."""
    import torch

    from recpipe.models.recommender import Scorer
    from recpipe.training.losses import make_loss
    from recpipe.training.optimisers import make_optimiser, make_schedule

    if model.closed_form:
        return
    if settings.layout not in model.layouts:
        reason = f"train.layout is {settings.layout} and {model.__name__} reads {', '.join(model.layouts)}"
        raise ValueError(f"{reason}; set train.layout={model.layouts[0]} for it")
    if settings.history_bias and not issubclass(model, Scorer):
        raise ValueError(
            f"train.history_bias is {settings.history_bias:g} and {model.__name__} searches a tree instead of scoring "
            "every item: set it to 0, or exclude the items of the history by protocol.exclude_seen"
        )
    name = settings.loss.get("name")
    if model.losses and name not in model.losses:
        raise ValueError(
            f"train.loss is {name} and {model.__name__} is trained with {', '.join(model.losses)}; its targets are "
            f"not items: set `train: {{loss: {{name: {model.losses[0]}}}}}` in its block"
        )
    make_loss(settings.loss, torch.ones(3), torch.ones(3, dtype=torch.bool))
    optimiser = make_optimiser([torch.nn.Parameter(torch.ones(2, 2))], settings.optimiser)
    make_schedule(optimiser, settings.schedule, steps=2, epoch_steps=1)


def choose_device(device: str, *, setting: str = "train.device") -> str:
    """Resolve ``auto`` to cuda or cpu. Raises ValueError about ``setting`` for cuda without a device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"{setting} is {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{setting} is cuda and torch sees no CUDA device here; use --params {setting}=cpu")
    return device


def choose_precision(precision: str, device: str) -> str:
    """Resolve ``auto`` to bf16 on a GPU that has it, else to fp32."""
    import torch

    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
