"""An exponential moving average of a model's weights, which is validated and kept in place of the last step's.

What stands around Lightning's loop: checkpoints, patience, curves on disk, and one process per folder.
"""

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
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from recpipe.progress import Progress


class WeightAverage(nn.Module):
    """After step t every averaged weight is d w + (1 - d) of the trained one, d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first steps lets a short training forget where it began (TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``). Averaged weights are buffers, so that checkpoints hold them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._trained: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        for index, weight in enumerate(self._trained):
            self.register_buffer(str(index), weight.detach().clone())

    @property
    def _averaged(self) -> list[Tensor]:
        return list(self.buffers())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after ``step`` steps, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """The model gets the averaged weights and this object the model's."""
        kept = [weight.clone() for weight in self._averaged]
        torch._foreach_copy_(self._averaged, self._trained)
        torch._foreach_copy_(self._trained, kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again after."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()


log = logging.getLogger(__name__)

BEST, LAST = "best.safetensors", "last.safetensors"


class Checkpoints(ModelCheckpoint):
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


class Patience(EarlyStopping):
    """A resumed run has the patience that is asked for now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


class SecondStage(Callback):
    """Tells a loss to begin its second stage after ``after`` validations without a new best; patience starts anew."""

    def __init__(self, begin: Callable[[], None], watched: str, *, after: int, patience: Patience) -> None:
        if not 0 < after < patience.patience:
            raise ValueError(
                f"train.loss.second_stage_after is {after}; it must be less than train.patience {patience.patience}"
            )
        self._begin, self._watched, self._after, self._patience = begin, watched, after, patience
        self.best, self.bad, self.begun = -math.inf, 0, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metric = float(trainer.callback_metrics[self._watched])
        self.best, self.bad = (metric, 0) if metric > self.best else (self.best, self.bad + 1)
        if not self.begun and self.bad >= self._after:
            log.info(
                "second stage after epoch %s: %s has not risen for %s validations",
                trainer.current_epoch + 1,
                self._watched,
                self.bad,
            )
            self.begun, self._patience.wait_count = True, 0
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "begun": self.begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.bad, self.begun = state_dict["best"], state_dict["bad"], state_dict["begun"]
        if self.begun:
            self._begin()


class ProgressBar(Callback):
    """Counts the steps of training in ``bar``, with the loss."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.skip(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.add(1, loss=outputs["loss"])


def curve_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """Where the curves of a training go. Without the package, tensorboard becomes a CSV file (a machine that has
    only torch and lightning) and wandb an error: whoever asks for it expects it.
    """
    made: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard" and find_spec("tensorboard") is not None:
            made.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        elif name == "wandb":
            if find_spec("wandb") is None:
                raise ValueError(
                    "train.loggers asks for wandb and it is not installed; run `pip install wandb`, or drop it"
                )
            made.append(WandbLogger(name="/".join(folder.parts[-3:]), project="recpipe", save_dir=folder))
        elif not any(isinstance(logger, CSVLogger) for logger in made):
            if name == "tensorboard":
                log.info("tensorboard is not installed; curves go to %s", folder / "csv")
            made.append(CSVLogger(folder, name="csv", version=""))
    return made


def close(loggers: Iterable[Logger]) -> None:
    """Ends a run of wandb: the next training of this process is another one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two runs of one model and seed would overwrite each other's checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process trains in {folder}; wait for it, or give another seed") from None
