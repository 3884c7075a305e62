"""Registry of pipelines: the stages, and for each model its path from the raw log to the report."""

from __future__ import annotations

from collections.abc import Callable

from kedro.pipeline import Pipeline

from recpipe.hooks.errors import one_line_errors
from recpipe.pipelines import (
    add_items,
    embed,
    evaluate,
    export,
    ingest,
    recommend,
    refit,
    register,
    report,
    semantic_ids,
    study,
    train,
    tune,
    update,
)
from recpipe.pipelines.wiring import WHOLE, Wiring, command_wiring, current, wiring_of_model

FACTORIES: dict[str, Callable[[Wiring], Pipeline]] = {
    "ingest": ingest.create_pipeline,
    "embed": embed.create_pipeline,
    "semantic_ids": semantic_ids.create_pipeline,
    "train": train.create_pipeline,
    "evaluate": evaluate.create_evaluate,
    "report": report.create_pipeline,
    "ensemble": evaluate.create_ensemble,
    "ties": evaluate.create_ties,
    "context": evaluate.create_context,
    "study": study.create_pipeline,
    "tune": tune.create_pipeline,
    "geometry": evaluate.create_geometry,
    "refit": refit.create_pipeline,
    "register": register.create_pipeline,
    "recommend": recommend.create_pipeline,
    "update": update.create_pipeline,
    "add_items": add_items.create_pipeline,
    "export": export.create_pipeline,
}
CONTENT_STAGES = ("embed", "semantic_ids", "export")  # shown with the ids of all content, whoever reads them


def register_pipelines() -> dict[str, Pipeline]:
    """Map names for ``--pipelines`` to pipelines, built for the models of the command.

    ``__default__`` is all stages, a model's name the path of this model from the raw log to the report. Without a
    command (kedro-viz, ``kedro registry list``) stages are those of the default model and its baselines.
    """
    with one_line_errors():
        configuration, wiring = current()
        if wiring is not None:
            models = {name: whole(wiring) for name in wiring.models}
            stages = {name: factory(wiring) for name, factory in FACTORIES.items()}
        else:
            wiring = command_wiring(configuration, [])
            models = {name: whole(wiring_of_model(configuration, name)) for name in configuration.model_names}
            content = command_wiring(configuration, CONTENT_STAGES)
            stages = {
                name: factory(content if name in CONTENT_STAGES else wiring) for name, factory in FACTORIES.items()
            }
        return {WHOLE: whole(wiring), **stages, **models}


def whole(wiring: Wiring) -> Pipeline:
    """All stages of a whole run as one pipeline, without those of the folds where the protocol holds nothing out."""
    return sum((FACTORIES[name](wiring) for name in wiring.stages), start=Pipeline([]))
