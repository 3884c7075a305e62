"""Generic reader: CSV, TSV, Parquet, JSON or baskets, plain or compressed, one file or many.

A row may also contain a user's whole sequence. Every option: conf/base/parameters/datasets/my_log.yml.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import ibis

from recpipe.config import check_known
from recpipe.data.files.delimited_rows import Dialect
from recpipe.data.files.json_files import json_fields, json_text, json_words, typed_json_source, with_fields
from recpipe.data.files.log_table import EXACT, LogColumns, create_log, id_problems, id_text, number_text
from recpipe.data.files.parquet_files import parquet_source, storable_column, with_folder_columns
from recpipe.data.files.sequence_rows import explode_sequences
from recpipe.data.files.tables import TEXTS, Entities, RawTables, Source, create_entities, identifier, literal, literals
from recpipe.data.files.text_files import COMPRESSION_SUFFIXES, basket_source, delimited_source
from recpipe.data.files.times import INTEGERS

logger = logging.getLogger(__name__)

FORMATS = {
    ".csv": "csv", ".txt": "csv", ".dat": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
    ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
LOG_COLUMNS = ("user_id", "session_id", "item_id", "timestamp", "rating", "weight", "event", "order")
COLUMNS_HINT = ". Change `columns` in the options of the data set"
WIDE_INTEGERS = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT", "UHUGEINT")
NULL_WORDS = ("NULL", "null", "NaN", "nan", "None", "\\N", "NA", "N/A", "<NA>")


@dataclass(frozen=True)
class TableOptions:
    """Layout of a file and the meaning of its columns."""

    format: str | None = None  # csv, tsv, parquet, jsonl or lines; by default from the file's name
    delimiter: str | None = None  # one to four characters; by default that of the format
    header: bool = True  # false: the columns have the names of ``names``
    names: Sequence[str] | None = None  # names of the columns in a file without a header
    encoding: str = "utf-8"  # any that Python knows, such as cp1252 or utf-16
    quote: str | None = None  # quotation mark; by default double quotation marks, none in TSV; '' for none
    escape: str = ""  # stands before quotation marks and delimiters inside values, in place of doubling them
    comment: str = ""  # lines that begin with it are left out
    folder_columns: bool = False  # folders `name=value` become columns
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # column of the file by role, such as user_id
    null_words: Sequence[str] = NULL_WORDS  # words that mean "no value"

    def __post_init__(self) -> None:
        if isinstance(self.null_words, str) or not isinstance(self.null_words, Sequence):
            raise ValueError(f"null_words {self.null_words!r} is no list of words: ['NULL', 'N/A'], or [] for none")


@dataclass(frozen=True)
class EntityOptions(TableOptions):
    """Options of an items file or a users file."""

    types: Mapping[str, str] = dataclasses.field(default_factory=dict)  # number, text or boolean; by default by values
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)  # separator of columns with several values

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.types, Mapping):
            raise ValueError(f"types {self.types!r} of a table are no mapping: {{price: number, zip: text}}")
        if not isinstance(self.lists, Mapping):
            raise ValueError(f"lists {self.lists!r} of a table are no mapping: {{genres: '|'}}")
        for name, separator in self.lists.items():
            if not isinstance(separator, str) or not separator:
                raise ValueError(
                    f"lists: {{{name}: {separator!r}}} of a table names no separator, as {{{name}: '|'}} does"
                )


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the log, and of an items file and a users file."""

    timestamp: str = "s"  # s, ms, us or ns since 1970, iso, or a format of strptime such as '%d.%m.%Y %H:%M'
    null_times: Sequence[Any] = ()  # times that mean "unknown"
    extra_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # for the steps, by name
    sequence_per_row: bool | Mapping[str, Any] = False  # true: a row has a whole sequence; or {delimiter: '|'}
    items: Mapping[str, Any] | None = None  # options of the items file
    users: Mapping[str, Any] | None = None  # options of the users file


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read the log, and items and users where the configuration names files of these roles."""
    log = _log(options, files["interactions"], con)
    items = _entities("item_id", options, files.get("items", ()), con)
    users = _entities("user_id", options, files.get("users", ()), con)
    return RawTables.of(log, items, users)


def _log(options: Options, paths: Sequence[str], con: ibis.BaseBackend) -> ibis.Table:
    mapping = {name: column for name, column in options.columns.items() if column is not None}
    for name in mapping:
        check_known(name, LOG_COLUMNS, what="column in the mapping of the log")
    source = open_source(options, paths, con, ids=_names(list(mapping.values())))
    if options.sequence_per_row:
        mapping = mapping or {"user_id": "user_id", "item_id": "items"}
        source.check_columns(mapping.values(), COLUMNS_HINT)
        mapping = _session_per_row(mapping, options)
        for name, column in mapping.items():
            if source.types[column] == "JSON" and (fields := json_fields(con, source, column)):
                raise ValueError(
                    f"{source.where}: column {column!r} holds records with the fields {', '.join(fields)[:300]}: map "
                    f"one of them, `columns: {{{name}: {column}.{fields[0]}}}`, in the options of the data set"
                )
        arguments = options.sequence_per_row if isinstance(options.sequence_per_row, Mapping) else {}
        source, mapping = explode_sequences(source, mapping, **arguments)
    for name in ("user_id", "item_id"):
        if name not in mapping and not (name == "user_id" and "session_id" in mapping):
            raise ValueError(f"no column is mapped to {name}: set `columns: {{{name}: <name in the file>}}`")
    source.check_columns(mapping.values(), COLUMNS_HINT)
    ids = [name for name in ("user_id", "session_id", "item_id") if name in mapping]
    _check_ids(mapping, ids)
    sql = {name: identifier(column) for name, column in mapping.items()}
    source.check_columns(options.extra_columns.values(), ". Change `extra_columns` in the options of the data set")
    texts = {name: id_text(con, source, mapping[name]) for name in (*ids, "event") if name in mapping}
    user, extra = sequence_id(texts, options.null_words)
    words = literals(map(str, options.null_words))
    extra |= {name: _extra_column(name, column, source, words) for name, column in options.extra_columns.items()}
    columns = LogColumns(
        user, texts["item_id"], sql.get("timestamp"), options.timestamp,
        numbers={name: _number(name, mapping[name], source) for name in ("rating", "weight") if name in mapping},
        order=sql.get("order"), event=texts.get("event"), extra=extra,
        problems=[arm for name in ids for arm in id_problems(name, source, mapping[name])],
        time_type=source.types[mapping["timestamp"]] if "timestamp" in mapping else "VARCHAR",
        null_words=options.null_words, null_times=options.null_times,
    )  # fmt: skip
    return create_log(con, source, columns)


def _check_ids(mapping: Mapping[str, str], ids: Sequence[str]) -> None:
    """Raise ValueError where a column of ids is mapped to another column of the log as well."""
    for name in ids:
        for other in mapping:
            if other != name and mapping[other] == mapping[name]:
                raise ValueError(
                    f"`columns` in the options of the data set maps {name} and {other} to the same column "
                    f"{mapping[name]!r}: name two columns"
                )


def _number(name: str, column: str, source: Source) -> str:
    """Return SQL of a column of numbers. Raises ValueError for a type that holds none, such as a date."""
    sql, kind = identifier(column), source.types[column]
    if kind == "JSON":
        return json_text(column)
    if kind not in ("VARCHAR", "BOOLEAN", "FLOAT", "DOUBLE", *INTEGERS) and not kind.startswith(("DECIMAL", "ENUM")):
        raise ValueError(f"{source.where}: column {column!r} is {kind[:80]}, no number: map another one to {name}")
    return f"CAST({sql} AS VARCHAR)" if kind.startswith("ENUM") else sql


def _session_per_row(mapping: Mapping[str, str], options: Options) -> dict[str, str]:
    """Name every row with a sequence by its session. Raises ValueError for columns that such rows cannot have."""
    if options.extra_columns:
        raise ValueError("extra_columns do not go with sequence_per_row: leave one of the two out")
    if "session_id" not in mapping:
        return dict(mapping)
    if "user_id" in mapping:
        raise ValueError("with sequence_per_row a row is a user or a session: map user_id or session_id, not both")
    return {"user_id" if name == "session_id" else name: column for name, column in mapping.items()}


def sequence_id(texts: Mapping[str, str], null_words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return SQL of the id of an event's sequence, and of the user as ``owner`` where it has a session as well.

    The sequence is the user, the session, or, with both, ``user#session``, where the last ``#`` separates them.
    """
    ids = [texts[name] for name in ("user_id", "session_id") if name in texts]
    if len(ids) == 1:
        return ids[0], {}
    no_id = literals(["", *map(str, null_words)])
    user, session = (f"CASE WHEN NOT list_contains({no_id}, {sql}) THEN {sql} END" for sql in ids)
    return f"({user}) || '#' || replace(replace({session}, '%', '%25'), '#', '%23')", {"owner": user}


