"""Amazon product reviews with item metadata, in the editions of 2014, 2018 and 2023.

2014: McAuley et al., SIGIR 2015 and He, McAuley, WWW 2016; 2018: Ni, Li, McAuley, EMNLP 2019; 2023: Hou et al., 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import ibis

from recpipe.data.files.json_files import json_source, json_text, json_words
from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.python_literals import literal_source
from recpipe.data.files.tables import Entities, RawTables, create_entities, identifier


class Edition(NamedTuple):
    """Keys of a review and of a product; unit of the timestamps."""

    user: str
    item: str
    rating: str
    timestamp: str
    unit: str
    brand: str
    categories: str
    images: tuple[str, ...]  # JSON paths in order of preference
    features: str


EDITIONS = {
    2014: Edition(
        "reviewerID", "asin", "overall", "unixReviewTime", "s", "brand", "categories", ("imUrl",), "description"
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
    """edition: 2014, 2018 or 2023. The option ``category`` belongs to the names of the files: see ``fetch``."""

    edition: int

    def __post_init__(self) -> None:
        if self.edition not in EDITIONS:
            raise ValueError(f"unknown Amazon edition {self.edition!r}: one of {', '.join(map(str, EDITIONS))}")


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read reviews with ratings and the reviewed products: title, brand, categories, description, image address.

    The edition of 2023 has milliseconds and groups variants of a product by ``parent_asin``, the item id; those of 2014
    and 2018 have only days, so ties are frequent and keep the order of the file.
    """
    edition = EDITIONS[options.edition]
    keys = (edition.user, edition.item, edition.rating, edition.timestamp)
    user, item, rating, timestamp = map(json_text, keys)
    source = json_source(con, files["interactions"], keys=keys, required=keys)
    log = create_log(con, source, LogColumns(user, item, timestamp, unit=edition.unit, numbers={"rating": rating}))
    products = _products(options.edition, files["items"], con, log=log) if files.get("items") else None
    return RawTables.of(log, products)


def _products(year: int, paths: Sequence[str], con: ibis.BaseBackend, *, log: ibis.Table) -> Entities:
    """Read the products in the log; the metadata files describe every product of a category, reviewed or not."""
    edition = EDITIONS[year]
    images = [path.split("[")[0] for path in edition.images]
    texts = ("title", edition.brand, edition.categories, "description", edition.features)
    keys = tuple(dict.fromkeys((edition.item, *texts, "price", *images)))
    required = (edition.item, "title")
    with (
        literal_source(con, paths, keys=keys, required=required)
        if year == 2014
        else nullcontext(json_source(con, paths, keys=keys, required=required))
    ) as source:
        logged = f"SELECT item_id FROM {log.get_name()} WHERE problem IS NULL"
        reviewed = f"(SELECT * FROM {source.sql} WHERE {json_text(edition.item)} IN ({logged}))"
        return create_entities(con, source._replace(sql=reviewed), _product_columns(edition), key="item_id")


def _product_columns(edition: Edition) -> dict[str, str]:
    # Pages scraped in 2018 sometimes left a script where the title should be
    title = _plain(f"CASE WHEN NOT contains({json_text('title')}, 'getTime(') THEN {json_text('title')} END")
    brand = _plain(json_text(edition.brand))
    categories = _plain(json_words(edition.categories, separator=", "))
    description = _plain(json_words("description"))
    parts = dict.fromkeys((title, brand, categories, description, _plain(json_words(edition.features))))
    images = ", ".join(
        f"nullif({identifier(key)} ->> '${bracket}{inside}', '')"
        for key, bracket, inside in (path.partition("[") for path in edition.images)
    )
    return {
        "item_id": json_text(edition.item),
        "title": title,
        "text": f"nullif(concat_ws('. ', {', '.join(parts)}), '')",
        "image": f"coalesce({images}, NULL)",
        "brand": brand,
        "categories": categories,
        "description": description,
        "price": json_text("price"),
    }


def _plain(sql: str) -> str:
    """Return SQL of a text without HTML entities, null where nothing is left."""
    for entity, sign in ENTITIES.items():
        sql = f"replace({sql}, '{entity}', '{sign}')"
    return f"nullif(trim({sql}), '')"
