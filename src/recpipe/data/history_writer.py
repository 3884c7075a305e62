"""Sorting of histories by user and time on DuckDB, into the files of `recpipe.data.histories`.

The tables of a connection: ``events`` (user_id, item_id, timestamp, order, and rating or weight if there are any),
``requested`` (user_id, in the order of the output), ``vocabulary`` (item_id, item), ``pairs`` (a user and a candidate).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.files.tables import Source, column_types, count_rows, file_list, identifier, literal
from recpipe.data.histories import CANDIDATES, EVENTS, N_CANDIDATES, N_EVENTS, USERS, StoredHistories
from recpipe.data.sequence_files import PROFILE
from recpipe.data.sequences import Vocabulary

REQUESTED = "(SELECT rowid AS place, user_id FROM requested) AS r"


class UserColumns(NamedTuple):
    """Columns of the users. requested: of the requests, with ``candidates`` as lists; stored: of the data set."""

    names: Sequence[str] = ()  # that the model reads
    requested: Source | None = None
    stored: Path | None = None


class HistoryWriter:
    """Writer of the files in ``folder``, from the table or view ``events`` of a connection."""

    def __init__(self, con: ibis.BaseBackend, vocabulary: Vocabulary, folder: Path) -> None:
        self.con, self.folder = con, folder
        item = pa.array(range(1, len(vocabulary) + 1), pa.int32())
        con.con.register("item_ids", pa.table({"item_id": pa.array(vocabulary.ids, pa.string()), "item": item}))
        con.raw_sql("CREATE TEMP TABLE vocabulary AS SELECT * FROM item_ids")
        con.con.unregister("item_ids")

    def write(self, users: str, columns: UserColumns) -> StoredHistories:
        """Write all files. users: SQL of the requested users in order. Raises ValueError without any."""
        self.con.raw_sql(f"CREATE TEMP TABLE requested AS SELECT CAST(user_id AS VARCHAR) AS user_id FROM ({users})")
        n_users = count_rows(self.con, "requested")
        if not n_users:
            raise ValueError("no user is requested: no row has a usable user id")
        unknown_candidates = self._write_candidates(columns.requested)
        n_events, unknown_events = self._write_events()
        self._write_users(columns)
        return StoredHistories(self.folder, n_users, n_events, unknown_events, unknown_candidates)

    def copy(self, query: str, path: Path) -> None:
        """Write the result of a query to a Parquet file."""
        options = "FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false"
        self.con.raw_sql(f"COPY ({query}) TO {literal(str(path))} ({options})")

    def _write_events(self) -> tuple[int, int]:
        """Write the events of known items; return their number, and that of the others."""
        types = column_types(self.con, "events", where="events")
        counts = "SELECT count(*), count(timestamp) FROM events SEMI JOIN requested USING (user_id)"
        total, timed = self.con.raw_sql(counts).fetchall()[0]
        if 0 < timed < total:
            raise ValueError(f"{total - timed} of {total} events have no timestamp; give all of them one or none")
        columns = ["v.item"]
        columns += ["CAST(e.timestamp AS BIGINT) AS timestamp"] if timed else []
        columns += ["CAST(e.rating AS FLOAT) AS rating"] if "rating" in types else []
        columns += ["CAST(coalesce(e.weight, 1) AS FLOAT) AS weight"] if "weight" in types else []
        order = ["r.place", *(["e.timestamp"] if timed else []), 'e."order"']
        self.copy(
            f"SELECT {', '.join(columns)} FROM events AS e JOIN {REQUESTED} ON e.user_id = r.user_id "
            f"JOIN vocabulary AS v ON e.item_id = v.item_id ORDER BY {', '.join(order)}",
            self.folder / EVENTS,
        )
        known = pq.read_metadata(self.folder / EVENTS).num_rows
        return known, total - known

    def _write_candidates(self, requested: Source | None) -> int:
        """Write the candidates of every user, each once; return the number of unknown ones."""
        if requested is None or "candidates" not in requested.types:
            return 0
        lists = f"SELECT user_id, unnest(candidates) AS item_id FROM {requested.sql} WHERE candidates IS NOT NULL"
        self.con.raw_sql(
            "CREATE TEMP TABLE pairs AS SELECT DISTINCT r.place, v.item, CASE WHEN v.item IS NULL THEN p.item_id END "
            f"AS unknown FROM ({lists}) AS p JOIN {REQUESTED} ON p.user_id = r.user_id "
            "LEFT JOIN vocabulary AS v ON p.item_id = v.item_id"
        )
        self.copy("SELECT item FROM pairs WHERE item IS NOT NULL ORDER BY place, item", self.folder / CANDIDATES)
        return count_rows(self.con, "pairs WHERE item IS NULL AND unknown IS NOT NULL")

    def _write_users(self, columns: UserColumns) -> None:
        """Write the requested users with the numbers of their events and candidates, and their profiles."""
        counts = "SELECT user_id, count(*) AS n FROM events JOIN vocabulary USING (item_id) GROUP BY user_id"
        values = ["r.user_id", f"coalesce(n.n, 0) AS {N_EVENTS}"]
        joins = [f"LEFT JOIN ({counts}) AS n ON n.user_id = r.user_id"]
        if columns.requested is not None and "candidates" in columns.requested.types:
            values.append(f"CASE WHEN l.has_list THEN coalesce(c.n, 0) END AS {N_CANDIDATES}")
            joins.append(
                "LEFT JOIN (SELECT place, count(item) AS n FROM pairs GROUP BY place) AS c ON c.place = r.place"
            )
            users = f"SELECT DISTINCT user_id FROM {columns.requested.sql} WHERE candidates IS NOT NULL"
            joins.append(f"LEFT JOIN (SELECT *, true AS has_list FROM ({users})) AS l ON l.user_id = r.user_id")
        profiles, profile_joins = self._profiles(columns)
        self.copy(
            f"SELECT {', '.join([*values, *profiles])} FROM {REQUESTED} {' '.join([*joins, *profile_joins])} "
            "ORDER BY r.place",
            self.folder / USERS,
        )

    def _profiles(self, columns: UserColumns) -> tuple[list[str], list[str]]:
        """Return SQL of the profile columns, the requests before the data set, and of their joins."""
        requested, path = columns.requested, columns.stored
        stored = "" if path is None or not path.is_file() else f"read_parquet({file_list([str(path)])})"
        of_stored = column_types(self.con, stored, where=str(path)) if stored else {}
        of_requests = {} if requested is None else requested.types
        values, firsts = [], []
        for name in columns.names:
            sql, kind = identifier(name), of_stored.get(name, of_requests.get(name))
            choices = [f"TRY_CAST(q.{sql} AS {kind})"] if name in of_requests else []
            choices += [f"p.{sql}"] if name in of_stored else []
            values += [f"coalesce({', '.join(choices)}) AS {identifier(PROFILE + name)}"] if choices else []
            firsts += [f"first({sql}) FILTER ({sql} IS NOT NULL) AS {sql}"] if name in of_requests else []
        joins = []
        if firsts and requested is not None:
            rows = f"SELECT user_id, {', '.join(firsts)} FROM {requested.sql} GROUP BY user_id"
            joins.append(f"LEFT JOIN ({rows}) AS q ON q.user_id = r.user_id")
        if any(name in of_stored for name in columns.names):
            joins.append(f"LEFT JOIN {stored} AS p ON p.user_id = r.user_id")
        return values, joins
