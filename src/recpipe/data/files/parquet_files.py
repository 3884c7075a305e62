"""Parquet files, which may differ in columns and types, as sources; folders ``name=value`` as columns of any source."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import unquote

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.files.log_table import EXACT, number_text
from recpipe.data.files.tables import (
    Source,
    column_types,
    errors_with_file,
    file_list,
    identifier,
    literal,
    literals,
    path_summary,
)
from recpipe.data.files.times import INTEGERS

logger = logging.getLogger(__name__)

UTC = {  # SQL of types with a zone in UTC
    "TIMESTAMP WITH TIME ZONE": "timezone('UTC', {})", "TIMESTAMPTZ_NS": "make_timestamp_ns(epoch_ns({}))",
}  # fmt: skip
TIMES = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", *UTC)
RECORDS = ("STRUCT", "MAP", "UNION", "VARIANT", '"NULL"')  # types with these in their names become JSON
STORABLE = (  # types of columns that every later step can read
    r"(BOOLEAN|VARCHAR|DATE|TIMESTAMP(_S|_MS|_NS| WITH TIME ZONE)?|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|"
    r"U?(TINY|SMALL|BIG)?INT|U?INTEGER)(\[\d*\])*"
)
NULL = '"NULL"'  # DuckDB's type of a column that pyarrow or pandas wrote with nulls only


class _Part(NamedTuple):
    """Consecutive files of one schema. columns: name to SQL and type, in lower case for comparison."""

    where: str
    n_files: int
    sql: str
    columns: dict[str, tuple[str, str]]


def parquet_source(con: ibis.BaseBackend, paths: Sequence[str], *, requested: Sequence[str] = ()) -> Source:
    """Create a source with the columns of all files; a file without one of them has nulls there.

    Where files differ in a column's type, whole numbers stay exact: they become doubles only if all of them fit, and
    text otherwise. Structs and maps are JSON, binary columns text if they are UTF-8. requested: the columns in use.
    Raises ValueError for a file that is not whole, and for a requested column that a file has twice, that is a
    duration, or whose numbers are no longer exact.
    """
    where = path_summary(paths)
    names: dict[str, str] = {}
    parts = []
    for schema, group in groupby(paths, key=_schema):
        files = list(group)
        sql = f"read_parquet({file_list(files)}, hive_partitioning = false)"
        types = column_types(con, sql, where=path_summary(files))
        columns = _columns(schema, types, requested, path_summary(files))
        names |= {name.lower(): name for name in columns if name.lower() not in names or name in requested}
        part = _Part(path_summary(files), len(files), sql, {name.lower(): value for name, value in columns.items()})
        parts.append(_without_bytes(con, part, requested))
    names = {key: name for key, name in names.items() if any(key in part.columns for part in parts)}
    types = {name: _common_type(con, key, name, parts, requested) for key, name in names.items()}
    with_index = "file_index" not in names
    selections, n_files = [], 0
    for part in parts:
        values = ", ".join(
            f"{_cast(*part.columns[key], types[name])} AS {identifier(name)}"
            for key, name in names.items()
            if key in part.columns
        )
        index = f", file_index + {n_files} AS file_index" if with_index else ""
        selections.append(f"SELECT {values}{index} FROM {part.sql}")
        n_files += part.n_files
    return Source(f"({' UNION ALL BY NAME '.join(selections)})", types, where, files=paths)


def with_folder_columns(source: Source, paths: Sequence[str]) -> Source:
    """Add a text column for every folder ``name=value`` of the paths, percent-decoded as Hive and Spark write them.

    Raises ValueError where the files lie in folders of different names, and for the name of a column.
    """
    folders = {path: dict(part.split("=", 1) for part in PurePath(path).parts[:-1] if "=" in part) for path in paths}
    names = list(folders[paths[0]])
    for path, values in folders.items():
        if not values or values.keys() != {*names}:
            raise ValueError(
                f"{path} lies in the folders {list(values)} and {paths[0]} in {names}, of the form name=value: with "
                "`folder_columns: true` in the options of a data set all files need the same"
            )
    columns = {column.lower() for column in source.types}
    if clashes := [name for name in names if name.lower() in columns | {"file_index"}]:
        raise ValueError(
            f"{source.where} has a column {clashes[0]!r} and lies in a folder {clashes[0]}=...: rename the folder, or "
            "set `folder_columns: false` in the options of the data set"
        )
    if "file_index" in columns:
        raise ValueError(f"{source.where} has a column 'file_index', which folder_columns need: rename it")
    texts = []
    for name in names:
        by_file = [unquote(folders[path][name]) for path in source.files]
        nulls = literal("__HIVE_DEFAULT_PARTITION__")
        texts.append(f"nullif({literals(by_file)}[CAST(file_index AS BIGINT) + 1], {nulls}) AS {identifier(name)}")
    sql = f"(SELECT *, file_index, {', '.join(texts)} FROM {source.sql})"
    return source._replace(sql=sql, types={**source.types, **dict.fromkeys(names, "VARCHAR")})


def storable_column(name: str, kind: str) -> str:
    """Return SQL of a column, as text where later steps cannot read its type."""
    if re.fullmatch(STORABLE, kind):
        return identifier(name)
    if kind == "TIMESTAMPTZ_NS":  # of pandas; DuckDB 2.0.0 converts it to no other type with a zone
        return f"make_timestamp_ns(epoch_ns({identifier(name)}))"
    return f"CAST({identifier(name)} AS VARCHAR{'[]' * kind.count('[')})"


def _schema(path: str) -> pa.Schema:
    try:
        with open(path, "rb") as file:
            return pq.read_schema(file).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}. It is cut short or no Parquet file: fetch it again") from error


def _columns(
    schema: pa.Schema, types: Mapping[str, str], requested: Sequence[str], where: str
) -> dict[str, tuple[str, str]]:
    """Return SQL and type by name of the columns of files of one schema.

    DuckDB renames the second of two names that differ only in case; the columns keep their place.
    """
    columns: dict[str, tuple[str, str]] = {}
    spellings: dict[str, str] = {}
    for name, engine_name in sorted(zip(schema.names, types, strict=True), key=lambda pair: pair[0] not in requested):
        other = spellings.setdefault(name.lower(), name)
        if name.lower() in map(str.lower, columns) or not name or "\0" in name:
            if name in requested:
                raise ValueError(f"{where} has the columns {other!r} and {name!r}: rename one of them")
            logger.warning("%s: the column %r is left out, it has a name of another column or none", where, name)
            continue
        if name in requested and any(pa.types.is_duration(field.type) for field in schema if field.name == name):
            raise ValueError(f"{where}: column {name!r} is a duration, neither a time nor an id: write it as integers")
        columns[name] = identifier(engine_name), types[engine_name]
    return {name: columns[name] for name in schema.names if name in columns}


def _without_bytes(con: ibis.BaseBackend, part: _Part, requested: Sequence[str]) -> _Part:
    """Decode binary columns that are UTF-8, as old Spark and Impala write text; leave out others unless in use."""
    binary = {key: sql for key, (sql, kind) in part.columns.items() if kind == "BLOB"}
    if not binary:
        return part
    tests = ", ".join(f"count({sql}) = count(TRY(decode({sql})))" for sql in binary.values())
    with errors_with_file(part.where):
        is_text = dict(zip(binary, con.raw_sql(f"SELECT {tests} FROM {part.sql}").fetchall()[0], strict=True))
    columns = dict(part.columns)
    for key, sql in binary.items():
        if is_text[key]:
            columns[key] = f"decode({sql})", "VARCHAR"
        elif key not in map(str.lower, requested):
            logger.warning("%s: the binary column %s is left out", part.where, sql)
            del columns[key]
    return part._replace(columns=columns)


def _common_type(con: ibis.BaseBackend, key: str, name: str, parts: Sequence[_Part], requested: Sequence[str]) -> str:
    """Return the type that holds a column's values in all parts."""
    kinds = {part.columns[key][1] for part in parts if key in part.columns}
    kinds = kinds - {NULL, f"{NULL}[]"} or ({"VARCHAR[]"} if f"{NULL}[]" in kinds else {"VARCHAR"})
    is_list = [kind.count("[]") for kind in kinds]
    if any(word in kind for kind in kinds for word in RECORDS) or (
        len(kinds) > 1 and any(is_list) and set(is_list) != {1}
    ):
        return "JSON"
    if len(kinds) == 1:
        return kinds.pop()
    if kinds <= {*INTEGERS}:
        return "BIGINT" if kinds.isdisjoint({"UBIGINT", "HUGEINT", "UHUGEINT"}) else "HUGEINT"
    if kinds <= {*TIMES}:
        exact = any(kind.endswith("_NS") for kind in kinds) and _fit_nanoseconds(con, key, parts)
        return "TIMESTAMP_NS" if exact else "TIMESTAMP"
    if all(kind in INTEGERS or kind in EXACT or kind.startswith("DECIMAL") for kind in kinds):
        return _number_type(con, key, name, parts, requested)
    return "VARCHAR[]" if any(is_list) else "VARCHAR"


