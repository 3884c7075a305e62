"""Checks of the configuration before the first node runs: data set, steps, encoders, ids, protocol, models.

A misspelt key in a file is an error right away, not after half an hour of ingest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from recpipe.config import ID_KINDS, VECTORS, ConfigError, Configuration, RunConfig, build_config, check_known, schema
from recpipe.config.files import block, first_file
from recpipe.data.protocol import Protocol
from recpipe.pipelines.evaluate import evaluate_model
from recpipe.pipelines.refit import refit_model
from recpipe.pipelines.wiring import current

DATASETS, MODELS, KINDS, STUDIES = "datasets.", "models.", "semantic_ids.kinds.", "studies."
SECTIONS: dict[str, type] = {
    "evaluate": schema.EvaluateConfig,
    "report": schema.ReportConfig,
    "recommend": schema.RecommendConfig,
    "ensemble": schema.EnsembleConfig,
    "ties": schema.TiesConfig,
    "context": schema.ContextConfig,
    "geometry": schema.GeometryConfig,
    "register": schema.RegisterConfig,
    "embed": schema.EmbedConfig,
    "serve": schema.ServeConfig,
    "tune": schema.TuneConfig,
    "protocol": Protocol,
}


def check_types(configuration: Configuration, runs: Iterable[RunConfig]) -> None:
    """Raise ConfigError for unknown keys and wrong types in the blocks that nodes read and in models' common blocks.

    Needs no code of models. Kedro checks most of these too, with messages of many lines.
    """
    from recpipe.config.run_config import ColdUsersConfig
    from recpipe.layers.side import SideConfig
    from recpipe.training.settings import TrainSettings
    from recpipe.training.update_data import UpdateSettings

    runs, values, dataset = list(runs), configuration.parameters(), configuration.dataset
    names, kinds = [run.name for run in runs], values["semantic_ids"]["kinds"]
    blocks: dict[str, tuple[type, Any]] = {name: (cls, values[name]) for name, cls in SECTIONS.items()}
    blocks["cold_users"] = (ColdUsersConfig, values["cold_users"])
    blocks["update"] = (UpdateSettings, values["update"])
    blocks[f"{DATASETS}{dataset}"] = (schema.DatasetConfig, values["datasets"][dataset])
    blocks |= {f"{STUDIES}{name}": (schema.StudyConfig, block) for name, block in values["studies"].items()}
    blocks |= {f"{KINDS}{kind}": (schema.SemanticIdsConfig, block) for kind, block in kinds.items()}
    for run in runs:
        blocks[f"models.{run.name}.train"] = (TrainSettings, run.train)
        blocks[f"models.{run.name}.side"] = (SideConfig, run.side)
    for where, (cls, settings) in blocks.items():
        build_config(cls, settings, where=where, file_hint=lambda path: configuration.file_hint(path, names))


class ChecksHooks:
    """Checks of the parameters that the pipeline reads, against the code that takes them."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Raise ConfigError with the key and the allowed values."""
        inputs = pipeline.inputs()
        names = sorted(name.removeprefix("params:") for name in inputs if name.startswith("params:"))
        for name, dataset in _parameters(names, DATASETS, catalog):
            with _file_in_error(f"{DATASETS}{name}"):
                _check_dataset(name, dataset)
        if "ingest" in names:
            from recpipe.data import engines

            with _file_in_error("ingest"):
                engines.check(catalog.load("params:ingest").get("engine") or {})
        protocol: Protocol | None = None  # a run that needs none
        if "protocol" in names:
            protocol = catalog.load("params:protocol")
        elif "evaluate" in names:
            protocol = Protocol.from_dict(catalog.load("params:evaluate").protocol)
        if "embed" in names:
            _check_encoders(names, catalog)
        for kind, config in _parameters(names, KINDS, catalog):
            from recpipe.semantic_ids.gate import Gate
            from recpipe.semantic_ids.quantizer import build_quantizer

            with _file_in_error(f"{KINDS}{kind}"):
                build_config(Gate, config.gate, where=f"semantic_ids.kinds.{kind}.gate")
                build_quantizer(*config.type_and_settings())
        runs = [run for _, run in _parameters(names, MODELS, catalog)]
        for run in runs:
            from recpipe.training.settings import check_model

            with _file_in_error(f"{MODELS}{run.name}"):
                check_model(run, protocol)
        evaluated = {node.namespace for node in pipeline.nodes if node.func is evaluate_model}
        _check_list_lengths([run for run in runs if run.name in evaluated], catalog)
        for _, study in _parameters(names, STUDIES, catalog):
            from recpipe.pipelines.study import study_settings
            from recpipe.training.variants import variants

            for run in runs:
                variants(study_settings(study), run)
        _check_tuning([run for run in runs if f"{run.name}_tuning" in pipeline.outputs()], catalog)
        _check_on_disk(inputs, catalog)
        _check_measured({str(node.namespace) for node in pipeline.nodes if node.func is refit_model}, inputs, catalog)


@contextmanager
def _file_in_error(path: str) -> Iterator[None]:
    """Add to an error the file of the key that it names, or of the block at ``path``."""
    try:
        yield
    except ValueError as error:
        configuration = current()[0]
        models = [name for name in configuration.model_names if path == f"{MODELS}{name}"]
        place = configuration.file_hint(path, models, getattr(error, "name", None))
        if not place or place in str(error):
            raise
        raise ConfigError(f"{error}{place}") from error


def _parameters(names: list[str], prefix: str, catalog: Any) -> Iterator[tuple[str, Any]]:
    """Parameters below ``prefix``, such as ``models.``, as the typed objects that Kedro builds."""
    for name in names:
        if name.startswith(prefix):
            yield name.removeprefix(prefix), catalog.load(f"params:{name}")


