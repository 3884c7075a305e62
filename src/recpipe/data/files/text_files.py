"""Text files as sources: delimited text and baskets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pyarrow as pa
from ibis.util import gen_name

from recpipe.data.files.tables import ENCODING_HINT, Source, file_list, identifier, literal, path_summary

MAX_HEADER_BYTES = 1 << 20


def delimited_source(
    paths: Sequence[str], *, delimiter: str, columns: Sequence[str] = (), encoding: str = "utf-8", quote: str = '"'
) -> Source:
    """Create a source of text columns. columns: names in files without a header.

    Lines with another number of columns go to the source's table of rejects. Raises ValueError for an empty file, a
    header that cannot be decoded or has only one column, and files with different headers.
    """
    if not 1 <= len(delimiter.encode()) <= 4:
        raise ValueError(f"delimiter {delimiter!r} must have one to four characters")
    if columns:
        _first_line(paths[0], encoding)
    names = list(columns) if columns else _header(paths, delimiter, encoding=encoding, quote=quote)
    rejects = gen_name("rejects")
    types = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    sql = (
        f"read_csv({file_list(paths)}, auto_detect = false, hive_partitioning = false, "
        f"header = {'false' if columns else 'true'}, delim = {literal(delimiter)}, "
        f"quote = {literal(quote)}, escape = {literal(quote)}, "
        f"encoding = {literal(encoding)}, columns = {{{types}}}, store_rejects = true, "
        f"rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + '_scan')})"
    )
    return Source(sql, dict.fromkeys(names, "VARCHAR"), path_summary(paths), rejects=identifier(rejects))


def basket_source(paths: Sequence[str], *, delimiter: str, encoding: str = "utf-8") -> Source:
    """Create a source of lines with a user and a varying number of items: text columns user_id and items."""
    _first_line(paths[0], encoding)
    lines = (
        f"read_csv({file_list(paths)}, auto_detect = false, hive_partitioning = false, header = false, "
        f"delim = {literal(chr(31) + chr(30))}, quote = '', escape = '', "
        f"encoding = {literal(encoding)}, columns = {{'line': 'VARCHAR'}})"
    )
    user = f"split_part(line, {literal(delimiter)}, 1)"
    items = f"substr(line, length({user}) + {len(delimiter) + 1})"
    sql = f"(SELECT {user} AS user_id, {items} AS items FROM {lines})"
    return Source(sql, {"user_id": "VARCHAR", "items": "VARCHAR"}, path_summary(paths))


def _header(paths: Sequence[str], delimiter: str, *, encoding: str, quote: str) -> list[str]:
    lines = [_first_line(path, encoding) for path in paths]
    if len(delimiter) > 1 or not quote:
        headers = [line.split(delimiter) for line in lines]
    else:
        headers = [next(csv.reader([line], delimiter=delimiter, quotechar=quote)) for line in lines]
    for path, header in zip(paths, headers, strict=True):
        if header != headers[0]:
            raise ValueError(f"{path} has the columns {', '.join(header)}, but {paths[0]} has {', '.join(headers[0])}")
    names = [name or f"column{place}" for place, name in enumerate(headers[0])]
    if len(names) == 1:
        raise ValueError(
            f"{paths[0]} has one column, {names[0][:80]!r}, when split at {delimiter!r}: "
            "set `delimiter` in the options of the data set to the one the file uses"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{paths[0]} names a column twice: {', '.join(names)}")
    return names


def _first_line(path: str, encoding: str) -> str:
    """Read the first line, decompressed and decoded, without line end and byte order mark."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            head = stream.read(MAX_HEADER_BYTES)
        line = io.TextIOWrapper(io.BytesIO(head), encoding=encoding, newline=None, errors="strict").readline()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"cannot read {path} as {encoding}: {error}. {ENCODING_HINT}") from error
    if not head:
        raise ValueError(f"{path} is empty")
    return line.rstrip("\r\n").removeprefix("\ufeff")
