"""Pipeline add_items: new items of the present tables in the newest bundle of a model, without training."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config import DataPaths, RunConfig
from recpipe.pipelines.train import training_inputs
from recpipe.pipelines.types import Bundle
from recpipe.pipelines.wiring import Wiring, create_node

NOT_READ = ("training_data", "start", "collaborative")  # of the inputs of training


def add_items(config: RunConfig, paths: DataPaths, **inputs: Any) -> Bundle:
    """Extend the newest bundle of a model by the items that it lacks; ``inputs`` are those of ``ItemInputs.of``."""
    from recpipe.training import add_items as library
    from recpipe.training.job import ItemInputs
    from recpipe.training.newest import newest_run

    newest = newest_run(paths, config)
    return library.add_items(
        newest.bundle, ItemInputs.of(inputs), stands_for=newest.stands_for, accelerate=config.accelerate
    )


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``add_items`` in the namespace of every model."""
    nodes = [
        create_node(add_items, item_inputs(run), f"{model}_production", model) for model, run in wiring.runs.items()
    ]
    return Pipeline(nodes)


def item_inputs(run: RunConfig) -> dict[str, str]:
    """Return the datasets by argument of ``add_items``: tables, vectors and ids of the present catalogue."""
    return {name: dataset for name, dataset in training_inputs(run).items() if name not in NOT_READ}
