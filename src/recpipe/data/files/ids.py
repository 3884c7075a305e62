"""Ids as text: one text per value whatever its type, exact, without surrounding blanks."""

from __future__ import annotations

import ibis

from recpipe.data.files.json_files import json_is_exact_scalar, json_text
from recpipe.data.files.tables import Source, errors_with_file, identifier, literal, reason_with_value
from recpipe.data.files.times import INTEGERS

BLANKS = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\ufeff" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
EXACT = {"DOUBLE": 1 << 53, "FLOAT": 1 << 24}  # from here on, several integers have the same float
PLAIN = (*INTEGERS, "BOOLEAN", "DATE", "TIME", "UUID")


def id_text(con: ibis.BaseBackend, source: Source, column: str) -> str:
    """Return SQL of a column of ids as text; null where `id_problems` has a reason.

    Integers that pandas stored as floats lose their ``.0``, decimals their zeros, binary is decoded as UTF-8. Raises
    ValueError for a type that cannot be an id, such as a list, with an example.
    """
    sql, kind = identifier(column), source.types[column]
    if kind in PLAIN or kind in EXACT or kind.startswith("DECIMAL"):
        return number_text(sql, kind)
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return _trimmed(sql if kind == "VARCHAR" else f"CAST({sql} AS VARCHAR)")
    if kind == "BLOB":
        return _trimmed(f"TRY(decode({sql}))")
    if kind == "JSON" and not _is_nested(con, source, sql):
        return f"CASE WHEN {json_is_exact_scalar(column)} THEN {_trimmed(json_text(column))} END"
    example = (
        "" if "TIMESTAMP" in kind else f", such as {_values(con, source, f'left(CAST({sql} AS VARCHAR), 60)', sql, 1)}"
    )
    advice = "name a column of single values"
    if kind.endswith("]") or example.startswith(", such as ['["):
        advice = "set `sequence_per_row: true` where a row holds a user's whole sequence, or name another column"
    what = "of lists or records" if kind == "JSON" else kind[:80]
    raise ValueError(
        f"{source.where}: column {column!r} is {what}, no id{example}. In `columns` of the options, {advice}"
    )


def _is_nested(con: ibis.BaseBackend, source: Source, sql: str) -> bool:
    """Test whether the first values of a JSON column are all lists or objects."""
    values = _values(con, source, f"json_type({sql})", sql, 100)
    return bool(values) and set(values) <= {"ARRAY", "OBJECT"}


def _values(con: ibis.BaseBackend, source: Source, sql: str, column: str, n: int) -> list[str]:
    with errors_with_file(source.where):
        rows = con.raw_sql(f"SELECT {sql} FROM {source.sql} WHERE {column} IS NOT NULL LIMIT {n}").fetchall()
    return [value for (value,) in rows]


def number_text(sql: str, kind: str) -> str:
    """Return SQL of a value of type ``kind`` as text: whole floats and decimals without ``.0``, inexact ones null."""
    text = f"CAST({sql} AS VARCHAR)"
    if kind in EXACT:
        whole = f"CAST(TRY_CAST({sql} AS HUGEINT) AS VARCHAR)"
        # Only isfinite() finds NaN: the statistics of a Parquet file leave it out, and DuckDB 2.0.0 trusts them
        exact = f"isfinite({sql}) AND abs({sql}) < {EXACT[kind]}"
        return f"CASE WHEN NOT ({exact}) THEN NULL WHEN {sql} = floor({sql}) THEN {whole} ELSE {text} END"
    if kind.startswith("DECIMAL") and not kind.endswith(",0)"):
        return f"rtrim(rtrim({text}, '0'), '.')"
    return text


def id_problems(name: str, source: Source, column: str) -> list[str]:
    """Return CASE arms with the reasons why a value of a column is no id. name: user_id or item_id."""
    sql, kind = identifier(column), source.types[column]
    arms = []
    if kind == "JSON":
        reason = reason_with_value(f"{name} is a list, an object or a number that is not exact", sql)
        arms.append(f"WHEN NOT {json_is_exact_scalar(column)} THEN {reason}")
    elif kind == "BLOB":
        arms.append(f"WHEN {sql} IS NOT NULL AND TRY(decode({sql})) IS NULL THEN "
                    + reason_with_value(f"{name} is binary and no UTF-8", sql))  # fmt: skip
    elif kind in EXACT:
        arms.append(f"WHEN NOT isfinite({sql}) THEN '{name} is NaN or infinite'")
        power = EXACT[kind].bit_length() - 1
        inexact = reason_with_value(f"{name} is a float above 2^{power}, whose neighbours are one with it", sql)
        arms.append(f"WHEN abs({sql}) >= {EXACT[kind]} THEN {inexact}")
    return arms


def _trimmed(text: str) -> str:
    """Return SQL of a text without blanks around it. Trimming is slow: first and last character tell most ids apart."""
    ends = " OR ".join(f"{end} < '!' OR {end} > '~'" for end in (text, f"({text})[-1]"))
    return f"CASE WHEN {ends} THEN trim({text}, {literal(BLANKS)}) ELSE {text} END"
