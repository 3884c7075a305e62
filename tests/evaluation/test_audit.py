"""Audit of a split against loops over users and events; logs without times, edges, ties, or more than one user."""

from dataclasses import replace

import numpy as np
import pytest
from tests.synthetic import sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.data.splits import TrainingData, split
from recpipe.evaluation.audit import DAY, NO_TIMES, audit

ITEMS = 30


def log(users: int = 60, *, seed: int = 0, resolution: int = DAY // 4) -> Sequences:
    """Zipf items at times of a coarse clock, so that there are ties, repeats and events of one day."""
    rng = np.random.default_rng(seed)
    rows = [np.minimum(rng.zipf(1.4, rng.integers(3, 12)), ITEMS).tolist() for _ in range(users)]
    data = sequences(rows)
    times = [np.sort(rng.integers(0, 80, len(row))) * resolution for row in rows]
    return replace(data, timestamps=np.concatenate(times).astype(np.int64))


def split_of(data: Sequences, protocol: Protocol | None = None) -> tuple[TrainingData, object]:
    protocol = protocol or Protocol(dataset="x")
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(ITEMS)], dtype=object))
    parts = split(data, protocol, vocabulary)
    fields = {"id": protocol.id, **protocol.to_dict()}
    return TrainingData(fields, vocabulary, parts.train, parts.valid), parts.test


@pytest.fixture(params=[5, 1 << 20], ids=["in parts", "at once"])
def parts(request, monkeypatch):
    for module in ("recpipe.data.sequences", "recpipe.evaluation.audit"):
        monkeypatch.setattr(f"{module}.EVENTS_AT_ONCE", request.param)


