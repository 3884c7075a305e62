"""Parquet files as sources."""

from __future__ import annotations

from collections.abc import Sequence

import ibis

from recpipe.data.files.tables import Source, column_types, file_list, path_summary


def parquet_source(con: ibis.BaseBackend, paths: Sequence[str]) -> Source:
    """Create a source with the columns and types of Parquet files."""
    where = path_summary(paths)
    sql = f"read_parquet({file_list(paths)}, hive_partitioning = false, union_by_name = true)"
    return Source(sql, column_types(con, sql, where=where), where, files=paths)
