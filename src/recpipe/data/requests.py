"""Histories to recommend for, from the log or from a file of requests, sorted by user on disk without leaving DuckDB.

A file of requests has an event per row, or a user's whole history per row (``sequence_per_row``). It is read as a log
is: see `recpipe.data.readers.files`. Rows that cannot be used are counted and set aside; their users get a list too.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ibis

from recpipe.config import check_known
from recpipe.data.atomic import clean_leftovers, temporary_path
from recpipe.data.bad_rows import NO_VALUE, bad_row_examples, check_number, count_reasons, select_bad_rows
from recpipe.data.digests import verified
from recpipe.data.engines import connect
from recpipe.data.files.archives import read_verified
from recpipe.data.files.log_table import id_text
from recpipe.data.files.sequence_rows import list_sql
from recpipe.data.files.tables import Source, column_types, count_rows, create_table, file_list, identifier, literals
from recpipe.data.histories import StoredHistories
from recpipe.data.history_writer import HistoryWriter, UserColumns
from recpipe.data.readers import files
from recpipe.data.sequences import Vocabulary

log = logging.getLogger(__name__)

EMPTY_HISTORY = "empty sequence"  # reason of the reader: a request of a user without history, and no bad row
OPTIONS = tuple(each.name for each in dataclasses.fields(files.Options) if each.name not in ("items", "users"))
OF_FORMAT = ("format", "delimiter", "header", "names", "quote", "escape", "comment", "encoding")
ROLES = (*files.LOG_COLUMNS, "candidates")
HINT = "; name the columns of the file in recommend.columns"


@dataclass(frozen=True)
class RequestFile:
    """A file of requests, or of users, and how to read it.

    columns: column of the file by role: those of a log, ``candidates``, and names of columns of the users.
    options: options of the reader, as of a data set with ``source: files``. log: options of the data set's own log,
    whose values hold where the file has the same columns. user_names: columns of a file of users that come first.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)
    user_names: Sequence[str] = ()

    def check(self) -> None:
        """Raise ValueError for a missing, empty or damaged file."""
        if not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "no file"
            raise ValueError(f"{self.path} is {what}; give the path of a CSV, TSV, Parquet or JSON lines file")
        if not self.path.stat().st_size:
            raise ValueError(f"{self.path} has no rows; write at least one request into it")
        read_verified(self.path, [])

    def reader_options(self, con: ibis.BaseBackend) -> tuple[files.Options, dict[str, str]]:
        """Return the options of the reader without ``columns``, and the column of the file by role.

        Raises ValueError for columns that the file lacks.
        """
        for name in self.options:
            check_known(name, OPTIONS, what="option in recommend.options")
        inherited = {key: value for key, value in self.log.items() if key in OPTIONS and key != "extra_columns"}
        columns = {**(inherited.get("columns") or {}), **(self.options.get("columns") or {})}
        options, types = self._layout(con, inherited, [*columns.values(), *self.columns.values()])
        chosen = {name: column for name, column in columns.items() if _is_column(column, types)}
        used = {*chosen, *columns.values()}
        chosen |= {name: name for name in ROLES if name in types and name not in used}
        for name, column in self.columns.items():
            if column is not None and not _is_column(column, types):
                raise ValueError(f"{self.path} has no column {column!r} for {name}; found: {', '.join(types)}{HINT}")
        return options, chosen | {name: column for name, column in self.columns.items() if column is not None}

    def _layout(
        self, con: ibis.BaseBackend, inherited: Mapping[str, Any], columns: Sequence[Any]
    ) -> tuple[files.Options, Mapping[str, str]]:
        """Return options without ``columns`` and the types of the file's columns.

        Delimiter, header and the like of the log hold if the file then has one of ``columns`` or one named as its role.
        """
        own = {key: value for key, value in inherited.items() if key not in OF_FORMAT}
        layouts = [{**layout, **self.options, "columns": {}} for layout in (inherited, own)]
        if not _has_format(self.path, inherited.get("format")):
            del layouts[0]
        for layout in layouts:
            options = files.Options(**layout)
            try:
                types = files.open_source(options, [str(self.path)], con, ids=[]).types
            except ValueError:
                if layout is layouts[-1]:
                    raise
                continue
            if layout is layouts[-1] or any(_is_column(name, types) for name in (*columns, *ROLES, *self.user_names)):
                return options, types
        raise AssertionError("the last layout is returned")


def _has_format(path: Path, log_format: Any) -> bool:
    """Return whether a file may have the format of the log by its name."""
    try:
        return log_format is None or files.file_format(path.name) == log_format
    except ValueError:  # the name says nothing, so that the format of the log is the best guess
        return True


