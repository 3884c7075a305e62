"""Nodes of ingest: calls into recpipe.data; tables stay on the SQL engine until the catalog writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
from recpipe.pipelines.types import DataFrame, IbisTable


def fetch_source(dataset: DatasetConfig, paths: DataPaths) -> dict[str, Any]:
    """List the raw files, after a download of missing ones."""
    from recpipe.data.sources import fetch

    paths.raw.mkdir(parents=True, exist_ok=True)
    return fetch(dataset.model_dump(exclude_unset=True), paths.raw)


def ingest_log(
    source_files: dict[str, Any], dataset: DatasetConfig, ingest: dict[str, Any], paths: DataPaths
) -> tuple[IbisTable, DataFrame, DataFrame, IbisTable, DataFrame]:
    """Clean and sample the raw log: interactions, items, users, quarantine, step table."""
    import polars as pl

    from recpipe.data import interactions, sources
    from recpipe.data.interactions.engines import check

    engine = {**ingest["engine"], "spill_folder": ingest["engine"].get("spill_folder") or str(paths.spill)}
    keys = ["memory_limit", "threads", "spill_folder"]
    keys += ["settings"] if check(engine) == "duckdb" else []  # Spark's settings are not DuckDB's
    reader = {key: engine.get(key) for key in keys}
    raw = sources.read(dataset.model_dump(exclude_unset=True), source_files, interactions.connect(reader))
    result = interactions.ingest(raw, dataset.steps or [], bad_rows=dataset.bad_rows, engine=engine)
    steps = pl.DataFrame(result.steps)
    return result.interactions, result.items.to_polars(), result.users.to_polars(), result.quarantine, steps


def profile_data(interactions: Path) -> dict[str, Any]:
    """Statistics of the data for the report: sizes, activity, popularity, time, ties."""
    from recpipe.evaluation.profile import profile

    return profile(interactions)
