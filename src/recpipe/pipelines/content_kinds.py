"""Kinds of semantic ids and modalities of item vectors that a command builds, by the content of the data set.

Text, image and their concatenation have vectors and ids. Text has more kinds of ids: ``text_parts`` and
``text_parts_32``, 16 and 32 independent codes of parts of the vector, and ``text_collaborative``, aligned with item
vectors of a trained model. ``foreign`` ids come from a file. The parameter ``modality`` selects kinds, as in
``text+image``; ``none`` builds nothing; ``auto`` selects ``content.modalities`` of the data set and what the models of
the command read. A command that trains builds ids of ``auto`` only where its models read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recpipe.config import (
    COLLABORATIVE,
    ID_KINDS,
    VECTORS,
    ConfigError,
    Configuration,
    RunConfig,
    check_known,
    split_names,
)

TEXT, IMAGE, TEXT_IMAGE, TEXT_PARTS, TEXT_PARTS_32, TEXT_COLLABORATIVE, FOREIGN = ID_KINDS
# Keys of `content` that each kind needs.
CONTENT = {
    TEXT: (TEXT,),
    IMAGE: (IMAGE,),
    TEXT_IMAGE: (TEXT, IMAGE),
    TEXT_PARTS: (TEXT,),
    TEXT_PARTS_32: (TEXT,),
    TEXT_COLLABORATIVE: (TEXT,),
    FOREIGN: (),
}
AUTO, NONE = "auto", "none"
TRAINING = ("train", "tune", "study", "refit")  # pipelines that train models


@dataclass(frozen=True)
class KindInputs:
    """Inputs of a kind of ids: the modality of its vectors, and the model whose item vectors codes are aligned with."""

    vectors: str | None
    model: str | None = None

    @property
    def embeddings(self) -> str | None:
        """Kedro dataset with the vectors, such as ``text_embeddings``."""
        return None if self.vectors is None else f"{self.vectors}_embeddings"


def kind_inputs(configuration: Configuration, kinds: Iterable[str]) -> dict[str, KindInputs]:
    """Return the inputs of ``kinds``. Raises ConfigError for an unknown model."""
    return {kind: _kind_inputs(configuration, kind) for kind in kinds}


def _kind_inputs(configuration: Configuration, kind: str) -> KindInputs:
    settings = configuration["semantic_ids"]["kinds"][kind]
    if kind == FOREIGN:
        return KindInputs(_source(settings).get("vectors"))
    quantizer = (settings.get("quantizers") or {}).get(settings.get("quantizer")) or {}
    model = (quantizer.get(COLLABORATIVE) or {}).get("model")
    if model is None and kind == TEXT_COLLABORATIVE:
        raise ConfigError(
            f"{kind} ids need a model whose item vectors they are aligned with: set semantic_ids.kinds.{kind}."
            f"quantizers.{settings.get('quantizer')}.{COLLABORATIVE}.model, such as sasrec, in a file of the conf"
        )
    if model is not None:
        where = f"semantic_ids.kinds.{kind}.quantizers.{settings['quantizer']}.{COLLABORATIVE}.model"
        check_known(model, configuration.model_names, what=f"model in {where}")
    return KindInputs(TEXT if kind in (TEXT_PARTS, TEXT_PARTS_32, TEXT_COLLABORATIVE) else kind, model)


def _source(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings.get("source") or {}


def _has_file(configuration: Configuration) -> bool:
    """Return whether the conf names a file of ids for the data set."""
    return _source(configuration["semantic_ids"]["kinds"][FOREIGN]).get("file") is not None


def selected_kinds(configuration: Configuration) -> tuple[str, ...]:
    """Return kinds that the parameter ``modality`` selects; none for ``auto`` without content.

    Raises ConfigError for an unknown kind, and for one that the data set has no content for.
    """
    choice, content = configuration["modality"], _content(configuration)
    if choice == AUTO and content.get("modalities") is None:
        return tuple(name for name in (TEXT, IMAGE) if content.get(name))
    if choice == AUTO:
        choice = "+".join(content["modalities"]) or NONE
    if choice == NONE:
        return ()
    kinds = split_names(choice) or (str(choice),)
    for kind in kinds:
        check_known(kind, ID_KINDS, what="modality", hint=f", several as a+b, {AUTO} or {NONE}")
        check_content(configuration, kind)
    return kinds


def buildable_kinds(configuration: Configuration) -> tuple[str, ...]:
    """Return kinds that a command can build: those of ``modality``, with ``auto`` also others of the same content."""
    kinds = selected_kinds(configuration)
    if configuration["modality"] != AUTO:
        return kinds
    content = {key for kind in kinds for key in CONTENT[kind]}
    return tuple(dict.fromkeys([*kinds, *_kinds_of_content(configuration, content)]))


def kinds_of_command(
    configuration: Configuration, runs: Iterable[RunConfig], requested: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return kinds of ids, and modalities of vectors, that a command with these models builds.

    With ``modality: auto`` a command that trains builds the ids that its models read; others, and those with
    ``export``, build the ids of the content too. Vectors of the content are always built. Raises ConfigError where a
    model reads ids that the data set has no content for, and where only ``embed`` and ``semantic_ids`` are requested
    of a data set without content.
    """
    selected, runs, pipelines = selected_kinds(configuration), list(runs), {*requested}
    for run in runs:
        for kind in run.ids:
            check_content(configuration, kind, reader=run.name)
    if pipelines and pipelines <= {"embed", "semantic_ids"} and not selected and not _content(configuration):
        raise ConfigError(
            f"data set {configuration.dataset!r} has no `content` block, so there is nothing to embed: "
            "conf/base/parameters/datasets/my_log.yml says how to write one"
        )
    if configuration["modality"] != AUTO:
        return tuple(dict.fromkeys(selected)), _modalities(configuration, [*selected])
    content = {key for key in (TEXT, IMAGE) if _content(configuration).get(key)}
    buildable = _kinds_of_content(configuration, content)
    read_ids = [kind for run in runs for kind in run.ids if kind in buildable]
    read_vectors = [name for run in runs for name in run.vectors if name in buildable]
    only_read = bool(pipelines.intersection(TRAINING)) and "export" not in pipelines
    kinds = tuple(dict.fromkeys(read_ids if only_read else [*selected, *read_ids]))
    return kinds, _modalities(configuration, [*selected, *kinds, *read_vectors])