def _is_column(column: Any, types: Mapping[str, str]) -> bool:
    """Return whether a file has a column, or the record that ``record.field`` is in."""
    return isinstance(column, str) and (column in types or column.split(".")[0] in types)


@dataclass(frozen=True)
class Requests:
    """Where the histories come from: the log, or a file of requests.

    users: a file whose users get a list, in its order, and no others. profiles: the table of users of the data set.
    profile_columns: columns of the users that the model reads.
    """

    interactions: Path
    requests: RequestFile | None = None
    users: RequestFile | None = None
    profiles: Path | None = None
    profile_columns: Sequence[str] = ()

    @contextmanager
    def stored(
        self, vocabulary: Vocabulary, engine: Mapping[str, Any], *, quarantine: Path | None = None
    ) -> Iterator[StoredHistories]:
        """Sort the histories into temporary files in the spill folder of ``engine``, deleted at the end of the block.

        Unusable rows of the requests go to the Parquet file ``quarantine``. Raises ValueError for a file that cannot
        be read, without rows or users, or most of whose rows are unusable.
        """
        parent = Path(engine.get("spill_folder") or ".spill")
        parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(parent)
        folder = temporary_path(parent / "histories", "part")
        folder.mkdir()
        try:
            yield self._store(vocabulary, engine, folder, quarantine)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _store(
        self, vocabulary: Vocabulary, engine: Mapping[str, Any], folder: Path, quarantine: Path | None
    ) -> StoredHistories:
        """Sort the histories into ``folder``, and free the memory of DuckDB."""
        con = connect(engine)
        try:
            writer = HistoryWriter(con, vocabulary, folder)
            users, columns = self._read(con, writer, quarantine)
            return writer.write(users, columns)
        finally:
            con.disconnect()

    def _read(self, con: ibis.BaseBackend, writer: HistoryWriter, quarantine: Path | None) -> tuple[str, UserColumns]:
        """Create the table or view ``events``; return SQL of the users in order, and their columns."""
        requested = None
        if self.requests is None:
            path = verified(self.interactions, "run `kedro run --pipelines=ingest`")
            if not path.is_file():
                raise ValueError(f"{path} does not exist; `kedro run --pipelines=ingest` writes it")
            con.raw_sql(f"CREATE TEMP VIEW events AS SELECT * FROM read_parquet({file_list([str(path)])})")
            users = "SELECT DISTINCT user_id FROM events ORDER BY user_id"
        else:
            reader = _RequestReader(self.requests, con, self.profile_columns)
            users, bad = reader.read()
            requested = reader.user_columns()
            if quarantine is not None and bad.count().to_pyarrow().as_py():
                writer.copy(con.compile(bad), quarantine)
        if self.users is not None:
            users = _users_of_file(self.users, con)
        profiles = None if self.profiles is None else verified(self.profiles, "run `kedro run --pipelines=ingest`")
        return users, UserColumns(self.profile_columns, requested, profiles)


class _RequestReader:
    """Reader of one file of requests, on a connection."""

    def __init__(self, request: RequestFile, con: ibis.BaseBackend, profile_columns: Sequence[str]) -> None:
        request.check()
        self.request, self.con, self.profile_columns = request, con, profile_columns
        self.options, self.columns = request.reader_options(con)
        _check_columns(request, self.options, self.columns)

    def read(self) -> tuple[str, ibis.Table]:
        """Create the table ``events`` of the usable rows; return SQL of all users in order, and the other rows."""
        of_log = {name: column for name, column in self.columns.items() if name in files.LOG_COLUMNS}
        options = dataclasses.replace(self.options, columns=of_log)
        log_table = files.read(options, {"interactions": [str(self.request.path)]}, self.con).interactions
        rows = self._table("request_rows", log_table)
        bad = self._table("bad_rows", select_bad_rows(rows).filter(ibis._.reason != EMPTY_HISTORY))
        _check_rows(self.request.path, rows, bad)
        self._table("events", rows.filter(check_number(rows) == 0))
        words = literals(["", *map(str, options.null_words)])
        usable = f"NOT list_contains({words}, trim(user_id)) AND NOT regexp_matches(user_id, '[\\r\\n\\x00]')"
        users = f'SELECT user_id, min("order") AS place FROM request_rows WHERE {usable} GROUP BY user_id'
        self.con.raw_sql(f"CREATE TEMP TABLE users_of_requests AS SELECT user_id FROM ({users}) ORDER BY place")
        return "SELECT user_id FROM users_of_requests", bad

    def _table(self, name: str, rows: ibis.Table) -> ibis.Table:
        """Compute a table now, under a name of the connection, with which it ends."""
        self.con.raw_sql(f"CREATE TEMP TABLE {identifier(name)} AS {self.con.compile(rows)}")
        return self.con.table(name)

    def user_columns(self) -> Source | None:
        """Open the file once more for the columns of users: candidates and profiles. None where it has none."""
        paths, columns = [str(self.request.path)], self.columns
        source = files.open_source(dataclasses.replace(self.options, columns=columns), paths, self.con, ids=[])
        names = {name: columns.get(name, name) for name in ("candidates", *self.profile_columns)}
        names = {name: column for name, column in names.items() if column in source.types}
        if not names:
            return None
        ids = [name for name in ("user_id", "session_id") if name in columns]
        texts: dict[str, str] = {name: id_text(self.con, source, columns[name]) for name in ids}
        row_number = "CAST(row_number() OVER () AS VARCHAR)"
        user = files.sequence_id(texts, self.options.null_words)[0] if ids else row_number
        split = self.options.sequence_per_row if isinstance(self.options.sequence_per_row, Mapping) else {}
        values = [f"{user} AS user_id"]
        for name, column in names.items():
            is_list = name == "candidates"
            sql = _id_list(column, source, split.get("delimiter")) if is_list else identifier(column)
            values.append(f"{sql} AS {identifier(name)}")
        table = create_table(self.con, f"SELECT {', '.join(values)} FROM {source.sql}", where=source.where)
        return Source(table, column_types(self.con, table, where=source.where), source.where)


