"""Amazon reviews and products in three editions, as published."""

from __future__ import annotations

from pathlib import Path

from ibis.backends.duckdb import Backend
from tests.data.conftest import Reading, rows, write_gzip
from tests.data.readers.test_readers import block_of

from recpipe.data.files.fetch import fetch
from recpipe.data.interactions import ingest
from recpipe.data.readers import read


def test_amazon_2014(tmp_path: Path, reading: Reading) -> None:
    reviews = [
        {"reviewerID": "A1", "asin": "0001", "overall": 5.0, "unixReviewTime": 1369699200, "reviewText": "héh"},
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
        interactions=write_gzip(tmp_path / "r.json.gz", reviews),
        items=write_gzip(tmp_path / "m.json.gz", products, literal=True),
    )
    log = rows(tables.interactions)
    assert [(row["user_id"], row["item_id"], row["timestamp"], row["rating"]) for row in log if not row["problem"]] == [
        ("A1", "0001", 1369699200, 5.0),
        ("A2", "0002", 1369699201, 1.0),
    ]
    assert [row["problem"] for row in log][1] == "not a JSON object with the columns expected"
    items = {row["item_id"]: row for row in rows(tables.items)}
    assert set(items) == {"0001"}, "a call is no literal: it is neither run nor taken"
    assert items["0001"] | {"text": None} == {
        "item_id": "0001", "title": "Bath & Body's", "brand": "B", "categories": "Beauty, Bath, Gifts",
        "text": None, "description": 'It\'s "so" good', "image": "http://x/1.jpg", "price": "5.35",
    }  # fmt: skip
    assert items["0001"]["text"] == "Bath & Body's. B. Beauty, Bath, Gifts. It's \"so\" good"


def test_amazon_2018(tmp_path: Path, reading: Reading) -> None:
    reviews = [{"overall": 4.0, "verified": True, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1445040000}]
    products = [{"asin": "B1", "title": "Game", "brand": "", "category": ["Video Games", "PC"],
                 "description": ["one", "two"], "feature": [], "imageURL": ["http://s"],
                 "imageURLHighRes": ["http://l"], "price": ""}]  # fmt: skip
    tables = reading(
        "amazon",
        {"edition": 2018},
        interactions=write_gzip(tmp_path / "r.json.gz", reviews),
        items=write_gzip(tmp_path / "m.json.gz", products),
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
        interactions=write_gzip(tmp_path / "r.jsonl.gz", [review, review | {"timestamp": 1588687728}]),
        items=write_gzip(tmp_path / "m.jsonl.gz", products),
    )
    good, bad = rows(tables.interactions)
    assert (good["item_id"], good["timestamp"], good["problem"]) == ("B1", 1588687728, None)
    assert bad["problem"] == "timestamp before 1980, in another unit than ms: '1588687728'"
    item = rows(tables.items)[0]
    assert (item["image"], item["text"]) == ("http://l", "Oil. Shop. f")


def test_software_of_2018_has_the_users_with_eight_products(tmp_path: Path, con: Backend) -> None:
    def review(user: str, number: int) -> dict[str, object]:
        item, time = f"B{number:09}", 1445040000 + 86400 * number
        return {"overall": 4.0, "vote": "7", "verified": True, "reviewTime": "10 17, 2015", "reviewerID": user,
                "asin": item, "style": {"Platform:": " PC Disc"}, "unixReviewTime": time}  # fmt: skip

    lines = [review("A8", number) for number in range(8)] + [review("A7", number) for number in range(7)]
    write_gzip(tmp_path / "Software.json.gz", [*lines, lines[8]])  # the published files repeat reviews
    product = {"asin": "B000000000", "title": "Office", "category": ["Software"]}
    write_gzip(tmp_path / "meta_Software.json.gz", [product])
    conf = block_of("amazon-2018-software")
    result = ingest(read(conf, fetch(conf, tmp_path), con), conf["steps"])
    log = rows(result.interactions)
    assert [(row["user_id"], row["item_id"]) for row in log] == [("A8", f"B{number:09}") for number in range(8)]
    titles = {row["item_id"]: row["title"] for row in rows(result.items)}
    assert titles["B000000000"] == "Office" and set(titles) == {row["item_id"] for row in log}
