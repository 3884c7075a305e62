"""The profile of a log against counting with a Counter, and against published facts of MovieLens 100K."""

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.evaluation.profile import profile

ML_100K = Path(__file__).parents[3] / "shared" / "data" / "ml-100k.zip"


def write(path, users, items, times):
    columns = {"user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.string())}
    pq.write_table(pa.table({**columns, "timestamp": pa.array(times, pa.int64())}), path, row_group_size=7)
    return path


def test_against_counting(tmp_path):
    draw = np.random.default_rng(0)
    users = [f"u{i}" for i in draw.integers(0, 9, 200)]
    items = [f"i{i}" for i in draw.zipf(1.6, 200) % 40]
    times = (draw.integers(0, 60, 200) * 3600).tolist()
    got = profile(write(tmp_path / "log.parquet", users, items, times))
    at, pairs = Counter(zip(users, times, strict=True)), set(zip(users, items, strict=False))
    last = {user: max(t for u, t in zip(users, times, strict=True) if u == user) for user in set(users)}
    assert (got["rows"], got["users"], got["items"]) == (200, len(set(users)), len(set(items)))
    assert got["repeats"] == pytest.approx(1 - len(pairs) / 200)
    assert got["density"] == pytest.approx(len(pairs) / len(set(users)) / len(set(items)))
    assert got["tied"]["interactions"] == pytest.approx(
        np.mean([at[event] > 1 for event in zip(users, times, strict=True)])
    )
    assert got["tied"]["last"] == pytest.approx(np.mean([at[event] > 1 for event in last.items()]))
    per_item = sorted(Counter(items).values(), reverse=True)
    assert got["popularity"]["events"] == [per_item[rank - 1] for rank in got["popularity"]["rank"]]
    differences = np.abs(np.subtract.outer(per_item, per_item)).mean()
    assert got["popularity"]["gini"] == pytest.approx(differences / (2 * np.mean(per_item)))
    for name, values in (("events_per_user", users), ("events_per_item", items)):
        counts, histogram = list(Counter(values).values()), got[name]
        assert (histogram["min"], histogram["max"]) == (min(counts), max(counts))
        assert histogram["mean"] == pytest.approx(np.mean(counts))
        bins = zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False)
        assert all(sum(low <= count < high for count in counts) == n for low, high, n in bins)
        assert sum(histogram["counts"]) == len(counts)
    days = Counter(f"1970-01-{1 + t // 86_400:02d}" for t in times)
    assert got["events_over_time"]["period"] == "day"
    assert dict(zip(got["events_over_time"]["start"], got["events_over_time"]["events"], strict=True)) == days


def test_quiet_months_are_shown_as_zero(tmp_path):
    times = [1291161600, 1298937600]  # 1 December 2010 and 1 March 2011
    over_time = profile(write(tmp_path / "log.parquet", ["a", "a"], ["x", "y"], times))["events_over_time"]
    assert over_time == {
        "period": "month",
        "start": ["2010-12", "2011-01", "2011-02", "2011-03"],
        "events": [1, 0, 0, 1],
    }


def test_a_log_without_time(tmp_path):
    got = profile(write(tmp_path / "log.parquet", ["a", "b"], ["x", "x"], [None, None]))
    assert got["untimed"] == 2
    assert got["events_over_time"] is got["tied"] is got["first_timestamp"] is None


def test_an_empty_log_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no interaction"):
        profile(write(tmp_path / "log.parquet", [], [], []))


@pytest.mark.skipif(not ML_100K.exists(), reason="needs ../shared/data/ml-100k.zip, which may not be redistributed")
def test_movielens_100k(tmp_path):
    with zipfile.ZipFile(ML_100K) as archive:
        name = next(name for name in archive.namelist() if name.endswith("u.data"))
        rows = [line.split("\t") for line in archive.read(name).decode().splitlines()]
    users, items, _, times = zip(*rows, strict=True)
    got = profile(write(tmp_path / "log.parquet", users, items, [int(t) for t in times]))
    assert (got["users"], got["items"], got["rows"]) == (943, 1682, 100_000)
    assert got["tied"]["interactions"] == pytest.approx(0.758, abs=5e-4)  # reference/sequential.md §2.5, measured apart
    assert got["tied"]["last"] == pytest.approx(0.44, abs=5e-3)
