"""Parameter blocks as types: Kedro builds them before a run and refuses unknown keys and wrong values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from recpipe.data.protocol import Protocol
from recpipe.pipelines.modalities import KINDS


class Block(BaseModel):
    """No key that is not named here; no value that only looks right, such as "yes" for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EvaluateBlock(Block):
    """conf/base/parameters/evaluate.yml."""

    recommend: PositiveInt
    device: str
    submission: dict[str, Any]


class ReportBlock(Block):
    """conf/base/parameters/report.yml."""

    metric: str
    baseline: str
    resamples: PositiveInt
    examples: PositiveInt
    history: PositiveInt
    recommended: PositiveInt


class EnsembleBlock(Block):
    """conf/base/parameters/ensemble.yml."""

    members: str | None
    method: str
    weights: str | PositiveInt
    constant: float
    metric: str

    def names(self) -> list[str]:
        """Raises ValueError where there are none."""
        if not self.members:
            raise ValueError("ensemble.members is not set: name two or more models, as in sasrec+item_knn")
        return self.members.split("+")

    def given_weights(self) -> str | list[float]:
        """`valid`, `equal` or one number a member."""
        if self.weights in ("valid", "equal"):
            return str(self.weights)
        try:
            return [float(weight) for weight in str(self.weights).split("+")]
        except ValueError:
            raise ValueError(
                f"ensemble.weights is {self.weights!r}; allowed: valid, equal, or a number for each member, as 2+1"
            ) from None


class TiesBlock(Block):
    """conf/base/parameters/ties.yml."""

    permutations: PositiveInt
    seed: NonNegativeInt


class ContextBlock(Block):
    """`context` of conf/base/parameters/studies.yml."""

    users: PositiveInt


class GeometryBlock(Block):
    """conf/base/parameters/geometry.yml."""

    models: str
    k: PositiveInt
    nulls: Annotated[int, Field(ge=2)]
    items: PositiveInt
    map: PositiveInt
    examples: PositiveInt
    nearest: PositiveInt
    beside: PositiveInt


class ItemTable(Block):
    """More columns of the items, from a file in the folder of the raw data."""

    file: str
    item_id: str = "item_id"
    columns: list[str]
    optional: bool = False


class TextContent(Block):
    """What is embedded as an item's text."""

    template: str
    tables: list[ItemTable] = []


class Category(Block):
    """Which column of the items says what kind of thing they are."""

    column: str
    of_list: Literal["first", "last"] = "last"


class ContentBlock(Block):
    """`content` of a data set."""

    modalities: list[Literal["text", "image", "text_image", "text_parts"]] | None = None
    text: TextContent | None = None
    image: dict[str, Any] | None = None
    category: Category | None = None


class EmbedBlock(Block):
    """conf/base/parameters/embed.yml: which of the encoders."""

    text: str
    image: str
    refit: bool


class IdsBlock(Block):
    """conf/base/parameters/semantic_ids.yml."""

    quantizer: str
    collisions: Literal["extra_digit", "reallocate", "sinkhorn", "keep"]
    extra_codes: PositiveInt
    seed: NonNegativeInt
    refit: bool
    gate: dict[str, float | None]
    quantizers: dict[str, dict[str, Any]]
    own: dict[str, dict[str, Any]] = {}

    def chosen(self) -> tuple[str, dict[str, Any]]:
        """Type and settings of the quantizer chosen. Raises ValueError with the nearest name."""
        block = named(self.quantizer, self.quantizers, what="semantic_ids.quantizer")
        if "type" not in block:
            raise ValueError(f"semantic_ids.quantizers.{self.quantizer} lacks its type, such as rqvae")
        return str(block["type"]), {key: value for key, value in block.items() if key != "type"}

    def gate_settings(self) -> Any:
        """The thresholds as the library takes them."""
        from recpipe.models.registry import configured
        from recpipe.semantic_ids.quality import Gate

        return configured(Gate, self.gate, where="semantic_ids.gate")


