import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import names
from tests.synthetic import described, random_sequences, weighted

from recpipe.data.digests import digest_path
from recpipe.data.sequence_files import SequenceWriter, list_column
from recpipe.data.sequences import Fold, Sequences

DATA = weighted(described(random_sequences(30, 9)))
DATA = replace(DATA, is_target=DATA.items % 2 == 0)
EVENTS = ("items", "timestamps", "ratings", "weights", "is_target")


def assert_equal(first: Sequences, second: Sequences) -> None:
    for name in (*EVENTS, "offsets"):
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert first.users == second.users
    assert {name: column.to_pylist() for name, column in first.profiles.items()} == {
        name: column.to_pylist() for name, column in second.profiles.items()
    }


def is_in_file(values: np.ndarray) -> bool:
    """Whether an array is a view of a buffer of Arrow rather than memory of its own."""
    while isinstance(values.base, np.ndarray):
        values = values.base
    return values.base is not None


def test_arrays_of_a_file_are_read_only_views(tmp_path):
    DATA.write(tmp_path / "s.arrow")
    before = pa.total_allocated_bytes()
    read = Sequences.read(tmp_path / "s.arrow")
    assert pa.total_allocated_bytes() - before < 2000  # the columns of DATA have more than 4,000 bytes
    assert_equal(read, DATA)
    for name in (*EVENTS, "offsets"):
        values = getattr(read, name)
        assert is_in_file(values) and values.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_empty_sequences_and_folds(tmp_path):
    nothing = DATA.select_users(np.zeros(0, np.int64))
    nothing.write(tmp_path / "s.arrow")
    assert_equal(Sequences.read(tmp_path / "s.arrow"), nothing)
    Fold(nothing, nothing).write(tmp_path / "f.arrow")
    assert len(Fold.read(tmp_path / "f.arrow")) == 0


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_give_the_same_file(tmp_path, chunk):
    DATA.write(tmp_path / "whole.arrow")
    with SequenceWriter(tmp_path / "chunks.arrow", EVENTS) as writer:
        for start in range(0, len(DATA.items), chunk):
            writer.append(**{name: getattr(DATA, name)[start : start + chunk] for name in EVENTS})
        writer.close(DATA.users, DATA.offsets, profiles=DATA.profiles)
    assert names(tmp_path) == ["chunks.arrow", "whole.arrow"]
    assert (tmp_path / "chunks.arrow").read_bytes() == (tmp_path / "whole.arrow").read_bytes()


def test_chunks_of_a_fold(tmp_path):
    fold = Fold(DATA, DATA.last(1))
    columns = [f"{prefix}{name}" for prefix in ("", "target_") for name in EVENTS]
    with SequenceWriter(tmp_path / "f.arrow", columns) as writer:
        values = [getattr(part, name) for part in (fold.histories, fold.targets) for name in EVENTS]
        writer.append(**dict(zip(columns, values, strict=True)))
        targets = fold.targets.offsets
        writer.close(fold.histories.users, fold.histories.offsets, target_offsets=targets, profiles=DATA.profiles)
    assert Fold.read(tmp_path / "f.arrow").fingerprint() == fold.fingerprint()


def test_what_was_read_is_linked_until_its_file_is_replaced(tmp_path):
    path, other = tmp_path / "s.arrow", tmp_path / "deep" / "t.arrow"
    DATA.write(path)
    read = Sequences.read(path)
    read.write(other)
    assert other.samefile(path) and Sequences.read(other).fingerprint() == DATA.fingerprint()
    read.write(path)
    assert Sequences.read(path).fingerprint() == DATA.fingerprint() and names(tmp_path) == ["deep", "s.arrow"]
    changed = replace(read, weights=None)
    changed.write(other)
    assert Sequences.read(other).weights is None and not other.samefile(path)
    DATA.last(1).write(path)
    read.write(other)  # of memory that the replaced file still holds
    assert Sequences.read(other).fingerprint() == DATA.fingerprint()
    path.unlink()
    read.write(path)
    assert Sequences.read(path).fingerprint() == DATA.fingerprint()
    fold = Fold(DATA, DATA.last(1))
    fold.write(path)
    Fold.read(path).write(other)
    assert other.samefile(path)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match=r"s\.arrow: 3 events in the column items and 2 users do not fit .* 4 of 3"),
        SequenceWriter(tmp_path / "s.arrow", ["items"]) as writer,
    ):
        writer.append(items=np.arange(1, 4))
        writer.close(pa.array(["a", "b"]), np.array([0, 2, 4]))
    with pytest.raises(RuntimeError, match="was not closed"), SequenceWriter(tmp_path / "s.arrow", ["items"]):
        pass
    with (
        pytest.raises(ValueError, match="columns ratings instead of items"),
        SequenceWriter(tmp_path / "s.arrow", ["items"]) as writer,
    ):
        writer.append(ratings=np.ones(1))
    assert names(tmp_path) == [] and not list(tmp_path.iterdir())


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    path, run = tmp_path / "s.arrow", "run `kedro run --pipelines=train`"
    with pytest.raises(FileNotFoundError, match=rf"s\.arrow is missing; {run}"):
        Sequences.read(path)
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "s.parquet")
    with pytest.raises(FileNotFoundError, match=rf"s\.parquet beside it is of an earlier version, .*{run}"):
        Sequences.read(path)
    shutil.copy(tmp_path / "s.parquet", path)
    with pytest.raises(ValueError, match=f"no complete Arrow file of sequences .*{run}"):
        Sequences.read(path)
    DATA.write(path)
    with pytest.raises(ValueError, match=f"has other content: it has the columns user_id, items, .*{run}"):
        Fold.read(path)
    whole = path.read_bytes()
    for n in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        digest_path(path).unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"no complete Arrow file of sequences .*{run}"):
            Sequences.read(path)


def test_files_in_several_batches_are_refused(tmp_path):
    batch = pa.record_batch({"user_id": ["a"], "items": list_column(np.array([0, 1]), np.ones(1, np.int32))})
    with pa.ipc.new_file(tmp_path / "s.arrow", batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(ValueError, match="2 record batches instead of one"):
        Sequences.read(tmp_path / "s.arrow")
