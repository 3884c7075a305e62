"""Look-up of users in an ingested log, against the same rows sorted in plain Python."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.synthetic import write_log

from recpipe.data.user_histories import UserHistories


def log_of(folder: Path, rows: list[tuple[str, str, int | None]], **columns: list) -> UserHistories:
    """Write a log with the columns of its users, in the order of their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder / "interactions.parquet", rows)
    items = sorted({item for _, item, _ in rows})
    pq.write_table(
        pa.table({"item_id": items, "title": [f"title of {item}" for item in items]}), folder / "items.parquet"
    )
    pq.write_table(pa.table({"user_id": sorted({user for user, *_ in rows}), **columns}), folder / "users.parquet")
    return UserHistories(folder)


@pytest.mark.parametrize("timed", [True, False])
def test_histories_of_several_users_are_their_events_in_order(tmp_path, timed) -> None:
    rng = random.Random(3)
    rows = [(f"u{rng.randrange(9)}", f"i{rng.randrange(20)}", rng.randrange(50) if timed else None) for _ in range(300)]
    log = log_of(tmp_path, rows)
    users = ["u7", "nobody", "u2", "u5"]
    expected = {}
    for user in users:
        events = [(time or 0, order, item) for order, (owner, item, time) in enumerate(rows) if owner == user]
        if events:
            expected[user] = [(item, time if timed else None) for time, _, item in sorted(events)]
    histories = log.histories(users)
    assert histories.keys() == expected.keys() == {"u7", "u2", "u5"}
    for user, history in histories.items():
        times = history.timestamps if timed else [None] * len(history.items)
        assert list(zip(history.items, times, strict=True)) == expected[user]
        latest = log.history(user, 4)
        assert latest.items == history.items[-4:] and latest.total == history.total == len(expected[user])
        assert latest.titles == [f"title of {item}" for item in latest.items]
    assert log.history("nobody") is None


def test_profiles_have_the_columns_that_the_log_has(tmp_path) -> None:
    log = log_of(tmp_path, [("a", "x", 1), ("b", "x", 2), ("c", "y", 3)], country=["AT", None, "DE"])
    rows = log.profiles(["c", "b", "nobody"], ["country", "age"]).to_pylist()
    assert sorted(rows, key=lambda row: row["user_id"]) == [
        {"user_id": "b", "country": None},
        {"user_id": "c", "country": "DE"},
    ]


def test_a_missing_log_is_an_error_with_the_command_that_reads_it(tmp_path) -> None:
    with pytest.raises(ValueError, match="interactions.parquet is missing.*--pipelines=ingest --params dataset=films`"):
        UserHistories(tmp_path / "films")
