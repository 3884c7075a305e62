"""JSON as a source: lines, arrays, objects one after another; plain or compressed."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import BinaryIO

import ibis
import pyarrow as pa

from recpipe.data.files.archives import MAX_LINE_BYTES
from recpipe.data.files.raw_text import byte_chunks, readable_paths, temporary_folder
from recpipe.data.files.tables import (
    ENCODING_HINT,
    Source,
    errors_with_file,
    file_list,
    identifier,
    literal,
    literals,
    path_summary,
    reason_with_value,
)

logger = logging.getLogger(__name__)

MAX_KEYS = 1000  # columns of a table; more keys are ids rather than names
HEAD_BYTES = 1 << 20  # by which the layout of a file is recognised
SAMPLE_LINES = 1000
INVALID = "_unread"  # key of a record that stands for a line without a literal; its value is the line's beginning
KINDS = ["NULL", "BOOLEAN", "BIGINT", "UBIGINT", "DOUBLE", "INEXACT", "VARCHAR", "ARRAY", "NESTED", "OBJECT"]
ADVICE = "Write one record per line, with pandas `to_json(path, orient='records', lines=True)`"
NESTED_RECORDS = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(\[\s*\{|\{\s*"(?:[^"\\]|\\.)*"\s*:\s*[^\s\[{])')


def typed_json_source(
    con: ibis.BaseBackend, paths: Sequence[str], *, requested: Sequence[str] = (), encoding: str = "utf-8"
) -> Source:
    """Create a source of all keys, whatever the record that they first stand in: text, lists of text, or JSON.

    Scalars are text, the same whatever their JSON type: 1, 1.0 and "1" are one value. Keys with objects, nested lists,
    lists beside scalars, or numbers that JSON does not hold exactly are of type JSON. requested: keys that are columns
    in any case, where others differ from them only in case or keys are too many. Raises ValueError for files that
    hold no records.
    """
    where, files = path_summary(paths), paths
    paths = readable_paths(con, paths, encoding=encoding)
    records, hint = _records(paths), _layout_hint(paths[0], where)
    try:
        kinds = _json_types(con, records, requested, where)
    except ValueError as error:
        if "maximum_object_size" not in str(error):
            raise
        records = _records(_short_lines(con, paths))
        kinds = _json_types(con, records, requested, where)
    if not kinds and not hint and (head := _head(paths[0])) not in ("", "[]"):
        advice = ENCODING_HINT if "\0" in head else ADVICE
        raise ValueError(f"{where} holds no JSON objects with keys: it begins with {head[:40]!r}. {advice}")
    types = {key: _column_type(kind) for key, kind in kinds.items()}
    values = [f"{_value(place, kinds[key], types[key])} AS {identifier(key)}" for place, key in enumerate(types, 1)]
    return _source(records, list(types), values, types, where)._replace(hint=hint, files=files)


def json_source(con: ibis.BaseBackend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]) -> Source:
    """Create a source with a JSON column per key. Raises ValueError for a required key that no record has."""
    where = path_summary(paths)
    records = _records(readable_paths(con, paths))
    objects = f"FROM {records} WHERE json_type(json) = 'OBJECT'"
    if required:
        with errors_with_file(where):
            sample = con.raw_sql(f"SELECT json_keys(json) {objects} LIMIT {SAMPLE_LINES}").fetchall()
            present = {key for row in sample for key in row[0]}
            if not present.issuperset(required):
                query = f"SELECT DISTINCT unnest(json_keys(json)) {objects} LIMIT {MAX_KEYS}"
                present |= {key for (key,) in con.raw_sql(query).fetchall()}
        check_keys(required, present, where)
    values = [f"raw[{place}] AS {identifier(key)}" for place, key in enumerate(keys, 1)]
    source = _source(records, keys, values, dict.fromkeys(keys, "JSON"), where)
    empty = " AND ".join(f"{json_text(key)} IS NULL" for key in keys)
    invalid = json_text(INVALID) if INVALID in keys else "NULL"
    problem = (
        f"CASE WHEN {invalid} IS NOT NULL THEN {reason_with_value('not a Python literal', invalid)} "
        f"WHEN {empty} THEN 'not a JSON object with the columns expected' END"
    )
    return source._replace(problem=problem, files=paths)


def json_text(key: str) -> str:
    """Return SQL of a key's value as text."""
    return f"({identifier(key)} ->> '$')"


