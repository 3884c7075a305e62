"""UCI Online Retail: invoice lines of a British gift shop, including cancellations and postage.

Chen, Sain, Guo, Data mining for the online retail industry, JDMCS 2012, doi 10.1057/dbm.2012.17.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis

from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.parquet_files import parquet_source
from recpipe.data.files.tables import RawTables, create_entities, literal, literals

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
CODE = "upper(trim(StockCode))"  # a few lines have the letter of a code in lower case


@dataclass(frozen=True)
class Options:
    """goods: regular expression of the stock codes of goods; not_goods: codes that match ``goods`` and are none."""

    goods: str = "^[0-9]{5}"
    not_goods: Sequence[str] = ()


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read purchases with quantities as weights, stock codes with descriptions, customers with countries.

    Lines other than purchases of goods by a customer have a reason in ``problem``. Local time is read as UTC.
    """
    source = parquet_source(con, files["interactions"])
    source.check_columns(COLUMNS)
    problems = [
        "WHEN CustomerID IS NULL THEN 'no customer'",
        "WHEN InvoiceNo LIKE 'C%' THEN 'cancellation'",
        "WHEN Quantity IS NULL OR Quantity <= 0 THEN 'quantity not positive'",
        f"WHEN NOT ({_goods(options)}) THEN 'not goods: ' || {CODE}",
    ]
    numbers = {"weight": "Quantity"}
    time_type = source.types["InvoiceDate"]
    log_columns = LogColumns("CustomerID", CODE, "InvoiceDate", numbers=numbers, problems=problems, time_type=time_type)
    log = create_log(con, source, log_columns)
    columns = {"item_id": "code", "title": "title", "text": "title", "price": "price"}
    items = create_entities(con, source._replace(sql=_products(source.sql, options)), columns, key="item_id")
    columns = {"user_id": "id", "country": "country"}
    users = create_entities(con, source._replace(sql=_customers(source.sql)), columns, key="user_id")
    return RawTables.of(log, items, users)


def _goods(options: Options) -> str:
    excluded = f" AND NOT list_contains({literals(options.not_goods)}, {CODE})" if options.not_goods else ""
    return f"regexp_matches({CODE}, {literal(options.goods)}){excluded}"


def _products(table: str, options: Options) -> str:
    """Return SQL of the most frequent description and median price per code, on lines of sales, not ``damaged``."""
    sold = (
        f"SELECT {CODE} AS code, trim(Description) AS words, UnitPrice FROM {table} "
        f"WHERE Quantity > 0 AND UnitPrice > 0 AND {_goods(options)}"
    )
    counted = f"SELECT code, words, count(*) AS n FROM ({sold}) WHERE words <> '' GROUP BY code, words"
    titles = f"SELECT code, first(words ORDER BY n DESC, words) AS title FROM ({counted}) GROUP BY code"
    prices = f"SELECT code, median(UnitPrice) AS price FROM ({sold}) GROUP BY code"
    return f"(SELECT * FROM ({titles}) JOIN ({prices}) USING (code))"


def _customers(table: str) -> str:
    """Return SQL of the most frequent country per customer."""
    customers = f"SELECT * FROM {table} WHERE CustomerID IS NOT NULL"
    counted = f"SELECT CustomerID, Country, count(*) AS n FROM ({customers}) GROUP BY ALL"
    commonest = "first(Country ORDER BY n DESC, Country) AS country"
    return f"(SELECT CAST(CustomerID AS VARCHAR) AS id, {commonest} FROM ({counted}) GROUP BY id)"