def _check_dataset(name: str, dataset: schema.DatasetConfig) -> None:
    from recpipe.data import readers as sources
    from recpipe.data.interactions import POLICIES
    from recpipe.data.sampling import check

    sources.check(dataset.model_dump(exclude_unset=True), where=f"datasets.{name}")
    check_known(dataset.bad_rows, POLICIES, what=f"datasets.{name}.bad_rows")
    with _file_in_error(f"datasets.{name}.steps"):
        check(dataset.steps or [])
    if dataset.content is not None and "from" not in (dataset.content.image or {}):
        _check_image_source(dataset)


def _check_image_source(dataset: schema.DatasetConfig) -> None:
    from recpipe.content.image_sources import ImageSourceConfig

    if dataset.content is not None and dataset.content.image is not None:
        ImageSourceConfig.from_block(dataset.content.image)


def _check_encoders(names: list[str], catalog: CatalogProtocol[Any, Any]) -> None:
    from recpipe.content.embeddings import VectorFileConfig
    from recpipe.pipelines.embed import image_encoder, text_encoder

    embed: schema.EmbedConfig = catalog.load("params:embed")
    if "text_encoders" in names:
        text_encoder(embed.text, catalog.load("params:text_encoders"))
    if "image_encoders" in names:
        encoder = image_encoder(embed.image, catalog.load("params:image_encoders"))
        datasets = [] if isinstance(encoder, VectorFileConfig) else _parameters(names, DATASETS, catalog)
        for _, dataset in datasets:
            _check_image_source(dataset)


def _check_list_lengths(runs: Iterable[RunConfig], catalog: Any) -> None:
    """Raise ConfigError for models whose beam is narrower than the lists of the evaluation."""
    for run in runs:
        from recpipe.evaluation.recommendations import SubmissionLayout
        from recpipe.models.generator import Generator
        from recpipe.models.registry import model_class

        cls = model_class(run.type)
        config: Any = build_config(cls.Config, run.settings, where=f"{MODELS}{run.name}")
        if not issubclass(cls, Generator) and getattr(config, "search", None) != "beam":
            continue
        evaluate: schema.EvaluateConfig = catalog.load("params:evaluate")
        lengths = {
            "evaluate.recommend": evaluate.recommend,
            "evaluate.submission.top": evaluate.submission.get("top", SubmissionLayout.top),
            "the largest of protocol.cutoffs": max(Protocol.from_dict(evaluate.protocol).cutoffs),
        }
        name, length = max(lengths.items(), key=lambda pair: pair[1])
        if length > config.beam:
            raise ConfigError(
                f"{name} is {length} and the beam of {run.name} {config.beam}; a beam search lists no more items than "
                f"it has beams: set models.{run.name}.beam={length}, or shorter lists"
            )


def _check_tuning(runs: list[RunConfig], catalog: Any) -> None:
    """Raise ConfigError or TuningError for search spaces, storage and conf files before anything is trained."""
    if not runs:
        return
    from recpipe.training.tuning.storage import check_storage
    from recpipe.training.tuning.tune import check

    tune: schema.TuneConfig = catalog.load("params:tune")
    for run in runs:
        try:
            check(run, tune)
        except ConfigError as error:
            paths = [f"{where}.search_space.{error.name}" for where in (f"{MODELS}{run.name}", "tune")]
            places = [current()[0].file_hint(path, [run.name]) for path in paths] if error.name else []
            raise ConfigError(f"{error}{next(filter(None, places), '')}") from error
        catalog.get(f"{run.name}_tuned_model").check()
        name = f"{run.name}_tuned"
        place = first_file(block(current()[0].files, "models", name))
        if place and not place.endswith(f"local/parameters/models/{name}.yml"):
            raise ConfigError(f"there is a model {name} already ({place}), the name of the tuned {run.name}: rename it")
    check_storage(tune)


def _check_measured(models: set[str], inputs: set[str], catalog: Any) -> None:
    """Raise ConfigError for models to refit that are not trained and evaluated, on disk or by this run."""
    for model in sorted(models):
        missing = [what for what in ("bundle", "evaluation") if _is_missing(f"{model}_{what}", inputs, catalog)]
        if missing:
            params = f"dataset={catalog.load('params:dataset')},model={model},seed={catalog.load('params:seed')}"
            lack = "trained" if "bundle" in missing else "evaluated: it has no metrics.json"
            raise ConfigError(
                f"refit takes the settings and the length of a measured run, and {model} is not {lack}: "
                f"`kedro run --pipelines=train,evaluate --params {params}` makes one"
            )


def _is_missing(entry: str, inputs: set[str], catalog: Any) -> bool:
    return entry in inputs and not catalog.exists(entry)


def _check_on_disk(inputs: set[str], catalog: Any) -> None:
    """Raise ConfigError for vectors and ids that this run reads, does not build, and that are not on disk."""
    vectors = {name: f"{name}_embeddings" for name in VECTORS}
    ids = {kind: f"{kind}_semantic_ids" for kind in ID_KINDS}
    for what, pipelines, entries in (("vectors", "embed", vectors), ("ids", "embed,semantic_ids", ids)):
        missing = [name for name, entry in entries.items() if entry in inputs and not catalog.exists(entry)]
        if missing:
            params = f"dataset={catalog.load('params:dataset')},modality={'+'.join(missing)}"
            raise ConfigError(
                f"there are no {' and no '.join(missing)} {what} of {catalog.load('params:dataset')} yet: "
                f"`kedro run --pipelines={pipelines} --params {params}` makes them"
            )
