"""Trains or fits any Recommender: one function, one set of settings, the same loop for all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from recpipe.data.batches import DeviceSequences, TrainingBatches
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import Recommender
from recpipe.training.allocator import keep_freed_memory
from recpipe.training.checkpoint import SafetensorsCheckpointIO, load_tree
from recpipe.training.losses import make_loss
from recpipe.training.memory import peak_memory_mib, reset_peak_memory
from recpipe.training.module import TrainingModule, Validate

log = logging.getLogger(__name__)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else four lines of tips per run
NOISE = (
    "Checkpoint directory .* exists and is not empty",  # by design: the work folder also holds the curves
    "The number of training batches .* is smaller than the logging interval",
    "The 'val_dataloader' does not have many workers",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The conf block ``train``; a model's own ``train`` block overrides it key by key.

    ``windows`` trains on the last window of a long user only, or on all of them; ``batch_tokens`` is the number of
    events in a step; ``patience`` counts validations without a new best ``metric``;
    ``precision`` auto means bf16 on a GPU that has it, else fp32; ``resume`` goes on from an unfinished run with
    equal settings and data.
    """

    loss: dict[str, Any] = field(default_factory=lambda: {"name": "full_softmax", "chunk": 512})
    optimiser: dict[str, Any] = field(default_factory=lambda: {"name": "adam", "learning_rate": 1e-3})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    windows: str = "last"
    batch_tokens: int = 12_800
    max_epochs: int = 100
    validate_every: int = 1
    patience: int = 10
    metric: str = "ndcg@10"
    gradient_clip: float | None = None
    precision: str = "auto"
    device: str = "auto"
    resume: bool = True
    log_every: int = 5

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"train.precision is {self.precision!r}; allowed: auto, {', '.join(PRECISIONS)}")
        if self.windows not in ("last", "all"):
            raise ValueError(f"train.windows is {self.windows!r}; allowed: last, all")
        for name in ("batch_tokens", "max_epochs", "validate_every", "patience", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.validate_every > self.max_epochs:
            raise ValueError(
                f"train.validate_every is {self.validate_every}, more than train.max_epochs {self.max_epochs}: "
                "nothing would ever be selected"
            )


@dataclass
class Trained:
    """What training returns: the fitted model, the curve (a row per epoch) and what it cost."""

    model: Recommender
    curve: list[dict[str, Any]]
    cost: dict[str, Any]
    versions: dict[str, str]


def train(
    model_factory: Callable[[], Recommender],
    data: Sequences,
    validate: Validate,
    settings: TrainSettings,
    *,
    seed: int,
    folder: Path,
    fingerprint: str = "",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Trains a model on ``data`` (training events only) and returns it at its best validation.

    ``validate(model)`` gives ``{"valid_<metric>": ...}``; nothing else selects. ``folder`` holds checkpoints and
    TensorBoard curves; ``fingerprint`` (of data and settings) says whether a checkpoint there belongs to this run.
    Raises NonFiniteLoss, KeyboardInterrupt (the last checkpoint stays whole), ValueError for bad settings.
    """
    pl.seed_everything(seed, verbose=False)
    device = choose_device(settings.device)
    reset_peak_memory(device)
    model = model_factory()
    started = time.perf_counter()
    if model.closed_form:
        model.to(device).fit(data)
        cost = {"train_seconds": time.perf_counter() - started, "epochs": 0, "device": device}
        return Trained(model, [], {**cost, **_size(model, device)}, versions())
    keep_freed_memory()
    fingerprint = _fingerprint(fingerprint, settings, seed, model)
    module = _module(model.to(device), data, validate, settings, seed, on_epoch)
    with _alone_in(folder):
        _run(module, settings, device, folder, _resumable(folder, fingerprint, settings), fingerprint)
        module.load_state_dict(load_tree(folder / BEST)["state_dict"])
        for name in (BEST, LAST):
            (folder / name).unlink(missing_ok=True)
    return Trained(model, module.curve, _cost(module, settings, device), versions())


def choose_device(device: str) -> str:
    """``auto`` is cuda where there is one, else cpu. Raises ValueError for cuda without one."""
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
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning", "numpy")},
    }


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two runs of one model and seed would overwrite each other's checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process trains in {folder}; wait for it, or give another seed") from None


def _module(
    model: Recommender,
    data: Sequences,
    validate: Validate,
    settings: TrainSettings,
    seed: int,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> TrainingModule:
    data = data.windows(model.max_length) if settings.windows == "all" else data
    held = DeviceSequences(data, window=model.max_length + 1, device=model.device)
    return TrainingModule(
        model,
        make_loss(settings.loss),
        optimiser=settings.optimiser,
        schedule=settings.schedule,
        validate=validate,
        watched=f"valid_{settings.metric}",
        data=held,
        batches=TrainingBatches(held.lengths, tokens=settings.batch_tokens, seed=seed, minimum=2),
        on_epoch=on_epoch,
        log_every=settings.log_every,
    )


def _run(
    module: TrainingModule,
    settings: TrainSettings,
    device: str,
    folder: Path,
    resume: Path | None,
    fingerprint: str,
) -> None:
    (folder / "run.json").write_text(json.dumps({"fingerprint": fingerprint}))
    watched = f"valid_{settings.metric}"
    callbacks: list[Callback] = [
        _Patience(watched, mode="max", patience=settings.patience, check_finite=True, strict=True),
        _Checkpoints(dirpath=folder, filename="best", monitor=watched, mode="max", save_last=True),
    ]
    if device == "cuda":
        callbacks.append(DeviceStatsMonitor())
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar())
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        precision=PRECISIONS[choose_precision(settings.precision, device)],  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        check_val_every_n_epoch=settings.validate_every,
        gradient_clip_val=settings.gradient_clip,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=_logger(folder),
        callbacks=callbacks,
        plugins=[SafetensorsCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, ckpt_path=resume)
    except SystemExit:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt(
            f"training stopped; run the same command again to go on from {folder / LAST}"
        ) from None
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


def _logger(folder: Path) -> Logger:
    """TensorBoard's files, or a CSV file on a machine that has only torch and lightning."""
    if find_spec("tensorboard") is not None:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    log.info("tensorboard is not installed; curves go to %s", folder / "csv")
    return CSVLogger(folder, name="csv", version="")


class _Checkpoints(ModelCheckpoint):
    """best and last, each one safetensors file, written at the end of an epoch."""

    FILE_EXTENSION = ".safetensors"
    CHECKPOINT_NAME_LAST = "last"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
            **arguments,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning writes `last` only beside a new `best`; a resumed run should lose one epoch at most."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath)) / LAST)


class _Patience(EarlyStopping):
    """A resumed run has the patience that is asked for now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


def _fingerprint(data: str, settings: TrainSettings, seed: int, model: Recommender) -> str:
    """What must be equal for a checkpoint to be continued; more epochs or patience may be asked for."""
    free = {"patience", "resume", "log_every", "device"}
    if settings.schedule.get("name") == "constant":  # the others depend on the number of epochs
        free.add("max_epochs")
    parts = {key: value for key, value in dataclasses.asdict(settings).items() if key not in free}
    shape = [type(model).__name__, dataclasses.asdict(model.config), model.n_items, model.max_length]
    return hashlib.sha256(json.dumps([data, parts, seed, shape], sort_keys=True).encode()).hexdigest()[:16]


def _resumable(folder: Path, fingerprint: str, settings: TrainSettings) -> Path | None:
    last, known = folder / LAST, folder / "run.json"
    if last.is_file() and known.is_file() and settings.resume:
        if json.loads(known.read_text()).get("fingerprint") == fingerprint:
            log.info("going on from %s (train.resume=false starts anew)", last)
            return last
        log.info("%s is of other data or settings; starting anew", last)
    for name in (BEST, LAST):
        (folder / name).unlink(missing_ok=True)
    return None


def _cost(module: TrainingModule, settings: TrainSettings, device: str) -> dict[str, Any]:
    epochs = len(module.curve)
    watched = f"valid_{settings.metric}"
    scored = [row for row in module.curve if watched in row]
    best = max(scored, key=lambda row: row[watched])
    return {
        "train_seconds": module.train_seconds,
        "epochs": epochs,
        "best_epoch": best["epoch"],
        f"best_{watched}": best[watched],
        "seconds_per_epoch": module.train_seconds / epochs,
        "tokens_per_second": module.tokens_seen / module.train_seconds,
        "precision": choose_precision(settings.precision, device),
        "device": device,
        **_size(module.model, device),
    }


def _size(model: Recommender, device: str) -> dict[str, Any]:
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    return {"parameters": parameters, "peak_memory_mib": peak_memory_mib(device)}
