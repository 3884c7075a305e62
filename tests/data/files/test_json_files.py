"""Overlong lines, damaged JSON and Python literals."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.conftest import Reading, rows, write_gzip

from recpipe.data.files import json_files


def test_a_line_beyond_the_limit_is_a_bad_row(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1000)
    good = {"username": "a", "product_id": "1", "date": "2017-12-17"}
    reviews = [good, {"username": "b" * 5000, "product_id": "1", "date": "2017-12-17"}, good]
    log = rows(
        reading("steam", {}, interactions=write_gzip(tmp_path / "r.json.gz", reviews, literal=True)).interactions
    )
    assert [bool(row["problem"]) for row in log] == [False, True, False]


@pytest.mark.parametrize("source", ["amazon", "steam"])
@pytest.mark.parametrize("damage", ["truncated", "not gzip", "other keys"])
def test_damaged_json_and_literals_are_refused(tmp_path: Path, reading: Reading, source: str, damage: str) -> None:
    keys = (
        ("reviewerID", "asin", "overall", "unixReviewTime")
        if source == "amazon"
        else ("username", "product_id", "date")
    )
    path = write_gzip(tmp_path / "r.json.gz", [{key: f"{key}{n}" for key in keys} for n in range(3000)])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "not gzip":
        path.write_text('{"a": 1}\n')
    else:
        write_gzip(path, [{"a": 1}])
    with pytest.raises(ValueError, match="found: a" if damage == "other keys" else r"r\.json\.gz.*cut short"):
        reading(source, {"edition": 2014} if source == "amazon" else {}, interactions=path)
