"""SQL engines that read and sample logs, DuckDB or Spark, and the Parquet files they write.

Both respect a memory limit and spill to a folder from the configuration; rows never pass through Python.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend

from recpipe.config import check_known
from recpipe.data.atomic import atomic_file, clean_leftovers, remove, temporary_path

KEYS = ("name", "memory_limit", "spill_folder", "threads", "master", "settings")


def connect(engine: Mapping[str, Any] | None = None) -> BaseBackend:
    """Open an engine. Keys of ``engine``, all optional:

    name: duckdb (default) or spark; memory_limit: such as 4GB; spill_folder; threads (default: all);
    settings: the engine's own; master: Spark only, ``local[<threads>]`` by default.
    """
    engine = dict(engine or {})
    return _duckdb(engine) if check(engine) == "duckdb" else _spark(engine)


def duckdb_beside(engine: Mapping[str, Any], spill_folder: Path) -> dict[str, Any]:
    """Return settings of a DuckDB with the limits of ``engine``, which may be another; ``spill_folder`` by default."""
    keys = ["memory_limit", "threads"]
    keys += ["settings"] if check(engine) == "duckdb" else []  # Spark's settings are not DuckDB's
    settings = {key: engine.get(key) for key in keys}
    return {**settings, "spill_folder": engine.get("spill_folder") or str(spill_folder)}


def check(engine: Mapping[str, Any]) -> str:
    """Return the engine's name without opening it. Raises ValueError for an unknown key or name."""
    for key in engine:
        check_known(key, KEYS, what="setting of ingest.engine")
    name = str(engine.get("name") or "duckdb")
    check_known(name, ("duckdb", "spark"), what="ingest.engine.name")
    return name


def _duckdb(engine: Mapping[str, Any]) -> BaseBackend:
    parent = _spill_folder(engine)
    if engine.get("spill_folder"):
        parent.mkdir(parents=True, exist_ok=True)  # DuckDB creates one level only, and that when it first spills
    if parent.is_dir():
        clean_leftovers(parent)
    spill = temporary_path(parent / "duckdb", "part")  # concurrent engines must not share a folder
    settings = {key: engine[key] for key in ("memory_limit", "threads") if engine.get(key) is not None}
    settings |= engine.get("settings") or {}
    try:
        con = ibis.duckdb.connect(temp_directory=str(spill), **settings)
    except duckdb.Error as error:
        raise ValueError(f"DuckDB refuses ingest.engine {settings}: {error}") from error
    # checkpoint_threshold: dropping a small table would otherwise compress all others, which takes seconds.
    # async_threads: with any, a COPY that fails late waits forever in DuckDB 2.0.0, about one time in ten.
    tuned = {"checkpoint_threshold": "1TB", "async_threads": 0, "enable_progress_bar": sys.stderr.isatty()}
    for (name,) in con.raw_sql("SELECT name FROM duckdb_settings()").fetchall():
        if name in tuned:
            con.settings[name] = tuned[name]
    weakref.finalize(con, shutil.rmtree, spill, ignore_errors=True)
    return con


def _spark(engine: Mapping[str, Any]) -> BaseBackend:
    return ibis.pyspark.connect(spark_session(engine))