def json_is_exact_scalar(key: str) -> str:
    """Return SQL of whether a key's value is text, a boolean or a number that is exact; false for lists and objects."""
    value = identifier(key)
    return f"(json_type({value}) NOT IN ('ARRAY', 'OBJECT') AND NOT {_inexact(f'CAST({value} AS VARCHAR)')})"


def json_words(key: str, *, separator: str = " ") -> str:
    """Return SQL of a key's text; a list or a list of lists is joined. Null where there is no text."""
    flat, nested = (f"json_extract_string({identifier(key)}, '{path}')" for path in ("$[*]", "$[*][*]"))
    plain = f"CASE WHEN json_type({identifier(key)}) = 'VARCHAR' THEN {json_text(key)} END"
    return (
        f"nullif(trim(CASE WHEN len({nested}) > 0 THEN array_to_string({nested}, {literal(separator)}) "
        f"WHEN len({flat}) > 0 THEN array_to_string({flat}, {literal(separator)}) ELSE {plain} END), '')"
    )


def json_elements(value: str) -> str:
    """Return SQL of an array's values as text, null for an array of lists or objects."""
    is_flat = f"NOT list_has_any(json_type({value}, '$[*]'), ['ARRAY', 'OBJECT'])"
    elements = f"json_extract({value}, '$[*]')"
    return f"CASE WHEN {is_flat} THEN {_element_texts(elements)} END"


def with_fields(source: Source, names: Sequence[str]) -> Source:
    """Add a JSON column for every name ``column.field`` of records, or of lists of records, in a JSON column."""
    columns = {}
    for name in names:
        column, _, path = name.partition(".")
        if name not in source.types and path and source.types.get(column) == "JSON":
            value, pointer = identifier(column), literal("".join(map(_pointer, path.split("."))))
            field = f"json_extract({value}, {pointer})"
            values = f"list_transform(json_extract({value}, '$[*]'), lambda record: json_extract(record, {pointer}))"
            columns[name] = f"CASE json_type({value}) WHEN 'ARRAY' THEN to_json({values}) ELSE {_exact(field)} END"
    if not columns:
        return source
    selection = "".join(f", {sql} AS {identifier(name)}" for name, sql in columns.items())
    types = {**source.types, **dict.fromkeys(columns, "JSON")}
    return source._replace(sql=f"(SELECT *{selection} FROM {source.sql})", types=types)


def json_fields(con: ibis.BaseBackend, source: Source, column: str) -> list[str]:
    """Return the keys of the first records of a JSON column, or of its lists of records; none for other values."""
    value = identifier(column)
    record = f"unnest(CASE json_type({value}) WHEN 'ARRAY' THEN json_extract({value}, '$[*]') ELSE [{value}] END)"
    records = f"SELECT {record} AS record FROM {source.sql} WHERE {value} IS NOT NULL LIMIT 100"
    with errors_with_file(source.where):
        rows = con.raw_sql(f"SELECT json_type(record), json_keys(record) FROM ({records})").fetchall()
    return (
        list(dict.fromkeys(key for _, keys in rows for key in keys)) if {kind for kind, _ in rows} == {"OBJECT"} else []
    )


# Records of files ---------------------------------------------------------------------------------------------------


def _records(paths: Sequence[str]) -> str:
    """Return SQL of all records in order: columns json, null for a line that is no JSON, and file_index."""
    parts, n_files = [], 0
    for layout, members in groupby(paths, key=_layout):
        group = list(members)
        errors = ", ignore_errors = true" if layout == "newline_delimited" else ""
        parts.append(
            f"SELECT json, file_index + {n_files} AS file_index FROM read_json({file_list(group)}, "
            f"format = '{layout}', records = false, columns = {{'json': 'JSON'}}, "
            f"hive_partitioning = false, maximum_object_size = {MAX_LINE_BYTES}{errors})"
        )
        n_files += len(group)
    return f"({' UNION ALL '.join(parts)})"


