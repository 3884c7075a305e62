"""Nodes of train: calls into recpipe.data and recpipe.training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recpipe.config import DataPaths, RunConfig
from recpipe.data.protocol import Protocol
from recpipe.pipelines.types import Bundle, DataFrame, Fold, TrainingData, TrainingJob

log = logging.getLogger(__name__)


def split_sequences(
    interactions: Path, users: DataFrame, ingest_steps: DataFrame, protocol: Protocol
) -> tuple[TrainingData, Fold]:
    """Split the log by the protocol: training data without the test fold, and the test fold."""
    from dataclasses import replace

    from recpipe.data.sequences import build
    from recpipe.data.splits import split
    from recpipe.data.training_data import TrainingData

    sequences, vocabulary = build(interactions, ties=protocol.ties, seed=protocol.seed)
    steps = tuple(f"{row['name']} {row['detail']}".strip() for row in ingest_steps.to_dicts())
    protocol = replace(protocol, fingerprint=sequences.fingerprint(), steps=steps)
    parts = split(sequences.described(users.to_arrow()), protocol, vocabulary)
    sizes = parts.counts()
    log.info(
        "split %s, protocol %s: %s training events of %s users, %s validation and %s test users",
        protocol.split,
        protocol.id,
        *(f"{sizes[name]:,}" for name in ("train_events", "train_users", "valid_users", "test_users")),
    )
    fields = {"id": protocol.id, **protocol.to_dict(), "sizes": sizes}
    return TrainingData(fields, vocabulary, parts.train, parts.valid), parts.test


def train_model(config: RunConfig, training_data: TrainingData, paths: DataPaths, **inputs: Any) -> Bundle:
    """Train or fit one model.

    ``inputs``: those of ``ItemInputs.of``, and ``start``, the bundle of the run ``init_from``.
    """
    from recpipe.pipelines.progress import tell

    job = training_job(config, training_data, paths, **inputs)
    trained, description = job.train(on_epoch=tell)
    return job.bundle(trained, description)


def training_job(
    config: RunConfig, training_data: TrainingData, paths: DataPaths, **inputs: Any
) -> TrainingJob:
    """Build the training job from the inputs of a node."""
    from recpipe.evaluation.evaluate import validator
    from recpipe.training.job import ItemInputs, TrainingJob

    return TrainingJob(
        config=config,
        data=training_data,
        inputs=ItemInputs.of(inputs),
        work_folder=paths.work(config.name, config.seed),
        validator=validator,
        start=inputs.get("start"),
    )
