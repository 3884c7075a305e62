"""Training of any Recommender: fit in closed form, or by gradient with checkpoints, early stopping and resuming."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.sequences import Sequences
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.recommender import Recommender
from recpipe.training.callbacks import lock_folder
from recpipe.training.checkpoint import remove_checkpoints
from recpipe.training.cost import hardware, model_size, reset_peak_memory, versions
from recpipe.training.distributed import Ranks, count_devices, external_group, external_ranks
from recpipe.training.gradient import train_by_gradient
from recpipe.training.module import OnEpoch, Replay, TrainingModule, Validate, training_label
from recpipe.training.optimisers import INDEPENDENT_OF_LENGTH
from recpipe.training.rank_processes import RankProcesses
from recpipe.training.settings import MACHINE, TrainSettings, check_settings, choose_device
from recpipe.training.setup import ShardedValidate, TrainingSetup

log = logging.getLogger(__name__)


@dataclass
class TrainingResult:
    """Trained model, its curve (a row per epoch), its cost, and versions of libraries."""

    model: Recommender
    curve: list[dict[str, Any]]
    cost: dict[str, Any]
    versions: dict[str, str]


def train(
    model_factory: Callable[[], Recommender],
    data: Sequences,
    validate: Validate | None,
    settings: TrainSettings,
    *,
    seed: int,
    folder: Path,
    fingerprint: str = "",
    on_epoch: OnEpoch | None = None,
    cold_users: ColdUsersConfig | None = None,
    steps_from: Sequences | None = None,
    replay: Replay | None = None,
    statistics: Sequences | None = None,
    keep_checkpoints: bool = False,
) -> TrainingResult:
    """Train a model on ``data`` (training events only); return it in the state of its best validation.

    ``validate`` selects the best state and tunes the model at the end; with None the last state is returned, after the
    epochs of ``replay`` or ``settings.max_epochs``. With ``settings.train_on_validation``, ``data`` has the validation
    events too: nothing is validated either, and an epoch has the steps of ``steps_from``, the training set alone.
    ``folder`` is for checkpoints and curves; a checkpoint in it is resumed if it has the same ``fingerprint`` (of
    data), settings and seed. The loss takes how often items occur from ``statistics``, by default ``data``.
    ``cold_users`` is fitted apart from the model, its cost and its checkpoints. With
    ``keep_checkpoints`` the caller deletes them, by ``remove_checkpoints``, when he has stored the model: until then
    the same call returns the same. Raises NonFiniteLossError, ValueError for bad settings, and KeyboardInterrupt after
    Ctrl-C, when the last checkpoint is complete.
    """
    pl.seed_everything(seed, verbose=False)
    device, ranks = choose_device(settings.device), external_ranks()
    reset_peak_memory(device)
    if settings.train_on_validation and steps_from is None:
        raise ValueError("train.train_on_validation needs the training set alone as well, for the number of its steps")
    validate = None if settings.train_on_validation or replay is not None else validate
    model = model_factory()
    check_settings(settings, type(model))
    if not model.closed_form:
        model.history_bias = float(settings.history_bias)
    data = _with_weights(model, data, settings)
    fallback = None if cold_users is None else ColdUsers(cold_users, n_items=model.n_items).fit(data, seed=seed)
    curve: list[dict[str, Any]] = []
    if model.closed_form:
        if settings.devices != 1 or settings.num_nodes != 1:
            log.info("%s is fitted in closed form, on one device: train.devices has no effect", training_label(model))
        start = time.perf_counter()
        model.to(device)
        if ranks.is_main:
            model.fit(data)
        seconds = time.perf_counter() - start
        cost = {"train_seconds": seconds, "epochs": 0, "device": device, **model_size(model, device)}
    else:
        if data.weights is not None:
            fingerprint = f"{fingerprint} weights {weights_digest(data)}"
        fingerprint = run_fingerprint(fingerprint, settings, seed, model)
        if validate is None:
            _check_without_validation(settings, replay)
        else:
            validate = ValidateWithFallback(validate, fallback)
        setup = TrainingSetup(
            model=model.train(),
            data=data,
            validate=validate,
            settings=settings,
            seed=seed,
            steps_from=steps_from if settings.train_on_validation else None,
            replay=replay,
            statistics=statistics,
        )
        training = RankTraining(setup, device, folder, fingerprint)
        with lock_folder(folder) if ranks.is_main else nullcontext():
            with _all_ranks(training, ranks) as ranks:
                module = training(ranks, on_epoch)
            if ranks.is_main and not keep_checkpoints:
                remove_checkpoints(folder)
        curve, cost = module.curve, module.cost(device)
        if ranks.is_main:
            cost |= _tune(model, validate, settings)
    model.cold_users = fallback
    cost["hardware"] = hardware(device)  # of the machine that ended the training
    return TrainingResult(model.to(device), curve, cost, versions())


@dataclass(frozen=True)
class RankTraining:
    """Training by gradient as every rank does it; for ranks 1, 2, … it is sent to their processes."""

    setup: TrainingSetup
    device: str
    folder: Path
    fingerprint: str

    def __call__(self, ranks: Ranks, on_epoch: OnEpoch | None = None) -> TrainingModule:
        """Train, and return the module, on rank 0 with the best state."""
        if not ranks.is_main:
            pl.seed_everything(self.setup.seed, verbose=False)
        self.setup.model.to(self.device)
        module = self.setup.module(ranks=ranks, on_epoch=on_epoch)
        train_by_gradient(module, self.device, self.folder, self.fingerprint)
        return module


@contextmanager
def _all_ranks(training: RankTraining, ranks: Ranks) -> Iterator[Ranks]:
    """Start the ranks of a training, or join those of torchrun or SLURM; yield this process among them."""
    size = count_devices(training.setup.settings, training.device)
    if ranks.size == 1 and size > 1:
        with RankProcesses(training, size, device=training.device) as local_ranks:
            yield local_ranks
    else:
        with external_group(ranks, training.device):
            yield ranks


def _check_without_validation(settings: TrainSettings, replay: Replay | None) -> None:
    """Raise ValueError for settings that follow validation metrics where there are none."""
    if needs_metrics(settings) and not (replay and replay.metrics):
        name = "schedule plateau" if settings.schedule.get("name") == "plateau" else "loss.second_stage_after"
        raise ValueError(f"nothing is validated in this training, and train.{name} follows validations: choose another")


def needs_metrics(settings: TrainSettings) -> bool:
    """Return whether the schedule, or the second stage of the loss, follows the metrics of validations."""
    return settings.schedule.get("name") == "plateau" or settings.loss.get("second_stage_after") is not None


def _with_weights(model: Recommender, data: Sequences, settings: TrainSettings) -> Sequences:
    """Return ``data`` with the weights of events if the model uses them, else without, and mark the model."""
    if data.weights is None or not settings.weights:
        return replace(data, weights=None)
    if not model.takes_weights:
        log.warning("%s does not use the weights of events: all count alike", training_label(model))
        return replace(data, weights=None)
    if not data.weights.any():
        raise ValueError("all training events have the weight 0: map another column, or set train.weights=false")
    log.info("%s: events count by their weight (train.weights=false: all alike)", training_label(model))
    model.uses_weights = True
    return data


def weights_digest(data: Sequences) -> str:
    """Hash the weights of events to twelve hex digits."""
    assert data.weights is not None
    return hashlib.sha256(np.ascontiguousarray(data.weights).data).hexdigest()[:12]


def run_fingerprint(data: str, settings: TrainSettings, seed: int, model: Recommender) -> str:
    """Hash everything that must be equal to resume from a checkpoint; epochs and patience may differ."""
    ignored = {"patience", "max_minutes", "resume", "log_every", "device", "loggers", "weights", *MACHINE}
    if settings.schedule.get("name") in INDEPENDENT_OF_LENGTH:
        ignored.add("max_epochs")
    if settings.ema is None:
        ignored.add("ema")
    if not settings.history_bias:
        ignored.add("history_bias")
    parts = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ignored}
    shape = [type(model).__name__, dataclasses.asdict(model.config), model.n_items, model.max_length]
    shape += [] if model.side is None else [model.side.fingerprint()]
    shape += [codes.description()["digest"] for codes in model.item_codes().values()]
    return hashlib.sha256(json.dumps([data, parts, seed, shape], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ValidateWithFallback:
    """Validation with the fallback for new users, which checkpoints do not hold."""

    validate: Validate
    fallback: ColdUsers | None

    def __call__(self, model: Recommender) -> dict[str, float]:
        """Return the metrics of ``validate``."""
        model.cold_users = None if self.fallback is None else self.fallback.to(model.device)
        try:
            return self.validate(model)
        finally:
            model.cold_users = None

    def shard(self, ranks: Ranks) -> Validate:
        """Return the validation of this rank's users, or of all where ``validate`` cannot be shared."""
        return (
            replace(self, validate=self.validate.shard(ranks)) if isinstance(self.validate, ShardedValidate) else self
        )


def _tune(model: Recommender, validate: Validate | None, settings: TrainSettings) -> dict[str, float]:
    """Settings that the model chose on the validation fold, and its metric with them."""
    if validate is None:
        return {}
    metric = f"valid_{settings.metric}"
    values: list[float] = []

    def evaluate() -> float:
        values.append(validate(model)[metric])
        return values[-1]

    choices = model.tune(evaluate)
    if not choices:
        return {}
    log.info("chosen on the validation fold: %s, of %s", choices, [round(value, 4) for value in values])
    return {**{f"tuned_{name}": value for name, value in choices.items()}, f"tuned_{metric}": max(values)}
