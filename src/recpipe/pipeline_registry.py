"""Every pipeline by name. Nodes import what they need when they run, so listing the pipelines is quick."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from recpipe.pipelines import (
    context,
    embed,
    ensemble,
    evaluate,
    geometry,
    ingest,
    report,
    semantic_ids,
    study,
    ties,
    train,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Maps what follows `--pipelines` to a pipeline; `__default__` is all but those that must be asked for."""
    stages = {
        "ingest": ingest.create_pipeline(),
        "embed": embed.create_pipeline(),
        "semantic_ids": semantic_ids.create_pipeline(),
        "train": train.create_pipeline(),
        "evaluate": evaluate.create_pipeline(),
        "report": report.create_pipeline(),
    }
    by_name = {
        "ensemble": ensemble.create_pipeline(),
        "ties": ties.create_pipeline(),
        "context": context.create_pipeline(),
        "study": study.create_pipeline(),
        "geometry": geometry.create_pipeline(),
    }
    return {**stages, **by_name, "__default__": sum(stages.values(), start=Pipeline([]))}