def _head(path: str) -> str:
    """Read the beginning of a file as text, without white space and byte order mark before its first record."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            return stream.read(HEAD_BYTES).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")  # type: ignore[no-any-return]
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error


def _layout(path: str) -> str:
    """Return DuckDB's name of a JSON file's layout."""
    head = _head(path)
    line, _, rest = head.partition("\n")
    if _is_json(line) and (rest.strip() or not head.startswith("[")):
        return "newline_delimited"
    if re.match(r"\[\s*[\[{\]]", head):
        _check_array_end(path)
        return "array"
    try:
        _, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        return "newline_delimited"
    return "unstructured" if "\n" in head[:end].strip() else "newline_delimited"


def _check_array_end(path: str) -> None:
    """Raise ValueError for an array without its closing bracket; DuckDB reads one that ends behind a comma."""
    end = b""
    for chunk in byte_chunks(path):
        end = chunk.rstrip()[-1:] or end
    if end != b"]":
        raise ValueError(f"cannot read {path}: its array has no closing bracket. It is cut short: fetch it again")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _layout_hint(path: str, where: str) -> str:
    """Return advice for a file that is one object with the records inside; raise ValueError for columns as records."""
    head = _head(path)
    try:
        value, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        nested = NESTED_RECORDS.match(head) if "\n" not in head or head[1:2] in "\r\n" else None
        if nested is None:
            return ""
        value, end = {nested[1]: [{}] if nested[2].startswith("[") else {"0": 0}}, len(head)
    if not isinstance(value, dict) or not value or head[end:].strip():
        return ""
    indices = [list(column) if isinstance(column, dict) else [] for column in value.values()]
    if (indices[0] and indices.count(indices[0]) == len(indices)) or value.keys() >= {"columns", "data"}:
        raise ValueError(f"{where} is one object of columns or rows, as pandas writes by default. {ADVICE}")
    lists = [key for key, records in value.items() if isinstance(records, list) and isinstance([*records, 0][0], dict)]
    return f". {where} is one object with records in its list {lists[0]!r}. {ADVICE}" if lists else ""


def _short_lines(con: ibis.BaseBackend, paths: Sequence[str]) -> list[str]:
    """Copy files of lines with overlong lines cut off, so that they are bad rows; the copies go with ``con``."""
    folder = temporary_folder(con)
    copies = list(paths)
    for number, path in enumerate(paths):
        if _layout(path) != "newline_delimited":
            continue
        copies[number] = str(folder / f"{number}.jsonl")
        with pa.input_stream(path, compression="detect") as stream, open(copies[number], "wb") as out:
            for line in limited_lines(stream):
                out.write(line if len(line) < MAX_LINE_BYTES else line[:60] + b"\n")
    return copies


def check_keys(required: Sequence[str], keys: set[str], where: str) -> None:
    """Raise ValueError for a required key that is missing."""
    missing = [key for key in required if key not in keys]
    if missing:
        present = ", ".join(sorted(keys)[:40]) or "no records"
        raise ValueError(f"{where} has no {missing[0]!r}; found: {present}")


def limited_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines up to ``MAX_LINE_BYTES``; only the beginning of a longer one."""
    buffered = io.BufferedReader(stream, 1 << 20)  # type: ignore[type-var]
    while line := buffered.readline(MAX_LINE_BYTES):
        beginning = line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = buffered.readline(MAX_LINE_BYTES)
        yield beginning


# Keys and types -----------------------------------------------------------------------------------------------------


def _pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _json_types(con: ibis.BaseBackend, records: str, requested: Sequence[str], where: str) -> dict[str, set[str]]:
    """Return the JSON types of all keys' values, keys in the order of the first records.

    INEXACT is a whole number beyond what a float holds, NESTED a list of lists or objects.
    """
    objects = f"FROM {records} WHERE json_type(json) = 'OBJECT'"
    kind = f"""CASE kind WHEN 'DOUBLE' THEN CASE WHEN {_inexact("CAST(value AS VARCHAR)")} THEN 'INEXACT' ELSE kind END
        WHEN 'ARRAY' THEN
            CASE WHEN list_has_any(json_type(value, '$[*]'), ['ARRAY', 'OBJECT']) THEN 'NESTED' ELSE kind END
        ELSE kind END"""
    values = f"""SELECT unnest(json_keys(json)) AS key, unnest(json_type(json, '$.*')) AS kind,
        unnest(json_extract(json, '$.*')) AS value {objects}"""
    first = f"list_contains({literals(requested)}, key) DESC, " if requested else ""
    with errors_with_file(where):
        rows = con.raw_sql(
            f"SELECT key, {kind} AS kind FROM ({values}) GROUP BY key, {kind} "
            f"ORDER BY {first}sum(count(*)) OVER (PARTITION BY key) DESC, key LIMIT {len(KINDS) * (MAX_KEYS + 1)}"
        ).fetchall()
        sample = con.raw_sql(f"SELECT json_keys(json) {objects} LIMIT {SAMPLE_LINES}").fetchall()
    kinds: dict[str, set[str]] = {}
    for key, kind in rows:
        if key and "\0" not in key:
            kinds.setdefault(key, set()).add(kind)
    if len(kinds) > MAX_KEYS:
        logger.warning("%s has more than %d keys: those in the fewest records are left out", where, MAX_KEYS)
        kinds = dict(islice(kinds.items(), MAX_KEYS))
    ordered = dict.fromkeys(key for row in sample for key in row[0] if key in kinds) | dict.fromkeys(sorted(kinds))
    return {key: kinds[key] - {"NULL"} for key in _distinct(list(ordered), requested, where)}


