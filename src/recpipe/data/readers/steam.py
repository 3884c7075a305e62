"""Steam reviews and games as collected at UCSD: gzipped lines of Python literals.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis

from recpipe.data.files.json_files import json_text, json_words
from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.python_literals import literal_source
from recpipe.data.files.tables import Entities, RawTables, create_entities

LIST_KEYS = ("genres", "tags", "specs")
TEXT_KEYS = ("developer", "publisher", "release_date", "price")
GAME_KEYS = ("id", "app_name", "title", *LIST_KEYS, *TEXT_KEYS)


@dataclass(frozen=True)
class Options:
    """user: key of the user id, ``username`` as in the literature, or ``user_id``, which many reviews lack."""

    user: str = "username"


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read reviews with days as time and hours played as weight; games with title, tags and developer."""
    keys = (options.user, "product_id", "date", "hours")
    with literal_source(con, files["interactions"], keys=keys, required=keys[:3]) as source:
        user, item, date, hours = map(json_text, keys)
        columns = LogColumns(user, item, date, unit="iso", numbers={"weight": hours})
        log = create_log(con, source, columns)
    return RawTables.of(log, _games(files["items"], con) if files.get("items") else None)


def _games(paths: Sequence[str], con: ibis.BaseBackend) -> Entities:
    title = f"coalesce(nullif({json_text('app_name')}, ''), nullif({json_text('title')}, ''))"
    lists = {name: json_words(name, separator=", ") for name in LIST_KEYS}
    parts = [title, *lists.values(), json_text("developer")]
    columns = {
        "item_id": json_text("id"),
        "title": title,
        "text": f"nullif(concat_ws('. ', {', '.join(parts)}), '')",
        **lists,
        **{name: json_text(name) for name in TEXT_KEYS},
    }
    with literal_source(con, paths, keys=GAME_KEYS, required=("id",)) as source:
        return create_entities(con, source, columns, key="item_id")
