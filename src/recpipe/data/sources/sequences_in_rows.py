"""A log that keeps a user's whole sequence in one row, turned into one event per row, in the order of the
sequence.
"""

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal

from __future__ import annotations

from collections.abc import Mapping

from recpipe.data.sources.sql import identifier, literal
from recpipe.data.sources.tables import Source

SEQUENCES = ("item_id", "timestamp", "rating", "weight")  # these may hold one value per event


def one_event_per_row(
    source: Source, mapping: Mapping[str, str], *, delimiter: str | None = None
) -> tuple[Source, dict[str, str]]:
    """The source of single events, and the mapping of its columns.

    A sequence is a list (Parquet, JSON) or text: `1 2 3`, `1,2,3`, `[1, 2, 3]`, `['a', 'b']`; with a
    delimiter it is split there and nowhere else. Without a user column every row is a user, named by its
    number. A row whose times are not as many as its items is kept as one bad row.
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
    uneven = (
        " OR ".join(f"len({name}s) IS DISTINCT FROM len(item_ids)" for name in lists if name != "item_id")
        or "false"
    )
    even = f"SELECT *, ({uneven}) AS uneven FROM (SELECT {user} AS user_id, {whole} FROM {source.sql})"
    single = ", ".join(
        f"unnest(CASE WHEN uneven OR coalesce(len({name}s), 0) = 0 THEN [NULL] ELSE {name}s END) AS {name}"
        for name in lists
    )
    types = {"user_id": source.types.get(mapping.get("user_id", ""), "VARCHAR")}
    types |= {name: _element(name, mapping, source) for name in lists} | {"uneven": "BOOLEAN"}
    exploded = source._replace(
        sql=f"(SELECT user_id, uneven, {single} FROM ({even}))",
        types=types,
        problem="CASE WHEN uneven THEN 'not as many times as items in the row' "
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
    bare = f"regexp_replace({text}, '[\\[\\]()\"'']', '', 'g')"
    return f"list_filter(regexp_split_to_array({bare}, '[\\s,;]+'), lambda item: item <> '')"


def _element(name: str, mapping: Mapping[str, str], source: Source) -> str:
    kind = source.types[mapping[name]]
    return kind[:-2] if kind.endswith("[]") else "VARCHAR"
