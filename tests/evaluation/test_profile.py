"""The profile of a log against counting with a Counter, and against published facts of MovieLens 100K."""

import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.synthetic import random_sequences

from recpipe.config import read_parameters
from recpipe.config.files import block, to_values
from recpipe.data.protocol import Protocol
from recpipe.data.splits import split
from recpipe.evaluation.profile import choose_profile, profile, profile_warnings, split_warnings

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


def test_unknown_times_copies_and_repeats_are_counted(tmp_path):
    """Against loops over the events in order of time, then of the file."""
    draw = np.random.default_rng(1)
    users = [f"u{i}" for i in draw.integers(0, 12, 150)]
    items = [f"i{i}" for i in draw.integers(0, 8, 150)]
    times = [0 if i % 10 == 0 else 1_500_000_000 + int(i) // 4 for i in draw.permutation(150)]
    got = profile(write(tmp_path / "log.parquet", users, items, times))
    events = sorted(zip(users, times, range(150), items, strict=True))
    histories = {user: [item for u, *_, item in events if u == user] for user in users}
    several = [history for history in histories.values() if len(history) > 1]
    assert got["zero"] == got["early"] == times.count(0) == 15
    assert got["copies"] == 150 - len({*zip(users, items, times, strict=True)}) > 0
    assert got["last_repeats"] == pytest.approx(np.mean([history[-1] in history[:-1] for history in several]))
    assert got["future"] == 0


def test_events_of_other_types_are_no_copies(tmp_path):
    columns = {"user_id": ["a"] * 4, "item_id": ["x"] * 4, "timestamp": [10**9] * 4}
    pq.write_table(pa.table({**columns, "event": ["view", "cart", None, "view"]}), tmp_path / "log.parquet")
    assert profile(tmp_path / "log.parquet")["copies"] == 1


WARNINGS = {
    "unknown": ([0, 1_500_000_000, 1_500_000_001], "1 of 3 events are before 1980, 1 of them at 0, .*time_window"),
    "days": ([17_000, 17_001, 17_002], "all events are before 1980.*set `timestamp`"),
    "future": ([1_500_000_000, 1_500_000_001, 99_999_999_999], "1 of 3 events are in the future.*time_window"),
    "fine": ([1_500_000_000, 1_500_000_001, 1_500_000_002], None),
}


@pytest.mark.parametrize(("times", "message"), WARNINGS.values(), ids=[*WARNINGS])
def test_times_that_cannot_be_right_have_a_warning_with_the_setting(tmp_path, times, message):
    got = profile(write(tmp_path / "log.parquet", ["a", "a", "b"], ["x", "y", "x"], times))
    warnings = profile_warnings(got, dataset="films", exclude_seen=True)
    assert not warnings if message is None else re.search(message, "".join(warnings)) and len(warnings) == 1


def test_repeats_have_a_warning_only_where_seen_items_are_excluded(tmp_path):
    log = write(tmp_path / "log.parquet", ["a"] * 4 + ["b"] * 4, list("xyxxpqqr"), list(range(10**9, 10**9 + 8)))
    got = profile(log)
    (warning,) = profile_warnings(got, dataset="films", exclude_seen=True)
    assert "38% of the events, and the last events of 50% of the users, repeat an item" in warning
    assert "protocol.exclude_seen=false" in warning and "duplicates" in warning
    assert profile_warnings(got, dataset="films", exclude_seen=False) == []
    copies = profile(write(tmp_path / "copies.parquet", ["a", "a"], ["x", "x"], [10**9] * 2))
    assert "1 of 2 events are copies" in profile_warnings(copies, dataset="films", exclude_seen=False)[0]
    older = {name: got[name] for name in ("rows", "untimed", "repeats", "tied")}  # a file of an earlier version
    assert len(profile_warnings(older, dataset="films", exclude_seen=True)) == 1


@pytest.mark.parametrize("targets", ["next", "all"])
def test_targets_in_their_own_history_are_counted_and_named_with_the_setting(targets):
    data = random_sequences(40, 9, seed=2, longest=15)
    protocol = Protocol(dataset="x", split="ratio", valid=0.2, test=0.3, targets=targets)
    parts = split(data, protocol)
    sizes = parts.sizes()
    for name, fold in (("valid", parts.valid), ("test", parts.test)):
        seen = [t in fold.histories.row(u) for u in range(len(fold)) for t in fold.targets.row(u)]
        assert sizes[f"{name}_seen_targets"] == sum(seen) > 0
    (warning,) = split_warnings(sizes, exclude_seen=True)
    assert f"{sizes['test_seen_targets']} of {sizes['test_targets']} test targets are in the history" in warning
    assert "protocol.exclude_seen=false" in warning
    assert split_warnings(sizes, exclude_seen=False) == split_warnings({"test_targets": 5}, exclude_seen=True) == []


def test_ties_at_the_last_time_have_a_warning_with_the_command_that_measures_them(tmp_path):
    """Of the users a to e, a has two events in his last minute: a fifth, from which the warning is given."""
    users, times = ["a", "a", "a", "b", "b", "c", "d", "e"], [60, 120, 120, 60, 120, 60, 60, 60]
    times = [1_500_000_000 + time for time in times]
    got = profile(write(tmp_path / "log.parquet", users, list("xyzxyxxx"), times))
    (warning,) = profile_warnings(got, dataset="films", exclude_seen=True)
    assert warning.startswith("20% of the users have several events at their last time")
    assert "`kedro run --pipelines=ties,report --params dataset=films,model=<trained model>`" in warning


def test_ids_in_two_forms_have_a_warning_from_one_percent(tmp_path):
    got = profile(write(tmp_path / "log.parquet", ["u"], ["i"], [1_600_000_000]))
    entry = {"table": "items", "ids": 200, "form": "without `.0` at their end", "pairs": 2, "example": "1.0"}
    (warning,) = profile_warnings({**got, "duplicate_ids": [entry]}, dataset="films", exclude_seen=False)
    assert "2 of 200 items of the log have the id of another without `.0` at their end, such as '1.0'" in warning
    assert (
        profile_warnings({**got, "duplicate_ids": [{**entry, "pairs": 1}]}, dataset="films", exclude_seen=False) == []
    )


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


@pytest.mark.parametrize(
    ("events", "users", "expected"),
    [  # as published, and as the data sets of conf name their profile
        (100_000, 943, "dense-small"),  # ml-100k
        (100_836, 610, "dense-small"),  # ml-latest-small
        (1_000_209, 6_040, None),  # ml-1m
        (10_000_054, 69_878, "dense-large"),  # ml-10m
        (20_000_263, 138_493, "dense-large"),  # ml-20m
        (25_000_095, 162_541, "dense-large"),  # ml-25m
        (32_000_204, 200_948, "dense-large"),  # ml-32m
        (198_502, 22_363, "sparse"),  # amazon-beauty
        (1000, 100, None),  # 10 a user
        (1000, 101, "sparse"),
        (300_000, 3_000, None),
    ],
)
def test_known_data_sets_get_the_profile_that_they_name(events, users, expected):
    classes = to_values(block(read_parameters(Path(__file__).parents[2] / "conf", "base"), "profiles"))
    assert choose_profile({"rows": events, "users": users}, classes) == expected


def test_a_profile_without_limits_is_never_chosen():
    classes = {"mine": "Our shops.", "other": {"about": "x"}, "small": {"max_events": 9}}
    assert choose_profile({"rows": 5, "users": 1}, classes) == "small"


def test_unknown_limits_of_a_profile_are_refused():
    with pytest.raises(ValueError, match=r"unknown limit 'max_event' \(did you mean 'max_events'\?\)"):
        choose_profile({"rows": 1, "users": 1}, {"small": {"about": "x", "max_event": 3}})
