from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.artefacts import names
from tests.synthetic import described, random_sequences, sequences, weighted

from recpipe.data import sequences as module
from recpipe.data.sequences import Fold, Sequences, Vocabulary


def test_files_round_trip(tmp_path):
    expected = random_sequences(30, 9)
    expected.write(tmp_path / "s.arrow")
    assert Sequences.read(tmp_path / "s.arrow").fingerprint() == expected.fingerprint()
    bare = sequences([[1, 2], [], [3]], times=False)
    fold = Fold(bare, sequences([[5], [6, 7], [8]], times=False))
    fold.write(tmp_path / "f.arrow")
    back = Fold.read(tmp_path / "f.arrow")
    assert back.histories.fingerprint() == bare.fingerprint()
    assert back.targets.items.tolist() == [5, 6, 7, 8]
    vocabulary = Vocabulary(np.array(["a", "ß"], dtype=object))
    vocabulary.write(tmp_path / "v.parquet")
    assert Vocabulary.read(tmp_path / "v.parquet").ids.tolist() == ["a", "ß"]


def test_unknown_ids_are_encoded_as_zero():
    assert Vocabulary(np.array(["a", "c"], dtype=object)).encode(["c", "b", "a"]).tolist() == [2, 0, 1]


def test_last_keeps_the_latest_events():
    last = sequences([[1, 2, 3, 4], [5], []]).last(2)
    assert [last.row(u).tolist() for u in range(3)] == [[3, 4], [5], []]
    assert last.timestamps.tolist() == [200, 300, 0]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s.arrow"
    old = random_sequences(5, 5)
    old.write(path)

    def disk_full(sink, schema):
        sink.write(b"ARROW1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recpipe.data.sequence_files.pa.ipc.new_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        random_sequences(5, 5, seed=1).write(path)
    assert Sequences.read(path).fingerprint() == old.fingerprint()
    assert names(tmp_path) == ["s.arrow"]


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_targets_of_the_own_history_are_seen(monkeypatch, most, chunk):
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", chunk)
    histories = random_sequences(40, 8, shortest=0)
    targets = random_sequences(40, 8, seed=1, longest=most, shortest=1)
    expected = [item in histories.row(u) for u in range(40) for item in targets.row(u)]
    assert Fold(histories, targets).seen_targets().tolist() == expected and 0 < sum(expected) < len(expected)
    assert (
        Fold(histories, targets.select_users(np.zeros(0, int))).select(np.zeros(0, int)).seen_targets().tolist() == []
    )


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_parts_joined_are_the_whole(monkeypatch, chunk):
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", chunk)
    data = weighted(described(random_sequences(30, 9, shortest=0)))
    data = replace(data, is_target=data.items > 3, context=np.arange(30), query_times=np.arange(30) + 7)
    parts = list(data.parts())
    assert chunk > 1000 or len(parts) > 1
    assert all(len(part.items) <= chunk or len(part) == 1 for part in parts)
    joined = Sequences.concatenate(parts)
    for name in ("items", "timestamps", "ratings", "weights", "is_target", "offsets", "context", "query_times"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(data, name))
    assert joined.fingerprint() == data.fingerprint()
    assert joined.profiles["country"].equals(data.profiles["country"])