def named(name: str, blocks: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """`blocks[name]`. Raises ValueError that says what there is."""
    if name not in blocks:
        near = difflib.get_close_matches(name, blocks, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{what} is {name!r}{hint}; conf has {', '.join(blocks)}")
    return dict(blocks[name])


def study_of(study: str, studies: Mapping[str, Any]) -> Any:
    """`studies.<study>` as the library takes it. Raises ValueError for an unknown one, and for one of two kinds."""
    from recpipe.models.registry import configured
    from recpipe.training.variants import Study

    return configured(Study, named(study, studies, what="study"), where=f"studies.{study}")


def content_block(datasets: Mapping[str, Any], dataset: str) -> ContentBlock:
    """The block `content` of a data set, empty where it has none."""
    return _typed(ContentBlock, datasets[dataset].get("content") or {}, f"datasets.{dataset}.content")


def embed_block(embed: Mapping[str, Any], datasets: Mapping[str, Any], dataset: str) -> EmbedBlock:
    """The block `embed`, overridden by the data set's own."""
    return _typed(EmbedBlock, merged(embed, datasets[dataset].get("embed") or {}), "embed")


def ids_block(
    semantic_ids: Mapping[str, Any], datasets: Mapping[str, Any], dataset: str, kind: str
) -> IdsBlock:
    """The block `semantic_ids`, overridden key by key, at any depth, by the data set's own, and by what either says of
    this kind of ids in `own`.
    """
    block = merged(semantic_ids, datasets[dataset].get("semantic_ids") or {})
    own = _typed(IdsBlock, block, "semantic_ids").own  # so that the names in it are looked at
    if unknown := set(own) - set(KINDS):
        raise ValueError(f"semantic_ids.own has {', '.join(sorted(unknown))}; allowed: {', '.join(KINDS)}")
    return _typed(IdsBlock, merged(block, own.get(kind, {})), f"semantic_ids (own.{kind} in it)")


T = TypeVar("T", bound=Block)


def _typed(cls: type[T], values: Any, where: str) -> T:
    """`cls(**values)`. Raises ValueError that names the first key that is wrong, and what is allowed."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a block with {', '.join(cls.model_fields)}, not {values!r}")
    try:
        return cls(**values)
    except ValidationError as errors:
        error = errors.errors()[0]
    key = ".".join(str(part) for part in (where, *error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), cls.model_fields, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown key {key}{hint}; {where} has {', '.join(cls.model_fields)}")
    if error["type"] == "missing":
        raise ValueError(f"{key} is missing")
    raise ValueError(f"{key} cannot be {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}")


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`common` with the values of `own` put over it, at any depth."""
    both = dict(common)
    for key, value in own.items():
        inner = both.get(key)
        both[key] = (
            merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def protocol_of(protocol: dict[str, Any], datasets: dict[str, Any], dataset: str) -> Protocol:
    """The protocol of a data set: the block `protocol`, overridden key by key by the data set's own.

    Raises ValueError that names an unknown key.
    """
    own = datasets[dataset].get("protocol") or {}
    return Protocol.from_dict({**protocol, **own, "dataset": dataset})


def cold_users_of(cold_users: Mapping[str, Any], datasets: Mapping[str, Any], dataset: str) -> Any:
    """The block `cold_users`, overridden key by key by the data set's own.

    Raises ValueError that names what is wrong in it.
    """
    from recpipe.layers.cold_users import ColdUsersConfig
    from recpipe.models.registry import configured

    own = datasets[dataset].get("cold_users") or {}
    return configured(ColdUsersConfig, {**cold_users, **own}, where="cold_users")


def judged_under(stored: Protocol, asked: Protocol) -> Protocol:
    """`stored`, which the split was made under, with what only evaluation reads taken from `asked`.

    Raises ValueError where `asked` would cut the data differently: the split on disk is not of that protocol.
    """
    cut = replace(asked, fingerprint=stored.fingerprint, steps=stored.steps)
    if differing := stored.same_data(cut):
        raise ValueError(
            f"the data on disk were split under another protocol: {', '.join(differing)} differ. "
            "Run the pipeline train again, or leave that parameter out"
        )
    return cut
