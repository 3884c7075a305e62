"""Text files as sources: delimited text and baskets. Compression and encodings: ``raw_text``."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import duckdb
import ibis
from ibis.util import gen_name

from recpipe.data.files.archives import CHUNK
from recpipe.data.files.delimited_rows import (
    ESCAPED_QUOTE,
    NOT_UTF8,
    PROBLEM,
    SEPARATOR,
    STRAY_QUOTE,
    Dialect,
    Records,
    RowsFile,
    TextError,
    decoded_lines,
    long_values,
)
from recpipe.data.files.raw_text import byte_chunks, encoding_hint, readable_paths, temporary_folder
from recpipe.data.files.tables import Source, file_list, identifier, literal, path_summary
from recpipe.progress import BYTES, Progress, progress

logger = logging.getLogger(__name__)

MAX_HEADER_LETTERS = 1 << 20
NAMES_HINT = "If there is no header, set `header: false` and `names: [...]` in the options of the data set"
REPEATED_HEADER = "header in the middle of the file"
COMPRESSION_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".zip")


class Part(NamedTuple):
    """File of a source: its path, a readable copy, its first record, and whether it has plain lines and quotes."""

    path: str
    copy: str
    first: list[str]
    is_plain: bool  # apart from quotes
    has_quotes: bool


def delimited_source(
    con: ibis.BaseBackend,
    paths: Sequence[str],
    *,
    dialect: Dialect,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    mapped: Collection[str] = (),
    single_line: Collection[str] = (),
) -> Source:
    """Create a source of text columns. columns: names in files without a header.

    mapped: columns that are used, by their exact names; of others that differ by case only, or are named twice, one is
    renamed. single_line: columns whose values have no line break, such as ids. Parts may have their columns in another
    order; empty parts do not count. Lines that are no record have a problem. Raises ValueError if all parts are empty
    or all lines bad, and for a header that cannot be decoded, has one column or other columns than the first part's.
    """
    _check_dialect(dialect)
    parts = _parts(con, paths, dialect, encoding=encoding)
    header = list(columns) if columns else _common_header(parts, dialect)
    names = _unique_names(header, mapped, path_summary(paths))
    source = _source(con, parts, names, dialect, header=() if columns else header, single_line=single_line)
    return source._replace(files=_files(parts, paths), hint="" if columns else _header_hint(header))


def basket_source(con: ibis.BaseBackend, paths: Sequence[str], *, dialect: Dialect, encoding: str = "utf-8") -> Source:
    """Create a source of lines with a user and a varying number of items: text columns user_id and items."""
    _check_dialect(dialect)
    whole_lines = Dialect(None, comment=dialect.comment)
    parts = _parts(con, paths, whole_lines, encoding=encoding)
    source = _source(con, parts, ["line"], whole_lines)
    user = f"split_part(line, {literal(dialect.delimiter or ' ')}, 1)"
    items = f"substr(line, length({user}) + {len(dialect.delimiter or ' ') + 1})"
    problem = "" if source.problem == "NULL" else f", {source.problem}"
    sql = f"(SELECT {user} AS user_id, {items} AS items, file_index{problem} FROM {source.sql})"
    return source._replace(sql=sql, types={"user_id": "VARCHAR", "items": "VARCHAR"}, files=_files(parts, paths))


def _files(parts: Sequence[Part], paths: Sequence[str]) -> list[str]:
    """Return the paths in the order of ``file_index``, those of empty files last."""
    present = [part.path for part in parts]
    return present + [path for path in paths if path not in set(present)]


def _parts(con: ibis.BaseBackend, paths: Sequence[str], dialect: Dialect, *, encoding: str) -> list[Part]:
    """Return the parts that are not empty."""
    parts = []
    for path, copy in zip(paths, readable_paths(con, paths, encoding=encoding), strict=True):
        with long_values():
            first, problem = Records(decoded_lines(byte_chunks(copy)), dialect).first() or (None, None)
        if problem:
            start = next(byte_chunks(copy), b"")[:1000]
            hint = encoding_hint(start) if problem.startswith((NOT_UTF8, "null byte")) else ""
            raise ValueError(f"cannot read {path}: its first line is bad, {problem}. {hint}")
        if first is not None:
            parts.append(Part(path, copy, first, *_inspect(byte_chunks(copy), dialect)))
    if not parts:
        raise ValueError(f"{path_summary(paths)} is empty")
    if len(parts) < len(paths):
        logger.info("%s: %d of %d files are empty", path_summary(paths), len(paths) - len(parts), len(paths))
    return parts


def _inspect(chunks: Iterable[bytes], dialect: Dialect) -> tuple[bool, bool]:
    """Return whether text is plain and whether it has quotes.

    Plain is UTF-8 with one kind of line ends, no overlong line, no escapes, comments and null bytes.
    """
    signs = [sign.encode() for sign in (dialect.escape, dialect.comment, "\0") if sign]
    quote, has_quotes = dialect.quote.encode(), False
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_lf = n_cr = n_crlf = 0
    last = b""
    for chunk in chunks:
        if any(sign in chunk for sign in signs) or codecs.BOM_UTF8 in chunk[0 if last else 3 :]:
            return False, has_quotes
        if (not last and chunk[:1] in (b"\n", b"\r")) or (len(chunk) == CHUNK and b"\n" not in chunk):
            return False, has_quotes
        has_quotes = has_quotes or (bool(quote) and quote in chunk)
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            return False, has_quotes
        n_lf, n_cr = n_lf + chunk.count(b"\n"), n_cr + chunk.count(b"\r")
        n_crlf += chunk.count(b"\r\n") + (last == b"\r" and chunk[:1] == b"\n")
        last = chunk[-1:]
    return not decoder.getstate()[0] and (n_cr == 0 or n_cr == n_crlf == n_lf), has_quotes


def _common_header(parts: Sequence[Part], dialect: Dialect) -> list[str]:
    """Return the header of the first part. Raises ValueError for a part with other columns."""
    path, header = parts[0].path, parts[0].first
    if sum(map(len, header)) > MAX_HEADER_LETTERS:
        raise ValueError(
            f"{path} has a first line of more than {MAX_HEADER_LETTERS:,} letters: no header. {NAMES_HINT}"
        )
    if len(header) == 1:
        comment = " If comments stand before the header, set `comment: '#'`" if header[0].startswith("#") else ""
        raise ValueError(
            f"{path} has one column, {header[0][:80]!r}, when split at {dialect.delimiter!r}: "
            f"set `delimiter` in the options of the data set to the one the file uses.{comment}"
        )
    for part in parts:
        if sorted(part.first) != sorted(header) or (part.first != header and len(set(header)) < len(header)):
            raise ValueError(
                f"{part.path} has the columns {', '.join(part.first)[:200]}, but {path} has {', '.join(header)[:200]}. "
                f"{NAMES_HINT}; lines that repeat the names are then left out"
            )
    return header


def _header_hint(header: Sequence[str]) -> str:
    """Compose advice for a header without the columns that are mapped."""
    if header[0].startswith("#"):
        return ". If comments stand before the header, set `comment: '#'`"
    is_row = any(sign.isdigit() for name in header for sign in name)
    return f". If these are values of a row: {NAMES_HINT[0].lower()}{NAMES_HINT[1:]}" if is_row else ""


def _unique_names(header: Sequence[str], mapped: Collection[str], where: str) -> list[str]:
    """Return column names that differ by more than case, as SQL needs; mapped columns have theirs."""
    header = [name or f"column{place}" for place, name in enumerate(header)]
    names: dict[int, str] = {}
    used: set[str] = set()
    for place in sorted(range(len(header)), key=lambda place: header[place] not in mapped):
        name, number = header[place], 2
        while name.lower() in used:
            if header[place] in mapped:
                raise ValueError(
                    f"{where} names a column twice, or in upper and lower case: {', '.join(header)[:500]}. Rename one, "
                    f"or: {NAMES_HINT}"
                )
            name, number = f"{header[place]}_{number}", number + 1
        if name != header[place]:
            logger.info("%s: column %d, %r, is called %r here", where, place + 1, header[place], name)
        names[place] = name
        used.add(name.lower())
    return [names[place] for place in range(len(header))]


def _source(
    con: ibis.BaseBackend, parts: Sequence[Part], names: Sequence[str], dialect: Dialect, *,
    header: Sequence[str] = (), single_line: Collection[str] = (),
) -> Source:  # fmt: skip
    """Create a source that DuckDB reads from the text where all parts are plain, else from converted rows.

    header: the first record of every part, its columns in any order; empty for parts without.
    """
    where = path_summary([part.path for part in parts])
    types = dict.fromkeys(names, "VARCHAR")
    are_plain = all(
        part.is_plain and (part.first == list(header) if header else part.first != list(names)) for part in parts
    )
    quoted = [part.copy for part in parts if part.has_quotes]
    if not are_plain or (quoted and not _are_well_quoted(con, quoted, dialect)):
        path = temporary_folder(con) / "rows.parquet"
        rows = RowsFile(path, names)
        for part in parts:
            _convert(part, rows, dialect, header=header or names, has_header=bool(header), single_line=single_line)
            rows.next_file()
        rows.close()
        if rows.problem and not rows.n_good:
            hint = "" if rows.problem.startswith((ESCAPED_QUOTE, STRAY_QUOTE)) else ". Is the delimiter right?"
            raise ValueError(
                f"cannot read {where}: no line has the columns {', '.join(names)[:500]}: {rows.problem}{hint}"
            )
        return Source(f"read_parquet({file_list([str(path)])})", types, where, problem=identifier(PROBLEM))
    rejects, quote = gen_name("rejects"), literal(dialect.quote if quoted else "")  # a thread may start inside quotes
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    sql = (
        f"read_csv({file_list(part.copy for part in parts)}, auto_detect = false, hive_partitioning = false, "
        f"header = {'true' if header else 'false'}, delim = {literal(dialect.delimiter or SEPARATOR + chr(30))}, "
        f"quote = {quote}, escape = {quote}, parallel = {not quoted}, columns = {{{columns}}}, store_rejects = true, "
        f"rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + '_scan')})"
    )
    is_repeated = " AND ".join(
        f"{identifier(name)} = {literal(column)}" for name, column in zip(names, header or names, strict=True) if column
    )
    problem = f"CASE WHEN {is_repeated} THEN {literal(REPEATED_HEADER)} END" if dialect.delimiter else "NULL"
    return Source(sql, types, where, rejects=identifier(rejects), problem=problem)


def _are_well_quoted(con: ibis.BaseBackend, paths: Sequence[str], dialect: Dialect) -> bool:
    """Whether the quotation marks of every line enclose whole values, or are doubled, so that lines are records."""
    quote, delimiter = re.escape(dialect.quote), re.escape(dialect.delimiter or SEPARATOR)
    value = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{quote}]*?)"
    lines = (
        f"read_csv({file_list(paths)}, auto_detect = false, hive_partitioning = false, header = false, quote = '', "
        f"escape = '', delim = {literal(SEPARATOR + chr(30))}, columns = {{'line': 'VARCHAR'}})"
    )
    pattern = literal(f"{value}(?:{delimiter}{value})*")
    try:
        bad = con.raw_sql(f"SELECT 1 FROM {lines} WHERE NOT regexp_full_match(line, {pattern}) LIMIT 1").fetchall()
    except duckdb.InvalidInputException:  # such as a line with the delimiter of this query
        return False
    return not bad


def _convert(
    part: Part, rows: RowsFile, dialect: Dialect, *,
    header: Sequence[str], has_header: bool, single_line: Collection[str],
) -> None:  # fmt: skip
    """Add the records of a part to ``rows``, with its columns in the order of ``header``."""
    order = [part.first.index(name) for name in header] if has_header and part.first != list(header) else None
    columns = part.first if order else list(header)
    places = [place for place, name in enumerate(columns) if name in single_line]
    name, size = PurePosixPath(part.path).name, Path(part.copy).stat().st_size
    with progress(size, f"read {name}", unit=BYTES, at_most=True) as bar, long_values():
        lines = decoded_lines(_counted(byte_chunks(part.copy), bar))
        records = Records(lines, dialect, n_columns=len(header), single_line=places)
        try:
            for number, (values, problem) in enumerate(records):
                is_header = values == columns and problem is None and dialect.delimiter is not None
                if is_header and number == 0:
                    continue
                row = [values[place] for place in order] if order and problem is None else values
                rows.add(row, REPEATED_HEADER if is_header else problem)
        except TextError as error:
            hint = f". {encoding_hint(error.sample)}" if error.sample else ""
            raise ValueError(f"cannot read {part.path}: {error}{hint}") from error
    if records.n_comments:
        logger.info("%s: %d comment lines left out", part.path, records.n_comments)


def _counted(chunks: Iterable[bytes], bar: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        bar.add(len(chunk))


def _check_dialect(dialect: Dialect) -> None:
    """Raise ValueError for signs that cannot be told apart."""
    delimiter = dialect.delimiter or ""
    if not 1 <= len(delimiter.encode()) <= 4 or any(sign in delimiter for sign in "\r\n\0"):
        raise ValueError(f"delimiter {delimiter!r} must have one to four characters, and no line end")
    for option, sign in (("quote", dialect.quote), ("escape", dialect.escape)):
        if len(sign) > 1 or sign in ("\r", "\n", "\0") or (sign and sign in delimiter):
            raise ValueError(f"{option} {sign!r} must be one character that is not in the delimiter, or '' for none")
    if dialect.quote and dialect.quote == dialect.escape:
        raise ValueError(f"escape {dialect.escape!r} must not be the quote: doubled quotation marks are read anyway")
    if dialect.escape and not dialect.quote and dialect.escape == dialect.comment:
        raise ValueError(f"comment {dialect.comment!r} must not be the escape")
