"""Splits against written examples and invariants; the folder of training data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.artefacts import names
from tests.synthetic import described, random_sequences, sequences, weighted

from recpipe.data import split_rules
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.data.splits import TrainingData, held_out_items, split, split_to, with_validation


def rows(part):
    return {user: part.row(u).tolist() for u, user in enumerate(part.users)}


def pairs(fold: Fold):
    histories, targets = rows(fold.histories), rows(fold.targets)
    return {user: (histories[user], targets[user]) for user in histories}


def test_leave_one_out_on_a_written_example():
    cut = split(sequences([[1, 2, 3, 4], [5, 6], [7], [8, 9, 10]]), Protocol(dataset="x"))
    assert rows(cut.train) == {"u000": [1, 2], "u001": [5, 6], "u002": [7], "u003": [8]}
    assert pairs(cut.valid) == {"u000": ([1, 2], [3]), "u003": ([8], [9])}
    assert pairs(cut.test) == {"u000": ([1, 2, 3], [4]), "u003": ([8, 9], [10])}
    assert cut.sizes()["cold_test_targets"] == 2


def test_without_a_split_all_events_are_training_events(tmp_path):
    data = random_sequences(30, 20).with_profiles(pa.table({"user_id": ["u003"], "country": ["fr"]}))
    protocol = Protocol(dataset="x", split="none")
    cut = split(data, protocol)
    assert rows(cut.train) == rows(data)
    assert (len(cut.valid), len(cut.test), cut.sizes()["test_targets"]) == (0, 0, 0)
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(20)], object))
    TrainingData({"id": protocol.id, **protocol.to_dict()}, vocabulary, cut.train, cut.valid).write(tmp_path)
    read = TrainingData.read(tmp_path)
    assert read.train_set.fingerprint() == data.fingerprint() and len(read.valid_set) == 0
    assert read.train_set.profiles["country"].to_pylist() == data.profiles["country"].to_pylist()
    with pytest.raises(ValueError, match="the none split leaves no user for training"):
        split(data.select_users(np.zeros(0, int)), protocol)


@pytest.mark.parametrize("rule", ["leave_one_out", "ratio", "temporal", "cold_users"])
def test_no_training_event_follows_or_is_a_target_of_its_user(rule):
    data = random_sequences(200, 40, longest=30)
    cut = split(data, Protocol(dataset="x", split=rule, valid=0.15, test=0.15, seed=1))
    whole, train = rows(data), rows(cut.train)
    for user, events in train.items():
        assert whole[user][: len(events)] == events
    for fold in (cut.valid, cut.test):
        for user, (history, targets) in pairs(fold).items():
            assert whole[user][: len(history) + 1] == history + targets
            assert len(train.get(user, [])) <= len(history)
    shared = np.intersect1d(cut.valid.histories.users, cut.test.histories.users)
    valid, test = pairs(cut.valid), pairs(cut.test)
    assert all(len(valid[user][0]) < len(test[user][0]) for user in shared)


@pytest.mark.parametrize(
    ("rule", "targets"),
    [("leave_one_out", "next"), *((rule, n) for rule in ("ratio", "temporal", "cold_users") for n in ("next", "all"))],
)
def test_validation_targets_follow_the_training_events_of_their_user(rule, targets):
    data = random_sequences(200, 40, longest=30, shortest=1)
    cut = split(data, Protocol(dataset="x", split=rule, targets=targets, valid=0.15, test=0.15, seed=1))
    both = with_validation(cut.train, cut.valid)
    expected = rows(cut.train)
    for user, (history, targets_of_user) in pairs(cut.valid).items():
        expected[user] = history + targets_of_user
    assert rows(both) == expected and len(both.items) > len(cut.train.items)
    assert both.users[: len(cut.train)].tolist() == cut.train.users.tolist()
    for times in np.split(both.timestamps, both.offsets[1:-1]):
        assert (np.diff(times) > 0).all()
    if rule == "leave_one_out":
        whole, test = rows(data), pairs(cut.test)
        assert all(rows(both)[user] == whole[user][:-1] for user in test)


def test_ratings_weights_and_profiles_are_merged_with_validation():
    data = sequences([[1, 2, 3, 4], [5, 6]])
    data = replace(data, ratings=np.arange(1, 7, dtype=np.float32), profiles={"age": pa.array([30, 40])})
    data = replace(data, weights=10 * data.ratings)
    cut = split(data, Protocol(dataset="x"))
    both = with_validation(cut.train, cut.valid)
    assert both.ratings.tolist() == [1, 2, 3, 5, 6] and both.weights.tolist() == [10, 20, 30, 50, 60]
    assert both.profiles["age"].to_pylist() == [30, 40]


def test_temporal_cuts_all_users_at_one_moment():
    data = random_sequences(100, 20, longest=30)
    cut = split(data, Protocol(dataset="x", split="temporal", valid=0.2, test=0.1))
    assert cut.train.timestamps.max() < cut.valid.targets.timestamps.min()
    assert cut.valid.targets.timestamps.max() < cut.test.targets.timestamps.min()
    dates = Protocol(dataset="x", split="temporal", valid="1970-01-01T00:10:00", test="1970-01-01T00:20:00")
    dated = split(data, dates)
    assert dated.train.timestamps.max() < 600 <= dated.valid.targets.timestamps.min()
    assert dated.test.targets.timestamps.min() >= 1200


SPLITS = [("leave_one_out", "next"), *((rule, n) for rule in ("ratio", "temporal") for n in ("next", "all"))]


def targets_by_brute_force(events, protocol, cut_times):
    """(training, validation, test) of one user, events (item, time, is_target); folds as (history, targets) or None."""
    places = [p for p, (_, _, is_target) in enumerate(events) if is_target]
    items = [item for item, _, _ in events]
    if protocol.split == "leave_one_out":
        if len(places) < 2 or places[-2] == 0:
            return items, None, None
        valid, test, stop = places[-2:-1], places[-1:], places[-2]
    elif protocol.split == "ratio":
        n_test, n_valid = (int(len(places) * share + 0.5) for share in (protocol.test, protocol.valid))
        test = places[len(places) - n_test :]
        valid = places[max(len(places) - n_test - n_valid, 0) : len(places) - n_test]
        stop = min([*valid, *test, len(events)])
    else:
        valid_from, test_from = cut_times
        valid = [p for p in places if valid_from <= events[p][1] < test_from]
        test = [p for p in places if events[p][1] >= test_from]
        stop = sum(time < valid_from for _, time, _ in events)

    def fold(places):
        if not places or places[0] == 0:
            return None
        targets = places[:1] if protocol.targets == "next" else places
        return items[: places[0]], list(dict.fromkeys(items[p] for p in targets))

    return items[:stop], fold(valid), fold(test)


@pytest.mark.parametrize(
    ("rule", "targets"), [("leave_one_out", "next"), *((r, t) for r in ("ratio", "temporal") for t in ("next", "all"))]
)
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_target_events_are_held_out_and_histories_have_all_events(rule, targets, share):
    data = random_sequences(150, 40, longest=25, shortest=1, seed=3)
    rng = np.random.default_rng(1)
    data = replace(data, timestamps=data.timestamps + np.repeat(rng.integers(0, 2000, len(data)), data.lengths))
    data = replace(data, is_target=rng.random(len(data.items)) < share)
    dates = ("1970-01-01T00:30:00", "1970-01-01T00:40:00") if rule == "temporal" else (0.2, 0.2)
    protocol = Protocol(dataset="x", split=rule, targets=targets, valid=dates[0], test=dates[1])
    cut = split(data, protocol)
    expected = {}
    for u, user in enumerate(data.users):
        part = slice(*data.offsets[u : u + 2])
        events = [
            *zip(data.items[part].tolist(), data.timestamps[part].tolist(), data.is_target[part].tolist(), strict=True)
        ]
        expected[user] = targets_by_brute_force(events, protocol, (1800, 2400))
    assert rows(cut.train) == {user: train for user, (train, _, _) in expected.items() if train}
    assert pairs(cut.valid) == {user: valid for user, (_, valid, _) in expected.items() if valid}
    assert pairs(cut.test) == {user: test for user, (_, _, test) in expected.items() if test}
    assert cut.valid.targets.is_target.all() and cut.test.targets.is_target.all()
    both = rows(with_validation(cut.train, cut.valid))
    assert both == {
        user: valid[0] + valid[1] if valid else train for user, (train, valid, _) in expected.items() if train or valid
    }
    if share == 1.0:  # the same split as without event types
        plain = split(replace(data, is_target=None), protocol)
        assert (rows(plain.train), pairs(plain.valid), pairs(plain.test)) == (
            rows(cut.train),
            pairs(cut.valid),
            pairs(cut.test),
        )


def test_the_last_target_event_of_cold_users_is_held_out():
    data = random_sequences(200, 20, seed=2)
    data = replace(data, is_target=np.random.default_rng(0).random(len(data.items)) < 0.4)
    cut = split(data, Protocol(dataset="x", split="cold_users", valid=0.2, test=0.2))
    whole = {user: slice(*data.offsets[u : u + 2]) for u, user in enumerate(data.users)}
    for fold in (cut.valid, cut.test):
        for user, (history, targets) in pairs(fold).items():
            last = np.flatnonzero(data.is_target[whole[user]])[-1]
            assert history + targets == data.items[whole[user]][: last + 1].tolist() and len(targets) == 1


@pytest.mark.parametrize("last_day", [100, 97, 60])
def test_coarse_times_that_leave_no_training_are_refused(last_day):
    day = 86_400
    data = sequences([[1, 2, 3, 4]] * 25)
    data = replace(data, timestamps=np.sort(np.where(np.arange(100) < 100 - last_day, 0, day)) + 19_783 * day)
    with pytest.raises(ValueError, match=f"{last_day}% of the events share the moment 2024-03-0[12] 00:00:00"):
        split(data, Protocol(dataset="x", split="temporal"))


def test_a_part_far_larger_than_its_share_is_warned_of(caplog):
    data = sequences([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] * 10)
    data = replace(data, timestamps=np.tile([0, 1, 2, 3, 4, 5, 6, 7, 7, 7], 10))
    cut = split(data, Protocol(dataset="x", split="temporal", valid=0.1, test=0.1))
    assert cut.test.targets.timestamps.min() == 7 and cut.valid.targets.timestamps.tolist() == [6] * 10
    assert "protocol.test is 30% of the events instead of 10%" in caplog.text


def test_cold_users_share_no_event_with_training():
    cut = split(random_sequences(300, 20), Protocol(dataset="x", split="cold_users", valid=0.2, test=0.2, seed=5))
    parts = [set(part.users) for part in (cut.train, cut.valid.histories, cut.test.histories)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert 30 < len(parts[2]) < 90


def test_all_targets_are_distinct():
    cut = split(
        sequences([[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]] * 2),
        Protocol(dataset="x", split="ratio", valid=0.2, test=0.2, targets="all"),
    )
    assert pairs(cut.test)["u000"] == ([1, 2, 3, 4, 5, 6, 7, 8], [9])
    assert pairs(cut.valid)["u000"][1] == [7, 8]


@pytest.mark.parametrize("targets", ["next", "all"])
def test_query_times_are_those_of_the_first_targets_under_query_only(targets):
    data = random_sequences(50, 20, longest=30, seed=4)
    cut = split(data, Protocol(dataset="x", split="ratio", valid=0.2, test=0.2, targets=targets))
    whole = dict(zip(data.users, zip(data.offsets[:-1], data.lengths, strict=True), strict=True))
    for fold in (cut.valid, cut.test):
        assert fold.histories.query_times is None
        timed = fold.with_query_times(Protocol(dataset="x", time="query"))
        for u, user in enumerate(timed.histories.users):
            first = whole[user][0] + timed.histories.lengths[u]  # the place in the log that follows the history
            assert timed.histories.query_times[u] == data.timestamps[first]
        for time in ("none", "last_item"):
            assert timed.with_query_times(Protocol(dataset="x", time=time)).histories.query_times is None
    bare = split(sequences([[1, 2, 3], [2, 3, 4]], times=False), Protocol(dataset="x")).test
    assert bare.with_query_times(Protocol(dataset="x", time="last_item")).histories.query_times is None
    with pytest.raises(ValueError, match="no timestamps.*protocol.time=none"):
        bare.with_query_times(Protocol(dataset="x", time="query"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "leaves no user for validation"),
        ({"split": "ratio", "valid": "2020-01-01"}, "needs a share"),
        ({"split": "temporal", "valid": "yesterday"}, "ISO date"),
        ({"split": "temporal", "valid": "1970-02-01", "test": "1970-01-01"}, "not before"),
    ],
)
def test_impossible_splits_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        split(sequences([[1, 2], [3]]), Protocol(dataset="x", **fields))


def test_temporal_split_needs_timestamps():
    with pytest.raises(ValueError, match="only an order"):
        split(sequences([[1, 2, 3]], times=False), Protocol(dataset="x", split="temporal"))


CATALOGUE = Vocabulary(np.array([f"item {i}" for i in range(1, 41)], dtype=object))


@pytest.mark.parametrize(
    ("rule", "targets"),
    [("leave_one_out", "next"), *((rule, n) for rule in ("ratio", "temporal", "cold_users") for n in ("next", "all"))],
)
def test_held_out_items_are_removed_from_training_and_validation_only(rule, targets):
    """Against the usual split, without_held_out of these items one event after the other."""
    data = random_sequences(200, 40, longest=30, shortest=1)
    data = replace(data, ratings=np.arange(len(data.items), dtype=np.float32))
    usual = Protocol(dataset="x", split=rule, targets=targets, valid=0.2, test=0.2, seed=3)
    whole, cut = split(data, usual), split(data, replace(usual, held_out_items=0.2), CATALOGUE)
    held_out = set(cut.held_out.tolist())
    assert 4 <= len(held_out) <= 14

    def without_held_out(part):
        return {user: [i for i in events if i not in held_out] for user, events in rows(part).items()}

    assert rows(cut.train) == {user: events for user, events in without_held_out(whole.train).items() if events}
    histories, expected = without_held_out(whole.valid.histories), without_held_out(whole.valid.targets)
    assert pairs(cut.valid) == {u: (histories[u], expected[u]) for u in expected if histories[u] and expected[u]}
    assert pairs(cut.test) == pairs(whole.test)
    for part in (cut.train, cut.valid.histories, cut.valid.targets):
        assert (data.items[part.ratings.astype(int)] == part.items).all()
        assert (data.timestamps[part.ratings.astype(int)] == part.timestamps).all()
    cold = [user for user, (_, items) in pairs(cut.test).items() if held_out & set(items)]
    sizes = cut.sizes()
    assert (sizes["held_out_items"], sizes["held_out_test_users"]) == (len(held_out), len(cold))
    assert cold and sizes["cold_test_targets"] >= len(cold)
    assert not held_out & set(with_validation(cut.train, cut.valid).items.tolist())
    assert whole.sizes()["held_out_items"] == whole.sizes()["held_out_test_users"] == 0


def test_held_out_items_depend_on_id_and_seed_only():
    many = Vocabulary(np.array([f"item {i}" for i in range(2000)], dtype=object))
    protocol = Protocol(dataset="x", held_out_items=0.1)

    def held_out_ids(vocabulary, protocol):
        return set(vocabulary.ids[held_out_items(vocabulary, protocol) - 1])

    targets_of_user = held_out_ids(many, protocol)
    assert 150 < len(targets_of_user) < 250
    half = Vocabulary(many.ids[::-2])
    assert held_out_ids(half, protocol) == targets_of_user & set(half.ids)
    assert targets_of_user < held_out_ids(many, replace(protocol, held_out_items=0.2))
    assert len(targets_of_user & held_out_ids(many, replace(protocol, seed=1))) < 50
    assert len(held_out_items(many, replace(protocol, held_out_items=0.0))) == 0


def test_held_out_items_need_ids_and_test_targets():
    data = random_sequences(20, 40, longest=9)
    protocol = Protocol(dataset="x", held_out_items=0.2)
    with pytest.raises(ValueError, match="give split the vocabulary"):
        split(data, protocol)
    with pytest.raises(ValueError, match=r"none of the 0 items .* give a larger share or another protocol\.seed"):
        split(data, replace(protocol, held_out_items=0.001), CATALOGUE)
    with pytest.raises(ValueError, match=r"leaves no user for training.*held_out_items"):
        split(data, replace(protocol, held_out_items=0.999), CATALOGUE)


@pytest.fixture
def data() -> TrainingData:
    protocol = Protocol(dataset="d")
    parts = split(random_sequences(12, 8), protocol)
    described = {"id": protocol.id, **protocol.to_dict(), "sizes": parts.sizes()}
    return TrainingData(described, Vocabulary(np.array([f"i{n}" for n in range(8)], object)), parts.train, parts.valid)


def test_training_data_round_trips(data: TrainingData, tmp_path: Path) -> None:
    data.write(tmp_path)
    again = TrainingData.read(tmp_path)
    assert again.protocol_fields == data.protocol_fields
    assert again.protocol == data.protocol
    assert again.vocabulary.ids.tolist() == data.vocabulary.ids.tolist()
    np.testing.assert_array_equal(again.train_set.items, data.train_set.items)
    np.testing.assert_array_equal(again.valid_set.targets.items, data.valid_set.targets.items)


def test_parts_are_read_lazily(data: TrainingData, tmp_path: Path, monkeypatch) -> None:
    data.write(tmp_path)
    again = TrainingData.read(tmp_path)
    monkeypatch.setattr(Sequences, "read", lambda path: pytest.fail(f"{path} was read"))
    assert again.protocol.dataset == "d"
    assert len(again.valid_set) == len(data.valid_set)


def test_a_folder_with_parts_of_two_splits_is_refused(data, tmp_path, monkeypatch) -> None:
    data.write(tmp_path)
    other = TrainingData(
        {**data.protocol_fields, "fingerprint": "other"}, data.vocabulary, data.train_set, data.valid_set
    )
    monkeypatch.setattr(Vocabulary, "write", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        other.write(tmp_path)
    with pytest.raises(ValueError, match=r"protocol.json is damaged .*run `kedro run --pipelines=train`"):
        TrainingData.read(tmp_path)
    monkeypatch.undo()
    other.write(tmp_path)
    assert TrainingData.read(tmp_path).protocol.data_differences(data.protocol) == ["fingerprint"]


def test_a_missing_file_is_reported(data: TrainingData, tmp_path: Path) -> None:
    data.write(tmp_path)
    (tmp_path / "valid_set.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="valid_set.arrow is missing.*--pipelines=train"):
        TrainingData.read(tmp_path)


@pytest.mark.parametrize(
    ("rule", "targets"),
    [(rule, n) for rule in ("ratio", "temporal", "cold_users") for n in ("next", "all")]
    + [("leave_one_out", "next"), ("none", "next")],
)
@pytest.mark.parametrize("types", [False, True])
def test_parts_by_users_give_the_split_of_the_whole(tmp_path, monkeypatch, rule, targets, types):
    whole = weighted(described(random_sequences(120, 40, longest=30, shortest=0)))
    whole = replace(whole, is_target=whole.items % 4 > 0 if types else None)
    fields = {"split": rule, "targets": targets, "valid": 0.15, "test": 0.15, "seed": 1}
    protocol = Protocol(dataset="x", **fields, **({} if rule == "none" else {"held_out_items": 0.25}))
    expected = split(whole, protocol, CATALOGUE)
    both = with_validation(expected.train, expected.valid)
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", 300)
    monkeypatch.setattr("recpipe.data.split_rules.EVENTS_AT_ONCE", 300)
    assert len(list(whole.parts())) > 4
    for result in (split(whole, protocol, CATALOGUE), split_to(tmp_path, whole, protocol, CATALOGUE)):
        assert result.sizes() == expected.sizes()
        assert_equal(result.train, expected.train)
        for fold, other in ((result.valid, expected.valid), (result.test, expected.test)):
            assert_equal(fold.histories, other.histories)
            assert_equal(fold.targets, other.targets, profiles=False)
        assert_equal(with_validation(result.train, result.valid), both)
    assert names(tmp_path) == ["test_set.arrow", "train_set.arrow", "valid_set.arrow"]


def assert_equal(one: Sequences, other: Sequences, *, profiles: bool = True) -> None:
    for name in ("items", "timestamps", "ratings", "weights", "is_target", "offsets"):
        values, others = getattr(one, name), getattr(other, name)
        assert (values is None) == (others is None) and (values is None or values.dtype == others.dtype)
        np.testing.assert_array_equal(values, others)
    assert one.users == other.users
    assert not profiles or {n: c.to_pylist() for n, c in one.profiles.items()} == {
        n: c.to_pylist() for n, c in other.profiles.items()
    }


def test_a_split_that_fails_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="leaves no user for validation"):
        split_to(tmp_path, sequences([[1], [2]]), Protocol(dataset="x"))
    assert names(tmp_path) == []


def test_times_at_which_parts_begin_are_quantiles_of_all_target_events(monkeypatch):
    monkeypatch.setattr(split_rules, "EVENTS_AT_ONCE", 17)
    rng = np.random.default_rng(0)
    for spread in (3, 1000, 2**31, 2**60):
        times, mask = rng.integers(-spread, spread, 400), rng.random(400) < 0.3
        for is_target in (None, mask):
            of_targets = times if is_target is None else times[mask]
            found = split_rules._TargetTimes(times, is_target)
            for q in (0.0, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0):
                assert found.quantile(q) == np.quantile(of_targets, q, method="higher")
            assert found.share(int(times[7])) == np.mean(of_targets >= times[7])
