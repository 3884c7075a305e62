"""Refit: a chosen model trained on all events of the log, for use.

A measured run is a trained bundle with its metrics.json. The refit has its settings, seed and inputs, the sequences of
the whole log under the same protocol without a split, and the epochs that the measured run took to its best state. An
epoch has more steps, since the set is larger, so that steps grow with the events. Nothing is validated, and the last
state is kept. The learning rate follows the same schedule over ``max_epochs``, cut at the same epoch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recpipe.config import COLLABORATIVE, RunConfig, build_config
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.data.splits import TrainingData, split
from recpipe.models.recommender import Recommender
from recpipe.models.registry import model_class, side_config
from recpipe.training.bundle import Bundle
from recpipe.training.fit import needs_metrics
from recpipe.training.job import ItemInputs, TrainingJob, build_catalogue_ids
from recpipe.training.module import OnEpoch, Replay
from recpipe.training.settings import MACHINE, TrainSettings

log = logging.getLogger(__name__)

# train settings of this machine, taken from the configuration
RUNTIME = ("device", "resume", "log_every", "loggers", *MACHINE)
IGNORED = (*RUNTIME, "weights", "max_minutes", "train_on_validation")  # they differ by design
LONGEST_LIST = 5  # differing settings named in a warning


@dataclass(frozen=True)
class MeasuredRun:
    """A trained model and its evaluation, which a production bundle stands for.

    ``metrics``: content of metrics.json. ``version``: of the bundle. ``curve``: training curve, read only where the
    schedule follows validations. Raises ValueError for a model without a test fold, and metrics of another bundle.
    """

    bundle: Bundle
    metrics: Mapping[str, Any]
    version: str
    curve: pa.Table | None = None

    def __post_init__(self) -> None:
        if not self.bundle.protocol.holds_out:
            raise ValueError(
                f"{self.name} was trained with protocol.split=none, on all events already: it is for use as it is"
            )
        cost, own = self.metrics.get("cost") or {}, self.bundle.training.get("cost") or {}
        if any(cost.get(key) != value for key, value in own.items()):
            raise ValueError(
                f"the metrics.json of {self.name} is of another training than its newest bundle ({self.version}): "
                f"{self.command('evaluate')} measures that one"
            )

    @property
    def name(self) -> str:
        """The run as ``<dataset>/<model>/seed_<seed>``."""
        return f"{self.bundle.protocol.dataset}/{self.bundle.name}/seed_{self.bundle.training.get('seed')}"

    def command(self, pipelines: str) -> str:
        """Return the command that runs ``pipelines`` for this model."""
        dataset, model, seed = self.name.split("/")
        params = f"dataset={dataset},model={model},seed={seed.removeprefix('seed_')}"
        return f"`kedro run --pipelines={pipelines} --params {params}`"

    def description(self) -> dict[str, Any]:
        """Return what a production bundle records of the run: ``run``, ``version``, ``protocol``, test ``metrics``."""
        about = {"run": self.name, "version": self.version, "protocol": self.metrics["protocol"]["id"]}
        return {**about, "metrics": dict(self.metrics["test"])}

    def check_log(self, sequences: Sequences, vocabulary: Vocabulary, steps: tuple[str, ...]) -> None:
        """Raise ValueError unless the run was trained on a part of ``sequences``, of the same log and catalogue."""
        protocol = self.bundle.protocol
        equal = {
            "catalogue": np.array_equal(self.bundle.vocabulary.ids, vocabulary.ids),
            "events": protocol.fingerprint == sequences.fingerprint(),
            "cleaning or sampling steps": protocol.steps == steps,
        }
        if differing := [name for name, is_equal in equal.items() if not is_equal]:
            raise ValueError(
                f"the log of {protocol.dataset} has changed since {self.name} was trained ({', '.join(differing)} "
                f"differ), so its metrics say nothing about it: {self.command('train,evaluate')}, then refit again"
            )

    def whole_log(
        self, sequences: Sequences, vocabulary: Vocabulary, users: pa.Table, steps: tuple[str, ...]
    ) -> TrainingData:
        """Return all events of the log as training data.

        ``users`` is a table with the column user_id and columns of profiles. Raises ValueError where the log is not
        that of the run.
        """
        self.check_log(sequences, vocabulary, steps)
        return self.data(sequences.with_profiles(users), vocabulary)

    def data(self, sequences: Sequences, vocabulary: Vocabulary) -> TrainingData:
        """Return all events of the log as training data."""
        protocol = self.bundle.protocol.without_split()
        parts = split(sequences, protocol, vocabulary)
        fields = {"id": protocol.id, **protocol.to_dict(), "sizes": parts.sizes()}
        return TrainingData(fields, vocabulary, parts.train, parts.valid)

    def config(self, current: RunConfig) -> RunConfig:
        """Return ``current`` with the settings in effect in the bundle, and log where it differs from them.

        Settings that only a search reads are those of the evaluation, settings of the machine those of ``current``.
        """
        settings = self.bundle.training["settings"]
        searched = self.bundle.with_search_settings(self.metrics.get("settings") or {})
        fallback = self.bundle.model.cold_users
        config = replace(
            current,
            type=self.bundle.type,
            settings=json.loads(json.dumps(asdict(searched.model.config))),
            train=self._train_settings() | {name: current.train[name] for name in RUNTIME if name in current.train},
            side=settings.get("side") or {},
            cold_users=current.cold_users if fallback is None else asdict(fallback.config),
            ids=tuple(settings.get("ids") or ()),
            init_from=settings.get("init_from", "none"),
        )
        if differing := list(differences(config, current)):
            more = f" and {len(differing) - LONGEST_LIST} more" if len(differing) > LONGEST_LIST else ""
            log.warning(
                "the configuration of %s has changed since it was measured; the refit uses the values of its bundle: "
                "%s%s", current.name, "; ".join(differing[:LONGEST_LIST]), more,
            )  # fmt: skip
        return config

    def _train_settings(self) -> dict[str, Any]:
        """Return the ``train`` block in effect, for a training of any length on all events."""
        recorded = dict(self.bundle.training["settings"].get("train") or {})
        recorded.pop("put_back", None)  # the name of train_on_validation until November 2026
        uses_weights = self.bundle.model.uses_weights
        return {**recorded, "weights": uses_weights, "max_minutes": None, "train_on_validation": False}

    def check_inputs(self, config: RunConfig, inputs: ItemInputs) -> None:
        """Raise ValueError unless ``inputs`` are the embeddings and semantic ids that the run was trained with."""
        embeddings = dict(self.bundle.training.get("embeddings") or {})
        if embeddings.pop(COLLABORATIVE, None) is not None:
            self._check_item_model(inputs.collaborative)
        for name, hash_ in embeddings.items():
            if name not in inputs.vectors:
                raise ValueError(
                    f"{self.name} was trained with {name} vectors and its configuration now has none: set "
                    f"models.{config.name}.side.vectors={name}, or train and evaluate it anew"
                )
            self._check_equal(f"{name} vectors", inputs.vectors[name].hash, hash_)
        if missing := [kind for kind in config.ids if kind not in inputs.ids]:
            raise ValueError(
                f"{self.name} was trained with {missing[0]} ids and its configuration now has none: set "
                f"models.{config.name}.ids={missing[0]}, or train and evaluate it anew"
            )
        digests = self.bundle.training["settings"].get("ids") or {}
        for kind, codes in build_catalogue_ids(config.ids, inputs.ids, self.bundle.vocabulary).items():
            self._check_equal(f"{kind} ids", codes.digest[:12], digests[kind])

    def _check_item_model(self, item_model: Bundle | None) -> None:
        """Raise ValueError unless ``item_model`` is the model, of any version, whose item vectors were read."""
        names = [run["name"] for run in self.bundle.training.get("earlier_runs", [])]
        if not names:  # bundles until 28 November 2026
            raise ValueError(
                f"{self.name} does not name the model of its item vectors: {self.command('train,evaluate')}"
            )
        if item_model is None or item_model.name not in names:
            other = "none" if item_model is None else item_model.name
            raise ValueError(
                f"{self.name} was trained on the item vectors of {' or '.join(names)} and its configuration now reads "
                f"{other}: set models.{self.bundle.name}.{COLLABORATIVE}={names[-1]}, or train and evaluate it anew"
            )

    def _check_equal(self, what: str, hash_: str, recorded: str) -> None:
        if hash_ != recorded:
            raise ValueError(
                f"the {what} of {self.bundle.protocol.dataset} have changed since {self.name} was trained: "
                f"{self.command('train,evaluate')}, then refit again"
            )

    def replay(self) -> Replay | None:
        """Return the length of the training to its best state; None for a closed-form model."""
        if self.bundle.model.closed_form:
            return None
        cost = self.bundle.training["cost"]
        epochs = cost.get("epochs" if self.bundle.train_on_validation else "best_epoch")
        if epochs is None:
            raise ValueError(f"{self.name} does not say in which epoch it was best: {self.command('train,evaluate')}")
        settings = build_config(TrainSettings, self._train_settings(), where=f"models.{self.bundle.name}.train")
        metrics = self._validations(f"valid_{settings.metric}") if needs_metrics(settings) else {}
        return Replay(int(epochs), metrics)

    def _validations(self, name: str) -> dict[int, float]:
        """Return the metric ``name`` of the measured run by epoch. Raises ValueError for a curve of another run."""
        rows = [] if self.curve is None else self.curve.to_pylist()
        cost = self.bundle.training["cost"]
        if len(rows) != cost["epochs"] or rows[-1]["seconds"] != cost["train_seconds"]:
            raise ValueError(
                f"the learning rate or the loss of {self.name} follows its validations, and its curves.parquet is not "
                f"of this training: {self.command('train,evaluate')}, then refit again"
            )
        return {row["epoch"]: row[name] for row in rows if row.get(name) is not None}


def differences(measured: RunConfig, current: RunConfig) -> Iterator[str]:
    """Yield the settings of ``current`` that have another value in ``measured``, as ``dim is 32, not 64``."""
    if measured.type != current.type:
        yield f"type is {measured.type}, not {current.type}"
        return
    old, new = _settings(measured), _settings(current)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} is {old.get(name)}, not {new.get(name)}"


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return all settings that change the model, with defaults, by dotted path."""
    cls, where = model_class(config.type), f"models.{config.name}"
    blocks: dict[str, Any] = {"": asdict(build_config(cls.Config, config.settings, where=where))}
    if not cls.closed_form:
        train = asdict(build_config(TrainSettings, config.train, where=f"{where}.train"))
        blocks["train."] = {name: value for name, value in train.items() if name not in IGNORED}
    if cls.takes_side:
        blocks["side."] = asdict(side_config(config.type, config.side, where=where))
    blocks["cold_users."] = asdict(build_config(ColdUsersConfig, config.cold_users, where="cold_users"))
    blocks[""] = {name: value for name, value in blocks[""].items() if name not in cls.search_settings}
    values = {f"{prefix}{name}": value for prefix, block in blocks.items() for name, value in block.items()}
    plain: dict[str, Any] = json.loads(json.dumps({**values, "ids": config.ids, "init_from": config.init_from}))
    return plain


