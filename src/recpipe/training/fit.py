"""Training of any Recommender: one function, one set of settings, one loop."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.sequences import Sequences
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.recommender import Recommender
from recpipe.progress import duration, progress
from recpipe.training.allocator import keep_freed_memory
from recpipe.training.callbacks import (
    BEST,
    LAST,
    Checkpoints,
    Patience,
    ProgressBar,
    alone_in,
    close,
    curve_loggers,
)
from recpipe.training.checkpoint import SafetensorsCheckpointIO, load_tree
from recpipe.training.cost import cost_of, size_of, versions
from recpipe.training.losses import make_loss
from recpipe.training.memory import reset_peak_memory
from recpipe.training.module import (
    OnEpoch,
    TrainingModule,
    Validate,
    make_batches,
    target_counts,
    trained_items,
    training_label,
    training_windows,
)
from recpipe.training.optimisers import WITHOUT_END
from recpipe.training.settings import (
    PRECISIONS,
    TrainSettings,
    check_layout,
    check_loss,
    choose_device,
    choose_precision,
)
from recpipe.training.tuning import tuned

log = logging.getLogger(__name__)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else four lines of tips per run
NOISE = (
    "Checkpoint directory .* exists and is not empty",  # by design: the work folder also holds the curves
    "The number of training batches .* is smaller than the logging interval",
    "The 'val_dataloader' does not have many workers",
    "`ModelCheckpoint\\(monitor=.* could not find the monitored key",  # of an epoch that is not validated
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


@dataclass
class TrainingResult:
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
    on_epoch: OnEpoch | None = None,
    cold_users: ColdUsersConfig | None = None,
    steps_from: Sequences | None = None,
) -> TrainingResult:
    """Train a model on ``data`` (training events only); return it in the state of its best validation.

    ``validate(model)`` returns ``{"valid_<metric>": ...}``; it selects the best state and tunes a ``Tunable`` model at
    the end. With ``settings.put_back``, ``data`` has the validation events too: nothing is validated, an epoch has the
    steps of ``steps_from``, the training set alone, and the last state is returned. ``folder`` is for checkpoints and
    curves; a checkpoint in it is resumed if it has the same ``fingerprint`` (of data), settings and seed.
    ``cold_users`` is fitted apart from the model, its cost and its checkpoints; without it the model itself recommends
    to users without history. Raises NonFiniteLossError, ValueError for bad settings, and KeyboardInterrupt after
    Ctrl-C, when the last checkpoint is complete.
    """
    pl.seed_everything(seed, verbose=False)
    device = choose_device(settings.device)
    reset_peak_memory(device)
    if settings.put_back and steps_from is None:
        raise ValueError("train.put_back needs the training set alone as well, for the number of its steps")
    model = model_factory()
    check_layout(settings, type(model))
    check_loss(settings, type(model))
    fallback = _fallback(cold_users, data, model, seed)
    started = time.perf_counter()
    if model.closed_form:
        model.to(device).fit(data)
        cost = {"train_seconds": time.perf_counter() - started, "epochs": 0, "device": device}
        cost |= size_of(model, device)
        model.cold_users = fallback
        return TrainingResult(model.to(device), [], cost, versions())
    keep_freed_memory()
    fingerprint = _fingerprint(fingerprint, settings, seed, model)
    validate = _with_fallback(fallback, validate)
    module = _module(model.to(device), data, validate, settings, seed, on_epoch, steps_from)
    with alone_in(folder):
        _run(module, settings, device, folder, _resumable(folder, fingerprint, settings), fingerprint)
        if module.cut_off:
            raise _stopped(folder)
        module.load_state_dict(load_tree(folder / BEST)["state_dict"])
        if module.average is not None:
            module.average.exchange()
        for name in (BEST, LAST):
            (folder / name).unlink(missing_ok=True)
    cost = {**cost_of(module, settings, device), **tuned(model, validate, settings)}
    model.cold_users = fallback
    return TrainingResult(model.to(device), module.curve, cost, versions())


def _fallback(
    config: ColdUsersConfig | None, data: Sequences, model: Recommender, seed: int
) -> ColdUsers | None:
    return None if config is None else ColdUsers(config, n_items=model.n_items).fit(data, seed=seed)


def _with_fallback(fallback: ColdUsers | None, validate: Validate) -> Validate:
    """Validation with the fallback for new users, which checkpoints do not hold."""

    def validate_with_fallback(model: Recommender) -> dict[str, float]:
        model.cold_users = None if fallback is None else fallback.to(model.device)
        try:
            return validate(model)
        finally:
            model.cold_users = None

    return validate_with_fallback


def _module(
    model: Recommender,
    data: Sequences,
    validate: Validate,
    settings: TrainSettings,
    seed: int,
    on_epoch: OnEpoch | None,
    steps_from: Sequences | None = None,
) -> TrainingModule:
    data = training_windows(data, model, settings)
    rows = model.on_device(data, window=model.max_length + 1)
    options: dict[str, Any] = {"window": model.max_length, "seed": seed, "device": model.device.type}
    batches = make_batches(rows.lengths, settings, **options)
    if settings.put_back and steps_from is not None:
        lengths = np.minimum(training_windows(steps_from, model, settings).lengths, model.max_length + 1)
        steps = make_batches(lengths, settings, **options).steps
        batches = make_batches(rows.lengths, settings, **options, steps=steps)
    return TrainingModule(
        model,
        make_loss(settings.loss, target_counts(data, model), trained_items(data, model)).to(model.device),
        optimiser=settings.optimiser,
        schedule=settings.schedule,
        validate=validate,
        watched=f"valid_{settings.metric}",
        data=rows,
        batches=batches,
        on_epoch=on_epoch,
        log_every=settings.log_every,
        max_minutes=settings.max_minutes,
        ema=settings.ema,
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
    patience = Patience(watched, mode="max", patience=settings.patience, check_finite=True, strict=True)
    callbacks: list[Callback] = [
        patience,
        Checkpoints(dirpath=folder, filename="best", monitor=watched, mode="max", save_last=True),
    ]
    if settings.put_back:  # nothing to select by: the latest is kept as the best
        callbacks = [Checkpoints(dirpath=folder, filename="best", save_last=True)]
    callbacks = [*module.criterion.callbacks(watched, None if settings.put_back else patience), *callbacks]
    if device == "cuda" and settings.loggers:
        callbacks.append(DeviceStatsMonitor())
    bar = progress(settings.max_epochs * module.steps, training_label(module.model), at_most=True)
    callbacks.append(ProgressBar(bar))
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        precision=PRECISIONS[choose_precision(settings.precision, device)],  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        check_val_every_n_epoch=settings.validate_every,
        limit_val_batches=0 if settings.put_back else 1,
        gradient_clip_val=settings.gradient_clip,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=curve_loggers(settings.loggers, folder),
        callbacks=callbacks,
        plugins=[SafetensorsCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        with bar:
            trainer.fit(module, ckpt_path=resume)
    except SystemExit:  # how Lightning ends after Ctrl-C
        raise _stopped(folder) from None
    finally:
        close(trainer.loggers)
        if handler is not None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)
    _log_end(module, settings, out_of_patience=patience.wait_count >= patience.patience)


def _log_end(module: TrainingModule, settings: TrainSettings, *, out_of_patience: bool) -> None:
    """One line: epochs, seconds, the best epoch and its metric, and why training ended."""
    watched = f"valid_{settings.metric}"
    parts = [f"{len(module.curve)} epochs in {duration(module.train_seconds)}"]
    if rows := [row for row in module.curve if watched in row]:
        best = max(rows, key=lambda row: row[watched])
        parts.append(f"best {watched} {best[watched]:.4f} in epoch {best['epoch']}")
    reason = _reason(module, settings, out_of_patience)
    log.info("%s: %s; ended by %s", training_label(module.model), ", ".join(parts), reason)


def _reason(module: TrainingModule, settings: TrainSettings, out_of_patience: bool) -> str:
    if module.cut_off:
        return "on_epoch: cut off, the same command goes on from here"
    if module.out_of_time:
        return f"max_minutes {settings.max_minutes:g}"
    if out_of_patience and not settings.put_back:
        return f"patience {settings.patience}"
    return f"max_epochs {settings.max_epochs}"


def _stopped(folder: Path) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"training stopped; run the same command again to go on from {folder / LAST}")


def _fingerprint(data: str, settings: TrainSettings, seed: int, model: Recommender) -> str:
    """Hash of all that must be equal to resume from a checkpoint; epochs and patience may differ."""
    free = {"patience", "max_minutes", "resume", "log_every", "device", "loggers"}
    if settings.schedule.get("name") in WITHOUT_END:  # the others depend on the number of epochs
        free.add("max_epochs")
    if settings.ema is None:
        free.add("ema")
    parts = {key: value for key, value in dataclasses.asdict(settings).items() if key not in free}
    shape: list[Any] = [
        type(model).__name__,
        dataclasses.asdict(model.config),
        model.n_items,
        model.max_length,
        *([] if model.side is None else [model.side.fingerprint()]),
        *(codes.described()["digest"] for codes in model.item_codes().values()),
    ]
    return hashlib.sha256(json.dumps([data, parts, seed, shape], sort_keys=True).encode()).hexdigest()[:16]


def _resumable(folder: Path, fingerprint: str, settings: TrainSettings) -> Path | None:
    last, identity = folder / LAST, folder / "run.json"
    if last.is_file() and identity.is_file() and settings.resume:
        if json.loads(identity.read_text()).get("fingerprint") == fingerprint:
            log.info("going on from %s (train.resume=false starts anew)", last)
            return last
        log.info("%s is of other data or settings; starting anew", last)
    for name in (BEST, LAST):
        (folder / name).unlink(missing_ok=True)
    return None
