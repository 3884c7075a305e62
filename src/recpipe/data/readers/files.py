"""Anybody's log: CSV, TSV, Parquet or JSON lines, plain or compressed, one file or many, its columns mapped
by the conf.

See conf/base/parameters/datasets/my_log.yml for every option, explained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from recpipe.data.files.delimited import delimited, lines
from recpipe.data.files.sequences_in_rows import one_event_per_row
from recpipe.data.files.sql import TYPED, column_types, identifier, literal, literals, names
from recpipe.data.files.tables import Columns, RawTables, Source, entities, interactions

if TYPE_CHECKING:
    import ibis
    from ibis.backends.duckdb import Backend

FORMATS = {
    ".csv": "csv", ".txt": "csv", ".dat": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
    ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
LOG_COLUMNS = ("user_id", "item_id", "timestamp", "rating", "weight", "order")


@dataclass(frozen=True)
class Table:
    """How one kind of file is pack_rows out, and which of its columns is what."""

    format: str | None = None  # csv, tsv, parquet, jsonl or lines; none: by the file's name
    delimiter: str | None = None
    header: bool = True
    names: Sequence[str] | None = None  # of the columns, where there is no header
    encoding: str = "utf-8"
    quote: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Options(Table):
    """The log's own options, and those of an items file and a users file."""

    timestamp: str = "s"
    sequence_per_row: bool | Mapping[str, Any] = False
    items: Mapping[str, Any] | None = None
    users: Mapping[str, Any] | None = None


def read(options: Options, files: Mapping[str, Sequence[str]], con: Backend) -> RawTables:
    """The log; the items and users, where the conf names files of these roles."""
    log = _log(options, files["interactions"], con)
    items = _entities("item_id", options.items, files.get("items"), con, log=log)
    users = _entities("user_id", options.users, files.get("users"), con, log=None)
    return RawTables(log, items, users)


def _log(options: Options, paths: Sequence[str], con: Backend) -> ibis.Table:
    mapping = {name: column for name, column in options.columns.items() if column is not None}
    unknown = sorted(set(mapping) - set(LOG_COLUMNS))
    if unknown:
        raise ValueError(
            f"unknown column {unknown[0]!r} in the mapping of the log: there are {', '.join(LOG_COLUMNS)}"
        )
    source = _source(options, paths, con)
    if options.sequence_per_row:
        mapping = mapping or {"user_id": "user_id", "item_id": "items"}
        _require(source, mapping.values())
        shape = options.sequence_per_row if isinstance(options.sequence_per_row, Mapping) else {}
        source, mapping = one_event_per_row(source, mapping, **shape)
    _require_mapped(mapping, ("user_id", "item_id"))
    _require(source, mapping.values())
    unit = options.timestamp
    if "timestamp" in mapping and _is_time(source.types[mapping["timestamp"]]):
        unit = TYPED
    sql = {name: identifier(column) for name, column in mapping.items()}
    columns = Columns(
        _as_id(mapping["user_id"], source), _as_id(mapping["item_id"], source), sql.get("timestamp"), unit,
        rating=sql.get("rating"), weight=sql.get("weight"), order=sql.get("order"),
    )  # fmt: skip
    return interactions(con, source, columns)


def _entities(
    key: str,
    given: Mapping[str, Any] | None,
    paths: Sequence[str] | None,
    con: Backend,
    *,
    log: ibis.Table | None,
) -> ibis.Table | None:
    if not paths:
        return None
    known = [field.name for field in dataclasses.fields(Table)]
    unknown = sorted(set(given or {}) - set(known))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} for a table of {key}s: there are {', '.join(known)}")
    options = Table(**(given or {}))
    mapping = {key: key, **options.columns}
    source = _source(options, paths, con)
    _require(source, (name for column in mapping.values() for name in _listed(column)))
    chosen = {name: _text(_listed(column), source) for name, column in mapping.items()}
    chosen[key] = _as_id(mapping[key], source)
    taken = {column for column in mapping.values() if isinstance(column, str)} | set(chosen)
    others = {name: identifier(name) for name in source.types if name not in taken}
    return entities(con, source, chosen | others, key=key, log=log)