def refit(
    job: TrainingJob, measured: MeasuredRun, *, on_epoch: OnEpoch | None = None, keep_checkpoints: bool = False
) -> Bundle:
    """Train ``job``, whose config and data are of ``measured``, and return a production bundle.

    Its ``training`` has ``production``: how it was made and the run that it stands for. It has no metrics of its own.
    """
    measured.check_inputs(job.config, job.inputs)
    replay, before = measured.replay(), measured.bundle.train_events.sum()
    log.info(
        "refit of %s on all %s events of the log, %s before%s",
        measured.name,
        f"{len(job.data.train_set.items):,}",
        f"{int(before):,}",
        "" if replay is None else f", up to epoch {replay.epochs}, in which it was best",
    )
    bundle = job.train(on_epoch=on_epoch, keep_checkpoints=keep_checkpoints, replay=replay)
    copy_tuned(measured.bundle.model, bundle.model)
    production = {"made_by": "refit", "stands_for": measured.description()}
    return replace(bundle, training={**bundle.training, "production": production})


@torch.no_grad()
def copy_tuned(source: Recommender, target: Recommender) -> None:
    """Copy the values that ``source`` chose on the validation fold after its training."""
    buffers = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        if name in type(target).tuned:
            buffer.copy_(buffers[name])


def choose_item_model(measured: Bundle, production: Bundle | None, data: TrainingData) -> Bundle:
    """Return the model whose item vectors a refit reads: its refit on the same log if there is one, else the measured.

    ``data``: all events of the log.
    """
    if production is None:
        log.info(
            "%s has no refit: its measured bundle is read; refit it first for vectors of all events", measured.name
        )
        return measured
    try:
        production.check_catalogue(data.vocabulary)
        production.check_split(data.protocol)
    except ValueError:
        log.info("the production bundle of %s is of another log: its measured bundle is read", measured.name)
        return measured
    log.info("item vectors are those of the production bundle of %s", production.name)
    return production
