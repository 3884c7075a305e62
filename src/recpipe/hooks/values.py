"""Conversion of parameters, metrics and curves to the flat names and values that MLflow takes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from recpipe.config import RunConfig

LONGEST_VALUE = 500  # MLflow's own limit for old servers; longer values are cut
BLOCKS = ("test", "valid", "warm_items", "cold_items", "cold_users", "cost")  # of metrics.json, with numbers


def flat(value: Any, name: str) -> dict[str, str]:
    """Flatten a parameter block to `{"train.lr": "0.001"}`; dataclasses and pydantic models too."""
    if isinstance(value, RunConfig):  # under the paths of the command line
        fields = dataclasses.asdict(value)
        value = fields.pop("settings") | fields
    elif hasattr(value, "model_dump"):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        rows: dict[str, str] = {}
        for key, inner in value.items():
            rows |= flat(inner, f"{name}.{key}")
        return rows
    return {allowed(name): str(value)[:LONGEST_VALUE]}


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a metrics.json as `{"test/ndcg_at_10": 0.18}`."""
    return {
        allowed(f"{part}/{name}"): float(value)
        for part in BLOCKS
        for name, value in (metrics.get(part) or {}).items()
        if _is_number(value)
    }


def numbers(data: Any, path: str = "") -> dict[str, float]:
    """Every finite number of nested JSON by its path, `{"levels/1/usage": 0.99}`; lists count from 1."""
    if _is_number(data):
        return {allowed(path): float(data)}
    inner = (
        data.items() if isinstance(data, Mapping) else enumerate(data, 1) if isinstance(data, list) else ()
    )
    values: dict[str, float] = {}
    for key, value in inner:
        values |= numbers(value, f"{path}/{key}" if path else str(key))
    return values


def curve_points(curves: Any) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every finite number of a curve: a polars table or dicts, a row per `step`."""
    rows = curves.to_dicts() if hasattr(curves, "to_dicts") else curves
    for number, row in enumerate(rows):
        step = int(row["step"]) if row.get("step") is not None else number
        for name, value in row.items():
            if name not in ("step", "epoch") and _is_number(value):
                yield allowed(f"curve/{name}"), float(value), step


def allowed(name: str) -> str:
    """Replace `@` and other characters that MLflow does not allow in names."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
