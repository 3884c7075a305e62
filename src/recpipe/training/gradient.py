"""The loop of a training by gradient: Lightning's trainer with checkpoints, early stopping, curves and resuming."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.progress import progress
from recpipe.training.callbacks import Patience, ProgressBar, close_loggers, curve_loggers
from recpipe.training.checkpoint import BEST, LAST, Checkpoints, SafetensorsCheckpointIO, load_tree, remove_checkpoints
from recpipe.training.module import NonFiniteLossError, TrainingModule, training_label
from recpipe.training.settings import PRECISIONS, TrainSettings, choose_precision

log = logging.getLogger(__name__)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else four lines of tips per run
IGNORED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # by design: the work folder also holds the curves
    "The number of training batches .* is smaller than the logging interval",
    "The 'val_dataloader' does not have many workers",
    "`ModelCheckpoint\\(monitor=.* could not find the monitored key",  # of an epoch that is not validated
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def train_by_gradient(module: TrainingModule, device: str, folder: Path, fingerprint: str) -> None:
    """Train or resume, and load the best state. An interruption raises KeyboardInterrupt and leaves the checkpoints."""
    settings = module.settings
    resume = _resumable(folder, fingerprint, settings)
    with atomic_file(folder / "run.json") as part:
        part.write_text(json.dumps({"fingerprint": fingerprint}))
    patience = Patience(module.metric, mode="max", patience=settings.patience, check_finite=True, strict=True)
    callbacks = _callbacks(module, patience, device, folder)
    bar = progress(module.epochs * module.steps, training_label(module.model), at_most=True)
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        precision=PRECISIONS[choose_precision(settings.precision, device)],  # type: ignore[arg-type]
        max_epochs=module.epochs,
        check_val_every_n_epoch=settings.validate_every,
        limit_val_batches=int(module.has_metrics),
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=curve_loggers(settings.loggers, folder),
        callbacks=[*callbacks, ProgressBar(bar, settings.accumulate)],
        plugins=[SafetensorsCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    handler = signal.getsignal(signal.SIGINT)
    interruption = KeyboardInterrupt(f"training stopped; run the same command again to go on from {folder / LAST}")
    try:
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        with bar:
            trainer.fit(module, ckpt_path=resume)
    except SystemExit:  # how Lightning ends after Ctrl-C
        log.info("%s", module.summary("an interruption"))
        raise interruption from None
    except NonFiniteLossError:
        log.info("%s", module.summary("a loss that is not finite"))
        raise
    finally:
        close_loggers(trainer.loggers)
        if handler is not None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)
    out_of_patience = module.is_validated and patience.wait_count >= patience.patience
    log.info("%s", module.summary(out_of_patience=out_of_patience))
    if module.is_interrupted:
        raise interruption
    module.load_state_dict(load_tree(folder / BEST)["state_dict"])
    if module.average is not None:
        module.average.swap()


def _callbacks(module: TrainingModule, patience: Patience, device: str, folder: Path) -> list[Callback]:
    settings = module.settings
    callbacks = module.criterion.callbacks(module.metric, patience if module.has_metrics else None)
    if module.is_validated:
        callbacks += [patience, Checkpoints(folder, monitor=module.metric)]
    else:  # without a metric the latest state counts as the best
        callbacks += [Checkpoints(folder, monitor=None)]
    return [*callbacks, DeviceStatsMonitor()] if device == "cuda" and settings.loggers else callbacks


def _resumable(folder: Path, fingerprint: str, settings: TrainSettings) -> Path | None:
    """The checkpoint to resume from; removes those of other settings."""
    last, identity = folder / LAST, folder / "run.json"
    if last.is_file() and (folder / BEST).is_file() and identity.is_file() and settings.resume:
        record = json.loads(verified(identity, "delete it to start training anew").read_text())
        if record.get("fingerprint") == fingerprint:
            log.info("resuming from %s (train.resume=false starts anew)", last)
            return last
        log.info("%s has other data or settings; starting anew", last)
    remove_checkpoints(folder)
    return None
