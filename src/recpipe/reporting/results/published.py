"""Published results: the YAML files of docs/results/published, one per data set.

A row has a model, metrics, a source, and the protocol that it was measured under. Only rows of a protocol that
recpipe can evaluate (``protocol``, a name of the conf, and ``differs``, fields with other values) are compared with our
results. Of the others, ``caveats`` say what is unknown (``protocol: unknown``) or different (``protocol: other``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, StringConstraints, model_validator

from recpipe.config import ID_KINDS, ConfigError, build_config, check_known
from recpipe.config.schema import Block

FOLDER = "published"
NOT_BUILT = "not_built.yml"
UNKNOWN, OTHER = "unknown", "other"
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
MetricName = Annotated[str, StringConstraints(pattern=r"^(warm_|cold_)?(recall|ndcg)@(1|5|10)$")]
Share = Annotated[float, Field(ge=0, le=1)]


class PublishedRow(Block):
    """Published result of one model under one protocol; with one target per user recall@k is the hit rate.

    kind: ``paper`` (the authors' own), ``reproduction`` (somebody else's run), ``quoted`` (seen only in other works).
    unverified: the numbers were not compared with their source. std: deviations over ``seeds``. ours: names of our
    models that the row is compared with; with kind_of_ids only runs that read such semantic ids.
    """

    model: Text
    protocol: Text
    differs: dict[str, Any] = Field(default_factory=dict)
    metrics: Annotated[dict[MetricName, Share], Field(min_length=1)]
    std: dict[MetricName, Share] = Field(default_factory=dict)
    seeds: PositiveInt | None = None
    kind: Literal["paper", "reproduction", "quoted"]
    source: Text
    caveats: list[Text] = Field(default_factory=list)
    unverified: bool = False
    ours: list[Text] = Field(default_factory=list)
    kind_of_ids: Text | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether the protocol is known and one of ours."""
        return self.protocol not in (UNKNOWN, OTHER)

    @model_validator(mode="after")
    def _check(self) -> PublishedRow:
        if not self.is_comparable and not self.caveats:
            raise ValueError(f"{self.model} has protocol {self.protocol} and no caveats, which say why")
        if not self.is_comparable and self.differs:
            raise ValueError(f"{self.model} has protocol {self.protocol}; `differs` needs the name of a protocol")
        if self.kind_of_ids is not None:
            check_known(self.kind_of_ids, ID_KINDS, what=f"kind of ids of {self.model}")
        return self


class MissingResult(Block):
    """Model or published number that was not reproduced, and the reason."""

    model: Text
    why: Text


class PublishedResults(Block):
    """Published results of one data set.

    users: test users of the published data; our results of another number of users are not compared. notes: what a
    reader must know of the data. note_on_ids: a note on our models that read semantic ids.
    """

    title: Text
    users: PositiveInt
    items: PositiveInt
    events: PositiveInt
    notes: list[Text] = Field(default_factory=list)
    note_on_ids: Text | None = None
    rows: list[PublishedRow] = Field(default_factory=list)
    not_reproduced: list[MissingResult] = Field(default_factory=list)


class _NotBuilt(Block):
    not_built: list[MissingResult]


def read_published(folder: Path) -> dict[str, PublishedResults]:
    """Read all files of ``folder/published`` by data set. Raises ConfigError with the file and the wrong key."""
    paths = sorted((folder / FOLDER).glob("*.yml"))
    return {path.stem: build_config(PublishedResults, _read(path), where=str(path)) for path in paths}


def read_not_built(folder: Path) -> list[MissingResult]:
    """Read the models of ``not_built.yml``, which no data set has results of."""
    path = folder / NOT_BUILT
    return build_config(_NotBuilt, _read(path), where=str(path)).not_built if path.is_file() else []


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}; correct it") from error
