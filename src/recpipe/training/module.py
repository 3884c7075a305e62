"""Lightning module around a Recommender.

One step of the optimiser is a list of batches of users of similar length; its loss is the mean over all their targets.
Several ranks and micro-batches share the batches of a step, and the sum of what they compute is this mean.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from recpipe.data.batch_samplers import TrainingBatches
from recpipe.data.batches import DeviceSequences
from recpipe.models.recommender import Recommender
from recpipe.progress import current_step, duration
from recpipe.training.batches import BatchLoader, MicroBatch
from recpipe.training.callbacks import WeightAverage
from recpipe.training.checkpoint import derive_random_state, random_state, set_random_state
from recpipe.training.cost import gpu_state, model_size, n_parameters, peak_memory_mib
from recpipe.training.distributed import Ranks
from recpipe.training.losses import Loss
from recpipe.training.optimisers import make_optimiser, make_schedule
from recpipe.training.settings import TrainSettings

log = logging.getLogger(__name__)

LOGGER_NAMES = {"loss": "train_loss", "lr": "learning_rate"}  # of columns of the curve
NORM_EVERY = 10  # steps between gradient norms
CHECK_EVERY = 50  # steps between checks for a finite loss on a GPU or of several ranks, each of which synchronises
NEVER = 1 << 62  # a step that no training reaches

Validate = Callable[[Recommender], dict[str, float]]  # model -> metrics on the validation fold, valid_<metric>
OnEpoch = Callable[[Mapping[str, Any]], bool | None]  # of a row of the curve; True interrupts training after the epoch


@dataclass(frozen=True)
class Replay:
    """Length of an earlier training, which this one repeats on other data, without validation.

    epochs: after which training ends; the schedule is still that of ``max_epochs``.
    metrics: by epoch the validation metric of the earlier training, for a plateau schedule or a loss of two stages.
    """

    epochs: int
    metrics: Mapping[int, float] = field(default_factory=dict)


class NonFiniteLossError(RuntimeError):
    """A training loss that is NaN or infinite."""


class WithAllWeights(torch.autograd.Function):
    """Autograd function that adds all weights to the graph of a loss, without gradient for unused ones.

    Ranks exchange the gradients of all weights in every step; one that computes nothing, or leaves out weights, would
    let the others wait.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *weights: Tensor) -> Tensor:
        """Return the loss (scalar)."""
        ctx.n_weights = len(weights)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient (scalar) of the loss, and none for the weights."""
        return *gradients, *[None] * ctx.n_weights


class TrainingModule(pl.LightningModule):
    """Loss of a step, optimiser and schedule, validation by ``validate``, and the training curve.

    Attributes after training: ``curve`` (a row per epoch), ``out_of_time``, ``is_interrupted`` (by ``on_epoch``).
    Training raises NonFiniteLossError for a loss that is NaN or infinite, and ValueError for a ``metric`` that
    validation lacks.
    """

    def __init__(
        self,
        model: Recommender,
        criterion: Loss,
        settings: TrainSettings,
        *,
        data: DeviceSequences,
        batches: TrainingBatches,
        validate: Validate | None,
        on_epoch: OnEpoch | None = None,
        replay: Replay | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.ranks = ranks or Ranks()
        self.model, self.criterion = model, criterion
        self.average = None if settings.ema is None else WeightAverage(model, settings.ema)
        self.settings, self.metric = settings, f"valid_{settings.metric}"
        self.curve: list[dict[str, Any]] = []
        self.is_interrupted = False
        self._data, self._batches, self._validate, self._on_epoch = data, batches, validate, on_epoch
        self._replay, self._share = replay, batches.share
        self._tokens_per_epoch = int(data.n_targets[batches.rows].sum())
        self._max_seconds = math.inf if settings.max_minutes is None else 60 * settings.max_minutes
        self._seconds, self._tokens = 0.0, 0
        self._last_logged_epoch = 0
        self._hardware: list[list[str]] = []  # pairs of device and precision; several if resumed elsewhere
        self._random_state: dict[str, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self._batches.steps

    @property
    def epochs(self) -> int:
        """Epochs of this training, at most."""
        return self.settings.max_epochs if self._replay is None else self._replay.epochs

    @property
    def is_validated(self) -> bool:
        """Whether the model is validated."""
        return self._validate is not None

    @property
    def has_metrics(self) -> bool:
        """Whether there are validation metrics: of this model, or those of the replayed training."""
        return self.is_validated or bool(self._replay and self._replay.metrics)

    @property
    def out_of_time(self) -> bool:
        """Whether ``max_minutes`` of training are over."""
        return self._seconds >= self._max_seconds

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the schedule of the settings, for Lightning."""
        optimiser = make_optimiser(self.parameters(), self.settings.optimiser)
        steps = self.steps * self.settings.max_epochs
        self._schedule = make_schedule(optimiser, self.settings.schedule, steps, self.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def train_dataloader(self) -> BatchLoader:
        """Build the batches of the current epoch, which decides their order and number."""
        self._batches.epoch = self.current_epoch
        return BatchLoader(self._data, self._batches)

    def val_dataloader(self) -> list[int]:
        """Return one step: validation ranks the whole fold in its own batches."""
        return [0]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch, which was assembled on the device."""
        return batch

    def on_train_start(self) -> None:
        """Restore the random state of the checkpoint that is resumed."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def on_train_epoch_start(self) -> None:
        """Reset what is recorded of an epoch, and derive the random state of further ranks."""
        if self.ranks.size > 1:
            derive_random_state(self.ranks)
        self._start_time, self._epoch = time.perf_counter(), self.current_epoch + 1
        hardware = [self.device.type, "bf16" if self.trainer.precision == "bf16-mixed" else "fp32"]
        if hardware not in self._hardware:
            self._hardware.append(hardware)
        self._loss = torch.zeros((), device=self.device)
        self._steps = 0
        self._norms: list[Tensor] = []
        self._non_finite_step = torch.full((), -1, device=self.device, dtype=torch.int64)

    def training_step(self, batch: MicroBatch, index: int) -> Tensor:
        """Return the loss (scalar) of a micro-batch, as its share of the mean over all targets of the step."""
        losses = [self.model.loss(part, self.criterion) * (part.n_targets / batch.n_targets) for part in batch.parts]
        loss = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        value = loss.detach()
        self._loss += value
        self._steps += index % self._share.accumulate == 0
        non_finite = ~torch.isfinite(value) & (self._non_finite_step < 0)
        self._non_finite_step = torch.where(non_finite, self.global_step, self._non_finite_step)
        if (self.device.type == "cpu" and self.ranks.size == 1) or index % CHECK_EVERY == 0:
            self._check_loss()
        if self._share.cells == 1:
            return loss
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        whole: Tensor = WithAllWeights.apply(loss, *weights)  # type: ignore[no-untyped-call]
        return whole * self._share.cells  # the mean of all micro-batches is taken

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the norm of the gradient before it is clipped."""
        if self._steps % NORM_EVERY == 1:
            gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            self._norms.append(torch.nn.utils.get_total_norm(gradients).detach())

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch, batch_idx: int) -> None:
        """Update the moving average of the weights after a step."""
        if self.average is not None and (batch_idx + 1) % self._share.accumulate == 0:
            self.average.update(self.global_step)

    def validation_step(self, batch: int, index: int) -> None:
        """Measure the model on the validation fold, and show the metrics to schedule, curve and callbacks."""
        self._check_loss()
        if self._validate is None:
            self._replay_metric()
            return
        with (
            nullcontext() if self.average is None else self.average.in_place(),
            torch.autocast(self.device.type, enabled=False),  # bf16 scores would tie, and ties decide ranks
        ):
            metrics = self._validate(self.model)
        if self.metric not in metrics:
            raise ValueError(f"train.metric asks for {self.metric}; validation gives {', '.join(metrics)}")
        self._curve_row().update(metrics)
        self._schedule.observe(metrics[self.metric])
        self.log_dict(metrics, batch_size=1)

    def _replay_metric(self) -> None:
        """Show the metric of the replayed training to the schedule and to callbacks; it is not this model's."""
        assert self._replay is not None
        metric = self._replay.metrics[self._epoch]
        self._schedule.observe(metric)
        self.log(self.metric, metric, batch_size=1, logger=False)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to curve and loggers, and stop training if time is over or ``on_epoch`` interrupts it."""
        self._check_loss()
        row = self._curve_row()
        self._log_row(row)
        is_validated = self.metric in row or not self.is_validated
        is_over = is_validated and self.out_of_time
        is_last = is_over or self._epoch == self.trainer.max_epochs
        interrupts = self._on_epoch is not None and bool(self._on_epoch(dict(row))) and not is_last
        interrupts, is_over = self.ranks.decide(interrupts, is_over)
        self.is_interrupted |= interrupts
        if interrupts or is_over:
            self.trainer.should_stop = True
        is_due = not self._last_logged_epoch or self._epoch >= self._last_logged_epoch + self.settings.log_every
        if is_validated and is_due:
            self._last_logged_epoch = self._epoch
            metric = f", {self.metric} {row[self.metric]:.4f}" if self.metric in row else ""
            label, seconds = training_label(self.model), duration(self._seconds)
            log.info("%s: epoch %s, loss %.4f%s, %s", label, self._epoch, row["loss"], metric, seconds)

    def _curve_row(self) -> dict[str, Any]:
        """This epoch's row of the curve, added by validation or at the end of the epoch."""
        if not self.curve or self.curve[-1]["epoch"] != self._epoch:
            self._seconds += time.perf_counter() - self._start_time
            self._tokens += self._tokens_per_epoch
            row = {**gpu_state(self.device), "epoch": self._epoch, "step": self.global_step, "seconds": self._seconds}
            row["loss"] = float(self.ranks.sum(self._loss.cpu().numpy())) / max(self._steps, 1)
            row["lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
            norms = torch.stack(self._norms)
            row |= {"gradient_norm": float(norms.mean()), "gradient_norm_max": float(norms.max())}
            row["peak_memory_mib"] = peak_memory_mib(self.device.type)
            self.curve.append(row)
        return self.curve[-1]

    def _log_row(self, row: Mapping[str, Any]) -> None:
        """Send a row of the curve to the loggers, with the number of parameters; Lightning sends the metrics."""
        values = {LOGGER_NAMES.get(name, name): value for name, value in row.items() if not name.startswith("valid_")}
        for logger in self.trainer.loggers:
            logger.log_metrics(values | {"parameters": n_parameters(self.model)}, step=self.global_step)

    def _check_loss(self) -> None:
        step = int(self._non_finite_step)
        if self.ranks.size > 1:  # all ranks raise: the gradient of one spoils the weights of all
            step = self.ranks.smallest(step if step >= 0 else NEVER)
            step = -1 if step == NEVER else step
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss is not finite at step {step} (epoch {self._epoch}); the last good checkpoint is kept. "
                "Lower train.optimiser.learning_rate or set train.gradient_clip"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add curve, seconds, hardware and random state to the checkpoint."""
        state = {"curve": self.curve, "train_seconds": self._seconds, "tokens_seen": self._tokens}
        checkpoint["recpipe"] = {**state, "ran": self._hardware, "random": random_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what ``on_save_checkpoint`` has added."""
        state = checkpoint["recpipe"]
        self.curve, self._seconds, self._tokens = state["curve"], state["train_seconds"], state["tokens_seen"]
        self._hardware, self._random_state = state.get("ran", []), state["random"]

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The row of the curve with the best metric; None without validation."""
        rows = [row for row in self.curve if self.metric in row]
        return max(rows, key=lambda row: row[self.metric], default=None)

    def cost(self, device: str) -> dict[str, Any]:
        """Return seconds, epochs, best epoch, tokens per second, device, precision, size and memory."""
        epochs, best = len(self.curve), self.best_row
        return {
            "train_seconds": self._seconds,
            "epochs": epochs,
            **({} if best is None else {"best_epoch": best["epoch"], f"best_{self.metric}": best[self.metric]}),
            "seconds_per_epoch": self._seconds / epochs,
            "tokens_per_second": self._tokens / self._seconds,
            "precision": "+".join(dict.fromkeys(precision for _, precision in self._hardware)),
            "device": "+".join(dict.fromkeys(name for name, _ in self._hardware)),
            **({} if self.ranks.size == 1 else {"devices": self.ranks.size}),
            **model_size(self.model, device),
        }

    def summary(self, reason: str | None = None, *, out_of_patience: bool = False) -> str:
        """Return a line of epochs, seconds, best and last epoch, and what ended training: by default a setting."""
        parts, settings = [f"{len(self.curve)} epochs in {duration(self._seconds)}"], self.settings
        if (best := self.best_row) is not None:
            parts.append(f"best {self.metric} {best[self.metric]:.4f} in epoch {best['epoch']}")
        if self.curve:
            last = self.curve[-1]
            value = f"{last[self.metric]:.4f} with " if self.metric in last else ""
            parts.append(f"last {value}loss {last['loss']:.4f}")
        if self.is_interrupted:
            reason = "on_epoch: interrupted, the same command continues"
        elif reason is None and self.out_of_time:
            reason = f"max_minutes {settings.max_minutes:g}"
        elif reason is None:
            length = (
                f"max_epochs {settings.max_epochs}" if self._replay is None else f"the {self.epochs} epochs to repeat"
            )
            reason = f"patience {settings.patience}" if out_of_patience else length
        return f"{training_label(self.model)}: {', '.join(parts)}; ended by {reason}"


def training_label(model: Recommender) -> str:
    """Return the prefix of log lines: the step that runs, such as `train sasrec`, or the class."""
    return current_step() or f"train {type(model).__name__}"
