"""Checks before a run: does the library take the data set, the steps, the encoders, the ids, the protocol, the models?

A misspelt key in a file is refused now, and not after half an hour of ingest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from recpipe.config import (
    ID_KINDS,
    VECTORS,
    ConfigError,
    Configuration,
    RunConfig,
    build_config,
    check_known,
)
from recpipe.config.schema import (
    ContextConfig,
    DatasetConfig,
    EmbedConfig,
    EnsembleConfig,
    EvaluateConfig,
    GeometryConfig,
    ReportConfig,
    SemanticIdsConfig,
    StudyConfig,
    TiesConfig,
)
from recpipe.data.protocol import Protocol

DATASETS, MODELS, KINDS, STUDIES = "datasets.", "models.", "semantic_ids.kinds.", "studies."


SECTIONS: dict[str, type] = {
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "ensemble": EnsembleConfig,
    "ties": TiesConfig,
    "context": ContextConfig,
    "geometry": GeometryConfig,
    "embed": EmbedConfig,
    "protocol": Protocol,
}


def check_types(configuration: Configuration, runs: Iterable[RunConfig]) -> None:
    """Raises ConfigError for an unknown key or a value of the wrong type in any block that nodes read, and in the models
    of ``runs`` what can be told without their code.

    Kedro would find most of these too, and tell of them in many lines.
    """
    from recpipe.layers.side import SideConfig
    from recpipe.training.settings import TrainSettings

    values = configuration.parameters()
    dataset = f"datasets.{configuration.dataset}"
    blocks: dict[str, tuple[type, Any]] = {name: (cls, values[name]) for name, cls in SECTIONS.items()}
    blocks[dataset] = (DatasetConfig, values["datasets"][configuration.dataset])
    blocks |= {f"studies.{name}": (StudyConfig, block) for name, block in values["studies"].items()}
    for kind, block in values["semantic_ids"]["kinds"].items():
        blocks[f"semantic_ids.kinds.{kind}"] = (SemanticIdsConfig, block)
    for run in runs:
        blocks[f"models.{run.name}.train"] = (TrainSettings, run.train)
        blocks[f"models.{run.name}.side"] = (SideConfig, run.side)
    names = [run.name for run in runs]
    for where, (cls, block) in blocks.items():
        build_config(cls, block, where=where, place=lambda path: configuration.place(path, names))


class ChecksHooks:
    """Refuses what the library cannot take, by name, before the first node runs."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Raises ConfigError that names the key and what is allowed."""
        needed = pipeline.inputs()
        names = sorted(name.removeprefix("params:") for name in needed if name.startswith("params:"))
        for name, dataset in _typed(names, DATASETS, catalog):
            _check_dataset(name, dataset)
        if "ingest" in names:
            _check_engine(catalog.load("params:ingest"))
        protocol = _protocol(names, catalog)
        if "embed" in names:
            _check_encoders(names, catalog)
        for kind, config in _typed(names, KINDS, catalog):
            _check_ids(kind, config)
        runs = [run for _, run in _typed(names, MODELS, catalog)]
        for run in runs:
            check_model(run, protocol)
        for _, study in _typed(names, STUDIES, catalog):
            _check_study(study, runs)
        _check_on_disk(needed, catalog)


def _typed(names: list[str], prefix: str, catalog: Any) -> Iterator[tuple[str, Any]]:
    """Parameters below ``prefix``, such as those of every model of the run, which Kedro has made typed objects of."""
    for name in names:
        if name.startswith(prefix):
            yield name.removeprefix(prefix), catalog.load(f"params:{name}")


def _protocol(names: list[str], catalog: Any) -> Protocol | None:
    """The protocol of the run, checked; None in a run that needs none."""
    if "protocol" in names:
        protocol: Protocol = catalog.load("params:protocol")
        return protocol
    return Protocol.from_dict(catalog.load("params:evaluate").protocol) if "evaluate" in names else None


