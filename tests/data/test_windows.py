from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import described, random_sequences, sequences, target_mask, weighted

from recpipe.data import sequences as module
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences, count_items
from recpipe.data.windows import Windows

DATA = weighted(described(random_sequences(60, 25, longest=40, shortest=1)))
DATA = replace(DATA, is_target=DATA.items % 3 > 0, query_times=DATA.timestamps[DATA.offsets[1:] - 1] + 5)


def test_windows_make_every_event_but_the_first_a_target_once():
    data = sequences([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5], [6, 7]])
    cut = Windows.cut(data, 3).copy()
    assert [cut.row(u).tolist() for u in range(len(cut))] == [
        *([5, 6, 7, 8], [2, 3, 4, 5], [1, 2]),
        *([1, 2, 3, 4], [5], [6, 7]),
    ]
    assert cut.users.tolist() == ["u000"] * 3 + ["u001", "u002", "u003"]
    many = random_sequences(50, 20, longest=40)
    assert Windows.cut(many, 7).lengths.max() == 8
    assert (Windows.cut(many, 7).lengths - 1).sum() == (many.lengths - 1).sum()


def test_a_short_stride_makes_every_event_a_target_once_after_a_long_history():
    data = sequences([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5], [6, 7]])
    cut = Windows.cut(data, 3, stride=2).copy()
    assert [cut.row(u).tolist() for u in range(len(cut))] == [
        *([5, 6, 7, 8], [3, 4, 5, 6], [1, 2, 3, 4], [1, 2]),
        *([1, 2, 3, 4], [1, 2], [5], [6, 7]),
    ]
    assert cut.context.tolist() == [2, 2, 2, 1, 2, 1, 1, 1]
    many = random_sequences(50, 20, longest=40)
    for stride in (1, 3, 7):
        rows = Windows.cut(many, 7, stride).copy()
        context = np.ones(len(rows), int) if rows.context is None else rows.context
        counted = sum(np.bincount(rows.row(u)[context[u] :], minlength=21) for u in range(len(rows)))
        expected = sum(np.bincount(many.row(u)[1:], minlength=21) for u in range(len(many)))
        np.testing.assert_array_equal(counted, expected)
        assert rows.lengths.max() == 8


def variants() -> dict[str, Sequences]:
    context = np.random.default_rng(0).integers(0, 5, len(DATA))
    return {
        "plain": replace(DATA, is_target=None),
        "target types": DATA,
        "context": replace(DATA, is_target=None, context=context),
        "both": replace(DATA, context=context),
    }


@pytest.mark.parametrize("variant", list(variants()))
@pytest.mark.parametrize("stride", [None, 2])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_views_have_the_events_and_targets_of_copies(monkeypatch, variant, stride, chunk):
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", chunk)
    windows = Windows.cut(variants()[variant], 7, stride).last(6)
    copies = windows.copy()
    mask = target_mask(copies)
    owner = np.repeat(np.arange(len(copies)), copies.lengths)
    for generator, expected in ((windows.events, np.ones_like(mask)), (windows.targets, mask)):
        window, place = map(np.concatenate, zip(*generator(), strict=True))
        assert window.tolist() == owner[expected].tolist()
        assert windows.sequences.items[place].tolist() == copies.items[expected].tolist()
    assert windows.target_counts().tolist() == np.bincount(owner[mask], minlength=len(copies)).tolist()
    some = np.arange(0, len(windows), 3)
    assert windows.select(some).copy().fingerprint() == copies.select_users(some).fingerprint()


@pytest.mark.parametrize("variant", list(variants()))
@pytest.mark.parametrize("stride", [None, 2])
def test_batches_of_views_are_those_of_copies(tmp_path, variant, stride):
    data = variants()[variant]
    replace(data, query_times=None, context=None).write(tmp_path / "s.arrow")
    read = replace(Sequences.read(tmp_path / "s.arrow"), query_times=data.query_times, context=data.context)
    windows = Windows.cut(read, 7, stride)
    copies = Windows.cut(data, 7, stride).copy()
    user, event = (np.random.default_rng(0).random((n, 2), np.float32) for n in (len(data), len(data.items)))
    place = np.concatenate([place for _, place in windows.events()])
    views = DeviceSequences(windows, window=6, device="cpu", features={"user.x": user, "event.x": event})
    features = {"user.x": user[windows.user], "event.x": event[place]}
    others = DeviceSequences(copies, window=6, device="cpu", features=features)
    rows = np.random.default_rng(1).permutation(len(windows))
    assert_same(views.batch(rows), others.batch(rows))
    rows = rows[windows.lengths[rows] > 1][:20]
    zero, n = np.zeros(20, np.int64), np.arange(20)
    for *places, shape in ((n, zero, zero + 1, (20, 6)), (n // 2, n % 2 * 5, zero, (10, 10))):
        assert_same(views.pack(rows, *places, shape=shape), others.pack(rows, *places, shape=shape))


def assert_same(first: Batch, second: Batch) -> None:
    for name in Batch.__dataclass_fields__:
        one, other = getattr(first, name), getattr(second, name)
        if name == "features":
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        elif isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), name
        else:
            assert one == other


def test_flat_arrays_on_the_cpu_are_views_of_the_file(tmp_path):
    DATA.write(tmp_path / "s.arrow")
    read = Sequences.read(tmp_path / "s.arrow")
    data = DeviceSequences(Windows.cut(read, 7), window=8, device="cpu")
    assert data._items.data_ptr() == read.items.ctypes.data
    assert data._times.data_ptr() == read.timestamps.ctypes.data


def test_items_are_counted_in_chunks(monkeypatch):
    expected = np.bincount(DATA.items, minlength=31)
    for chunk in (1, 7, 1 << 22):
        monkeypatch.setattr(module, "EVENTS_AT_ONCE", chunk)
        assert count_items(DATA.items, 30).tolist() == expected.tolist()
