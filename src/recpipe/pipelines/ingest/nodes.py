"""Nodes of ingest: short calls into recpipe.data; tables stay on the engine until the catalog writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
from recpipe.pipelines.types import DataFrame, IbisTable


def fetch_source(dataset: DatasetConfig, paths: DataPaths) -> dict[str, Any]:
    """Put the raw files in place (they are fetched where absent) and list them."""
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
    shared = ["memory_limit", "threads", "spill_folder"]
    shared += ["settings"] if check(engine) == "duckdb" else []  # Spark's settings are not DuckDB's
    reader = {key: engine.get(key) for key in shared}
    raw = sources.read(dataset.model_dump(exclude_unset=True), source_files, interactions.connect(reader))
    done = interactions.ingest(raw, dataset.steps or [], bad_rows=dataset.bad_rows, engine=engine)
    steps = pl.from_arrow(done.steps)
    return done.interactions, done.items.to_polars(), done.users.to_polars(), done.quarantine, steps


def profile_data(interactions: Path) -> dict[str, Any]:
    """Sizes, activity, popularity, time, ties: what the report says about the data."""
    from recpipe.evaluation.profile import profile

    return profile(interactions)
