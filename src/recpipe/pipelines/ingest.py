"""Pipeline ingest: fetch the raw files, clean and sample the log, profile the result.

Tables stay on the SQL engine until the catalog writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
from recpipe.data.protocol import Protocol
from recpipe.pipelines.types import DataFrame, IbisTable
from recpipe.pipelines.wiring import Wiring

log = logging.getLogger(__name__)
summary_log = logging.getLogger("recpipe.summary")  # conf/logging.yml shows it without time and level


def fetch_source(dataset: DatasetConfig, paths: DataPaths) -> dict[str, Any]:
    """List the raw files and download missing ones."""
    from recpipe.data.files.fetch import fetch

    paths.raw.mkdir(parents=True, exist_ok=True)
    return fetch(dataset.model_dump(exclude_unset=True), paths.raw)


def ingest_log(
    source_files: dict[str, Any], dataset: DatasetConfig, ingest: dict[str, Any], paths: DataPaths
) -> tuple[IbisTable, DataFrame, DataFrame, IbisTable, DataFrame, dict[str, Any]]:
    """Clean and sample the raw log; return interactions, items, users, quarantine, step table and manifest."""
    import polars as pl

    from recpipe.data import engines, readers
    from recpipe.data.interactions import ingest as ingest_tables

    entries = _verified_entries(source_files)
    duckdb = engines.duckdb_beside(ingest["engine"], paths.spill)
    engine = {**ingest["engine"], "spill_folder": duckdb["spill_folder"]}
    con = engines.connect(duckdb)
    with engines.engine_errors(duckdb):
        raw = readers.read(dataset.model_dump(exclude_unset=True), source_files, con)
        result = ingest_tables(raw, dataset.steps or [], bad_rows=dataset.bad_rows, engine=engine)
    steps = pl.DataFrame(result.steps)
    manifest = _manifest(entries, {"interactions": result.file_rows, **raw.file_rows}) | {
        "joins": result.joins,
        "duplicate_ids": result.duplicate_ids,
    }
    return result.interactions, result.items.to_polars(), result.users.to_polars(), result.quarantine, steps, manifest


def _verified_entries(source_files: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the manifest's entries. Raises ValueError for files that are missing or have another size since."""
    entries: list[dict[str, Any]] = source_files.get("manifest", [])
    verified = {entry["path"]: entry["bytes"] for entry in entries}
    for path in (path for paths in source_files["files"].values() for path in paths):
        if not Path(path).is_file():
            raise ValueError(f"{path} is gone since it was verified: run the pipeline ingest from its first node")
        if verified.get(path) != Path(path).stat().st_size:
            raise ValueError(
                f"{path} was not verified or has changed since: run the pipeline ingest from its first node"
            )
    return entries


def _manifest(entries: list[dict[str, Any]], file_rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Add the rows read and taken to the entries of files, by role; null where only their sum is known."""
    for role, rows in file_rows.items():
        counts = {row["file"]: row for row in rows}
        files = [entry for entry in entries if entry["role"] == role]
        for entry in files:
            row = counts.get(None if len(files) == 1 else entry["path"], {})
            missing = None if None in counts else 0  # a file without rows has no counts
            entry |= {name: row.get(name, missing) for name in ("rows_read", "rows_taken")}
    return {"files": entries}


def profile_data(
    interactions: Path, ingest_steps: DataFrame, ingest_manifest: dict[str, Any], dataset_name: str, protocol: Protocol
) -> dict[str, Any]:
    """Compute statistics of the data for the report: sizes, activity, popularity, time, ties, joins; show them."""
    from recpipe.evaluation.profile import profile, profile_warnings
    from recpipe.reporting.summary import format_log

    result = profile(interactions) | {name: ingest_manifest.get(name, []) for name in ("joins", "duplicate_ids")}
    summary_log.info("%s", format_log(result, ingest_steps, title=dataset_name))
    for warning in profile_warnings(result, dataset=dataset_name, exclude_seen=protocol.exclude_seen):
        log.warning("%s", warning)
    return result


GROUP = "ingest"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Assemble the three nodes, which all models share."""
    dataset = f"params:datasets.{wiring.dataset}"
    files = ["source_files", dataset, "params:ingest", "params:paths"]
    profile_inputs = ["interactions", "ingest_steps", "ingest_manifest", "params:dataset", "params:protocol"]
    tables = ["interactions", "items", "users", "quarantine", "ingest_steps", "ingest_manifest"]
    return Pipeline(
        [
            Node(fetch_source, [dataset, "params:paths"], "source_files", name="fetch_source", namespace=GROUP),
            Node(ingest_log, files, tables, name="ingest_log", namespace=GROUP),
            Node(profile_data, profile_inputs, "data_profile", name="profile_data", namespace=GROUP),
        ]
    )
