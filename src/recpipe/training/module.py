"""The rows that a model is trained on, and the steps they are taken in.

The Lightning side of training: one module around any Recommender, and its batches.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from recpipe.data.batch_samplers import PackedBatches, TrainingBatches
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import Recommender
from recpipe.progress import current_step, duration
from recpipe.training.callbacks import WeightAverage
from recpipe.training.checkpoint import random_state, set_random_state
from recpipe.training.losses import Loss
from recpipe.training.memory import gpu_state
from recpipe.training.optimisers import make_optimiser, make_schedule
from recpipe.training.settings import TrainSettings

PARTS = {"cpu": 8, "cuda": 1}  # of a step: on a CPU padding costs time, on a GPU launches do
SHORTEST_ROW = 64  # events; attention costs the square of a row, short rows leave more places empty


def make_batches(
    lengths: np.ndarray,
    settings: TrainSettings,
    *,
    window: int,
    seed: int,
    steps: int | None = None,
    device: str = "cpu",
) -> TrainingBatches:
    """In the layout that ``settings`` ask for; packed rows hold ``row`` events, by default one window of them."""
    tokens = settings.batch_tokens
    if settings.layout == "padded":
        return TrainingBatches(lengths, tokens=tokens, seed=seed, minimum=2, steps=steps, parts=PARTS[device])
    size = settings.row or max(window, SHORTEST_ROW)
    return PackedBatches(lengths, size=size, tokens=tokens, seed=seed, steps=steps)


def training_windows(data: Sequences, model: Recommender, settings: TrainSettings) -> Sequences:
    return data.windows(model.max_length, settings.stride) if settings.windows == "all" else data


def target_counts(data: Sequences, model: Recommender) -> torch.Tensor:
    """How often each item is a target in an epoch (I + 1,): of what the model is trained on, all but the first."""
    seen = data.last(model.max_length + 1)
    context = np.ones(len(seen), np.int64) if seen.context is None else seen.context
    place = np.arange(len(seen.items)) - np.repeat(seen.offsets[:-1], seen.lengths)
    targets = seen.items[place >= np.repeat(context, seen.lengths)]
    return torch.from_numpy(np.bincount(targets, minlength=model.n_items + 1))


def trained_items(data: Sequences, model: Recommender) -> torch.Tensor:
    """(I + 1,) bool: the items of the events that the model is trained on."""
    seen = data.last(model.max_length + 1).items
    found = np.bincount(seen, minlength=model.n_items + 1) > 0
    found[0] = False
    return torch.from_numpy(found)


log = logging.getLogger(__name__)

NORM_EVERY = 10  # steps
Validate = Callable[[Recommender], dict[str, float]]
OnEpoch = Callable[[dict[str, Any]], bool | None]
"""Gets an epoch's row of the curve; True ends training with this epoch, to be gone on with another time."""


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is NaN or infinite."""


class TrainingModule(pl.LightningModule):
    """Loss of one batch, the optimiser, and validation by a function that is given from outside."""

    def __init__(
        self,
        model: Recommender,
        criterion: Loss,
        *,
        optimiser: dict[str, Any],
        schedule: dict[str, Any],
        validate: Validate,
        watched: str,
        data: DeviceSequences,
        batches: TrainingBatches,
        on_epoch: OnEpoch | None = None,
        log_every: int = 1,
        max_minutes: float | None = None,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.average = None if ema is None else WeightAverage(model, ema)
        self._optimiser, self._schedule, self._validate = optimiser, schedule, validate
        self._data, self._batches = data, batches
        self._watched, self._on_epoch, self._log_every = watched, on_epoch, log_every
        self._tokens_per_epoch = int(data.targets[batches.rows].sum())
        self._max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.curve: list[dict[str, Any]] = []
        self.train_seconds, self.tokens_seen = 0.0, 0
        self._logged = 0  # epoch
        self.ran: list[list[str]] = []  # device and precision, more than one of a run that went on elsewhere
        self.cut_off = False
        self._restored: dict[str, Tensor] | None = None

    def configure_optimizers(self) -> Any:
        optimiser = make_optimiser(self.parameters(), self._optimiser)
        steps = len(self._batches)
        self._plan = make_schedule(optimiser, self._schedule, steps * (self.trainer.max_epochs or 1), steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": self._plan, "interval": "step"}}

    def train_dataloader(self) -> BatchLoader:
        """Called anew for every epoch, since the order and number of batches depend on it."""
        self._batches.epoch = self.current_epoch
        return BatchLoader(self._data, self._batches)

    def val_dataloader(self) -> list[int]:
        """One step: validation ranks the whole fold in its own batches."""
        return [0]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are made where they are used."""
        return batch

    def on_train_start(self) -> None:
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None

    def on_train_epoch_start(self) -> None:
        self._started, self._epoch = time.perf_counter(), self.current_epoch + 1
        how = [self.device.type, "bf16" if self.trainer.precision == "bf16-mixed" else "fp32"]
        if how not in self.ran:
            self.ran.append(how)
        self._loss = torch.zeros((), device=self.device)
        self._steps = 0
        self._norms: list[Tensor] = []
        self._first_bad = torch.full((), -1, device=self.device, dtype=torch.int64)

    def training_step(self, batch: list[Batch], index: int) -> Tensor:
        whole = sum(part.targets for part in batch)
        losses = [self.model.loss(part, self.criterion) * (part.targets / whole) for part in batch]
        loss = torch.stack(losses).sum()
        seen = loss.detach()
        self._loss += seen
        self._steps += 1
        bad = ~torch.isfinite(seen) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.global_step, self._first_bad)
        if self.device.type == "cpu" or index % 50 == 0:  # on a GPU every look costs a synchronisation
            self._check()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keeps the norm of the whole gradient, before it is clipped, of one step in ten."""
        if self._steps % NORM_EVERY == 1:
            gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
            self._norms.append(torch.nn.utils.get_total_norm(gradients).detach())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None:
            self.average.update(self.global_step)

    def validation_step(self, batch: Any, index: int) -> None:
        self._check()
        with (
            nullcontext() if self.average is None else self.average.in_place(),
            torch.autocast(self.device.type, enabled=False),  # bf16 scores would tie, and ties decide ranks
        ):
            metrics = self._validate(self.model)
        if self._watched not in metrics:
            raise ValueError(f"train.metric asks for {self._watched}; validation gives {', '.join(metrics)}")
        self._row().update(metrics)
        self._plan.observe(metrics[self._watched])
        self.log_dict(metrics, batch_size=1)

    def on_train_epoch_end(self) -> None:
        self._check()
        row = self._row()
        self.log("train_loss", row["loss"], batch_size=1)
        judged = self._watched in row or not self.trainer.limit_val_batches
        over = judged and self.out_of_time
        last = over or self._epoch == self.trainer.max_epochs
        if self._on_epoch is not None and self._on_epoch(dict(row)) and not last:
            self.cut_off = self.trainer.should_stop = True
        if over:
            self.trainer.should_stop = True
        if judged and (not self._logged or self._epoch >= self._logged + self._log_every):
            self._logged = self._epoch
            metric = f", {self._watched} {row[self._watched]:.4f}" if self._watched in row else ""
            seconds = duration(self.train_seconds)
            log.info(
                "%s: epoch %s, loss %.4f%s, %s",
                training_label(self.model),
                self._epoch,
                row["loss"],
                metric,
                seconds,
            )

    @property
    def out_of_time(self) -> bool:
        """Whether training took as long as it may."""
        return self.train_seconds >= self._max_seconds

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self._batches)

    def _row(self) -> dict[str, Any]:
        """This epoch's row of the curve; made by whichever comes first, validation or the end of the epoch."""
        if not self.curve or self.curve[-1]["epoch"] != self._epoch:
            self.train_seconds += time.perf_counter() - self._started
            self.tokens_seen += self._tokens_per_epoch
            self.curve.append(
                {
                    **gpu_state(self.device),
                    "epoch": self._epoch,
                    "step": self.global_step,
                    "seconds": self.train_seconds,
                    "loss": float(self._loss) / max(self._steps, 1),
                    "lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
                    "gradient_norm": float(torch.stack(self._norms).mean()),
                }
            )
        return self.curve[-1]

    def _check(self) -> None:
        step = int(self._first_bad)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss is not finite at step {step} (epoch {self._epoch}); the last good checkpoint is kept. "
                "Lower train.optimiser.learning_rate or set train.gradient_clip"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["recpipe"] = {
            "curve": self.curve,
            "train_seconds": self.train_seconds,
            "tokens_seen": self.tokens_seen,
            "ran": self.ran,
            "random": random_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["recpipe"]
        self.curve, self.train_seconds, self.tokens_seen = (
            state["curve"],
            state["train_seconds"],
            state["tokens_seen"],
        )
        self.ran = state.get("ran", [])
        self._restored = state["random"]


def training_label(model: Recommender) -> str:
    """What log lines on its training begin with: the step that runs, `train sasrec`, or the class."""
    return current_step() or f"train {type(model).__name__}"


class BatchLoader:
    """What Lightning iterates over: one epoch's batches, assembled on the device."""

    def __init__(self, data: DeviceSequences, batches: TrainingBatches) -> None:
        self.data, self.batches = data, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Batch]]:
        for parts in self.batches:
            yield [self.batches.gather(self.data, part) for part in parts]
