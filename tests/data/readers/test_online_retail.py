"""The bundled shop: which lines are purchases, checked against a plain loop over the file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import Reading, rows

from recpipe.data.files.fetch import fetch

BUNDLED = Path(__file__).parents[3] / "data" / "01_raw" / "online_retail" / "transactions.parquet"


def _invoice(**changes: object) -> dict[str, object]:
    line = {
        "InvoiceNo": "536365", "StockCode": "85123A", "Description": "HEART", "Quantity": 6, "UnitPrice": 2.5,
        "InvoiceDate": datetime(2010, 12, 1, 8, 26), "CustomerID": 17850, "Country": "United Kingdom",
    }  # fmt: skip
    return line | changes


def test_lines_other_than_purchases_have_a_reason(tmp_path: Path, reading: Reading) -> None:
    lines = [
        _invoice(),
        _invoice(InvoiceNo="C536365", Quantity=-6),
        _invoice(CustomerID=None),
        _invoice(Quantity=0),
        _invoice(StockCode="POST"),
        _invoice(StockCode="85123a ", Quantity=2),
        _invoice(StockCode="22222"),
    ]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "t.parquet")
    log = rows(reading("online_retail", {"not_goods": ["22222"]}, interactions=tmp_path / "t.parquet").interactions)
    assert [row["problem"] for row in log] == [
        None, "cancellation", "no customer", "quantity not positive", "not goods: POST", None,
        "not goods: 22222",
    ]  # fmt: skip
    assert {row["item_id"] for row in log if not row["problem"]} == {"85123A"}
    assert log[0]["timestamp"] == datetime(2010, 12, 1, 8, 26, tzinfo=UTC).timestamp()
    assert [row["weight"] for row in log if not row["problem"]] == [6.0, 2.0]


def test_a_missing_column_is_refused(tmp_path: Path, reading: Reading) -> None:
    pq.write_table(pa.table({"InvoiceNo": ["1"], "Code": ["2"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"'StockCode'; found: InvoiceNo, Code"):
        reading("online_retail", {}, interactions=tmp_path / "t.parquet")


def test_the_bundled_file_equals_a_plain_loop(reading: Reading) -> None:
    tables = reading("online_retail", {}, interactions=BUNDLED)
    lines = pq.read_table(BUNDLED).to_pylist()
    assert len(lines) == 541_909 and sum(line["CustomerID"] is not None for line in lines) == 406_829
    bought = [
        line for line in lines
        if line["CustomerID"] is not None and line["Quantity"] > 0 and not line["InvoiceNo"].startswith("C")
        and re.match(r"\d{5}", line["StockCode"])
    ]  # fmt: skip
    log = tables.interactions
    good = log.filter(log.problem.isnull())
    assert log.count().execute() == 541_909 and good.count().execute() == len(bought) == 396_370
    assert good.user_id.nunique().execute() == len({line["CustomerID"] for line in bought})
    assert good.weight.sum().execute() == sum(line["Quantity"] for line in bought)
    titles: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line["Quantity"] > 0 and line["UnitPrice"] > 0 and line["Description"]:
            titles[line["StockCode"].upper()][line["Description"].strip()] += 1
    for item in rows(tables.items)[::50]:
        votes = titles[item["item_id"]]
        if votes:
            assert votes[item["title"]] == max(votes.values()), item
    assert {row["user_id"] for row in rows(tables.users)} >= {str(line["CustomerID"]) for line in bought}


def test_the_bundled_file_has_the_checksum_of_the_conf(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    conf = OmegaConf.load(Path(__file__).parents[3] / "conf/base/parameters/datasets/online_retail.yml")
    (tmp_path / BUNDLED.name).symlink_to(BUNDLED)
    manifest = fetch(OmegaConf.to_container(conf.datasets.online_retail), tmp_path)  # type: ignore[arg-type]
    assert manifest["files"] == {"interactions": [str(tmp_path / BUNDLED.name)]}
    assert manifest["bytes"] == BUNDLED.stat().st_size
