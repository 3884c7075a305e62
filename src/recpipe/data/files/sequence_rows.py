"""Rows that hold a user's whole sequence, as a source of single events."""

from __future__ import annotations

from collections.abc import Mapping

from recpipe.data.files.json_files import json_elements, json_text
from recpipe.data.files.python_literals import text_list_sql
from recpipe.data.files.tables import Source, identifier, reason_with_value

SEQUENCE_COLUMNS = ("item_id", "timestamp", "rating", "weight", "event")  # may contain one value per event


def explode_sequences(
    source: Source, mapping: Mapping[str, str], *, delimiter: str | None = None
) -> tuple[Source, dict[str, str]]:
    """Convert rows with a sequence each to a source of single events; return it with the mapping of its columns.

    A sequence is a list (Parquet, JSON) or text: ``1 2 3``, ``1,2,3``, ``[1, 2, 3]``, ``['a, b', 'c']``; with a
    delimiter, text is split only there. Without a user column, every row is a user, named by its number. A row that
    cannot be parsed, or with another number of times than of items, becomes one bad row. Raises ValueError if no column
    is mapped to item_id.
    """
    if "item_id" not in mapping:
        raise ValueError(
            "no column is mapped to item_id: set `columns: {item_id: <the column that holds the sequences>}`"
        )
    columns = {name: mapping[name] for name in SEQUENCE_COLUMNS if name in mapping}
    lists = {name: list_sql(column, source, delimiter) for name, column in columns.items()}
    user = identifier(mapping["user_id"]) if "user_id" in mapping else "CAST(row_number() OVER () AS VARCHAR)"
    sequences = ", ".join(f"{sql} AS {name}s" for name, sql in lists.items())
    reasons = [source.problem]
    for name, column in columns.items():
        if not source.types[column].endswith("[]"):
            text = json_text(column) if source.types[column] == "JSON" else identifier(column)
            reason = reason_with_value("not a list of values", text)
            reasons.append(f"CASE WHEN {text} <> '' AND ({lists[name]}) IS NULL THEN {reason} END")
    lengths = [f"len({name}s) IS DISTINCT FROM len(item_ids)" for name in lists if name != "item_id"]
    file = "" if source.file_sql is None else ", file_index"
    rows = (
        f"SELECT *, ({' OR '.join(lengths) or 'false'}) AS uneven FROM (SELECT {user} AS user_id{file}, {sequences}, "
        f"CAST(coalesce({', '.join(reasons)}) AS VARCHAR) AS unread FROM {source.sql})"
    )
    values = ", ".join(
        f"unnest(CASE WHEN uneven OR coalesce(len({name}s), 0) = 0 THEN [NULL] ELSE {name}s END) AS {name}"
        for name in lists
    )
    kinds = {name: source.types[column] for name, column in columns.items()}
    types = {"user_id": source.types.get(mapping.get("user_id", ""), "VARCHAR")}
    types |= {name: kind[:-2] if kind.endswith("[]") else "VARCHAR" for name, kind in kinds.items()}
    problem = (
        "CASE WHEN unread IS NOT NULL THEN unread WHEN uneven THEN 'not as many times as items in the row' "
        "WHEN item_id IS NULL THEN 'empty sequence' END"
    )
    sql = f"(SELECT user_id, uneven, unread{file}, {values} FROM ({rows}))"
    source = source._replace(sql=sql, types=types, problem=problem, files=source.files if file else ())
    return source, {name: name for name in types}


def list_sql(column: str, source: Source, delimiter: str | None) -> str:
    """Return SQL of a column's values as a list, null where text is not a list.

    Raises ValueError for a column that is neither text nor a list.
    """
    sql, kind = identifier(column), source.types[column]
    if kind.endswith("[]"):
        return sql
    if kind not in ("VARCHAR", "JSON"):
        raise ValueError(f"column {column!r} is {kind}, no sequence: leave `sequence_per_row` out or map another")
    if kind == "JSON":  # lists beside text
        words = text_list_sql(json_text(column), delimiter)
        return f"CASE WHEN json_type({sql}) = 'ARRAY' THEN {json_elements(sql)} ELSE {words} END"
    return text_list_sql(sql, delimiter)
