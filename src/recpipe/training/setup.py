"""Setup of a training by gradient: the inputs of every rank, and the Lightning module built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from recpipe.data.batch_samplers import Share
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import Recommender
from recpipe.training.batches import make_batches, relative_weights, target_counts, trained_items, training_windows
from recpipe.training.distributed import Ranks
from recpipe.training.losses import make_loss
from recpipe.training.module import OnEpoch, Replay, TrainingModule, Validate
from recpipe.training.settings import TrainSettings


@runtime_checkable
class ShardedValidate(Protocol):
    """Validation that ranks can share."""

    def __call__(self, model: Recommender) -> dict[str, float]:
        """Return the metrics of ``model`` on the validation fold."""

    def shard(self, ranks: Ranks) -> Validate:
        """Return the validation of this rank's users, which returns the metrics of all."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Inputs of a training on one rank; sent to the processes of ranks 1, 2, ….

    With ``train_on_validation`` an epoch has the steps of ``steps_from``. The loss takes its counts of targets and
    items from ``statistics``, by default ``data``.
    """

    model: Recommender
    data: Sequences
    validate: Validate | None
    settings: TrainSettings
    seed: int
    steps_from: Sequences | None = None
    replay: Replay | None = None
    statistics: Sequences | None = None

    def module(self, *, ranks: Ranks | None = None, on_epoch: OnEpoch | None = None) -> TrainingModule:
        """Build the module, batches and loss on the device of the model."""
        model, settings, ranks, validate = self.model, self.settings, ranks or Ranks(), self.validate
        windows = training_windows(self.data, model, settings)
        windows = windows.with_weights(relative_weights(windows, model))
        device_data = model.on_device(windows, window=model.max_length + 1)
        options: dict[str, Any] = {"window": model.max_length, "seed": self.seed, "device": model.device.type}
        options["share"] = Share(ranks.rank, ranks.size, settings.accumulate)
        if settings.train_on_validation and self.steps_from is not None:
            lengths = np.minimum(training_windows(self.steps_from, model, settings).lengths, model.max_length + 1)
            options["steps"] = make_batches(lengths, settings, **options).steps
        counted = windows if self.statistics is None else self.statistics
        trained = trained_items(counted, model)
        model.set_trained_items(trained)
        criterion = make_loss(settings.loss, target_counts(counted, model), trained)
        if ranks.size > 1 and isinstance(validate, ShardedValidate):
            validate = validate.shard(ranks)
        return TrainingModule(
            model,
            criterion.to(model.device),
            settings,
            data=device_data,
            batches=make_batches(device_data.lengths, settings, **options),
            validate=validate,
            on_epoch=on_epoch,
            replay=self.replay,
            ranks=ranks,
        )
