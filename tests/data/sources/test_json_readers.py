"""Amazon in three editions, and Steam: lines as published, read by our readers and by `json` or `ast` for
comparison.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recpipe.data.files import json_lines

from .conftest import Reading, rows


def _packed(path: Path, lines: list[Any], *, literal: bool = False) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for line in lines:
            out.write((line if isinstance(line, str) else repr(line) if literal else json.dumps(line)) + "\n")
    return path


def test_amazon_2014(tmp_path: Path, reading: Reading) -> None:
    reviews = [
        {
            "reviewerID": "A1",
            "asin": "0001",
            "overall": 5.0,
            "unixReviewTime": 1369699200,
            "reviewText": "héh",
        },
        "{ broken",
        {"reviewerID": "A2", "asin": "0002", "overall": 1.0, "unixReviewTime": 1369699201},
    ]
    products = [
        {"asin": "0001", "title": "Bath &amp; Body's", "brand": "B",
         "categories": [["Beauty", "Bath"], ["Gifts"]], "description": 'It\'s "so" good',
         "imUrl": "http://x/1.jpg", "price": 5.35},
        "{'asin': '0002', 'title': __import__('os').getcwd()}",
        {"asin": "0003", "title": "never reviewed"},
    ]  # fmt: skip
    tables = reading(
        "amazon",
        {"edition": 2014, "category": "Beauty"},
        interactions=_packed(tmp_path / "r.json.gz", reviews),
        items=_packed(tmp_path / "m.json.gz", products, literal=True),
    )
    log = rows(tables.interactions)
    assert [
        (row["user_id"], row["item_id"], row["timestamp"], row["rating"]) for row in log if not row["problem"]
    ] == [
        ("A1", "0001", 1369699200, 5.0),
        ("A2", "0002", 1369699201, 1.0),
    ]
    assert [row["problem"] for row in log][1] == "not a JSON object with the columns expected"
    items = {row["item_id"]: row for row in rows(tables.items)}
    assert set(items) == {"0001", "0002"}
    assert items["0001"] | {"text": None} == {
        "item_id": "0001", "title": "Bath & Body's", "brand": "B", "categories": "Beauty, Bath, Gifts",
        "text": None, "description": 'It\'s "so" good', "image": "http://x/1.jpg", "price": "5.35",
    }  # fmt: skip
    assert items["0001"]["text"] == "Bath & Body's. B. Beauty, Bath, Gifts. It's \"so\" good"
    assert items["0002"]["title"] == "0002", "a call is no literal: it is neither run nor taken"


def test_amazon_2018(tmp_path: Path, reading: Reading) -> None:
    reviews = [
        {"overall": 4.0, "verified": True, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1445040000}
    ]
    products = [{"asin": "B1", "title": "Game", "brand": "", "category": ["Video Games", "PC"],
                 "description": ["one", "two"], "feature": [], "imageURL": ["http://s"],
                 "imageURLHighRes": ["http://l"], "price": ""}]  # fmt: skip
    tables = reading(
        "amazon",
        {"edition": 2018},
        interactions=_packed(tmp_path / "r.json.gz", reviews),
        items=_packed(tmp_path / "m.json.gz", products),
    )
    assert rows(tables.interactions)[0]["timestamp"] == 1445040000
    item = rows(tables.items)[0]
    assert (item["image"], item["categories"], item["brand"]) == ("http://l", "Video Games, PC", None)
    assert item["text"] == "Game. Video Games, PC. one two"


def test_amazon_2023_counts_milliseconds(tmp_path: Path, reading: Reading) -> None:
    review = {
        "rating": 5.0,
        "title": "t",
        "asin": "B9",
        "parent_asin": "B1",
        "user_id": "AG",
        "timestamp": 1588687728923,
    }
    products = [{"main_category": "All Beauty", "title": "Oil", "parent_asin": "B1", "store": "Shop",
                 "features": ["f"], "categories": [], "description": [], "price": None,
                 "images": [{"thumb": "http://t", "large": "http://l", "hi_res": None}]}]  # fmt: skip
    tables = reading(
        "amazon",
        {"edition": 2023},
        interactions=_packed(tmp_path / "r.jsonl.gz", [review, review | {"timestamp": 1588687728}]),
        items=_packed(tmp_path / "m.jsonl.gz", products),
    )
    good, bad = rows(tables.interactions)
    assert (good["item_id"], good["timestamp"], good["problem"]) == ("B1", 1588687728, None)
    assert bad["problem"] == "timestamp before 1980, in another unit than ms: '1588687728'"
    item = rows(tables.items)[0]
    assert (item["image"], item["text"]) == ("http://l", "Oil. Shop. f")


def test_steam(tmp_path: Path, reading: Reading) -> None:
    reviews = [
        "{u'username': u'Chaos \\xe9', u'hours': 0.1, u'products': 41, u'product_id': u'725280', "
        "u'page_order': 0, u'date': u'2017-12-17', u'text': u'', u'early_access': False, u'page': 1}",
        {"username": "b", "product_id": "1", "date": "17.12.2017", "text": ""},
        "[" * 3000,
    ]
    games = [
        {
            "app_name": "Counter",
            "id": "725280",
            "genres": ["Action", "Indie"],
            "tags": ["FPS"],
            "developer": "V",
            "price": 4.99,
        }
    ]
    tables = reading(
        "steam",
        {},
        interactions=_packed(tmp_path / "r.json.gz", reviews, literal=True),
        items=_packed(tmp_path / "g.json.gz", games, literal=True),
    )
    first, second, third = rows(tables.interactions)
    assert (first["user_id"], first["item_id"], first["timestamp"], first["weight"]) == (
        "Chaos é",
        "725280",
        1513468800,
        0.1,
    )
    assert second["problem"] == "timestamp not as iso has it: '17.12.2017'"
    assert third["problem"].startswith("not a Python literal: '[[[")
    items = {row["item_id"]: row for row in rows(tables.items)}
    assert (
        items["725280"]["text"] == "Counter. Action, Indie. FPS. V"
        and items["725280"]["genres"] == "Action, Indie"
    )


def test_a_line_beyond_the_limit_is_refused_without_being_held(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1000)
    good = {"username": "a", "product_id": "1", "date": "2017-12-17"}
    reviews = [good, {"username": "b" * 5000, "product_id": "1", "date": "2017-12-17"}, good]
    log = rows(
        reading("steam", {}, interactions=_packed(tmp_path / "r.json.gz", reviews, literal=True)).interactions
    )
    assert [bool(row["problem"]) for row in log] == [False, True, False]


@pytest.mark.parametrize("source", ["amazon", "steam"])
@pytest.mark.parametrize("damage", ["truncated", "not gzip", "other keys"])
def test_damaged_files_are_named(tmp_path: Path, reading: Reading, source: str, damage: str) -> None:
    keys = (
        ("reviewerID", "asin", "overall", "unixReviewTime")
        if source == "amazon"
        else ("username", "product_id", "date")
    )
    path = _packed(tmp_path / "r.json.gz", [{key: f"{key}{n}" for key in keys} for n in range(3000)])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "not gzip":
        path.write_text('{"a": 1}\n')
    else:
        _packed(path, [{"a": 1}])
    with pytest.raises(ValueError, match="found: a" if damage == "other keys" else r"r\.json\.gz.*cut short"):
        reading(source, {"edition": 2014} if source == "amazon" else {}, interactions=path)


def test_music4all(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "plays.tsv"
    path.write_text('user_id\ttrack_id\ttimestamp\nuser_1\t"x\t2019-05-01 17:31\nuser_1\ty\tnever\n')
    first, second = rows(reading("music4all", {}, interactions=path).interactions)
    assert (first["item_id"], first["timestamp"], first["problem"]) == ('"x', 1556731860, None)
    assert second["problem"] == "timestamp not as iso has it: 'never'"
