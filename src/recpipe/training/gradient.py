"""The loop of a training by gradient: Lightning's trainer with checkpoints, early stopping, curves and resuming."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor
from lightning.pytorch.strategies import DDPStrategy

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.progress import progress
from recpipe.training.callbacks import Patience, ProgressBar, close_loggers, curve_loggers
from recpipe.training.checkpoint import BEST, LAST, Checkpoints, SafetensorsCheckpointIO, load_tree, remove_checkpoints
from recpipe.training.distributed import TIMEOUT, Ranks
from recpipe.training.module import NonFiniteLossError, TrainingModule, training_label
from recpipe.training.settings import PRECISIONS, TrainSettings, choose_precision

log = logging.getLogger(__name__)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else four lines of tips per run
IGNORED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # by design: the work folder also holds the curves
    "The number of training batches .* is smaller than the logging interval",
    "The 'val_dataloader' does not have many workers",
    "`ModelCheckpoint\\(monitor=.* could not find the monitored key",  # of an epoch that is not validated
    "It is recommended to use `self.log\\(.*sync_dist=True",  # metrics are equal on all ranks
    "`broadcast_buffers` is deprecated",  # by torch 2.13; older ones lack its successor
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def train_by_gradient(module: TrainingModule, device: str, folder: Path, fingerprint: str) -> None:
    """Train or resume, and load the best state.

    All ranks call it; those after the first write no files, and have the last state afterwards. An interruption raises
    KeyboardInterrupt and leaves the checkpoints. Raises ValueError for a rank that does not see the work folder.
    """
    settings, ranks = module.settings, module.ranks
    resume = _resumable(folder, fingerprint, settings) if ranks.is_main else None
    (resumes,) = ranks.decide(resume is not None)
    resume = folder / LAST if resumes else None
    if resume is not None and not resume.is_file():
        raise ValueError(f"rank {ranks.rank} does not see {resume}: ranks on several machines need the same folder")
    if ranks.is_main:
        with atomic_file(folder / "run.json") as part:
            part.write_text(json.dumps({"fingerprint": fingerprint}))
    patience = Patience(module.metric, mode="max", patience=settings.patience, check_finite=True, strict=True)
    callbacks = _callbacks(module, patience, device, folder)
    bar: AbstractContextManager[object] = nullcontext()
    if ranks.is_main:
        bar = steps = progress(module.epochs * module.steps, training_label(module.model), at_most=True)
        callbacks.append(ProgressBar(steps, settings.accumulate))
    trainer = pl.Trainer(
        accelerator=device,
        **_rank_options(ranks, settings),
        precision=PRECISIONS[choose_precision(settings.precision, device)],  # type: ignore[arg-type]
        max_epochs=module.epochs,
        check_val_every_n_epoch=settings.validate_every,
        limit_val_batches=int(module.has_metrics),
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=curve_loggers(settings.loggers, folder) if ranks.is_main else False,
        callbacks=callbacks,
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
    if not ranks.is_main:
        return
    module.load_state_dict(load_tree(folder / BEST)["state_dict"])
    if module.average is not None:
        module.average.swap()


def _rank_options(ranks: Ranks, settings: TrainSettings) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer that depend on the number of ranks."""
    if ranks.size == 1:
        return {"devices": 1}
    # without an exchange of buffers: models' are constant in training, and averages of weights equal on all ranks
    strategy = DDPStrategy(cluster_environment=ranks.environment, broadcast_buffers=False, timeout=TIMEOUT)
    nodes = settings.num_nodes
    return {"devices": ranks.size // nodes, "num_nodes": nodes, "strategy": strategy}


def _callbacks(module: TrainingModule, patience: Patience, device: str, folder: Path) -> list[Callback]:
    settings = module.settings
    callbacks = module.criterion.callbacks(module.metric, patience if module.has_metrics else None)
    if module.is_validated:
        callbacks += [patience, Checkpoints(folder, monitor=module.metric)]
    else:  # without a metric the latest state counts as the best
        callbacks += [Checkpoints(folder, monitor=None)]
    stats = device == "cuda" and settings.loggers and module.ranks.is_main
    return [*callbacks, DeviceStatsMonitor()] if stats else callbacks


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
