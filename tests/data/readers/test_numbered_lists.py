"""Sequences of LC-Rec, LETTER and MQL4GRec: an object of lists by user, and of texts by item."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tests.data.conftest import Reading, rows

SEQUENCES = {"0": [17, 4, 17], "1": [4]}
ITEMS = {"17": {"title": "Strings", "brand": "Ernie Ball", "categories": "Guitar,Strings", "description": ""}, "4": {}}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    return path


def test_events_keep_the_order_of_the_lists(tmp_path: Path, reading: Reading) -> None:
    tables = reading("numbered_lists", {}, interactions=write(tmp_path / "shop.inter.json", SEQUENCES))
    events = [(row["user_id"], row["item_id"], row["timestamp"], row["problem"]) for row in rows(tables.interactions)]
    assert events == [("0", "17", None, None), ("0", "4", None, None), ("0", "17", None, None), ("1", "4", None, None)]


def test_items_have_titles_and_texts(tmp_path: Path, reading: Reading) -> None:
    log, items = write(tmp_path / "shop.inter.json", SEQUENCES), write(tmp_path / "shop.item.json", ITEMS)
    tables = reading("numbered_lists", {}, interactions=log, items=items)
    assert tables.items is not None
    first, second = sorted(rows(tables.items), key=lambda row: -len(str(row["title"])))
    assert (first["item_id"], first["title"], first["brand"]) == ("17", "Strings", "Ernie Ball")
    assert first["text"] == "Strings. Ernie Ball. Guitar,Strings"
    assert (second["item_id"], second["title"], second["text"]) == ("4", "4", None)


def test_a_compressed_file_is_the_same(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "shop.inter.json.gz"
    path.write_bytes(gzip.compress(json.dumps(SEQUENCES).encode()))
    assert len(rows(reading("numbered_lists", {}, interactions=path).interactions)) == 4


def test_a_missing_item_is_an_event_without_item(tmp_path: Path, reading: Reading) -> None:
    path = write(tmp_path / "shop.inter.json", {"0": [17, None], "1": []})
    first, second = rows(reading("numbered_lists", {}, interactions=path).interactions)
    assert (first["item_id"], second["item_id"]) == ("17", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1, 2]]", r"shop\.inter\.json must hold one JSON object"),
        ("{}", "must hold one JSON object"),
        ('{"0": [1, 2', r"shop\.inter\.json is no JSON object"),
        ('{"0": 5}', "the value of '0' is '5'; the layout is"),
        ('{"0": [[1], [2]]}', "the list of '0' holds lists"),
        ('{"0": [{"item": 1}]}', "the list of '0' holds lists or objects"),
        ('{"0": [1], "0": [2]}', "has '0' twice"),
    ],
)
def test_another_layout_is_refused(content: str, message: str, tmp_path: Path, reading: Reading) -> None:
    with pytest.raises(ValueError, match=message):
        reading("numbered_lists", {}, interactions=write(tmp_path / "shop.inter.json", content))