def _fit_nanoseconds(con: ibis.BaseBackend, key: str, parts: Sequence[_Part]) -> bool:
    """Whether no time of a column lies beyond 1677 to 2262, which nanoseconds span."""
    for part in parts:
        sql, kind = part.columns.get(key, ("NULL", NULL))
        test = f"TRY_CAST({UTC.get(kind, '{}').format(sql)} AS TIMESTAMP_NS) IS NULL AND {sql} IS NOT NULL"
        query = f"SELECT 1 FROM {part.sql} WHERE {test} LIMIT 1"
        with errors_with_file(part.where):
            if kind in TIMES and con.raw_sql(query).fetchall():
                return False
    return True


def _number_type(con: ibis.BaseBackend, key: str, name: str, parts: Sequence[_Part], requested: Sequence[str]) -> str:
    """Return DOUBLE if all whole numbers fit, else VARCHAR. Raises ValueError for requested floats that are too large.

    pandas writes integers as floating-point numbers where one is missing; above 2^53 neighbours are then one number.
    """
    result = "DOUBLE"
    for part in parts:
        sql, kind = part.columns.get(key, ("NULL", NULL))
        limit = EXACT.get(kind, EXACT["DOUBLE"])
        is_large = f"isfinite(CAST({sql} AS DOUBLE)) AND abs(CAST({sql} AS DOUBLE)) >= {limit}"
        with errors_with_file(part.where):
            query = f"SELECT min({sql}) FROM {part.sql} WHERE {is_large}"
            example = con.raw_sql(query).fetchall()[0][0] if kind != NULL else None
        if example is not None and kind in EXACT and name in requested:
            raise ValueError(
                f"{part.where}: column {name!r} has numbers of type {kind.lower()} such as {example}, which are not "
                "exact from 2^53 (float: 2^24), and other files have integers. Write the column as integers or text"
            )
        result = "VARCHAR" if example is not None else result
    return result


def _cast(sql: str, kind: str, target: str) -> str:
    """Return SQL that converts a value to the common type; equal numbers become equal text, inexact ones null."""
    if kind == target:
        return sql
    if target == "JSON":
        return f"to_json({sql})"
    if kind in UTC and target in TIMES:
        return f"CAST({UTC[kind].format(sql)} AS {target})"
    if target == "VARCHAR":
        return number_text(sql, kind)
    if target == "VARCHAR[]" and kind.endswith("[]") and kind != f"{NULL}[]":
        return f"list_transform({sql}, lambda value: {number_text('value', kind[:-2])})"
    return f"CAST({sql} AS {target})"
