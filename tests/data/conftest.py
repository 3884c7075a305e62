"""Fixtures of readers: a DuckDB connection, reading in one line, the real data sets beside the checkout."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ibis
import pytest
from ibis.backends.duckdb import Backend

from recpipe.data.files.tables import RawTables
from recpipe.data.readers import read

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"

Rows = list[dict[str, Any]]
Reading = Callable[..., RawTables]
ReadLog = Callable[[Mapping[str, Any], Path | list[Path]], Rows]
MAPPING = {"user_id": "who", "item_id": "what", "timestamp": "when"}


@pytest.fixture
def con() -> Backend:
    return ibis.duckdb.connect(threads=1)


@pytest.fixture
def reading(con: Backend) -> Reading:
    """reading(source, options, interactions=path, items=path, ...) -> RawTables."""

    def run(source: str, options: Mapping[str, Any], **files: Path | list[Path]) -> RawTables:
        paths = {
            role: [str(path) for path in (value if isinstance(value, list) else [value])]
            for role, value in files.items()
        }
        return read({"source": source, "options": options}, {"files": paths}, con)

    return run


@pytest.fixture
def read_log(reading: Reading) -> ReadLog:
    """read_log(options, path) -> rows of a log by the generic reader."""
    return lambda options, paths: rows(reading("files", options, interactions=paths).interactions)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which may not be redistributed")
    return SHARED


def rows(table: ibis.Table | None) -> Rows:
    """Rows of a table in source order, as dictionaries."""
    assert table is not None
    ordered = table.order_by("order") if "order" in table.columns else table
    dictionaries: Rows = ordered.to_pyarrow().to_pylist()
    return dictionaries


def log_tuples(tables: RawTables) -> list[tuple[Any, ...]]:
    """(user_id, item_id, timestamp, order) of a log."""
    columns = ("user_id", "item_id", "timestamp", "order")
    return [tuple(row[name] for name in columns) for row in rows(tables.interactions)]


def write_gzip(path: Path, lines: list[Any], *, literal: bool = False) -> Path:
    """Write lines of JSON, or of Python literals, to a compressed file."""
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for line in lines:
            out.write((line if isinstance(line, str) else repr(line) if literal else json.dumps(line)) + "\n")
    return path


def zip_bytes(members: dict[str, bytes]) -> bytes:
    """A zip archive of files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
