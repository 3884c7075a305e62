"""Text files of one record per line, split at a delimiter: any delimiter of up to four characters, with or
without a header.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from ibis.util import gen_name

from recpipe.data.files.sql import identifier, literal, literals, names
from recpipe.data.files.tables import ENCODING, Source

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


LONGEST_HEADER = 1 << 20


def delimited(
    con: Backend,
    paths: Sequence[str],
    *,
    delimiter: str,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    quote: str = '"',
) -> Source:
    """A source of text columns. columns: their names in a file without a header; without them the first
    line names them.

    Lines with another number of columns are kept apart in the source's table of rejects. ValueError: an
    empty file, a header that cannot be decoded or has one column only, files whose headers differ.
    """
    if not 1 <= len(delimiter.encode()) <= 4:
        raise ValueError(f"delimiter {delimiter!r} must have one to four characters")
    found = list(columns) if columns else _header(paths, delimiter, encoding=encoding, quote=quote)
    if columns:
        _first_line(paths[0], encoding)
    rejects = gen_name("rejects")
    types = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in found)
    sql = (
        f"read_csv({literals(paths)}, auto_detect = false, header = {'false' if columns else 'true'}, "
        f"delim = {literal(delimiter)}, quote = {literal(quote)}, escape = {literal(quote)}, "
        f"encoding = {literal(encoding)}, columns = {{{types}}}, store_rejects = true, "
        f"rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + '_scan')})"
    )
    return Source(sql, dict.fromkeys(found, "VARCHAR"), names(paths), rejects=identifier(rejects))


def lines(paths: Sequence[str], *, delimiter: str, encoding: str = "utf-8") -> Source:
    """Lines of a varying number of fields, the first of them a user and the others his items, in columns
    user_id and items.
    """
    _first_line(paths[0], encoding)
    whole = (
        f"read_csv({literals(paths)}, auto_detect = false, header = false, "
        f"delim = {literal(chr(31) + chr(30))}, quote = '', escape = '', "
        f"encoding = {literal(encoding)}, columns = {{'line': 'VARCHAR'}})"
    )
    at = literal(delimiter)
    rest = f"substr(line, length(split_part(line, {at}, 1)) + {len(delimiter) + 1})"
    sql = f"(SELECT split_part(line, {at}, 1) AS user_id, {rest} AS items FROM {whole})"
    return Source(sql, {"user_id": "VARCHAR", "items": "VARCHAR"}, names(paths))


def _header(paths: Sequence[str], delimiter: str, *, encoding: str, quote: str) -> list[str]:
    headers = [_split(_first_line(path, encoding), delimiter, quote) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if header != headers[0]:
            raise ValueError(
                f"{path} has the columns {', '.join(header)}, but {paths[0]} has {', '.join(headers[0])}"
            )
    found = [name or f"column{place}" for place, name in enumerate(headers[0])]
    if len(found) == 1:
        raise ValueError(
            f"{paths[0]} has one column, {found[0][:80]!r}, when split at {delimiter!r}: "
            "set `delimiter` in the options of the data set to the one the file uses"
        )
    if len(set(found)) < len(found):
        raise ValueError(f"{paths[0]} names a column twice: {', '.join(found)}")
    return found


def _split(line: str, delimiter: str, quote: str) -> list[str]:
    if len(delimiter) > 1 or not quote:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, quotechar=quote))


def _first_line(path: str, encoding: str) -> str:
    """The first line, decompressed and decoded, without its end or a byte order mark."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            head = stream.read(LONGEST_HEADER)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"cannot read {path}: {error}. It is cut short or is not what its name says"
        ) from error
    try:
        line = io.TextIOWrapper(io.BytesIO(head), encoding=encoding, newline=None, errors="strict").readline()
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"cannot read {path} as {encoding}: {error}. {ENCODING}") from error
    if not head:
        raise ValueError(f"{path} is empty")
    return line.rstrip("\r\n").removeprefix("\ufeff")
