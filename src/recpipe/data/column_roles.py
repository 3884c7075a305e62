"""Roles of the columns of a raw log and of an items file: by the names of columns and by their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from recpipe.config import ConfigError
from recpipe.data.sample_rows import Sample
from recpipe.data.time_formats import UNITS, detect_time_format

MIN_SHARED_IDS = 0.5  # of the log's ids in a column of the items, which is then their id whatever its name
MIN_SHARE_OF_TIMES = 0.99  # of a column's values, which is then the timestamp whatever its name
MIN_SHARE_OF_LISTS = 0.2  # of a column's values with a separator; half of MovieLens' films have one genre
SEPARATORS = ("|", ";")  # of several values in one text
NAMES = {  # usual names of columns by role, the most usual first, in letters only
    "user_id": "user userid customer customerid visitor visitorid client clientid member memberid uid reviewerid "
    "account accountid buyer person personid profileid shopper subscriber listener listenerid viewer viewerid reader "
    "readerid player playerid guest guestid student studentid username who",
    "session_id": "session sessionid visit visitid basketid",
    "item_id": "item itemid product productid sku article articleid asin parentasin movie movieid film track trackid "
    "song songid book bookid isbn video videoid game gameid show showid podcast podcastid episode episodeid recipe "
    "recipeid course courseid hotel hotelid venue venueid stockcode aid contentid newsid businessid filmid titleid",
    "timestamp": "timestamp time date datetime ts createdat happenedat eventtime eventdate eventtimestamp "
    "unixreviewtime orderdate invoicedate purchasedate boughtat bought ratedat watchedat playedat reviewtime when at "
    "moment happened happenedon occurred occurredat unixtime unixtimestamp epoch created createdon ordertime orderedat "
    "purchasetime purchasedat viewedat visitedat visittime visitdate clickedat listenedat readat day",
    "rating": "rating ratings stars overall score",
    "weight": "quantity qty count plays playcount",
    "event": "event eventtype action actiontype behavior behaviour interaction",
    "title": "title name productname itemname movietitle description itemtitle label",
}
LOG_ROLES = ("user_id", "session_id", "item_id", "timestamp", "rating", "weight", "event")
CATEGORY_NAMES = ("category", "categories", "genre", "genres", "kind", "kinds", "department")
TEXT_NAMES = (
    *CATEGORY_NAMES, "brand", "description", "author", "authors", "artist", "artists", "tags", "keywords", "summary",
    "plot", "synopsis", "overview",
)  # fmt: skip


@dataclass(frozen=True)
class ItemTable:
    """Columns of an items file. ids: its column of item ids. title, category: columns, None without one.

    texts: columns of the text that embeddings are made from, besides the title. lists: separator by column.
    """

    sample: Sample
    ids: str
    title: str | None
    texts: Sequence[str] = ()
    lists: Mapping[str, str] | None = None
    category: str | None = None

    def roles(self) -> dict[str, str]:
        """Return the roles of each column that has some, as in a table for the reader."""
        words: dict[str, list[str]] = {column: [] for column in self.sample.columns}
        words[self.ids].append("item_id")
        if self.title:
            words[self.title].append("title")
        for column in self.texts:
            words[column].append("text")
        if self.category:
            words[self.category].append("category")
        for column, separator in (self.lists or {}).items():
            words[column].append(f"list by {separator!r}")
        return {column: ", ".join(parts) for column, parts in words.items() if parts}


def guess_roles(sample: Sample, requested: Mapping[str, str], roles: Sequence[str]) -> dict[str, str]:
    """Return the column of every role that one fits: the requested one, or the first whose name is usual for it.

    A weight changes what models learn: it has a column only if one is requested.
    """
    columns = dict(requested)
    for role in roles:
        free = [column for column in sample.columns if column not in columns.values()]
        by_name = {_letters(column): column for column in reversed(free)}
        if role not in (*columns, "weight") and (
            name := next((name for name in NAMES[role].split() if name in by_name), None)
        ):
            columns[role] = by_name[name]
    if "user_id" in columns and "session_id" in columns and "session_id" not in requested:
        del columns["session_id"]  # sequences of users, unless sessions are requested
    return {role: columns[role] for role in roles if role in columns}


def time_columns(sample: Sample, roles: Mapping[str, str]) -> list[str]:
    """Return the columns without a role whose values are times of events, in a format of day and month.

    Plain numbers need a usual name. A column that describes users or items, such as a birthday, is left out.
    """
    result = []
    for column in (column for column in sample.columns if column not in roles.values()):
        values = sample.values(column)
        if sum(not value.strip() for value in values) > (1 - MIN_SHARE_OF_TIMES) * len(values):
            continue
        time = detect_time_format(values)
        if time is None or time.share < MIN_SHARE_OF_TIMES or time.name in (*UNITS, "%Y%m%d"):
            continue
        keys = [sample.values(roles[role]) for role in ("user_id", "item_id") if role in roles]
        if not any(_is_attribute(values, of=ids) for ids in keys):
            result.append(column)
    return result


def _is_attribute(values: Sequence[str], *, of: Sequence[str]) -> bool:
    """Return whether every id has one value in all of its rows, of which some id has several."""
    ids = len(set(of))
    return ids < len(of) and len(set(zip(of, values, strict=True))) == ids


def describe_items(product: Sample, log: Sample, roles: Mapping[str, str]) -> ItemTable:
    """Find the columns of an items file, which may be the log. Raises ConfigError without a column of ids."""
    ids = _id_column(product, log, roles["item_id"])
    if ids is None:
        raise ConfigError(
            f"no column of {product.path} has the ids of the log's column {roles['item_id']!r}, such as "
            f"{next(filter(None, log.values(roles['item_id'])))!r}; its columns: {', '.join(product.columns)}"
        )
    title = guess_roles(product, {"item_id": ids}, ("item_id", "title")).get("title")
    if product is log:
        return ItemTable(product, ids, title)
    free = [column for column in product.columns if column not in (ids, title)]
    lists = {column: separator for column in free if (separator := list_separator(product.values(column)))}
    texts = [column for column in free if _letters(column) in TEXT_NAMES or column in lists]
    named = (column for column in texts if _letters(column).removesuffix("list") in CATEGORY_NAMES)
    category = next(named, None)
    return ItemTable(product, ids, title, texts, lists, category)


def list_separator(values: Iterable[str]) -> str | None:
    """Return the separator of texts that hold several values, such as ``Drama|War``; None for one value each.

    A fifth of the texts have it, and the parts between recur, as they do not in sentences.
    """
    present = [value for value in values if value.strip()]
    for separator in SEPARATORS:
        parts = [part.strip() for value in present for part in value.split(separator)]
        several = sum(separator in value for value in present)
        if several and several >= MIN_SHARE_OF_LISTS * len(present) and 2 * len(set(parts)) <= len(parts):
            return separator
    return None


def _id_column(product: Sample, log: Sample, log_column: str) -> str | None:
    """Return the column that has the log's item ids: by the log's name, a usual name, or its values; or None."""
    if log_column in product.columns:
        return log_column
    ids = set(log.values(log_column)) - {""}
    shares = {column: len(ids.intersection(product.values(column))) / len(ids) for column in product.columns}
    usual = guess_roles(product, {}, ("item_id",)).get("item_id")
    if usual and shares[usual] >= MIN_SHARED_IDS:
        return usual
    column = max(product.columns, key=lambda name: shares[name])
    return column if shares[column] >= MIN_SHARED_IDS else usual


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