def spark_session(engine: Mapping[str, Any]) -> Any:
    """Open the Spark session of the process, whose settings are those of the first ``engine``.

    Raises ValueError without pyspark or Java, and for a memory_limit that cannot be parsed.
    """
    try:
        from pyspark import SparkConf
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError("engine spark needs pyspark and Java 17 or newer: pip install 'recpipe[spark]'") from error
    settings: dict[str, Any] = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        "spark.local.dir": str(_spill_folder(engine).absolute()),
        "spark.sql.parquet.compression.codec": "zstd",
    }
    if limit := engine.get("memory_limit"):  # from DuckDB's notation, 512MiB, to Java's, 512m
        size = str(limit).strip().lower().removesuffix("b").removesuffix("i").replace(" ", "")
        if not size[:-1].replace(".", "").isdigit() or size[-1] not in "kmgt":
            raise ValueError(f"ingest.engine.memory_limit {limit!r}: write a number and KB, MB, GB or TB, as in 4GB")
        settings["spark.driver.memory"] = size
    settings |= engine.get("settings") or {}
    builder = SparkSession.builder.appName("recpipe").config(map=settings)
    master = engine.get("master")
    if master is None and not SparkConf().contains("spark.master"):  # which spark-submit sets
        master = f"local[{engine.get('threads') or '*'}]"
    if python := settings.get("spark.pyspark.python"):  # of a session that runs already, only the environment counts
        os.environ["PYSPARK_PYTHON"] = str(python)
    elif str(master).startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (builder if master is None else builder.master(master)).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def read_parquet(path: Path, engine: Mapping[str, Any] | None = None) -> ir.Table:
    """Open a Parquet file as a lazy table on its own DuckDB connection."""
    return connect({**(engine or {}), "name": "duckdb"}).read_parquet(str(path))


def write_parquet(table: ir.Table, path: Path) -> None:
    """Stream a table into one Parquet file (ZSTD), atomically. Raises OSError (ENOSPC) where the disk is full."""
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


def transfer(table: ir.Table, con: BaseBackend, engine: Mapping[str, Any]) -> ir.Table:
    """Copy a table to the engine ``con`` through a Parquet file in the spill folder, deleted with ``con``."""
    path = _spill_folder(engine).absolute() / f"{uuid.uuid4().hex[:12]}.parquet"
    write_parquet(table, path)
    weakref.finalize(con, remove, path)
    return con.read_parquet(str(path))


def comes_sorted(table: ir.Table, column: str) -> bool:
    """Return whether the rows of ``table`` come by increasing values of ``column`` without a sort, by one pass.

    Only DuckDB, which by default streams the rows of a table in the order in which they were stored, is asked.
    """
    con = ibis.get_backend(table)
    if con.name != "duckdb" or not _setting(con, "preserve_insertion_order"):
        return False
    values = con.compile(table.select(value=table[column]))
    pairs = f"SELECT value, lag(value) OVER () AS last FROM ({values})"  # noqa: S608 -- compiled by Ibis
    falls = con.raw_sql(f"SELECT 1 FROM ({pairs}) WHERE value <= last LIMIT 1").fetchall()  # noqa: S608
    return not falls


def _setting(con: BaseBackend, name: str) -> Any:
    return con.raw_sql(f"SELECT current_setting('{name}')").fetchall()[0][0]


def _copy(con: BaseBackend, query: str, path: Path) -> None:
    target = str(path).replace("'", "''")
    limits = {"memory_limit": _setting(con, "memory_limit"), "spill_folder": _setting(con, "temp_directory")}
    with engine_errors(limits):
        try:
            con.raw_sql(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)")
        except duckdb.IOException as error:
            if "space" in str(error).lower():
                raise OSError(errno.ENOSPC, f"disk full, nothing was written: {error}", str(path.parent)) from error
            raise


@contextmanager
def engine_errors(engine: Mapping[str, Any]) -> Iterator[None]:
    """Turn DuckDB's errors of a full disk into OSError (ENOSPC), of its memory limit into ValueError, with advice."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow's while a result is streamed
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:  # with its own advice
            raise
        reason = " ".join(text.split("\n", maxsplit=1)[0].split())
        if "max_temp_directory_size" in text or "No space left on device" in text:
            raise OSError(
                errno.ENOSPC,
                f"disk full, nothing was written ({reason}): free space, or set ingest.engine.spill_folder to a folder "
                "on a larger disk",
                str(_spill_folder(engine)),
            ) from error
        if "Out of Memory Error" in text:
            raise ValueError(
                f"DuckDB needs more memory than ingest.engine.memory_limit, {engine.get('memory_limit')} ({reason}): "
                "raise it, or lower ingest.engine.threads"
            ) from error
        raise


def _spill_folder(engine: Mapping[str, Any]) -> Path:
    return Path(engine.get("spill_folder") or ".spill")