def _distinct(keys: Sequence[str], requested: Sequence[str], where: str) -> list[str]:
    """Leave out keys that differ from another only in case, which SQL does not tell apart."""
    by_name: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: key not in requested):
        other = by_name.setdefault(key.lower(), key)
        if other == key:
            continue
        if key in requested:
            raise ValueError(
                f"{where} has the keys {other!r} and {key!r}, which differ only in case: rename one of them"
            )
        logger.warning("%s: the key %r is left out, it differs from %r only in case", where, key, other)
    return [key for key in keys if by_name[key.lower()] == key]


def _column_type(kinds: set[str]) -> str:
    if kinds == {"ARRAY"}:
        return "VARCHAR[]"
    return "VARCHAR" if kinds.isdisjoint({"ARRAY", "NESTED", "OBJECT", "INEXACT"}) else "JSON"


def _inexact(number: str) -> str:
    """Return SQL of whether JSON text is a whole number written as a float, with too many digits for one."""
    return f"(suffix({number}, '.0') AND abs(TRY_CAST({number} AS DOUBLE)) >= 9007199254740992)"


def _whole(number: str) -> str:
    """Return SQL of the digits of JSON text of a whole number written as a float."""
    return f"CASE {number} WHEN '-0.0' THEN '0' ELSE {number}[:-3] END"


def _value(place: int, kinds: set[str], column_type: str) -> str:
    """Return SQL of the value of the key at a place of the lists ``raw`` (JSON) and ``text``, of one type per key."""
    raw, text = f"CAST(raw[{place}] AS VARCHAR)", f"text[{place}]"
    if column_type == "VARCHAR[]":
        elements = f"json_extract(raw[{place}], '$[*]')"
        return f"CASE WHEN {text} IS NOT NULL THEN {_element_texts(elements)} END"
    if column_type == "JSON":
        value = _exact(f"raw[{place}]") if "DOUBLE" in kinds else f"raw[{place}]"
        return f"CASE WHEN {text} IS NOT NULL THEN {value} END"
    return f"CASE WHEN suffix({raw}, '.0') THEN {_whole(raw)} ELSE {text} END" if "DOUBLE" in kinds else text


def _element_texts(elements: str) -> str:
    """Return SQL of a list of JSON scalars as text."""
    element = "CAST(element AS VARCHAR)"
    text = f"CASE WHEN suffix({element}, '.0') THEN {_whole(element)} ELSE element ->> '$' END"
    return f"list_transform({elements}, lambda element: {text})"


def _exact(value: str) -> str:
    """Return SQL of a JSON value, an exact whole number without ``.0``."""
    text = f"CAST({value} AS VARCHAR)"
    return f"CASE WHEN suffix({text}, '.0') AND NOT {_inexact(text)} THEN CAST({_whole(text)} AS JSON) ELSE {value} END"


def _source(records: str, keys: Sequence[str], values: Sequence[str], types: Mapping[str, str], where: str) -> Source:
    """Create a source of values, SQL over the lists ``raw`` (JSON) and ``text`` of the keys, with a hidden column."""
    hidden = "_record"
    while hidden in map(str.lower, types):
        hidden += "_"
    pointers = literals(map(_pointer, keys or [""]))
    problem = "CASE WHEN json_type(json) IS DISTINCT FROM 'OBJECT' THEN 'not a JSON object' END"
    columns = [*values, f"{problem} AS {hidden}"]
    columns += [] if "file_index" in map(str.lower, types) else ["file_index"]
    sql = (
        f"(SELECT {', '.join(columns)} FROM (SELECT *, json_extract(json, {pointers}) AS raw, "
        f"json_extract_string(json, {pointers}) AS text FROM {records}))"
    )
    return Source(sql, types, where, problem=hidden)
