"""Continued training of a bundle on the events since its training, with old events mixed in.

The model is extended to the present catalogue (``training/catalogue.py``) and trained on windows in which only new
events are targets, and on windows of old events (replay), drawn once. Two folds watch over it: the last event of some
users among the new events, and the last old event of other users, who are left out of the replay. Training stops when
either metric falls below its start by more than a tolerance; of the states in which neither has, that of the best
metric of new events is the result, the model as it was among them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recpipe.config import RunConfig, build_config
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.item_columns import item_columns
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Fold, Sequences, Vocabulary, count_items
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.recommender import Recommender
from recpipe.training import fit
from recpipe.training.bundle import Bundle
from recpipe.training.catalogue import extend_model, extended_titles, extended_vocabulary
from recpipe.training.job import ItemInputs, Validator
from recpipe.training.module import OnEpoch, Validate
from recpipe.training.settings import TrainSettings
from recpipe.training.update_data import UpdateData, UpdateSettings, update_data

log = logging.getLogger(__name__)

OF_THIS_RUN = ("device", "precision", "loggers", "resume")  # train settings of the conf; the others are the bundle's


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update: the bundle with its version, the present log and catalogue, and settings."""

    bundle: Bundle
    version: str
    stands_for: Mapping[str, Any]  # the measured run
    sequences: Sequences  # of the present log, by ``vocabulary``
    vocabulary: Vocabulary
    protocol: Protocol  # of the present log
    inputs: ItemInputs
    config: RunConfig
    settings: UpdateSettings
    validator: Validator
    work_folder: Path

    def run(self, *, on_epoch: OnEpoch | None = None, keep_checkpoints: bool = False) -> Bundle:
        """Train and return the new bundle. Raises ValueError for a bundle that cannot be updated."""
        check_updatable(self.bundle)
        started = time.perf_counter()
        vocabulary = extended_vocabulary(self.bundle.vocabulary, self.vocabulary.ids)
        settings, model = self._train_settings(), self._extended(vocabulary)
        data = self._data(vocabulary, settings, model)
        guard = ForgettingGuard(
            self._validate(data.recent), self._validate(data.earlier), settings.metric, self.settings.tolerance
        )
        guard.start(model)
        log.info(
            "%s: %s new events and %s old ones, %s items of which %s are new; %s %.4f of new events, %.4f of old ones",
            self.bundle.name, f"{data.new_events:,}", f"{data.replayed_events:,}", f"{len(vocabulary):,}",
            f"{len(vocabulary) - len(self.bundle.vocabulary):,}", settings.metric, *guard.initial,
        )  # fmt: skip
        trained = fit.train(
            lambda: self._extended(vocabulary),
            data.windows,
            guard,
            replace(settings, metric=guard.name, windows="last", stride=None),  # windows are cut already
            seed=self.config.seed,
            folder=self.work_folder,
            fingerprint=f"update of {self.version} {self.protocol.fingerprint}",
            on_epoch=on_epoch,
            statistics=data.seen,
            keep_checkpoints=keep_checkpoints,
        )
        best = guard.best_of(trained.curve)
        if best is None:
            log.warning(
                "%s: no epoch was better on new events without being worse on old ones by more than %s; the weights "
                "stay, the catalogue and the fallback are new", self.bundle.name, self.settings.tolerance,
            )  # fmt: skip
        else:
            model = trained.model
        model.cold_users = self._fallback(data.seen, len(vocabulary)).to(model.device)
        record = self._record(data, vocabulary, started) | guard.numbers() | {"best": best}
        return self._bundle(model, vocabulary, data, trained, record, keep_checkpoints=keep_checkpoints)

    def _data(self, vocabulary: Vocabulary, settings: TrainSettings, model: Recommender) -> UpdateData:
        """Training windows and folds of the present log, by the extended ``vocabulary``."""
        assert self.bundle.seen_events is not None
        index = np.concatenate([[0], vocabulary.encode(self.vocabulary.ids)]).astype(np.int32)
        return update_data(
            self.bundle.seen_events,
            replace(self.sequences, items=index[self.sequences.items]),
            self.settings,
            window=model.max_length,
            stride=settings.stride if settings.windows == "all" else None,
            seed=self.config.seed,
        )

    def _train_settings(self) -> TrainSettings:
        """Settings of the bundle's training, with those of the update and, for device and loggers, of this conf."""
        own = build_config(TrainSettings, self.config.train, where=f"models.{self.config.name}.train")
        recorded = (self.bundle.training.get("settings") or {}).get("train") or dataclasses.asdict(own)
        fields = {field.name: recorded[field.name] for field in dataclasses.fields(own) if field.name in recorded}
        of_this_run = {name: getattr(own, name) for name in OF_THIS_RUN}
        settings, update = replace(TrainSettings(**fields), **of_this_run), self.settings
        rate = settings.optimiser.get("learning_rate")
        if rate is None:
            raise ValueError(f"{self.bundle.name} has no train.optimiser.learning_rate that an update could lower")
        return replace(
            settings,
            optimiser={**settings.optimiser, "learning_rate": rate * update.learning_rate},
            schedule=dict(update.schedule),
            max_epochs=update.max_epochs,
            patience=update.patience,
            weights=self.bundle.model.uses_weights,
            validate_every=1,
            validate_users=None,
            max_minutes=None,
            train_on_validation=False,
            log_every=1,
        )

    def _extended(self, vocabulary: Vocabulary) -> Recommender:
        """Extend the model; the initial rows of new items are those of the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return extend_model(self.bundle, vocabulary, self.inputs, accelerate=self.config.accelerate)

    def _validate(self, fold: Fold) -> Validate:
        train = (self.bundle.training.get("settings") or {}).get("train", {})
        return self.validator(fold, self.bundle.protocol, train.get("metric", "ndcg@10"))

    def _fallback(self, seen: Sequences, n_items: int) -> ColdUsers:
        config = build_config(ColdUsersConfig, self.config.cold_users, where="cold_users")
        seen = seen if self.bundle.model.uses_weights else replace(seen, weights=None)
        return ColdUsers(config, n_items=n_items).fit(seen, seed=self.config.seed)

    def _record(self, data: UpdateData, vocabulary: Vocabulary, started: float) -> dict[str, Any]:
        """Return what ``training["updates"]`` says of this update, without its metrics."""
        return {
            "of_version": self.version,
            "new_events": data.new_events,
            "replayed_events": data.replayed_events,
            "items_before": len(self.bundle.vocabulary),
            "items": len(vocabulary),
            "settings": dataclasses.asdict(self.settings),
            "seconds": time.perf_counter() - started,
        }

    def _bundle(
        self,
        model: Recommender,
        vocabulary: Vocabulary,
        data: UpdateData,
        trained: fit.TrainingResult,
        record: dict[str, Any],
        *,
        keep_checkpoints: bool,
    ) -> Bundle:
        earlier = self.bundle.training
        training = {
            **earlier,
            "cost": {name: value for name, value in trained.cost.items() if value != -math.inf},
            "versions": trained.versions,
            "production": {"made_by": "update", "stands_for": dict(self.stands_for)},
            "updates": [*earlier.get("updates", []), record],
            "earlier_runs": self.bundle.training_runs(),
        }
        return Bundle(
            self.bundle.name,
            self.bundle.type,
            model.eval(),
            vocabulary,
            extended_titles(self.bundle, vocabulary, self.inputs.items),
            count_items(data.seen.items, len(vocabulary))[1:],
            self.protocol,
            training,
            trained.curve,
            work_folder=self.work_folder if keep_checkpoints else None,
            item_columns=item_columns(self.inputs.items, vocabulary.ids),
            seen_events=SeenEvents.of(data.seen),
        )


class ForgettingGuard:
    """Validation of an update: metrics on new and old events, and the guarded one that selects the best state.

    That metric, ``valid_<name>``, is the one of new events, and minus infinity, which ends training, where either has
    fallen below its start by more than the share ``tolerance``.
    """

    def __init__(self, recent: Validate, earlier: Validate, metric: str, tolerance: float) -> None:
        self._recent, self._earlier, self._metric, self._tolerance = recent, earlier, metric, tolerance
        self.name = f"guarded_{metric}"
        self.initial = (0.0, 0.0)  # of new and of old events

    def start(self, model: Recommender) -> None:
        """Measure the model before the update."""
        self.initial = self._values(model)

    def __call__(self, model: Recommender) -> dict[str, float]:
        """Return the guarded metric and those of new and old events."""
        recent, earlier = self._values(model)
        limits = [value * (1 - self._tolerance) for value in self.initial]
        guarded = recent if recent >= limits[0] and earlier >= limits[1] else -math.inf
        metric = f"valid_{self._metric}"
        return {f"valid_{self.name}": guarded, metric: recent, f"{metric}_of_old_events": earlier}

    def best_of(self, curve: Sequence[Mapping[str, Any]]) -> float | None:
        """Return the best metric of the epochs of ``curve``; None if none is better than before the update."""
        best = max((row[f"valid_{self.name}"] for row in curve), default=-math.inf)
        return best if best > self.initial[0] else None

    def numbers(self) -> dict[str, float | str]:
        """Return the metrics before the update."""
        return {"metric": self._metric, "before": self.initial[0], "before_old_events": self.initial[1]}

    def _values(self, model: Recommender) -> tuple[float, float]:
        name = f"valid_{self._metric}"
        return self._recent(model)[name], self._earlier(model)[name]


def check_updatable(bundle: Bundle) -> None:
    """Raise ValueError for a closed-form model, and for a bundle that does not say which events it was trained on."""
    params = f"--params model={bundle.name}"
    if bundle.model.closed_form and bundle.model.scores_by_content:
        raise ValueError(
            f"{bundle.name} is not trained, so that there is nothing to update; `kedro run --pipeline=add_items "
            f"{params}` adds new items"
        )
    if bundle.model.closed_form:
        raise ValueError(
            f"{bundle.name} is fitted in closed form, in one pass over all events: its update is `kedro run "
            f"--pipeline=refit {params}`"
        )
    if bundle.seen_events is None:
        raise ValueError(
            f"the bundle of {bundle.name} is of an older version and does not say which events it was trained on: "
            f"`kedro run --pipelines=train,evaluate {params}` trains it anew"
        )
