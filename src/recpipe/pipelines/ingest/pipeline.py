"""Wiring of ingest: fetch the raw files, clean and sample the log, profile what is left."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.ingest.nodes import fetch_source, ingest_log, profile_data
from recpipe.pipelines.wiring import Wiring

GROUP = "ingest"
TABLES = ["interactions", "items", "users", "quarantine", "ingest_steps"]


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Three nodes that every model shares."""
    dataset = f"params:datasets.{wiring.dataset}"
    files = ["source_files", dataset, "params:ingest", "params:paths"]
    return Pipeline(
        [
            Node(
                fetch_source, [dataset, "params:paths"], "source_files", name="fetch_source", namespace=GROUP
            ),
            Node(ingest_log, files, TABLES, name="ingest_log", namespace=GROUP),
            Node(profile_data, "interactions", "data_profile", name="profile_data", namespace=GROUP),
        ]
    )
