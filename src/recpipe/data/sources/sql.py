"""Text that becomes SQL, always quoted, and statements whose errors name the file instead of the engine."""

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
from ibis.util import gen_name

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend


def identifier(name: str) -> str:
    """A column or table name, quoted; ValueError for a name no column can have."""
    if not isinstance(name, str) or not name or "\x00" in name:
        raise ValueError(f"{name!r} is not a column name: give the name as text, as the file's header has it")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant, quoted; null bytes are refused, since a statement would end at them."""
    if "\x00" in text:
        raise ValueError(f"{text!r} holds a null byte")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """A list of string constants."""
    return "[" + ", ".join(literal(text) for text in texts) + "]"


def column_types(con: Backend, source: str, *, where: str) -> dict[str, str]:
    """Column names and DuckDB types of what stands after FROM."""
    with errors_name(where):
        return {
            str(row[0]): str(row[1]) for row in con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
        }


def create(con: Backend, select: str, *, where: str) -> str:
    """Run a query once into a temporary table that keeps the row order, and return the table's name,
    quoted.
    """
    name = identifier(gen_name("raw"))
    with errors_name(where), _insertion_order(con):
        con.raw_sql(f"CREATE TEMP TABLE {name} AS {select}")
    return name


def shown(reason: str, value: str) -> str:
    """SQL for a reason that shows a value (SQL too), shortened and in quotation marks."""
    return f"{literal(reason + ': ')} || chr(39) || left(CAST({value} AS VARCHAR), 60) || chr(39)"


def view(con: Backend, select: str) -> str:
    """A temporary view of a query; its name, unquoted, for `con.table`."""
    name = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return name


def number(con: Backend, query: str) -> int:
    """The single number that a query gives."""
    return int(con.raw_sql(query).fetchall()[0][0])


@contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Turn what DuckDB says about a file into one ValueError that names it; lack of memory or disk stays
    what it is.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        text = str(error)
        if "No space left" in text:
            raise
        reason = " ".join(text.split("\n\n", maxsplit=1)[0].split())
        hint = ""
        if "unicode" in text or "utf-8" in text.lower() or "encod" in text.lower():
            hint = ". Say how the file is encoded: `encoding: latin-1`, or utf-16, in the options"
        elif any(sign in text for sign in ("GZIP", "magic bytes", "ZSTD", "zstd", "footer")):
            hint = ". The file is cut short or is not what its name says: fetch it again"
        raise ValueError(f"cannot read {where}: {reason}{hint}") from error


@contextmanager
def _insertion_order(con: Backend) -> Iterator[None]:
    """Row numbers are the source's order only while DuckDB keeps it; a connection may have given that up."""
    before = con.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall()[0][0]
    con.raw_sql("SET preserve_insertion_order = true")
    try:
        yield
    finally:
        con.raw_sql(f"SET preserve_insertion_order = {'true' if before else 'false'}")


def names(paths: Sequence[str]) -> str:
    """Paths for an error message: the first, and how many more."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