def _check_rows(path: Path, rows: ibis.Table, bad: ibis.Table) -> None:
    """Log the bad rows. Raises ValueError where there are no rows, or where most of them cannot be used."""
    n_rows = rows.count().to_pyarrow().as_py()
    if not n_rows:
        raise ValueError(f"{path} has no rows; write at least one request into it")
    counts = count_reasons(bad)
    if not (n_bad := sum(counts.values())):
        return
    reasons = "; ".join(f"{reason}: {n:,}" for reason, n in counts.items())
    if 2 * (n_bad - sum(counts.get(reason, 0) for reason in NO_VALUE)) > n_rows:
        raise ValueError(
            f"{n_bad:,} of {n_rows:,} rows of {path} are bad ({reasons}). {bad_row_examples(bad, reasons)} Change "
            "recommend.columns or recommend.options"
        )
    log.warning("%s: %s of %s rows set aside. %s", path, f"{n_bad:,}", f"{n_rows:,}", reasons)


def _users_of_file(request: RequestFile, con: ibis.BaseBackend) -> str:
    """Return SQL of the users of a file in its order, each once. Raises ValueError where no column has them."""
    request.check()
    options, columns = request.reader_options(con)
    source = files.open_source(options, [str(request.path)], con, ids=[])
    only = next(iter(source.types)) if len(source.types) == 1 else None
    names = [name for name in request.user_names if name in source.types]
    column = next(iter(names), columns.get("user_id", only))
    if column is None:
        raise ValueError(f"{request.path} has no column of users; found: {', '.join(source.types)}{HINT}")
    words = literals(["", *map(str, options.null_words)])
    table = create_table(con, f"SELECT {id_text(con, source, column)} AS user_id FROM {source.sql}", where=source.where)
    usable = f"user_id IS NOT NULL AND NOT list_contains({words}, trim(user_id))"
    if without := count_rows(con, f"{table} WHERE NOT coalesce({usable}, false)"):
        log.warning("%s: %s rows left out, they have no user id", request.path, f"{without:,}")
    return f"SELECT user_id FROM {table} WHERE {usable} GROUP BY user_id ORDER BY min(rowid)"


def _check_columns(request: RequestFile, options: files.Options, columns: Mapping[str, str]) -> None:
    """Raise ValueError for a file of requests without a column of items or, unless a row is a user, of users."""
    missing = [] if "item_id" in columns else ["item_id"]
    if not options.sequence_per_row and not {"user_id", "session_id"} & columns.keys():
        missing.append("user_id")
    if missing:
        raise ValueError(f"{request.path} has no column of {' and none of '.join(missing)}{HINT}")


def _id_list(column: str, source: Source, delimiter: str | None) -> str:
    """Return SQL of a column of candidates as a list of ids: of lists, of text that is a list, or of single ids."""
    kind = source.types[column]
    if kind in ("VARCHAR", "JSON") or kind.endswith("[]"):
        values = list_sql(column, source, delimiter)
    else:
        values = f"CASE WHEN {identifier(column)} IS NOT NULL THEN [{identifier(column)}] END"
    return f"list_transform({values}, lambda x: trim(CAST(x AS VARCHAR)))"
