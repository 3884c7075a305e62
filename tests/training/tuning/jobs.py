"""A small training job that tests of tuning share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tests.synthetic import random_sequences

from recpipe.config import RunConfig, build_config
from recpipe.config.schema import TuneConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.data.splits import TrainingData, split
from recpipe.evaluation.evaluate import validator
from recpipe.training.job import ItemInputs, TrainingJob

ITEMS = 30
TRAIN = {
    "batch_tokens": 200,
    "max_epochs": 4,
    "patience": 4,
    "device": "cpu",
    "loss": {"name": "full_softmax"},
    "optimiser": {"name": "adam", "learning_rate": 0.01},
    "schedule": {"name": "constant"},
}
SPACE = {
    "dim": {"choices": [8, 16]},
    "dropout": {"low": 0.0, "high": 0.5},
    "train": {"optimiser": {"learning_rate": {"low": 1e-3, "high": 0.05, "log": True}}},
}
TUNE: dict[str, Any] = {
    "trials": 4,
    "minutes": None,
    "storage": None,
    "study": None,
    "objectives": "metric",
    "startup_trials": 2,
    "pruner": {"name": "none", "startup_trials": 1, "warmup_epochs": 1},
    "seed": 1,
    "stale_minutes": 10.0,
    "search_space": {},
}


def tune_config(**changes: Any) -> TuneConfig:
    return build_config(TuneConfig, {**TUNE, **changes}, where="tune")


def run_config(type_: str = "sasrec", space: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    settings = {"sasrec": {"dim": 16, "layers": 1, "heads": 1, "dropout": 0.1}, "item_knn": {"neighbours": 5}}
    fields = {
        "settings": settings.get(type_, {}),
        "train": TRAIN if type_ == "sasrec" else {},
        "side": {},
        "cold_users": {},
        "search_space": SPACE if space is None and type_ == "sasrec" else space or {},
    }
    return RunConfig(name=type_, type=type_, dataset="d", **{**fields, **changes})


def job(folder: Path, config: RunConfig | None = None) -> TrainingJob:
    protocol = Protocol(dataset="d", history=10)
    parts = split(random_sequences(120, ITEMS, longest=14, seed=2), protocol)
    ids = np.array([f"i{number:02}" for number in range(ITEMS)], object)
    data = TrainingData(protocol.to_dict(), Vocabulary(ids), parts.train, parts.valid)
    items = ItemInputs(pa.table({"item_id": list(ids), "title": list(ids)}))
    config = config or run_config()
    return TrainingJob(config=config, data=data, inputs=items, work_folder=folder / "work", validator=validator)
