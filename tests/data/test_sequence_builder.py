"""Sequences from files of interactions: against sorting every user by hand, and sorted on disk against in memory."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import names
from tests.synthetic import target_mask, write_log

from recpipe.data import sequence_builder, sequence_sort
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.sequences import EVENT_COLUMNS, Sequences, Vocabulary


def random_rows(seed: int, n: int = 400) -> list[tuple[str, str, int | None]]:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(20)}", f"ü{rng.integers(30)}", int(rng.integers(8))) for _ in range(n)]


def test_build_equals_a_stable_sort_of_every_user(tmp_path):
    rows = random_rows(0)
    built, vocabulary = build_sequences(write_log(tmp_path / "log.parquet", rows))
    assert vocabulary.ids.tolist() == sorted({item for _, item, _ in rows})
    for u, user in enumerate(built.users):
        mine = [(t, item) for name, item, t in rows if name == user]
        expected = [item for _, item in sorted(mine, key=lambda pair: pair[0])]
        assert [vocabulary.ids[i - 1] for i in built.row(u)] == expected
    assert sum(built.lengths) == len(rows)


def test_build_does_not_depend_on_the_order_of_rows_in_the_file(tmp_path):
    path = write_log(tmp_path / "log.parquet", random_rows(1))
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), tmp_path / "mixed.parquet")
    for ties in ("source", "shuffle"):
        one, two = (build_sequences(tmp_path / f"{name}.parquet", ties=ties, seed=3)[0] for name in ("log", "mixed"))
        assert one.fingerprint() == two.fingerprint()


def test_shuffled_ties_move_only_equal_timestamps_and_depend_on_the_seed(tmp_path):
    path = write_log(tmp_path / "log.parquet", random_rows(2))
    source, _ = build_sequences(path)
    shuffled, _ = build_sequences(path, ties="shuffle", seed=1)
    again, _ = build_sequences(path, ties="shuffle", seed=1)
    other, _ = build_sequences(path, ties="shuffle", seed=2)
    assert shuffled.fingerprint() == again.fingerprint() != other.fingerprint()
    assert np.array_equal(source.timestamps, shuffled.timestamps)
    assert not np.array_equal(source.items, shuffled.items)
    for u in range(len(source)):
        assert sorted(source.row(u)) == sorted(shuffled.row(u))


def test_a_log_without_timestamps_keeps_its_order_and_a_mixed_one_is_refused(tmp_path):
    rows = [("b", "y", None), ("a", "x", None), ("b", "x", None)]
    built, vocabulary = build_sequences(write_log(tmp_path / "log.parquet", rows))
    assert built.timestamps is None
    assert [vocabulary.ids[i - 1] for i in built.row(1)] == ["y", "x"]
    with pytest.raises(ValueError, match="1 of 3 .* no timestamp"):
        build_sequences(write_log(tmp_path / "mixed.parquet", [("a", "x", 1), ("a", "y", None), ("b", "x", 2)]))
    with pytest.raises(ValueError, match="allowed: source, shuffle"):
        build_sequences(tmp_path / "log.parquet", ties="asin")


def test_weights_follow_their_events_and_a_missing_one_is_one(tmp_path):
    rows = random_rows(5)
    path = write_log(tmp_path / "log.parquet", rows)
    table, weights = pq.read_table(path), [None if n % 5 == 0 else n / 8 for n in range(len(rows))]
    pq.write_table(table.append_column("weight", pa.array(weights, pa.float64())), path)
    built, _ = build_sequences(path)
    for u, user in enumerate(built.users):
        mine = sorted((t, n) for n, (name, _, t) in enumerate(rows) if name == user)
        part = built.weights[built.offsets[u] : built.offsets[u + 1]]
        assert part.tolist() == [1.0 if weights[n] is None else weights[n] for _, n in mine]
    built.write(tmp_path / "sequences.arrow")
    assert np.array_equal(Sequences.read(tmp_path / "sequences.arrow").weights, built.weights)
    for unusable in (-1.0, float("nan"), float("inf"), 1e300):
        pq.write_table(table.append_column("weight", pa.array([unusable, *weights[1:]], pa.float64())), path)
        with pytest.raises(ValueError, match=r"1 weights that are negative or no number.*`weight`"):
            build_sequences(path)


def test_a_log_with_weights_has_the_fingerprint_of_one_without(tmp_path):
    path = write_log(tmp_path / "log.parquet", random_rows(6))
    before, _ = build_sequences(path)
    table = pq.read_table(path)
    pq.write_table(table.append_column("weight", pa.array(np.arange(len(table)), pa.float64())), path)
    assert build_sequences(path)[0].fingerprint() == before.fingerprint()


def test_event_types_select_the_targets(tmp_path):
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "a", 3), ("v", "b", 1), ("v", "c", 2)]
    path = write_log(tmp_path / "log.parquet", rows)
    with pytest.raises(ValueError, match="the log has no event types: map the column"):
        build_sequences(path, target_events=["buy"])
    table = pq.read_table(path).append_column("event", pa.array(["view", "buy", "cart", None, "buy"]))
    pq.write_table(table.take([4, 2, 0, 1, 3]), path)
    data, _ = build_sequences(path, target_events=["buy", "cart"])
    assert data.is_target.tolist() == [False, True, True, False, True]
    assert target_mask(data).tolist() == [False, True, True, False, True]
    assert data.target_counts().tolist() == [2, 1]
    assert data.target_positions(np.array([2, 2])).tolist() == [1, 2]  # the second user has only one
    assert Sequences.from_batch(data.to_batch()).is_target.tolist() == data.is_target.tolist()
    assert data.fingerprint() != build_sequences(path)[0].fingerprint()
    with pytest.raises(ValueError, match=r"unknown event type in protocol.target_events 'by' \(did you mean 'buy'"):
        build_sequences(path, target_events=["by"])


@pytest.fixture
def sorted_on_disk(monkeypatch, tmp_path):
    """Build sequences as of a log larger than memory, in streamed batches of a few rows."""
    monkeypatch.setattr(sequence_builder, "ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(sequence_sort, "ROWS_AT_ONCE", 7)
    engine = {"memory_limit": "200MB", "threads": 1, "spill_folder": str(tmp_path / "spill")}
    return lambda path, **options: build_sequences(path, folder=tmp_path / "sequences", engine=engine, **options)


def random_log(path: Path, seed: int, **options: bool) -> Path:
    """A log with few times, places that repeat, ids of any script, and optional columns with missing values."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    ids = np.array(["ü", "z", "A", "a", "Ω", "𝄞", "é", "aa", "\uff21", "10", "9", "it's", "e\u0301"])

    def optional(values: np.ndarray, share: float = 0.3) -> pa.Array:
        return pa.array(values.tolist(), mask=rng.random(n) < share)

    table = {
        "user_id": pa.array(ids[rng.integers(len(ids), size=n)]),
        "item_id": pa.array(ids[rng.integers(len(ids), size=n)]),
        "timestamp": pa.array(rng.integers(-2, 3, n) if options["times"] else [None] * n, pa.int64()),
        "order": pa.array(rng.permutation(n) // 2, pa.int64()),
        "rating": optional(rng.normal(size=n), rng.choice([0.0, 0.3, 1.0])),
        "weight": optional(rng.random(n), rng.choice([0.0, 0.3, 1.0])),
        "event": optional(np.array(["view", "it's", "buy"])[rng.integers(3, size=n)]),
    }
    pq.write_table(pa.table({k: v for k, v in table.items() if options.get(k, True)}), path, row_group_size=50)
    return path


def assert_same(built: Sequences, ids: Vocabulary, expected: Sequences, expected_ids: Vocabulary) -> None:
    assert built.users.tolist() == expected.users.tolist()
    assert ids.ids.tolist() == expected_ids.ids.tolist()
    for name in ("items", "offsets", *EVENT_COLUMNS):
        one, other = getattr(built, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=name)
    assert built.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ties", ["source", "shuffle"])
def test_sequences_sorted_on_disk_are_those_sorted_in_memory(sorted_on_disk, tmp_path, seed, ties):
    rng = np.random.default_rng(seed)
    options = {name: bool(rng.integers(2)) for name in ("times", "rating", "weight", "event")}
    path = random_log(tmp_path / "it's=1.parquet", seed, **options)
    types = sorted({*pq.read_table(path)["event"].to_pylist()} - {None})[:2] if options["event"] else None
    expected, vocabulary = build_sequences(path, ties=ties, seed=seed, target_events=types)
    built, other_vocabulary = sorted_on_disk(path, ties=ties, seed=seed, target_events=types)
    assert_same(built, other_vocabulary, expected, vocabulary)
    assert names(tmp_path / "sequences") == []


def test_both_ways_refuse_a_log_with_the_same_message(sorted_on_disk, tmp_path):
    path = write_log(tmp_path / "mixed.parquet", [("a", "x", 1), ("a", "y", None), ("b", "x", 2)])
    unusable = pq.read_table(path).append_column("weight", pa.array([1.0, None, -2.5]))
    pq.write_table(unusable.set_column(2, "timestamp", pa.array([1, 2, 3])), tmp_path / "weights.parquet")
    cases = [
        (path, {}),
        (tmp_path / "weights.parquet", {}),
        (write_log(tmp_path / "bare.parquet", [("a", "x", 1)]), {"target_events": ["b"]}),
    ]
    for log, options in cases:
        messages = []
        for build in (build_sequences, sorted_on_disk):
            with pytest.raises(ValueError, match=r"no timestamp|weights that are|no event types") as raised:
                build(log, **options)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def test_rows_without_an_id_are_refused(sorted_on_disk, tmp_path):
    path = write_log(tmp_path / "log.parquet", [("a", "x", 1), ("a", None, 2), (None, "x", 3)])
    with pytest.raises(ValueError, match="2 rows have no user_id or no item_id"):
        sorted_on_disk(path)


def test_a_full_disk_and_a_small_memory_limit_are_named_and_nothing_is_left(sorted_on_disk, tmp_path, monkeypatch):
    path = write_log(tmp_path / "log.parquet", random_rows(7))

    def disk_full(self, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sequence_sort.EventFiles, "append", disk_full)
    with pytest.raises(OSError, match="disk full, nothing was written.*set ingest.engine.spill_folder"):
        sorted_on_disk(path)
    assert names(tmp_path / "sequences") == []
    monkeypatch.undo()
    monkeypatch.setattr(sequence_builder, "ROWS_IN_MEMORY", 0)
    engine = {"memory_limit": "2MB", "threads": 1, "spill_folder": str(tmp_path / "spill")}
    with pytest.raises(ValueError, match="more memory than ingest.engine.memory_limit, 2MB.*raise it"):
        build_sequences(path, folder=tmp_path / "sequences", engine=engine)
    assert names(tmp_path / "sequences") == []


def test_a_full_disk_under_the_sorted_events_is_named(tmp_path):
    class FullDisk(io.BytesIO):
        name = str(tmp_path / "item")

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    files = sequence_sort.EventFiles(tmp_path)
    files._files["item"], files._types["item"] = FullDisk(), np.dtype(np.int32)
    with pytest.raises(OSError, match="sorted events were not written; free space") as caught:
        files.append({"item": np.zeros(3, np.int32)})
    assert caught.value.filename == str(tmp_path)


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Settings of a local Spark of two threads, stopped after the module."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'recpipe[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    settings = dict.fromkeys(("spark.sql.codegen.wholeStage", "spark.sql.adaptive.enabled"), "false")  # faster here
    settings |= {"spark.sql.shuffle.partitions": "3", "spark.default.parallelism": "2"}
    folder = str(tmp_path_factory.mktemp("spark"))
    yield {"name": "spark", "master": "local[2]", "memory_limit": "1GB", "settings": settings, "spill_folder": folder}
    if session := sql.SparkSession.getActiveSession():
        session.stop()


@pytest.mark.slow
def test_spark_sorts_as_memory_does(spark, tmp_path, monkeypatch):
    for seed, ties in enumerate(("source", "shuffle")):
        path = random_log(tmp_path / f"log{seed}.parquet", seed, times=seed > 0, rating=True, weight=True, event=True)
        table = pq.read_table(path)  # as of an ingest: every row has a place of its own, and a user and an item
        pq.write_table(table.set_column(3, "order", pa.array(range(len(table)))), path, row_group_size=50)
        monkeypatch.setattr(sequence_builder, "ROWS_IN_MEMORY", 10**6)
        expected, vocabulary = build_sequences(path, ties=ties, target_events=["buy", "it's"])
        monkeypatch.setattr(sequence_builder, "ROWS_IN_MEMORY", 0)
        options = {"folder": tmp_path / "sequences", "engine": spark}
        built, other = build_sequences(path, ties=ties, target_events=["buy", "it's"], **options)
        assert_same(built, other, expected, vocabulary)
        assert names(tmp_path / "sequences") == []
