"""Steam reviews and games as collected at UCSD: gzipped lines of Python literals.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recpipe.data.files.json_lines import python_literals, text, words
from recpipe.data.files.tables import Columns, RawTables, entities, interactions

if TYPE_CHECKING:
    import ibis
    from ibis.backends.duckdb import Backend

GAME = (
    "id",
    "app_name",
    "title",
    "genres",
    "tags",
    "specs",
    "developer",
    "publisher",
    "release_date",
    "price",
)


@dataclass(frozen=True)
class Options:
    """user: the key that tells reviewers apart, `username` as in the literature, or `user_id`, which many
    reviews lack.
    """

    user: str = "username"


def read(options: Options, files: Mapping[str, Sequence[str]], con: Backend) -> RawTables:
    """Reviews, dated to the day, with the hours played as weight; games with title, tags and developer."""
    keys = (options.user, "product_id", "date", "hours")
    with python_literals(con, files["interactions"], keys=keys, required=keys[:3]) as source:
        columns = Columns(
            text(options.user), text("product_id"), text("date"), unit="iso", weight=text("hours")
        )
        log = interactions(con, source, columns)
    return RawTables(log, _games(files["items"], con, log=log) if files.get("items") else None)


def _games(paths: Sequence[str], con: Backend, *, log: ibis.Table) -> ibis.Table:
    title = f"coalesce(nullif({text('app_name')}, ''), nullif({text('title')}, ''))"
    lists = {name: words(name, joined=", ") for name in ("genres", "tags", "specs")}
    about = [title, *lists.values(), text("developer")]
    columns = {
        "item_id": text("id"),
        "title": title,
        "text": f"nullif(concat_ws('. ', {', '.join(about)}), '')",
        **lists,
        **{name: text(name) for name in ("developer", "publisher", "release_date", "price")},
    }
    with python_literals(con, paths, keys=GAME, required=("id",)) as source:
        return entities(con, source, columns, key="item_id", log=log)
