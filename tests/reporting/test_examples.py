"""Example users: who is drawn, what is shown, and how it reads on a terminal."""

import numpy as np
import pyarrow as pa
import pytest

from recpipe.data.sequences import Sequences
from recpipe.reporting.examples import Example, Recommended, Shown, examples
from recpipe.reporting.html import page
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.summary import summary


def hit(example):
    return any(each.hit for each in example.recommendations["sasrec"])


def test_half_of_the_users_were_hit(draw):
    found = draw(users=6)
    assert len({example.user for example in found}) == 6
    assert sum(map(hit, found)) == 3
    assert all(hit(example) == (int(example.user) % 2 == 0) for example in found)  # as the fixture made them


def test_the_other_half_fills_up(draw):
    assert len(draw(users=16)) == 16
    assert sum(map(hit, draw(users=16))) in (8, 10)
    assert len(draw(users=50)) == 20


def test_the_draw_depends_on_the_seed_alone(draw):
    assert draw(seed=3) == draw(seed=3)
    assert draw(seed=3) != draw(seed=4)


def test_history_is_the_newest_first_with_its_day(draw, items):
    titles = items["title"].to_pylist()
    example = next(each for each in draw(users=20) if each.user == "10003")  # events 6 to 9
    assert [shown.title for shown in example.history] == [titles[index] for index in (9, 8, 7, 6)]
    assert [shown.when for shown in example.history] == [
        "12 Dec 2010",
        "11 Dec 2010",
        "10 Dec 2010",
        "9 Dec 2010",
    ]
    assert example.length == 4
    assert [shown.title for shown in example.targets] == [titles[15]]


def test_hits_are_marked_where_the_item_is_a_target(draw):
    for example in draw(users=20):
        wanted = {shown.item_id for shown in example.targets}
        for places in example.recommendations.values():
            assert [each.rank for each in places] == list(range(1, 11))
            assert all(each.hit == (each.item_id in wanted) for each in places)


@pytest.mark.parametrize("source", ["model", "cold_users", None], ids=str)
def test_lists_that_are_not_the_models_own_are_told_apart(draw, items, source):
    histories = Sequences(np.array(["u"], object), np.zeros(0, np.int32), None, np.array([0, 0]))
    ranks = pa.table({"user_id": ["u"], "target": ["i1"], "rank": [4]})
    row = {"user_id": "u", "rank": 1, "item_id": "i0", "title": "Tea", "logit": -1.0, "probability": 0.4}
    table = pa.Table.from_pylist([row | ({} if source is None else {"source": source})])
    ids = np.array(items["item_id"].to_pylist(), object)
    found = examples(histories, ranks, {"sasrec": table}, items, item_ids=ids, seed=0, users=1)
    assert found[0].recommendations["sasrec"][0].fallback == (source == "cold_users")
    assert ("no history" in page({"name": "x"}, [], examples=found)) == (source == "cold_users")


def test_titles_fall_back_to_ids(draw, items):
    nameless = draw.func(items.set_column(1, "title", pa.nulls(items.num_rows, pa.string())), users=1)[0]
    assert all(each.title == each.item_id for each in (*nameless.history, *nameless.targets))


def test_summary_fits_a_terminal(runs, shown):
    links = {"report": "data/08_reporting/online_retail/report.html", "MLflow": "make mlflow"}
    text = summary(leaderboard(runs), shown, title="Online Retail", links=links)
    assert max(map(len, text.splitlines())) <= 100
    assert "sasrec" in text
    assert text.count("came next: ") == 3
    assert "report  data/08_reporting/online_retail/report.html" in text


@pytest.mark.parametrize("title", ["\x1b[31mRED\x1b[0m\nSECOND LINE", "茶" * 90, "e\u0301" * 90, ""])
def test_titles_cannot_break_the_layout(title):
    places = (Recommended(1, "i", title, 1.0, 0.5, True), Recommended(2, "j", "plain", 0.5, None, False))
    example = Example("u", 1, (Shown("i", title, "3 Dec 2010"),), (Shown("i", title),), {"model": places})
    text = summary(leaderboard([]), [example], title="x", links={})
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "✓ 1" in next(line for line in lines if " 3 Dec 2010" in line)
    columns = [sum(2 if "一" <= each <= "鿿" else each != "\u0301" for each in line) for line in lines]
    assert max(columns) <= 100


def test_summary_without_anything():
    assert "No finished run yet" in summary(leaderboard([]), [], title="x", links={})
