from __future__ import annotations

import numpy as np
import pytest
from tests.artefacts import names
from tests.synthetic import random_sequences, sequences

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


def test_windows_make_every_event_but_the_first_a_target_once():
    data = sequences([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5], [6, 7]])
    cut = data.windows(3)
    assert [cut.row(u).tolist() for u in range(len(cut))] == [
        *([5, 6, 7, 8], [2, 3, 4, 5], [1, 2]),
        *([1, 2, 3, 4], [5], [6, 7]),
    ]
    assert cut.users.tolist() == ["u000"] * 3 + ["u001", "u002", "u003"]
    many = random_sequences(50, 20, longest=40)
    assert many.windows(7).lengths.max() == 8
    assert (many.windows(7).lengths - 1).sum() == (many.lengths - 1).sum()


def test_a_short_stride_makes_every_event_a_target_once_after_a_long_history():
    data = sequences([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5], [6, 7]])
    cut = data.windows(3, stride=2)
    assert [cut.row(u).tolist() for u in range(len(cut))] == [
        *([5, 6, 7, 8], [3, 4, 5, 6], [1, 2, 3, 4], [1, 2]),
        *([1, 2, 3, 4], [1, 2], [5], [6, 7]),
    ]
    assert cut.context.tolist() == [2, 2, 2, 1, 2, 1, 1, 1]
    many = random_sequences(50, 20, longest=40)
    for stride in (1, 3, 7):
        rows = many.windows(7, stride)
        context = np.ones(len(rows), int) if rows.context is None else rows.context
        counted = sum(np.bincount(rows.row(u)[context[u] :], minlength=21) for u in range(len(rows)))
        expected = sum(np.bincount(many.row(u)[1:], minlength=21) for u in range(len(many)))
        np.testing.assert_array_equal(counted, expected)
        assert rows.lengths.max() == 8


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
