"""The conf block `train` as a type, and what its `auto` values mean on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
LAYOUTS = ("padded", "packed")
LOGGERS = ("tensorboard", "csv", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The conf block ``train``; a model's own ``train`` block overrides it key by key.

    ``window``: events of a history that the model reads, at most the protocol's ``history`` (null: as many).
    ``windows`` trains on the last window of a long user only, or on all of them, each ``stride`` events earlier (null:
    as many as it has): a short stride reads events again, as context of others. ``layout``: a user to a row, padded,
    or several packed into rows of ``row`` events; ``batch_tokens`` is the number of events in a step; ``put_back``
    trains on training and validation events, for as many steps as without, and keeps the last state;
    ``patience`` counts validations without a new best ``metric``, which is that of ``validate_users`` users, always the
    same ones (null: of all);
    ``max_minutes`` of training, validations not counted, end it with the next one that is validated (null: no limit);
    ``ema``: the decay of a moving average of the weights over steps, which is validated and kept instead (null: none);
    ``precision`` auto means bf16 on a GPU that has it, else fp32; ``resume`` goes on from an unfinished run with
    equal settings and data; ``loggers`` get the curves: tensorboard, csv, wandb.
    """

    loss: dict[str, Any] = field(default_factory=lambda: {"name": "full_softmax", "chunk": 512})
    optimiser: dict[str, Any] = field(default_factory=lambda: {"name": "adam", "learning_rate": 1e-3})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    window: int | None = None
    windows: str = "last"
    stride: int | None = None
    layout: str = "padded"
    row: int | None = None
    put_back: bool = False
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
    resume: bool = True
    log_every: int = 5
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"train.precision is {self.precision!r}; allowed: auto, {', '.join(PRECISIONS)}")
        if self.windows not in ("last", "all"):
            raise ValueError(f"train.windows is {self.windows!r}; allowed: last, all")
        self._check_numbers()
        if self.stride is not None and (self.stride < 1 or self.windows != "all"):
            raise ValueError(
                f"train.stride is {self.stride} with train.windows {self.windows}; it is a number of events from 1 "
                "with windows: all, or null"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"train.layout is {self.layout!r}; allowed: {', '.join(LAYOUTS)}")
        if self.put_back and self.schedule.get("name") == "plateau":
            raise ValueError("train.put_back leaves no validation for train.schedule plateau; choose another")
        if unknown := set(self.loggers) - set(LOGGERS):
            raise ValueError(f"train.loggers has {sorted(unknown)}; allowed: {', '.join(LOGGERS)}")
        if self.validate_every > self.max_epochs:
            raise ValueError(
                f"train.validate_every is {self.validate_every}, more than train.max_epochs {self.max_epochs}: "
                "nothing would ever be selected"
            )

    def _check_numbers(self) -> None:
        for name in ("window", "row", "validate_users", "stride", "max_minutes", "gradient_clip", "ema"):
            value = getattr(self, name)  # of null the conf's own check knows no kind
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"train.{name} is {value!r}; it must be a number, or null")
        for name in ("batch_tokens", "max_epochs", "validate_every", "patience", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("window", "row", "validate_users"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"train.{name} is {value}; it is a number from 1, or null")
        for name in ("max_minutes", "gradient_clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"train.{name} is {value}; it must be more than 0, or null")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema is {self.ema}; it is a decay between 0 and 1 (.999, say), or null")


def check_layout(settings: TrainSettings, model: type[Any]) -> None:
    """Raises ValueError if ``model``, a class of recommenders, does not read ``settings.layout``."""
    if not model.closed_form and settings.layout not in model.layouts:
        raise ValueError(
            f"train.layout is {settings.layout} and {model.__name__} reads {', '.join(model.layouts)}; "
            f"set train.layout={model.layouts[0]} for it"
        )


def check_loss(settings: TrainSettings, model: type[Any]) -> None:
    """Raises ValueError if ``model``, a class of recommenders, cannot be trained with ``settings.loss``."""
    name = settings.loss.get("name")
    if not model.closed_form and model.losses and name not in model.losses:
        raise ValueError(
            f"train.loss is {name} and {model.__name__} is trained with {', '.join(model.losses)}; its targets are "
            f"not items: set `train: {{loss: {{name: {model.losses[0]}}}}}` in its block"
        )


def check_arguments(settings: TrainSettings) -> None:
    """Raises ValueError for arguments that the loss, the optimiser or the schedule does not have."""
    import torch

    from recpipe.training.losses import make_loss
    from recpipe.training.optimisers import make_optimiser, make_schedule

    make_loss(settings.loss, torch.ones(3), torch.ones(3, dtype=torch.bool))
    optimiser = make_optimiser([torch.nn.Parameter(torch.ones(2, 2))], settings.optimiser)
    make_schedule(optimiser, settings.schedule, steps=2, epoch_steps=1)


def choose_device(device: str) -> str:
    """``auto`` is cuda where there is one, else cpu. Raises ValueError for cuda without one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"train.device is {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "train.device is cuda and torch sees no CUDA device here; use --params train.device=cpu"
        )
    return device


def choose_precision(precision: str, device: str) -> str:
    """``auto`` is bf16 on a GPU that has it, else fp32."""
    import torch

    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
