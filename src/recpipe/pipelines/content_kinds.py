"""Kinds of semantic ids and modalities of item vectors that a command builds, by the content of the data set.

Text, image and their concatenation have vectors and ids. Text has a second kind of ids, ``text_parts``: independent
codes of parts of the vector. The parameter ``modality`` selects kinds, as in ``text+image``; ``none`` builds nothing;
``auto`` selects ``content.modalities`` of the data set and what the models of the command read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recpipe.config import ID_KINDS, VECTORS, ConfigError, Configuration, RunConfig, check_known, split_names

TEXT, IMAGE, TEXT_IMAGE, TEXT_PARTS = ID_KINDS
# Keys of `content` that each kind needs.
CONTENT = {TEXT: (TEXT,), IMAGE: (IMAGE,), TEXT_IMAGE: (TEXT, IMAGE), TEXT_PARTS: (TEXT,)}
AUTO, NONE = "auto", "none"


def embeddings_dataset(kind: str) -> str:
    """Return the Kedro dataset with the vectors that ids of ``kind`` are built from, such as ``text_embeddings``."""
    return f"{TEXT if kind == TEXT_PARTS else kind}_embeddings"


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
    return tuple(dict.fromkeys([*kinds, *_kinds_of_content(content)]))


def kinds_of_command(
    configuration: Configuration, runs: Iterable[RunConfig], requested: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return kinds of ids, and modalities of vectors, that a command with these models builds.

    Raises ConfigError where a model reads ids that the data set has no content for, and where only ``embed`` and
    ``semantic_ids`` are requested of a data set without content.
    """
    kinds, runs = selected_kinds(configuration), list(runs)
    for run in runs:
        for kind in run.ids:
            check_content(configuration, kind, reader=run.name)
    is_content_only = bool(pipelines := {*requested}) and pipelines <= {"embed", "semantic_ids"}
    if is_content_only and not kinds and not _content(configuration):
        raise ConfigError(
            f"data set {configuration.dataset!r} has no `content` block, so there is nothing to embed: "
            "conf/base/parameters/datasets/my_log.yml says how to write one"
        )
    read_vectors: list[str] = []
    if configuration["modality"] == AUTO:
        buildable = _kinds_of_content({key for key in (TEXT, IMAGE) if _content(configuration).get(key)})
        kinds += tuple(kind for run in runs for kind in run.ids if kind in buildable)
        read_vectors = [name for run in runs for name in run.vectors if name in buildable]
    return tuple(dict.fromkeys(kinds)), _modalities([*kinds, *read_vectors])


def kinds_of_model(run: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return kinds of ids, and modalities of vectors, that one model needs."""
    kinds = tuple(kind for kind in ID_KINDS if kind in run.ids)
    return kinds, _modalities([*kinds, *run.vectors])


def _modalities(kinds: list[str]) -> tuple[str, ...]:
    parts = {part for kind in kinds for part in (*CONTENT[kind], kind)}
    return tuple(name for name in VECTORS if name in parts)


def _kinds_of_content(content: set[str]) -> list[str]:
    return [kind for kind in ID_KINDS if content.issuperset(CONTENT[kind])]


def has_inputs(run: RunConfig, kinds: Iterable[str]) -> bool:
    """Return whether a command that builds ``kinds`` builds all vectors and ids that a model reads."""
    kinds = set(kinds)
    return {*kinds, *(part for kind in kinds for part in CONTENT[kind])}.issuperset({*run.vectors, *run.ids})


def check_content(configuration: Configuration, kind: str, *, reader: str | None = None) -> None:
    """Raise ConfigError where the data set has no content for ``kind``."""
    content, dataset = _content(configuration), configuration.dataset
    for key in CONTENT[kind]:
        if not content.get(key):
            prefix = "" if reader is None else f"model {reader!r} reads {kind} ids: "
            raise ConfigError(
                f"{prefix}data set {dataset!r} has no {key} to make {kind} ids of: add `content: {{{key}: ...}}` to "
                f"conf/base/parameters/datasets/{dataset}.yml; my_log.yml there explains it"
            )


def _content(configuration: Configuration) -> Mapping[str, Any]:
    content = configuration["datasets"][configuration.dataset].get("content") or {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"datasets.{configuration.dataset}.content must be a block, not {content!r}")
    return content