def _check_dataset(name: str, dataset: DatasetConfig) -> None:
    from recpipe.data import sources
    from recpipe.data.interactions.faults import POLICIES
    from recpipe.data.sampling import check

    sources.check(dataset.model_dump(exclude_unset=True), where=f"datasets.{name}")
    check_known(dataset.bad_rows, POLICIES, what=f"datasets.{name}.bad_rows")
    check(dataset.steps or [])
    if (
        dataset.content is not None
        and dataset.content.image is not None
        and "from" not in dataset.content.image
    ):
        from recpipe.content.image_sources import ImageConf

        ImageConf.of(dataset.content.image)


def _check_engine(ingest: dict[str, Any]) -> None:
    from recpipe.data.interactions import engines

    engines.check(ingest.get("engine") or {})


def _check_encoders(names: list[str], catalog: Any) -> None:
    from recpipe.content.vector_file import VectorFile
    from recpipe.pipelines.encoders import image_encoder, text_encoder

    embed: EmbedConfig = catalog.load("params:embed")
    if "text_encoders" in names:
        text_encoder(embed.text, catalog.load("params:text_encoders"))
    if "image_encoders" in names:
        encoder = image_encoder(embed.image, catalog.load("params:image_encoders"))
        if not isinstance(encoder, VectorFile):
            from recpipe.content.image_sources import ImageConf

            for _, dataset in _typed(names, DATASETS, catalog):
                if dataset.content is not None and dataset.content.image is not None:
                    ImageConf.of(dataset.content.image)


def _check_ids(kind: str, config: SemanticIdsConfig) -> None:
    from recpipe.semantic_ids import quantizer
    from recpipe.semantic_ids.quality import Gate

    build_config(Gate, config.gate, where=f"semantic_ids.kinds.{kind}.gate")
    quantizer.build(*config.chosen())


def check_model(run: RunConfig, protocol: Protocol | None) -> None:
    """Raises ValueError for settings that the model, its training or its fallback for users without history cannot take."""
    from recpipe.layers.cold_users import ColdUsersConfig
    from recpipe.models.registry import model_class, side_config
    from recpipe.training.settings import TrainSettings, check_arguments, check_layout, check_loss

    where = f"models.{run.name}"
    cls = model_class(run.type)
    config = build_config(cls.Config, run.settings, where=where)
    side = side_config(run.type, run.side, where=where)
    settings = build_config(TrainSettings, run.train, where=f"{where}.train")
    build_config(ColdUsersConfig, run.cold_users, where="cold_users")
    if protocol is not None:
        protocol.check_time(getattr(config, "time_mode", "none"), model=run.name)
        protocol.check_time(side.requires_time, model=run.name)
    check_layout(settings, cls)
    check_loss(settings, cls)
    if not cls.closed_form:
        check_arguments(settings)


def _check_study(study: StudyConfig, runs: list[RunConfig]) -> None:
    """Every model of the run has what the study changes."""
    from recpipe.pipelines.study.nodes import study_settings
    from recpipe.training.variants import variants

    for run in runs:
        variants(study_settings(study), run)


def _check_on_disk(needed: set[str], catalog: Any) -> None:
    """Vectors and ids that this run does not make itself must be on disk."""
    vectors = {name: f"{name}_embeddings" for name in VECTORS}
    ids = {kind: f"{kind}_semantic_ids" for kind in ID_KINDS}
    for what, pipelines, entries in (("vectors", "embed", vectors), ("ids", "embed,semantic_ids", ids)):
        missing = [name for name, entry in entries.items() if entry in needed and not catalog.exists(entry)]
        if missing:
            params = f"dataset={catalog.load('params:dataset')},modality={'+'.join(missing)}"
            raise ConfigError(
                f"there are no {' and no '.join(missing)} {what} of {catalog.load('params:dataset')} yet: "
                f"`kedro run --pipelines={pipelines} --params {params}` makes them"
            )
