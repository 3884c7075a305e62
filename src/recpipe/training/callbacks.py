"""Callbacks of the training loop: weight averaging, patience, second stage, progress bar; loggers and folder lock."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from recpipe.progress import Progress

log = logging.getLogger(__name__)
SECONDS_TO_LOCK = 5  # for a lock of a process that was killed just now


class WeightAverage(nn.Module):
    """Exponential moving average of trained weights w: a = d a + (1 - d) w, d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first steps t lets a short training forget its initial weights (TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``). Averages are buffers, so that checkpoints contain them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._weights: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        for index, weight in enumerate(self._weights):
            self.register_buffer(str(index), weight.detach().clone())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, counted from 1."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average([*self.buffers()], self._weights, step)

    @torch.no_grad()
    def swap(self) -> None:
        """Replace the weights of the model by the averages, and the averages by the weights."""
        averages = [average.clone() for average in self.buffers()]
        torch._foreach_copy_([*self.buffers()], self._weights)
        torch._foreach_copy_(self._weights, averages)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its averaged weights within the context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


class Patience(EarlyStopping):
    """Early stopping; a resumed run uses the patience of its current settings, and ends at once if it has run out."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a resumed run at once if its patience has run out."""
        super().on_train_start(trainer, pl_module)
        if self.wait_count >= self.patience:  # the process ended between the last checkpoint and the bundle
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint, except for its patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class SecondStage(Callback):
    """Start of a loss's second stage after ``after`` validations without a new best; patience is counted anew.

    Raises ValueError if ``after`` is not less than the patience.
    """

    def __init__(self, begin: Callable[[], None], metric: str, *, after: int, patience: Patience) -> None:
        limit = patience.patience
        if not 0 < after < limit:
            raise ValueError(f"train.loss.second_stage_after is {after}; it must be less than train.patience {limit}")
        self._begin, self._metric, self._after, self._patience = begin, metric, after, patience
        self.best, self.bad, self.begun = -math.inf, 0, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the metric with the best one, and begin the second stage after enough validations."""
        metric = float(trainer.callback_metrics[self._metric])
        self.best, self.bad = (metric, 0) if metric > self.best else (self.best, self.bad + 1)
        if not self.begun and self.bad >= self._after:
            epoch = trainer.current_epoch + 1
            log.info("second stage after epoch %s: no new best %s in %s validations", epoch, self._metric, self.bad)
            self.begun, self._patience.wait_count = True, 0
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric, the validations since then, and whether the second stage has begun."""
        return {"best": self.best, "bad": self.bad, "begun": self.begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``, and begin the second stage if it had begun."""
        self.best, self.bad, self.begun = state_dict["best"], state_dict["bad"], state_dict["begun"]
        if self.begun:
            self._begin()


class ProgressBar(Callback):
    """Progress bar of training steps and the loss; a step has ``accumulate`` micro-batches."""

    def __init__(self, bar: Progress, accumulate: int = 1) -> None:
        self._bar, self._accumulate = bar, accumulate

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip the steps of the run that is resumed."""
        self._bar.skip(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        """Add a step after its last micro-batch."""
        if (batch_idx + 1) % self._accumulate == 0:
            self._bar.add(1, loss=outputs["loss"] * self._accumulate)


def curve_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """Build the loggers of training curves. Without its package tensorboard is a CSV file, wandb raises ValueError."""
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard" and find_spec("tensorboard") is not None:
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        elif name == "wandb":
            if find_spec("wandb") is None:
                raise ValueError("train.loggers has wandb, which is not installed; run `pip install wandb`, or drop it")
            loggers.append(WandbLogger(name="/".join(folder.parts[-3:]), project="recpipe", save_dir=folder))
        elif not any(isinstance(logger, CSVLogger) for logger in loggers):
            if name == "tensorboard":
                log.info("tensorboard is not installed; curves go to %s", folder / "csv")
            loggers.append(CSVLogger(folder, name="csv", version=""))
    return loggers


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the run of wandb, so that the next training of this process is another one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a work folder: two runs of one model and seed would overwrite each other's checkpoints.

    Waits a few seconds, since threads of a process that was killed may hold the lock for a moment longer. Raises
    ValueError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=SECONDS_TO_LOCK):
            yield
    except Timeout:
        raise ValueError(f"another process trains in {folder}; wait for it, or choose another seed") from None
