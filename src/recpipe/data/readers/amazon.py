"""Amazon product reviews with item metadata, in the editions of 2014, 2018 and 2023.

2014: McAuley et al., SIGIR 2015 and He, McAuley, WWW 2016; 2018: Ni, Li, McAuley, EMNLP 2019; 2023: Hou et
al., 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from recpipe.data.files.json_lines import json_lines, python_literals, text, words
from recpipe.data.files.tables import Columns, RawTables, Source, entities, interactions

if TYPE_CHECKING:
    import ibis
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


class Edition(NamedTuple):
    """Keys of a review and of a product; unit of the time stamps."""

    user: str
    item: str
    rating: str
    timestamp: str
    unit: str
    brand: str
    categories: str
    images: tuple[str, ...]  # JSON paths, the first that is there is taken
    features: str


EDITIONS = {
    2014: Edition(
        "reviewerID", "asin", "overall", "unixReviewTime", "s", "brand", "categories",
        ("imUrl",), "description",
    ),
    2018: Edition(
        "reviewerID", "asin", "overall", "unixReviewTime", "s", "brand", "category",
        ("imageURLHighRes[0]", "imageURL[0]", "image[0]"), "feature",
    ),
    2023: Edition(
        "user_id", "parent_asin", "rating", "timestamp", "ms", "store", "categories",
        ("images[0].hi_res", "images[0].large", "images[0].thumb"), "features",
    ),
}  # fmt: skip
ENTITIES = {"&quot;": '"', "&#39;": "''", "&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&amp;": "&"}


@dataclass(frozen=True)
class Options:
    """edition: 2014, 2018 or 2023. The option `category` stands in the names of the files: see `fetch`."""

    edition: int

    def __post_init__(self) -> None:
        if self.edition not in EDITIONS:
            raise ValueError(
                f"unknown Amazon edition {self.edition!r}: one of {', '.join(map(str, EDITIONS))}"
            )


def read(options: Options, files: Mapping[str, Sequence[str]], con: Backend) -> RawTables:
    """Reviews with their stars, and the products reviewed: title, brand, categories, description, image
    address.

    2023 counts time in milliseconds and groups variants of a product under `parent_asin`, which is the item
    here; 2014 and 2018 know the day only, so that ties are many and their order is the file's.
    """
    edition = EDITIONS[options.edition]
    keys = (edition.user, edition.item, edition.rating, edition.timestamp)
    source = json_lines(con, files["interactions"], keys=keys, required=keys)
    columns = Columns(text(keys[0]), text(keys[1]), text(keys[3]), unit=edition.unit, rating=text(keys[2]))
    log = interactions(con, source, columns)
    products = _products(options.edition, files["items"], con, log=log) if files.get("items") else None
    return RawTables(log, products)


def _products(year: int, paths: Sequence[str], con: Backend, *, log: ibis.Table) -> ibis.Table:
    """Products in the log; the metadata describe every product of the category, reviewed or not."""
    edition = EDITIONS[year]
    pictures = [path.split("[")[0] for path in edition.images]
    about = (
        edition.item,
        "title",
        edition.brand,
        edition.categories,
        "description",
        edition.features,
        "price",
    )
    keys = tuple(dict.fromkeys((*about, *pictures)))
    with _metadata(year, paths, con, keys=keys, required=(edition.item, "title")) as every:
        logged = f"SELECT item_id FROM {log.get_name()} WHERE problem IS NULL"
        reviewed = f"(SELECT * FROM {every.sql} WHERE {text(edition.item)} IN ({logged}))"
        columns = _product_columns(edition)
        return entities(con, every._replace(sql=reviewed), columns, key="item_id", log=log)


def _metadata(
    year: int, paths: Sequence[str], con: Backend, *, keys: Sequence[str], required: Sequence[str]
) -> AbstractContextManager[Source]:
    if year == 2014:
        return python_literals(con, paths, keys=keys, required=required)
    return nullcontext(json_lines(con, paths, keys=keys, required=required))


def _product_columns(edition: Edition) -> dict[str, str]:
    # Pages scraped in 2018 sometimes left a script where the title should be
    title = _plain(f"CASE WHEN NOT contains({text('title')}, 'getTime(') THEN {text('title')} END")
    brand, categories = _plain(text(edition.brand)), _plain(words(edition.categories, joined=", "))
    description = _plain(words("description"))
    parts = dict.fromkeys((title, brand, categories, description, _plain(words(edition.features))))
    images = ", ".join(_image(path) for path in edition.images)
    return {
        "item_id": text(edition.item),
        "title": title,
        "text": f"nullif(concat_ws('. ', {', '.join(parts)}), '')",
        "image": f"coalesce({images}, NULL)",
        "brand": brand,
        "categories": categories,
        "description": description,
        "price": text("price"),
    }


def _image(path: str) -> str:
    key, _, inside = path.partition("[")
    return f"nullif({text(key)}, '')" if not inside else f"""nullif("{key}" ->> '$[{inside}', '')"""


def _plain(sql: str) -> str:
    """Text without the entities of HTML, null where nothing is left."""
    for entity, sign in ENTITIES.items():
        sql = f"replace({sql}, '{entity}', '{sign}')"
    return f"nullif(trim({sql}), '')"
