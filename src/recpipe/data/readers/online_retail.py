"""UCI Online Retail: purchases of a British gift shop, one invoice line per row, with cancellations and
postage among them.

Chen, Sain, Guo, Data mining for the online retail industry, JDMCS 2012, doi 10.1057/dbm.2012.17.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recpipe.data.files.sql import TYPED, column_types, literal, literals, names
from recpipe.data.files.tables import Columns, RawTables, Source, entities, interactions

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
CODE = "upper(trim(StockCode))"  # a few lines have a code's letter in lower case


@dataclass(frozen=True)
class Options:
    """goods: regular expression that a stock code of goods matches; not_goods: codes that match it and are
    none.
    """

    goods: str = "^[0-9]{5}"
    not_goods: Sequence[str] = ()


def read(options: Options, files: Mapping[str, Sequence[str]], con: Backend) -> RawTables:
    """Purchases with the quantity as weight, stock codes with their commonest description, customers with
    their country.

    Lines that are no purchase of goods by a known customer carry their reason in `problem`. The shop's
    local time is taken for UTC.
    """
    paths = files["interactions"]
    source = Source(f"read_parquet({literals(paths)})", {}, names(paths))
    types = column_types(con, source.sql, where=source.where)
    missing = [name for name in COLUMNS if name not in types]
    if missing:
        raise ValueError(f"{source.where} has no column {missing[0]!r}; found: {', '.join(types)}")
    columns = Columns(
        "CustomerID", CODE, "InvoiceDate", unit=TYPED, weight="Quantity", problems=_not_purchases(options)
    )
    log = interactions(con, source, columns)
    items = entities(con, _described(source, options), _item_columns(), key="item_id", log=log)
    users = entities(con, _located(source), {"user_id": "id", "country": "country"}, key="user_id", log=None)
    return RawTables(log, items, users)


def _not_purchases(options: Options) -> list[str]:
    return [
        "WHEN CustomerID IS NULL THEN 'no customer'",
        "WHEN InvoiceNo LIKE 'C%' THEN 'cancellation'",
        "WHEN Quantity IS NULL OR Quantity <= 0 THEN 'quantity not positive'",
        f"WHEN NOT ({_goods(options)}) THEN 'not goods: ' || {CODE}",
    ]


def _goods(options: Options) -> str:
    listed = f" AND NOT list_contains({literals(options.not_goods)}, {CODE})" if options.not_goods else ""
    return f"regexp_matches({CODE}, {literal(options.goods)}){listed}"


def _described(source: Source, options: Options) -> Source:
    """Each code's commonest description on lines that sell it (others say `damaged` or `?`), its median
    price.
    """
    sold = (
        f"SELECT {CODE} AS code, trim(Description) AS words, UnitPrice FROM {source.sql} "
        f"WHERE Quantity > 0 AND UnitPrice > 0 AND {_goods(options)}"
    )
    counted = f"SELECT code, words, count(*) AS n FROM ({sold}) WHERE words <> '' GROUP BY code, words"
    titles = f"SELECT code, first(words ORDER BY n DESC, words) AS title FROM ({counted}) GROUP BY code"
    prices = f"SELECT code, median(UnitPrice) AS price FROM ({sold}) GROUP BY code"
    return source._replace(sql=f"(SELECT * FROM ({titles}) JOIN ({prices}) USING (code))")


def _item_columns() -> dict[str, str]:
    return {"item_id": "code", "title": "title", "text": "title", "price": "price"}


def _located(source: Source) -> Source:
    """Each customer's commonest country."""
    customers = f"SELECT * FROM {source.sql} WHERE CustomerID IS NOT NULL"
    counted = f"SELECT CustomerID, Country, count(*) AS n FROM ({customers}) GROUP BY ALL"
    commonest = "first(Country ORDER BY n DESC, Country) AS country"
    located = f"SELECT CAST(CustomerID AS VARCHAR) AS id, {commonest} FROM ({counted}) GROUP BY id"
    return source._replace(sql=f"({located})")
