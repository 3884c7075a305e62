"""A DuckDB connection, reading in one line, and the real data beside the checkout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ibis
import pytest
from ibis.backends.duckdb import Backend

from recpipe.data.readers import RawTables, read

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"

Rows = list[dict[str, Any]]
Reading = Callable[..., RawTables]


@pytest.fixture
def con() -> Backend:
    return ibis.duckdb.connect(threads=1)


@pytest.fixture
def reading(con: Backend) -> Reading:
    """reading(source, options, interactions=path, items=path, ...) -> RawTables."""

    def run(source: str, options: Mapping[str, Any], **files: Path | list[Path]) -> RawTables:
        listed = {
            role: [str(path) for path in (paths if isinstance(paths, list) else [paths])]
            for role, paths in files.items()
        }
        return read({"source": source, "options": options}, {"files": listed}, con)

    return run


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which may not be redistributed")
    return SHARED


def rows(table: ibis.Table | None) -> Rows:
    """A table's rows in source order, as dictionaries."""
    assert table is not None
    ordered = table.order_by("order") if "order" in table.columns else table
    found: Rows = ordered.to_pyarrow().to_pylist()
    return found
