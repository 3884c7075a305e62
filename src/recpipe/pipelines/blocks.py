"""Parameter blocks as types: Kedro builds them before a run and refuses unknown keys and wrong values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from recpipe.data.protocol import Protocol


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
    examples: PositiveInt
    history: PositiveInt
    recommended: PositiveInt


def protocol_of(protocol: dict[str, Any], datasets: dict[str, Any], dataset: str) -> Protocol:
    """The protocol of a data set: the block `protocol`, overridden key by key by the data set's own.

    Raises ValueError that names an unknown key.
    """
    own = datasets[dataset].get("protocol") or {}
    return Protocol.from_dict({**protocol, **own, "dataset": dataset})


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
