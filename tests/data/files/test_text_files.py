"""Open quotation marks, damaged files, overlong lines."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from tests.data.conftest import MAPPING, Reading, rows


def test_an_open_quotation_mark_is_an_error(tmp_path: Path, reading: Reading) -> None:
    mark = {500: '"'}
    text = "who,what,when\n" + "".join(f"u{n},{mark.get(n, '')}i{n},{n}\n" for n in range(1000))
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"not closed.*`quote: ''`"):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")
    tables = reading("files", {"columns": MAPPING, "quote": ""}, interactions=tmp_path / "log.csv")
    log = rows(tables.interactions)
    assert len(log) == 1000 and log[500]["item_id"] == '"i500'


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst", "log.parquet", "log.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut short", "something else"])
def test_damaged_files_are_refused(tmp_path: Path, reading: Reading, name: str, damage: str) -> None:
    path = tmp_path / name
    copy = duckdb.connect()
    rows_ = "SELECT i AS who, md5(i::VARCHAR) AS what, i AS when FROM range(20000) t(i)"
    copy.execute(f"COPY ({rows_}) TO '{path}'" + (" (FORMAT json, COMPRESSION gzip)" if "jsonl" in name else ""))
    path.write_bytes(path.read_bytes()[:-4000] if damage == "cut short" else b"who,what,when\n1,2,3\n")
    with pytest.raises(ValueError, match=f"cannot read .*{name}.*cut short"):
        reading("files", {"columns": MAPPING}, interactions=path)
