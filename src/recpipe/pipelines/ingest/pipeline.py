"""Wiring of ingest: fetch the raw files, clean and sample the log, profile what is left."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.ingest.nodes import fetch_source, ingest_log, profile_data
from recpipe.pipelines.zoo import SHARED

RAW = ["params:datasets", "params:dataset", "raw_folder"]
FILES = ["source_files", "params:datasets", "params:dataset", "params:ingest", "spill_folder"]
TABLES = ["interactions", "items", "users", "quarantine", "ingest_steps"]


def create_pipeline() -> Pipeline:
    """Three nodes that every model shares."""
    return Pipeline(
        [
            Node(fetch_source, RAW, "source_files", name="fetch_source"),
            Node(ingest_log, FILES, TABLES, name="ingest_log"),
            Node(profile_data, "interactions", "data_profile", name="profile_data"),
        ],
        tags=SHARED,
    )
