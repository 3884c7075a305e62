"""Every MovieLens layout: tiny files as GroupLens writes them, then the real 100K and 1M against published
counts.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import ibis
import pytest
from tests.data.conftest import Reading, rows


def _flags(*places: int) -> str:
    return "|".join("1" if place in places else "0" for place in range(19))


def test_100k(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
    films = f"242|Misérables, Les (1995)|01-Jan-1995||http://x|{_flags(8, 12)}\n302|unknown||||{_flags(0)}\n"
    (tmp_path / "u.item").write_bytes(films.encode("latin-1"))
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n")
    tables = reading(
        "movielens",
        {"layout": "100k"},
        interactions=tmp_path / "u.data",
        items=tmp_path / "u.item",
        users=tmp_path / "u.user",
    )
    first, second = rows(tables.interactions)
    assert first == {
        "user_id": "196", "item_id": "242", "timestamp": 881250949, "rating": 3.0, "problem": None,
        "order": 0,
    }  # fmt: skip
    assert second["order"] == 1
    film, unknown = sorted(rows(tables.items), key=lambda item: item["item_id"])
    assert film["title"] == "Misérables, Les (1995)" and film["genres"] == ["Drama", "Musical"]
    assert film["text"] == "Misérables, Les (1995). Drama, Musical"
    assert unknown["genres"] == [] and unknown["text"] == "unknown"
    assert rows(tables.users) == [
        {"user_id": "196", "age": 49, "gender": "M", "occupation": "writer", "zip_code": "55105"}
    ]


@pytest.mark.parametrize(("layout", "encoding"), [("1m", "latin-1"), ("10m", "utf-8")])
def test_double_colons(tmp_path: Path, reading: Reading, layout: str, encoding: str) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3.5::978302109\n")
    titles = '1193::Café: "Mission" (1996)::Comedy|Drama\n661::Plain (1990)::(no genres listed)\n'
    (tmp_path / "movies.dat").write_bytes(titles.encode(encoding))
    tables = reading(
        "movielens", {"layout": layout}, interactions=tmp_path / "ratings.dat", items=tmp_path / "movies.dat"
    )
    assert [row["rating"] for row in rows(tables.interactions)] == [5.0, 3.5]
    films = {row["item_id"]: row for row in rows(tables.items)}
    assert films["1193"]["title"] == 'Café: "Mission" (1996)'
    assert films["661"]["genres"] == []


def test_csv(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,11,4.0,964982703\n1,99,4.0,964981247\n")
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n11,"President, The (Et Dieu&#8230;)",Comedy|Romance\n')
    tables = reading(
        "movielens", {"layout": "csv"}, interactions=tmp_path / "ratings.csv", items=tmp_path / "movies.csv"
    )
    assert [(row["item_id"], row["title"]) for row in rows(tables.items)] == [("11", "President, The (Et Dieu\u2026)")]


def test_a_csv_with_other_columns_is_refused(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "ratings.csv").write_text("user,film\n1,2\n")
    with pytest.raises(ValueError, match="found: user, film"):
        reading("movielens", {"layout": "csv"}, interactions=tmp_path / "ratings.csv")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which may not be redistributed")
    folder = tmp_path_factory.mktemp("movielens")
    for name in ("ml-100k.zip", "ml-1m.zip"):
        zipfile.ZipFile(SHARED / name).extractall(folder)
    return folder


def _counts(log: ibis.Table) -> tuple[int, int, int]:
    good = log.filter(log.problem.isnull())
    return good.user_id.nunique().execute(), good.item_id.nunique().execute(), good.count().execute()


def test_real_100k(unpacked: Path, reading: Reading) -> None:
    raw = unpacked / "ml-100k"
    tables = reading(
        "movielens", {"layout": "100k"}, interactions=raw / "u.data", items=raw / "u.item", users=raw / "u.user"
    )
    assert _counts(tables.interactions) == (943, 1682, 100_000)
    assert len(rows(tables.items)) == 1682 and len(rows(tables.users)) == 943


def test_real_1m(unpacked: Path, reading: Reading) -> None:
    """Counts, and the very sequences that SASRec and BERT4Rec were published with, byte for byte."""
    raw = unpacked / "ml-1m"
    tables = reading(
        "movielens",
        {"layout": "1m"},
        interactions=raw / "ratings.dat",
        items=raw / "movies.dat",
        users=raw / "users.dat",
    )
    assert _counts(tables.interactions) == (6040, 3706, 1_000_209)
    assert len(rows(tables.items)) == 3883 and len(rows(tables.users)) == 6040
    log = tables.interactions
    frequent = log.group_by("item_id").mutate(n=log.count()).filter(lambda t: t.n >= 5)
    ordered = (
        frequent.order_by(frequent.user_id.cast("int"), "timestamp", "order").select("user_id", "item_id").to_pyarrow()
    )
    sequences: dict[str, list[str]] = {}
    for user, item in zip(*(column.to_pylist() for column in ordered.columns), strict=True):
        sequences.setdefault(user, []).append(item)
    numbers: dict[str, int] = {}
    lines = [
        f"{place} {numbers.setdefault(item, len(numbers) + 1)}\n"
        for place, user in enumerate(_python2_dict_order(list(sequences)), start=1)
        for item in sequences[user]
    ]
    content = "".join(lines).encode()
    assert (len(lines), len(numbers)) == (999_611, 3416)
    blob = b"blob %d\0" % len(content) + content
    assert hashlib.sha1(blob).hexdigest() == "9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24"


def _python2_dict_order(keys: list[str]) -> list[str]:
    """The order in which Python 2 went through a dictionary of these strings: the published file was
    written by it.
    """
    table: list[str | None] = [None] * 8
    for used, key in enumerate(keys, start=1):
        _place(table, key)
        if used * 3 >= len(table) * 2:
            size = 8
            while size <= used * 4:
                size *= 2
            old, table = table, [None] * size
            for entry in old:
                if entry is not None:
                    _place(table, entry)
    return [key for key in table if key is not None]


def _place(table: list[str | None], key: str) -> None:
    value = ord(key[0]) << 7
    for sign in key:
        value = (1_000_003 * value & (1 << 64) - 1) ^ ord(sign)
    value ^= len(key)
    place, perturb = value & (len(table) - 1), value
    while table[place & (len(table) - 1)] is not None:
        place = 5 * place + perturb + 1
        perturb >>= 5
    table[place & (len(table) - 1)] = key
