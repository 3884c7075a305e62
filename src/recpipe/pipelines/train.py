"""Pipeline train: the split, and a trained model (bundle) per model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import COLLABORATIVE, ID_KINDS, VECTORS, DataPaths, RunConfig
from recpipe.data.protocol import Protocol, log_steps
from recpipe.pipelines.types import Bundle, DataFrame, Fold, Sequences, TrainingData, TrainingJob, Vocabulary
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

log = logging.getLogger(__name__)


def split_sequences(
    interactions: Path,
    users: DataFrame,
    ingest_steps: DataFrame,
    protocol: Protocol,
    ingest: dict[str, Any],
    paths: DataPaths,
) -> tuple[TrainingData, Fold]:
    """Split the log by the protocol: training data without the test fold, and the test fold.

    Both are views of files that this writes to the folder of the split, where the catalog has them too.
    """
    from dataclasses import replace

    from recpipe.data.splits import TrainingData, split_to
    from recpipe.evaluation.profile import split_warnings

    sequences, vocabulary = build_log(interactions, protocol, ingest, paths)
    protocol = replace(protocol, fingerprint=sequences.fingerprint(), steps=log_steps(ingest_steps.to_dicts()))
    parts = split_to(paths.split, sequences.with_profiles(users.to_arrow()), protocol, vocabulary)
    del sequences  # gives its memory and files back
    sizes = parts.sizes()
    log.info(
        "split %s, protocol %s: %s training events of %s users, %s validation and %s test users",
        protocol.split,
        protocol.id,
        *(f"{sizes[name]:,}" for name in ("train_events", "train_users", "valid_users", "test_users")),
    )
    for warning in split_warnings(sizes, exclude_seen=protocol.exclude_seen):
        log.warning("%s", warning)
    fields = {"id": protocol.id, **protocol.to_dict(), "sizes": sizes, "test_set": parts.test.fingerprint()}
    return TrainingData(fields, vocabulary, parts.train, parts.valid), parts.test


def build_log(
    interactions: Path, protocol: Protocol, ingest: dict[str, Any], paths: DataPaths
) -> tuple[Sequences, Vocabulary]:
    """Build the sequences of the whole log; those of a large one lie in files that are deleted with them."""
    from recpipe.data.sequence_builder import build_sequences

    return build_sequences(
        interactions,
        ties=protocol.ties,
        seed=protocol.seed,
        target_events=protocol.target_events,
        folder=paths.intermediate,
        engine={**ingest["engine"], "spill_folder": ingest["engine"].get("spill_folder") or str(paths.spill)},
    )


def train_model(config: RunConfig, training_data: TrainingData, paths: DataPaths, **inputs: Any) -> Bundle:
    """Train or fit a model; ``inputs`` are those of ``ItemInputs.of``, and ``start``, the bundle of ``init_from``."""
    from recpipe.progress import report_epoch

    return training_job(config, training_data, paths, **inputs).train(on_epoch=report_epoch, keep_checkpoints=True)


def training_job(
    config: RunConfig, training_data: TrainingData, paths: DataPaths, *, folder: Path | None = None, **inputs: Any
) -> TrainingJob:
    """Build the training job from the inputs of a node; ``folder`` is for checkpoints, by default that of training."""
    from recpipe.evaluation.evaluate import validator
    from recpipe.training.job import ItemInputs, TrainingJob

    return TrainingJob(
        config=config,
        data=training_data,
        inputs=ItemInputs.of(inputs),
        work_folder=folder or paths.work(config.name, config.seed),
        validator=validator,
        initial_bundle=inputs.get("start"),
    )


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create the shared split, and ``train_model`` in the namespace of every model."""
    runs, split = wiring.runs.items(), split_node()
    return Pipeline([split, *(create_node(train_model, training_inputs(run), f"{m}_bundle", m) for m, run in runs)])


def split_node() -> Node:
    """Create ``split_sequences``, equal in all pipelines, so that a command has it once."""
    inputs = node_inputs("interactions", "users", "ingest_steps", params=("protocol", "ingest", "paths"))
    return Node(split_sequences, inputs, ["training_data", "test_set"], name="split_sequences")


def training_inputs(run: RunConfig) -> dict[str, str]:
    """Return the datasets by argument of ``train_model``: the split, and the item inputs that this model reads."""
    vectors = (f"{name}_embeddings" for name in VECTORS if name in run.vectors)
    inputs = node_inputs("training_data", "items", *vectors, params=("paths",))
    inputs["config"] = f"params:models.{run.name}"
    for kind in (kind for kind in ID_KINDS if kind in run.ids):
        inputs |= {f"{kind}_ids": f"{kind}_semantic_ids", f"{kind}_tree": f"{kind}_prefix_tree"}
    if run.item_model is not None:
        inputs[COLLABORATIVE] = f"{run.item_model}_bundle"
    if run.init_from != "none":
        inputs["start"] = "start"
    return inputs
