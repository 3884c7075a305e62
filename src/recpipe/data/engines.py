"""The engines that read and sample logs, DuckDB or Spark, and the Parquet files they leave.

Both work under a memory limit and spill to a folder that the conf names; neither hands rows to Python.
"""

from __future__ import annotations

import errno
import shutil
import sys
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
from ibis.backends import BaseBackend

from recpipe.config import check_known
from recpipe.data.atomic import atomic_file

KEYS = ("name", "memory_limit", "spill_folder", "threads", "master", "settings")
NAMES = ("duckdb", "spark")


def connect(engine: Mapping[str, Any] | None = None) -> BaseBackend:
    """A fresh engine. `engine`, all of it optional:

    name: duckdb (default) or spark; memory_limit: as in 4GB; spill_folder: for what does not fit; threads:
    all by default; settings: the engine's own. Spark only: master, `local[<threads>]` by default.
    """
    engine = dict(engine or {})
    return _duckdb(engine) if check(engine) == "duckdb" else _spark(engine)


def check(engine: Mapping[str, Any]) -> str:
    """The engine's name; unknown keys and names are refused, and nothing is opened."""
    for key in engine:
        check_known(key, KEYS, what="setting of ingest.engine")
    name = str(engine.get("name") or "duckdb")
    check_known(name, NAMES, what="ingest.engine.name")
    return name


def _duckdb(engine: Mapping[str, Any]) -> BaseBackend:
    spill = _spill_folder(engine) / uuid.uuid4().hex[:12]  # engines that run side by side must not share one
    given = {"memory_limit": engine.get("memory_limit"), "threads": engine.get("threads")}
    settings = {key: value for key, value in given.items() if value is not None} | dict(
        engine.get("settings") or {}
    )
    try:
        con = ibis.duckdb.connect(temp_directory=str(spill), **settings)
    except duckdb.Error as error:
        raise ValueError(f"DuckDB refuses ingest.engine {settings}: {error}") from error
    for name, value in _tuned(con).items():
        con.settings[name] = value
    weakref.finalize(con, shutil.rmtree, spill, ignore_errors=True)
    return con


def _tuned(con: Any) -> dict[str, Any]:
    # checkpoint_threshold: dropping a small table would otherwise compress all others, which takes seconds.
    # async_threads: with any, a COPY that fails late waits forever in DuckDB 2.0.0, about one time in ten.
    wanted = {
        "checkpoint_threshold": "1TB",
        "async_threads": 0,
        "enable_progress_bar": sys.stderr.isatty(),
    }
    known = {row[0] for row in con.raw_sql("SELECT name FROM duckdb_settings()").fetchall()}
    return {name: value for name, value in wanted.items() if name in known}


def _spark(engine: Mapping[str, Any]) -> BaseBackend:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(
            "engine spark needs pyspark and Java 17 or newer: pip install 'recpipe[spark]'"
        ) from error
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        "spark.local.dir": str(_spill_folder(engine).absolute()),
        "spark.sql.parquet.compression.codec": "zstd",
        **({"spark.driver.memory": _jvm_size(engine["memory_limit"])} if engine.get("memory_limit") else {}),
        **(engine.get("settings") or {}),
    }
    builder = SparkSession.builder.master(engine.get("master") or f"local[{engine.get('threads') or '*'}]")
    session = builder.appName("recpipe").config(map=settings).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return ibis.pyspark.connect(session)


def _jvm_size(limit: str) -> str:
    """DuckDB's `4GB` or `512MiB` as Java writes it: `4g`, `512m`."""
    size = str(limit).strip().lower().removesuffix("b").removesuffix("i").replace(" ", "")
    if not size[:-1].replace(".", "").isdigit() or size[-1] not in "kmgt":
        raise ValueError(
            f"ingest.engine.memory_limit {limit!r}: write a number and KB, MB, GB or TB, as in 4GB"
        )
    return size


def read_parquet(path: Path, engine: Mapping[str, Any] | None = None) -> ir.Table:
    """The table in a Parquet file, unread, on a DuckDB of its own."""
    con = connect({**(engine or {}), "name": "duckdb"})
    return con.read_parquet(str(path))


def write_parquet(table: ir.Table, path: Path) -> None:
    """Streams a table into one Parquet file (ZSTD), which takes the name `path` once it is whole."""
    con = ibis.get_backend(table)
    with atomic_file(Path(path)) as part:
        if con.name == "duckdb":
            _copy(con, con.compile(table), part)
            return
        folder = part.with_suffix(".parts")
        try:
            con.to_parquet(table, folder)
            one = connect({"memory_limit": "1GB", "spill_folder": folder})
            _copy(one, one.compile(one.read_parquet(str(folder / "*.parquet"))), part)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(con: Any, query: str, path: Path) -> None:
    target = str(path).replace("'", "''")
    try:
        con.raw_sql(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)")
    except duckdb.IOException as error:
        if "No space left" in str(error) or "space" in str(error).lower():
            raise OSError(
                errno.ENOSPC, f"disk full, nothing was written: {error}", str(path.parent)
            ) from error
        raise


def hand_over(table: ir.Table, con: BaseBackend, engine: Mapping[str, Any]) -> ir.Table:
    """The same table on another engine, by way of a Parquet file in the spill folder that goes with `con`."""
    path = _spill_folder(engine).absolute() / f"{uuid.uuid4().hex[:12]}.parquet"
    write_parquet(table, path)
    weakref.finalize(con, path.unlink, missing_ok=True)
    return con.read_parquet(str(path))


def _spill_folder(engine: Mapping[str, Any]) -> Path:
    return Path(engine.get("spill_folder") or ".spill")