@pytest.mark.usefixtures("parts")
def test_measures_are_those_of_a_loop_over_users():
    data, test = split_of(log())
    train, valid = data.train_set, data.valid_set
    measures = audit(data, test)["measures"]
    pairs = {pair for u in range(len(train)) for pair in zip(train.row(u)[:-1], train.row(u)[1:], strict=True)}
    users = range(len(test))
    history, target = [test.histories.row(u) for u in users], [int(test.targets.row(u)[0]) for u in users]
    at = test.targets.timestamps
    before = [test.histories.timestamps[test.histories.offsets[u + 1] - 1] for u in users]
    memorised = np.mean([(history[u][-1], target[u]) in pairs for u in users])
    assert measures["transitions"]["memorised"] == pytest.approx(memorised)
    assert measures["transitions"]["generalised"] == pytest.approx(1 - memorised)
    assert measures["transitions"]["distinct"] == len(pairs)
    first = [a for a, _ in pairs]
    assert measures["transitions"]["successors"] == pytest.approx(len(pairs) / len(set(first)))
    assert measures["transitions"]["items_without"] == pytest.approx(1 - len(set(first)) / ITEMS)
    assert measures["repeats"] == pytest.approx(np.mean([target[u] in history[u] for u in users]))
    assert measures["ties"]["last_events"] == pytest.approx(np.mean([before[u] == at[u] for u in users]))
    assert measures["same_day"]["last_event"] == pytest.approx(
        np.mean([before[u] // DAY == at[u] // DAY for u in users])
    )
    of_valid = dict(zip(valid.histories.users.tolist(), valid.targets.timestamps.tolist(), strict=True))
    names = test.histories.users.tolist()
    days = [of_valid[name] // DAY == at[u] // DAY for u, name in enumerate(names) if name in of_valid]
    assert measures["same_day"]["validation_target"] == pytest.approx(np.mean(days))
    tied = [
        n
        for u in users
        for times in [test.histories.timestamps[test.histories.offsets[u] : test.histories.offsets[u + 1]].tolist()]
        for n in (times.count(time) > 1 for time in times)
    ]
    assert measures["ties"]["events"] == pytest.approx(np.mean(tied))


@pytest.mark.usefixtures("parts")
def test_leakage_counts_the_training_events_after_each_test_target():
    data, test = split_of(log(seed=3))
    times, at = data.train_set.timestamps, np.sort(test.targets.timestamps)
    later = np.array([(times > moment).sum() for moment in at])
    result = audit(data, test)["measures"]["global_time"]
    assert (result["after_first"], result["after_median"]) == (later[0], later[(len(at) - 1) // 2])
    assert result["after_first_share"] == pytest.approx(later[0] / len(times))
    assert result["later_share"] == pytest.approx(later.mean() / len(times))
    assert result["users_with_later"] == pytest.approx((later > 0).mean())
    curve = audit(data, test)["curves"]["time"]
    for second, events, targets in zip(curve["time"], curve["train_events"], curve["targets"], strict=True):
        assert events == pytest.approx((times <= second).mean())
        assert targets == pytest.approx((at <= second).mean())


def test_nothing_leaks_in_a_temporal_split():
    data, test = split_of(log(seed=4), Protocol(dataset="x", split="temporal", valid=0.1, test=0.2))
    result = audit(data, test)["measures"]["global_time"]
    assert (result["after_first"], result["later_share"], result["users_with_later"]) == (0, 0, 0)


def test_popularity_of_targets_is_that_of_a_sort_of_the_catalogue():
    data, test = split_of(log(seed=5))
    events = np.bincount(data.train_set.items, minlength=ITEMS + 1)[1:]
    assert len(set(events.tolist())) < ITEMS  # some items are equally popular
    rng, targets = np.random.default_rng(0), test.targets.items - 1
    top = []
    for _ in range(4000):  # equally popular items in random order
        order = np.lexsort((rng.random(ITEMS), -events))
        top.append(np.isin(targets, order[:3]).mean())
    result = audit(data, test)["measures"]["popularity"]
    assert result["top_10_percent"] == pytest.approx(np.mean(top), abs=4 * np.std(top) / np.sqrt(4000) + 1e-12)
    percentile = [((events < events[t]).sum() + (events == events[t]).sum() / 2) / ITEMS for t in targets]
    assert result["median_percentile"] == pytest.approx(np.median(percentile))


def test_equally_popular_items_share_the_top_places():
    rows = [[1 + (u + step) % ITEMS for step in range(3)] for u in range(ITEMS)]  # every item once in each part
    data, test = split_of(sequences(rows))
    result = audit(data, test)["measures"]["popularity"]
    assert result["top_10_percent"] == pytest.approx(0.1)
    assert result["median_percentile"] == pytest.approx(0.5)


def test_a_log_without_times_has_a_note_in_place_of_its_measures():
    data, test = split_of(replace(log(), timestamps=None))
    result = audit(data, test)
    timed = audit(*split_of(log()))
    assert [result["measures"][name] for name in ("ties", "same_day", "global_time")] == [None] * 3
    assert result["curves"]["time"] is None and result["notes"] == [NO_TIMES] and timed["notes"] == []
    for name in ("test", "popularity", "repeats", "transitions"):
        assert result["measures"][name] == timed["measures"][name]


def test_a_training_set_without_transitions_makes_all_targets_generalised():
    data, test = split_of(sequences([[1 + u, 2 + u, 3 + u] for u in range(10)]))  # one training event each
    result = audit(data, test)["measures"]["transitions"]
    assert (result["memorised"], result["generalised"]) == (0, 1)
    assert (result["distinct"], result["successors"], result["items_without"]) == (0, None, 1)


def test_one_user_has_an_audit():
    data, test = split_of(sequences([[1, 2, 1, 2]]))
    measures = audit(data, test)["measures"]
    assert measures["transitions"]["memorised"] == 1 and measures["repeats"] == 1
    assert measures["global_time"]["users_with_later"] == 0 and measures["same_day"]["last_event"] == 1


def test_one_time_for_all_events_is_all_ties_without_leakage():
    data = log()
    data, test = split_of(replace(data, timestamps=np.zeros(len(data.items), np.int64)))
    measures = audit(data, test)["measures"]
    assert measures["ties"] == {"events": 1, "last_events": 1}
    assert measures["same_day"] == {"last_event": 1, "validation_target": 1}
    assert measures["global_time"]["after_first"] == 0
