"""What items are described by: text, images or both; one group of nodes for each kind of semantic ids.

Each has ids of its own. Text has a second kind, ``text_parts``: codes of the parts of a vector, which do not build on
each other, for models that predict them independently.

A data set's `content` block says what it has. `--params modality=text+image` chooses, `none` leaves it out; `auto`
takes the block's own `modalities`, and in a run of the whole project nothing where there is no such block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kedro.pipeline import Pipeline

TEXT, IMAGE, BOTH = "text", "image", "text_image"
MODALITIES = (TEXT, IMAGE, BOTH)  # of vectors
PARTS = "text_parts"
KINDS = (*MODALITIES, PARTS)  # of semantic ids
READS = {
    TEXT: (TEXT,),
    IMAGE: (IMAGE,),
    BOTH: (TEXT, IMAGE),
    PARTS: (TEXT,),
}  # the keys of `content` that each needs
AUTO, NONE = "auto", "none"


def group(kind: str) -> str:
    """The namespace of its nodes, `text_ids`."""
    return f"{kind}_ids"


def embeddings_of(kind: str) -> str:
    """The vectors that ids are made of, `text_embeddings`."""
    return f"{TEXT if kind == PARTS else kind}_embeddings"


def for_every_kind(template: Callable[[str], Pipeline], *, inputs: set[str]) -> Pipeline:
    """`template(kind)` for each, in the namespace `<kind>_ids` and tagged with the kind.

    `inputs` are datasets from outside the group, beside the embeddings; parameters are never namespaced.
    """
    return sum((_namespaced(template(name), name, inputs) for name in KINDS), start=Pipeline([]))


def _namespaced(nodes: Pipeline, kind: str, inputs: set[str]) -> Pipeline:
    parameters = {name for name in nodes.inputs() if name.startswith("params:")}
    vectors = embeddings_of(kind)
    outside = {*inputs, vectors, f"{vectors}_of_others"} & nodes.inputs()
    return Pipeline(nodes, namespace=group(kind), tags=kind, inputs=outside, parameters=parameters)


def chosen(asked: str, dataset: str, block: Mapping[str, Any]) -> list[str]:
    """`text`, `text+image` or `auto` as a list of kinds of ids, which is empty for `auto` without content.

    block: the data set's. Raises ValueError for an unknown kind, or one that the data set has no content for.
    """
    content = block.get("content") or {}
    if not isinstance(content, Mapping):
        raise ValueError(f"datasets.{dataset}.content must be a block, not {content!r}")
    if asked == AUTO and content.get("modalities") is None:
        return [name for name in (TEXT, IMAGE) if content.get(name)]
    if asked == AUTO:
        asked = "+".join(content["modalities"]) or NONE
    if asked == NONE:
        return []
    names = list(dict.fromkeys(str(asked).split("+")))
    for name in names:
        if name not in KINDS:
            raise ValueError(
                f"unknown modality {name!r}: choose {', '.join(KINDS)}, several as a+b, {AUTO} or {NONE}"
            )
    check(names, dataset, content)
    return names


def check(names: list[str], dataset: str, content: Mapping[str, Any]) -> None:
    """Raises ValueError where the data set does not say where the content of a modality comes from."""
    for name in names:
        for key in READS.get(name, ()):
            if not content.get(key):
                raise ValueError(
                    f"data set {dataset!r} has no {key} to make {name} ids of: add "
                    f"`content: {{{key}: …}}` to conf/base/parameters/datasets/{dataset}.yml; my_log.yml there "
                    "explains it"
                )
