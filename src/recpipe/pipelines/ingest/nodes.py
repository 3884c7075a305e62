"""Nodes of ingest: short calls into recpipe.data; tables stay on the engine until the catalog writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fetch_source(datasets: dict[str, Any], dataset: str, raw_folder: Path) -> dict[str, Any]:
    """Puts the raw files in place (they are fetched where absent) and says which they are."""
    from recpipe.data.sources import fetch

    return fetch(datasets[dataset], raw_folder)


def ingest_log(
    source_files: dict[str, Any],
    datasets: dict[str, Any],
    dataset: str,
    ingest: dict[str, Any],
    spill_folder: Path,
) -> tuple[Any, Any, Any, Any, Any]:
    """Cleans and samples the raw log: interactions, items, users, quarantine, step table."""
    import polars as pl

    from recpipe.data import interactions, sources
    from recpipe.data.interactions.engines import check

    conf = datasets[dataset]
    engine = {**ingest["engine"], "spill_folder": ingest["engine"].get("spill_folder") or str(spill_folder)}
    shared = ["memory_limit", "threads", "spill_folder"]
    shared += ["settings"] if check(engine) == "duckdb" else []  # Spark's settings are not DuckDB's
    reader = {key: engine.get(key) for key in shared}
    raw = sources.read(conf, source_files, interactions.connect(reader))
    done = interactions.ingest(
        raw, conf.get("steps") or [], bad_rows=conf.get("bad_rows", "quarantine"), engine=engine
    )
    steps = pl.from_arrow(done.steps)
    return done.interactions, done.items.to_polars(), done.users.to_polars(), done.quarantine, steps


def profile_data(interactions: Path) -> dict[str, Any]:
    """Sizes, activity, popularity, time, ties: what the report says about the data."""
    from recpipe.evaluation.profile import profile

    return profile(interactions)
