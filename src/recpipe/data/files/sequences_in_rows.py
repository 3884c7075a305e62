"""A log that keeps a user's whole sequence in one row, turned into one event per row, in the order of the
sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

from recpipe.data.files.sql import identifier, literal, shown
from recpipe.data.files.tables import Source

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


SEQUENCES = ("item_id", "timestamp", "rating", "weight")  # these may hold one value per event

QUOTES = """["']"""
VALUE = r"""(?:'(?:[^'\\]|\\['"\\])*'|"(?:[^"\\]|\\['"\\])*"|[^\s,;\[\]()'"]+)"""
VALUES = rf"\s*{VALUE}(?:(?:\s*[,;]\s*|\s+){VALUE})*\s*,?\s*"
QUOTED = rf"(?:{VALUES}|\s*\[{VALUES}\]\s*|\s*\({VALUES}\)\s*)"


def one_event_per_row(
    source: Source, mapping: Mapping[str, str], *, delimiter: str | None = None
) -> tuple[Source, dict[str, str]]:
    """The source of single events, and the mapping of its columns.

    A sequence is a list (Parquet, JSON) or text: `1 2 3`, `1,2,3`, `[1, 2, 3]`, `['a, b', 'c']`; with a
    delimiter it is split there and nowhere else. Without a user column every row is a user, named by its
    number. A row that cannot be read, or whose times are not as many as its items, is kept as one bad row.
    """
    if "item_id" not in mapping:
        raise ValueError(
            "no column is mapped to item_id: set `columns: {item_id: <the column that holds the sequences>}`"
        )
    lists = {
        name: _list(mapping[name], source, delimiter)
        for name in SEQUENCES
        if name in mapping and _is_list(name, mapping, source)
    }
    user = identifier(mapping["user_id"]) if "user_id" in mapping else "CAST(row_number() OVER () AS VARCHAR)"
    whole = ", ".join(f"{sql} AS {name}s" for name, sql in lists.items())
    reasons = ", ".join(_unread(mapping[name], sql, source) for name, sql in lists.items())
    unread = f"CAST(coalesce({reasons}) AS VARCHAR)"
    uneven = (
        " OR ".join(f"len({name}s) IS DISTINCT FROM len(item_ids)" for name in lists if name != "item_id")
        or "false"
    )
    even = (
        f"SELECT *, ({uneven}) AS uneven FROM (SELECT {user} AS user_id, {whole}, {unread} AS unread "
        f"FROM {source.sql})"
    )
    single = ", ".join(
        f"unnest(CASE WHEN uneven OR coalesce(len({name}s), 0) = 0 THEN [NULL] ELSE {name}s END) AS {name}"
        for name in lists
    )
    types = {"user_id": source.types.get(mapping.get("user_id", ""), "VARCHAR")}
    types |= {name: _element(name, mapping, source) for name in lists}
    types |= {"uneven": "BOOLEAN", "unread": "VARCHAR"}
    exploded = source._replace(
        sql=f"(SELECT user_id, uneven, unread, {single} FROM ({even}))",
        types=types,
        problem="CASE WHEN unread IS NOT NULL THEN unread "
        "WHEN uneven THEN 'not as many times as items in the row' "
        "WHEN item_id IS NULL THEN 'empty sequence' END",
    )
    return exploded, {name: name for name in ("user_id", *lists)}


def _is_list(name: str, mapping: Mapping[str, str], source: Source) -> bool:
    kind = source.types[mapping[name]]
    if not kind.endswith("[]") and kind not in ("VARCHAR", "JSON"):
        raise ValueError(
            f"column {mapping[name]!r} is {kind}, no sequence: leave `sequence_per_row` out or map another"
        )
    return True


def _list(column: str, source: Source, delimiter: str | None) -> str:
    sql = identifier(column)
    if source.types[column].endswith("[]"):
        return sql
    text = f"CAST({sql} AS VARCHAR)"
    if delimiter is not None:
        return f"CASE WHEN {text} <> '' THEN string_split({text}, {literal(delimiter)}) END"
    bare = f"regexp_replace({text}, '[\\[\\]()]', '', 'g')"
    loose = f"list_filter(regexp_split_to_array({bare}, '[\\s,;]+'), lambda item: item <> '')"
    return (
        f"CASE WHEN NOT regexp_matches({text}, {literal(QUOTES)}) THEN {loose} "
        f"WHEN json_valid({text}) AND json_type(TRY_CAST({text} AS JSON)) = 'ARRAY' THEN {_json(text)} "
        f"WHEN regexp_full_match({text}, {literal(QUOTED)}) THEN {_quoted(text)} END"
    )


def _json(text: str) -> str:
    """The values of a JSON list; null where one of them is a list or an object itself."""
    json = f"TRY_CAST({text} AS JSON)"
    nested = f"list_has_any(json_type({json}, '$[*]'), ['ARRAY', 'OBJECT'])"
    return f"CASE WHEN NOT {nested} THEN json_extract_string({json}, '$[*]') END"


def _quoted(text: str) -> str:
    """The values of a list as Python writes it, without their quotation marks and backslashes."""
    inner = "regexp_replace(item[2:-2], '\\\\(.)', '\\1', 'g')"
    value = f"CASE WHEN regexp_matches(item[1], {literal(QUOTES)}) THEN {inner} ELSE item END"
    return f"list_transform(regexp_extract_all({text}, {literal(VALUE)}), lambda item: {value})"


def _unread(column: str, values: str, source: Source) -> str:
    """The reason why text gave no list, null where it did."""
    if source.types[column].endswith("[]"):
        return "NULL"
    text = f"CAST({identifier(column)} AS VARCHAR)"
    return f"CASE WHEN {text} <> '' AND ({values}) IS NULL THEN {shown('not a list of values', text)} END"


def _element(name: str, mapping: Mapping[str, str], source: Source) -> str:
    kind = source.types[mapping[name]]
    return kind[:-2] if kind.endswith("[]") else "VARCHAR"
