"""Steam reviews and games as published, lines of Python literals."""

from __future__ import annotations

from pathlib import Path

from tests.data.conftest import Reading, rows, write_gzip


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
        interactions=write_gzip(tmp_path / "r.json.gz", reviews, literal=True),
        items=write_gzip(tmp_path / "g.json.gz", games, literal=True),
    )
    first, second, third = rows(tables.interactions)
    assert (first["user_id"], first["item_id"], first["timestamp"], first["weight"]) == (
        "Chaos é",
        "725280",
        1513468800,
        0.1,
    )
    assert second["problem"] == "timestamp not in the format iso: '17.12.2017'"
    assert third["problem"].startswith("not a Python literal: '[[[")
    items = {row["item_id"]: row for row in rows(tables.items)}
    assert items["725280"]["text"] == "Counter. Action, Indie. FPS. V" and items["725280"]["genres"] == "Action, Indie"