def _extra_column(name: str, column: str, source: Source, null_words: str) -> str:
    """Return SQL of a column for the steps: integers, finite doubles, booleans, or text without ``null_words``."""
    if name in (*LOG_COLUMNS, "owner", "problem", "source_file"):
        raise ValueError(f"extra_columns has {name!r}, a name of the log itself: map it under `columns`, or rename it")
    sql, kind = identifier(column), source.types[column]
    if kind in ("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT"):
        return sql
    if kind in ("FLOAT", "DOUBLE", *WIDE_INTEGERS) or kind.startswith("DECIMAL"):
        number = f"CAST({sql} AS DOUBLE)"  # DuckDB 2.0.0 folds isnan to false by the statistics of a Parquet file
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    text = json_text(column) if kind == "JSON" else f"CAST({sql} AS VARCHAR)"
    return f"CASE WHEN NOT list_contains({null_words}, trim({text})) THEN {text} END"


def _entities(key: str, log_options: Options, paths: Sequence[str], con: ibis.BaseBackend) -> Entities | None:
    if not paths:
        return None
    values = (log_options.items if key == "item_id" else log_options.users) or {}
    allowed = [field.name for field in dataclasses.fields(EntityOptions)]
    for name in values:
        check_known(name, allowed, what=f"option of a table of {key}s")
    options = EntityOptions(**{"null_words": log_options.null_words, **values})
    mapping = {key: key} | {name: columns for name, columns in options.columns.items() if columns not in (None, [])}
    parts = {name: _names(columns) for name, columns in mapping.items()}
    source = open_source(options, paths, con, ids=parts[key])
    source.check_columns((column for columns in parts.values() for column in columns), COLUMNS_HINT)
    sql = {key: id_text(con, source, mapping[key])}
    for name, columns in parts.items():
        if name == "image":
            sql[name] = _addresses(columns, source)
        elif name in ("title", "text") or len(columns) != 1:
            sql.setdefault(name, _joined_text(columns, source))
        else:
            sql.setdefault(name, _attribute(columns[0], source, options.types.get(name)))
    mapped = {column for column in mapping.values() if isinstance(column, str)}
    for name in source.types:
        if name in mapped:
            continue
        if name.lower() in map(str.lower, mapping):
            logger.info("%s: the column %s is left out, `columns` maps another one to it", source.where, name)
        else:
            sql[name] = _attribute(name, source, options.types.get(name))
    _check_lists(options, {name: parts.get(name, [name]) for name in sql}, source, key)
    for name, separator in options.lists.items():
        sql[name] = _list(parts.get(name, [name])[0], separator, options.null_words)
    infer = (options.format or file_format(paths[0])) != "parquet"
    return create_entities(con, source, sql, key=key, types=options.types, null_words=options.null_words, infer=infer)