def _source(options: Table, paths: Sequence[str], con: Backend) -> Source:
    kind = options.format or _format(paths[0])
    if kind == "lines":
        return lines(paths, delimiter=options.delimiter or " ", encoding=options.encoding)
    if kind in ("csv", "tsv"):
        if not options.header and not options.names:
            raise ValueError(
                f"{paths[0]} has no header: name its columns, `names: [user, item, time]`, in the options"
            )
        delimiter = options.delimiter or ("\t" if kind == "tsv" else ",")
        quote = options.quote if options.quote is not None else ("" if kind == "tsv" else '"')
        columns = None if options.header else options.names
        return delimited(
            con, paths, delimiter=delimiter, columns=columns, encoding=options.encoding, quote=quote
        )
    if kind == "jsonl":
        return _json(paths, con)
    if kind != "parquet":
        raise ValueError(f"unknown format {kind!r}: csv, tsv, parquet, jsonl or lines")
    sql = f"read_parquet({literals(paths)}, union_by_name = true)"
    return Source(sql, column_types(con, sql, where=names(paths)), names(paths))


def _json(paths: Sequence[str], con: Backend) -> Source:
    """JSON lines, values as text: types guessed from the first records would lose what later ones hold."""
    where, layout = names(paths), f"{literals(paths)}, format = 'newline_delimited', ignore_errors = true"
    types = column_types(con, f"read_json({layout}, union_by_name = true)", where=where)
    for name, kind in types.items():
        if not kind.startswith(("STRUCT", "MAP", "JSON")):
            types[name] = "VARCHAR" + "[]" * kind.count("[]")
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
    empty = " AND ".join(f"{identifier(name)} IS NULL" for name in types)
    problem = f"CASE WHEN {empty} THEN 'not a JSON object' END"
    return Source(f"read_json({layout}, columns = {{{columns}}})", types, where, problem=problem)


def _format(path: str) -> str:
    suffixes = [
        suffix.lower() for suffix in PurePath(path).suffixes if suffix.lower() not in (".gz", ".zst", ".bz2")
    ]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise ValueError(
            f"cannot tell the format of {path}: set `format` to csv, tsv, parquet, jsonl or lines"
        )
    return FORMATS[suffixes[-1]]


def _require_mapped(mapping: Mapping[str, str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in mapping]
    if missing:
        raise ValueError(
            f"no column is mapped to {missing[0]}: set `columns: {{{missing[0]}: <name in the file>}}`"
        )


def _require(source: Source, wanted: Any) -> None:
    for column in wanted:
        if column not in source.types:
            raise ValueError(
                f"{source.where} has no column {column!r}; found: {', '.join(source.types)}. "
                "Change `columns` in the options of the data set"
            )


def _listed(column: str | Sequence[str]) -> list[str]:
    return [column] if isinstance(column, str) else list(column)


def _as_id(column: str, source: Source) -> str:
    """An id as text; whole numbers that pandas turned into floats lose their `.0`."""
    sql = identifier(column)
    if source.types[column] in ("DOUBLE", "FLOAT"):
        whole = f"CAST(CAST({sql} AS HUGEINT) AS VARCHAR)"
        return f"CASE WHEN {sql} = floor({sql}) THEN {whole} ELSE CAST({sql} AS VARCHAR) END"
    return f"CAST({sql} AS VARCHAR)"


def _text(columns: Sequence[str], source: Source) -> str:
    """Columns as one text, lists flattened; a single column that is text or a number stays what it is."""
    parts = []
    for column in columns:
        sql, depth = identifier(column), source.types[column].count("[]")
        for _ in range(depth - 1):
            sql = f"flatten({sql})"
        parts.append(f"array_to_string({sql}, ', ')" if depth else f"CAST({sql} AS VARCHAR)")
    return parts[0] if len(parts) == 1 else f"nullif(concat_ws('. ', {', '.join(parts)}), '')"


def _is_time(kind: str) -> bool:
    return kind.startswith(("TIMESTAMP", "DATE"))
