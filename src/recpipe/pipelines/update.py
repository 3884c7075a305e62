"""Pipeline update: training of the newest bundle of a model continued on the events since then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config import DataPaths, RunConfig, build_config
from recpipe.data.protocol import log_steps
from recpipe.pipelines.add_items import item_inputs
from recpipe.pipelines.train import build_log
from recpipe.pipelines.types import Bundle, DataFrame
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs


def update_model(
    config: RunConfig,
    update: dict[str, Any],
    interactions: Path,
    users: DataFrame,
    ingest_steps: DataFrame,
    ingest: dict[str, Any],
    paths: DataPaths,
    **inputs: Any,
) -> Bundle:
    """Continue the newest bundle of a model on new events; ``inputs`` are those of ``ItemInputs.of``."""
    from dataclasses import replace

    from recpipe.evaluation.evaluate import validator
    from recpipe.progress import report_epoch
    from recpipe.training.job import ItemInputs
    from recpipe.training.newest import newest_run
    from recpipe.training.update import Update, check_updatable
    from recpipe.training.update_data import UpdateSettings

    newest = newest_run(paths, config)
    check_updatable(newest.bundle)
    protocol = newest.bundle.protocol
    sequences, vocabulary = build_log(interactions, protocol, ingest, paths)
    return Update(
        bundle=newest.bundle,
        version=newest.version,
        stands_for=newest.stands_for,
        sequences=sequences.with_profiles(users.to_arrow()),
        vocabulary=vocabulary,
        protocol=replace(
            protocol.without_split(), fingerprint=sequences.fingerprint(), steps=log_steps(ingest_steps.to_dicts())
        ),
        inputs=ItemInputs.of(inputs),
        config=config,
        settings=build_config(UpdateSettings, update, where="update"),
        validator=validator,
        work_folder=paths.work(config.name, config.seed).with_name("update_work"),
    ).run(on_epoch=report_epoch, keep_checkpoints=True)


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``update_model`` in the namespace of every model."""
    shared = node_inputs("interactions", "users", "ingest_steps", params=("update", "ingest"))
    return Pipeline(
        [
            create_node(update_model, shared | item_inputs(run), f"{model}_production", model)
            for model, run in wiring.runs.items()
        ]
    )
