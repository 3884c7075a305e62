"""Every pipeline by name. Nodes import what they need when they run, so listing the pipelines is quick."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from recpipe.pipelines import embed, evaluate, ingest, report, semantic_ids, train


def register_pipelines() -> dict[str, Pipeline]:
    """Maps what follows `--pipelines` to a pipeline; `__default__` is all of them."""
    stages = {
        "ingest": ingest.create_pipeline(),
        "embed": embed.create_pipeline(),
        "semantic_ids": semantic_ids.create_pipeline(),
        "train": train.create_pipeline(),
        "evaluate": evaluate.create_pipeline(),
        "report": report.create_pipeline(),
    }
    return {**stages, "__default__": sum(stages.values(), start=Pipeline([]))}
