"""What stands around Lightning's loop: checkpoints, patience, curves on disk, and one process per folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

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


def curve_logger(folder: Path) -> Logger:
    """TensorBoard's files, or a CSV file on a machine that has only torch and lightning."""
    if find_spec("tensorboard") is not None:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    log.info("tensorboard is not installed; curves go to %s", folder / "csv")
    return CSVLogger(folder, name="csv", version="")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two runs of one model and seed would overwrite each other's checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another process trains in {folder}; wait for it, or give another seed") from None
