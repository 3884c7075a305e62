"""Example users: which are drawn, and their contents."""

import numpy as np
import pyarrow as pa
import pytest

from recpipe.data.sequences import Sequences
from recpipe.reporting.examples import pick_examples


def has_hit(example):
    return any(item.hit for item in example.recommendations["sasrec"])


def test_half_of_the_users_have_a_hit(make_users):
    users = make_users(users=6)
    assert len({example.user for example in users}) == 6
    assert sum(map(has_hit, users)) == 3
    assert all(has_hit(example) == (int(example.user) % 2 == 0) for example in users)  # see the fixture


def test_users_of_the_other_kind_fill_up(make_users):
    assert len(make_users(users=16)) == 16
    assert sum(map(has_hit, make_users(users=16))) in (8, 10)
    assert len(make_users(users=50)) == 20


def test_the_draw_depends_on_the_seed_alone(make_users):
    assert make_users(seed=3) == make_users(seed=3)
    assert make_users(seed=3) != make_users(seed=4)


def test_the_history_is_newest_first_with_days(make_users, items):
    titles = items["title"].to_pylist()
    example = next(user for user in make_users(users=20) if user.user == "10003")  # events 6 to 9
    assert [item.title for item in example.history] == [titles[index] for index in (9, 8, 7, 6)]
    assert [item.when for item in example.history] == [f"{day} Dec 2010" for day in (12, 11, 10, 9)]
    assert example.length == 4
    assert [item.title for item in example.targets] == [titles[15]]


def test_hits_are_recommended_targets(make_users):
    for example in make_users(users=20):
        targets = {item.item_id for item in example.targets}
        for recommended in example.recommendations.values():
            assert [item.rank for item in recommended] == list(range(1, 11))
            assert all(item.hit == (item.item_id in targets) for item in recommended)


@pytest.mark.parametrize("source", ["model", "cold_users", None], ids=str)
def test_fallback_lists_are_marked(items, source):
    histories = Sequences(np.array(["u"], object), np.zeros(0, np.int32), None, np.array([0, 0]))
    ranks = pa.table({"user_id": ["u"], "target": ["i1"], "rank": [4]})
    row = {"user_id": "u", "rank": 1, "item_id": "i0", "title": "Tea", "logit": -1.0, "probability": 0.4}
    table = pa.Table.from_pylist([row | ({} if source is None else {"source": source})])
    ids = np.array(items["item_id"].to_pylist(), object)
    (user,) = pick_examples(histories, ranks, {"sasrec": table}, items, item_ids=ids, seed=0, users=1)
    assert user.recommendations["sasrec"][0].fallback == (source == "cold_users")


def test_items_without_a_title_show_their_id(make_users, items):
    untitled = items.set_column(1, "title", pa.nulls(items.num_rows, pa.string()))
    (user,) = make_users.func(untitled, users=1)
    assert all(item.title == item.item_id for item in (*user.history, *user.targets))