def _check_lists(options: EntityOptions, parts: Mapping[str, Sequence[str]], source: Source, key: str) -> None:
    """Raise ValueError for entries of ``lists`` that name no column of text, or one with another meaning."""
    for name in options.lists:
        check_known(name, parts, what=f"column in `lists` of {source.where}")
        columns = parts[name]
        if name in (key, *TEXTS) or len(columns) != 1:
            raise ValueError(f"`lists` of {source.where}: {name} is one text, no list; leave it out")
        if name in options.types:
            raise ValueError(f"{source.where}: {name} is in `lists` and in `types`: leave it out of one")
        if (kind := source.types[columns[0]]) != "VARCHAR":
            raise ValueError(f"`lists` of {source.where}: {name} is {kind[:80]}, no text to split; leave it out")


def _list(column: str, separator: str, null_words: Sequence[str]) -> str:
    """Return SQL of the values of a text without blanks around them, and without empty ones; null without any."""
    words = literals(["", *map(str, null_words)])
    values = f"list_transform(string_split({identifier(column)}, {literal(separator)}), lambda value: trim(value))"
    values = f"list_filter({values}, lambda value: NOT list_contains({words}, value))"
    return f"CASE WHEN len({values}) > 0 THEN {values} END"


def _attribute(name: str, source: Source, kind: str | None) -> str:
    """Return SQL of a column of its own type, as text where ``kind``, its type or its name asks for it."""
    column_type = source.types[name]
    is_number = column_type in (*INTEGERS, *EXACT) or column_type.startswith("DECIMAL")
    if kind is not None and ("[" in column_type or column_type == "JSON"):
        raise ValueError(f"{source.where}: {name} holds lists or records, no {kind}: leave it out of `types`")
    converted = kind is not None and not (kind == "number" and is_number)
    if converted or name in ("title", "text") or column_type == "JSON":
        return number_text(identifier(name), column_type) if is_number else _joined_text([name], source)
    return storable_column(name, column_type)