def kinds_of_model(configuration: Configuration, run: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return kinds of ids, and modalities of vectors, that one model needs."""
    kinds = tuple(kind for kind in ID_KINDS if kind in run.ids)
    return kinds, _modalities(configuration, [*kinds, *run.vectors])


def _modalities(configuration: Configuration, kinds: list[str]) -> tuple[str, ...]:
    compared = [_kind_inputs(configuration, kind).vectors for kind in kinds if kind == FOREIGN]
    parts = {part for kind in (*kinds, *compared) if kind for part in (*CONTENT[kind], kind)}
    return tuple(name for name in VECTORS if name in parts)


def _kinds_of_content(configuration: Configuration, content: set[str]) -> list[str]:
    kinds = [kind for kind in ID_KINDS if content.issuperset(CONTENT[kind])]
    return kinds if _has_file(configuration) else [kind for kind in kinds if kind != FOREIGN]


def has_inputs(run: RunConfig, kinds: Iterable[str]) -> bool:
    """Return whether a command that builds ``kinds`` builds all vectors and ids that a model reads."""
    kinds = set(kinds)
    return {*kinds, *(part for kind in kinds for part in CONTENT[kind])}.issuperset({*run.vectors, *run.ids})


def check_content(configuration: Configuration, kind: str, *, reader: str | None = None) -> None:
    """Raise ConfigError where the data set has no content for ``kind``, or no file of foreign ids."""
    content, dataset = _content(configuration), configuration.dataset
    prefix, keys = "" if reader is None else f"model {reader!r} reads {kind} ids: ", CONTENT[kind]
    if kind == FOREIGN:
        if not _has_file(configuration):
            raise ConfigError(
                f"{prefix}data set {dataset!r} has no file of foreign ids: put it into the folder of the raw data and "
                f"add --params semantic_ids.kinds.{FOREIGN}.source.file=<name>, or write it in the block semantic_ids "
                f"of conf/base/parameters/datasets/{dataset}.yml"
            )
        compared = _kind_inputs(configuration, kind).vectors
        keys = () if compared is None else CONTENT[compared]
    for key in keys:
        if not content.get(key):
            raise ConfigError(
                f"{prefix}data set {dataset!r} has no {key} to make {kind} ids of: add `content: {{{key}: ...}}` to "
                f"conf/base/parameters/datasets/{dataset}.yml; my_log.yml there explains it"
            )


def _content(configuration: Configuration) -> Mapping[str, Any]:
    content = configuration["datasets"][configuration.dataset].get("content") or {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"datasets.{configuration.dataset}.content must be a block, not {content!r}")
    return content