def open_source(options: TableOptions, paths: Sequence[str], con: ibis.BaseBackend, *, ids: Collection[str]) -> Source:
    """Create a source. ids: columns whose values have no line break."""
    source = _file_source(options, paths, con, ids=ids)
    source = with_fields(source, [*_requested(options), *ids])
    return with_folder_columns(source, paths) if options.folder_columns else source


def _file_source(options: TableOptions, paths: Sequence[str], con: ibis.BaseBackend, *, ids: Collection[str]) -> Source:
    requested = _requested(options)
    kind = options.format or file_format(paths[0])
    if kind in ("csv", "tsv", "lines"):
        dialect = _dialect(options, kind)
        if kind == "lines":
            return basket_source(con, paths, dialect=dialect, encoding=options.encoding)
        if not options.header and not options.names:
            raise ValueError(f"{paths[0]} has no header: name its columns, `names: [user, item, time]`, in the options")
        columns = () if options.header else options.names or ()
        return delimited_source(
            con,
            paths,
            dialect=dialect,
            columns=columns,
            encoding=options.encoding,
            mapped=[*requested, *ids],
            single_line=ids,
        )
    if kind == "jsonl":
        return typed_json_source(con, paths, requested=requested, encoding=options.encoding)
    if kind != "parquet":
        raise ValueError(f"unknown format {kind!r}: csv, tsv, parquet, jsonl or lines")
    return parquet_source(con, paths, requested=requested)


def _requested(options: TableOptions) -> list[str]:
    requested = [column for columns in options.columns.values() for column in _names(columns)]
    return [*requested, *getattr(options, "extra_columns", {}).values()]


def _dialect(options: TableOptions, kind: str) -> Dialect:
    delimiter, quote = {"csv": (",", '"'), "tsv": ("\t", ""), "lines": (" ", "")}[kind]
    delimiter = delimiter if options.delimiter is None else options.delimiter.replace("\\t", "\t")  # YAML's '\t'
    return Dialect(delimiter, quote if options.quote is None else options.quote, options.escape, options.comment)


def file_format(path: str) -> str:
    """Return the format that a file's name says. Raises ValueError for a name that says none."""
    suffixes = [suffix for suffix in PurePath(path.lower()).suffixes if suffix not in COMPRESSION_SUFFIXES]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise ValueError(f"cannot tell the format of {path}: set `format` to csv, tsv, parquet, jsonl or lines")
    return FORMATS[suffixes[-1]]


def _names(columns: str | Sequence[str] | None) -> list[str]:
    names = [columns] if isinstance(columns, str) or not isinstance(columns, Iterable) else list(columns)
    for name in (name for name in names if name is not None):
        identifier(name)  # raises ValueError for a name that no column can have
    return [name for name in names if name is not None]


def _joined_text(columns: Sequence[str], source: Source) -> str:
    """Return SQL of columns joined to one text, lists flattened."""
    parts = []
    for column in columns:
        if source.types[column] == "JSON":
            list_text = json_words(column, separator=", ")
            is_list = f"json_type({identifier(column)}) = 'ARRAY'"
            parts.append(f"CASE WHEN {is_list} THEN {list_text} ELSE {json_text(column)} END")
            continue
        sql, depth = identifier(column), source.types[column].count("[]")
        for _ in range(depth - 1):
            sql = f"flatten({sql})"
        parts.append(f"array_to_string({sql}, ', ')" if depth else f"CAST({sql} AS VARCHAR)")
    return parts[0] if len(parts) == 1 else f"nullif(concat_ws('. ', {', '.join(parts)}), '')"


def _addresses(columns: Sequence[str], source: Source) -> str:
    """Return SQL of an image's addresses: text, or a list for columns of lists or several columns."""
    lists = []
    for column in columns:
        sql, kind = identifier(column), source.types[column]
        if kind.endswith("[]"):
            lists.append(f"CAST({'flatten(' * (kind.count('[]') - 1)}{sql}{')' * (kind.count('[]') - 1)} AS VARCHAR[])")
        elif kind == "JSON":
            elements = f"json_extract_string({sql}, '$[*]')"
            lists.append(f"CASE WHEN json_type({sql}) = 'ARRAY' THEN {elements} ELSE [{json_text(column)}] END")
        elif len(columns) == 1:
            return f"CAST({sql} AS VARCHAR)"
        else:
            lists.append(f"[CAST({sql} AS VARCHAR)]")
    return f"flatten([{', '.join(lists)}])"
