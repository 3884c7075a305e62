from __future__ import annotations

import pytest

from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.readme import END, START, rewritten

RUN = {
    "dataset": "tiny",
    "model": "popular",
    "seed": 1,
    "protocol": {"id": "abc"},
    "test": {"ndcg@10": 0.123456, "recall@10": 0.2, "users": 9},
    "valid": {},
    "cost": {},
    "versions": {},
    "finished": "2026-01-01T00:00:00+00:00",
}


def test_only_what_stands_between_the_marks_is_replaced():
    text = f"before\n{START}\nold .999\n{END}\nafter\n"
    made = rewritten(text, [leaderboard([RUN])])
    assert made.startswith(f"before\n{START}\n") and made.endswith(f"{END}\nafter\n")
    assert "old" not in made and "popular" in made and ".1235" in made
    assert rewritten(made, [leaderboard([RUN])]) == made


@pytest.mark.parametrize("text", ["no marks", f"{START}{END}{START}{END}"])
def test_a_readme_without_the_marks_is_refused(text):
    with pytest.raises(ValueError, match="needs the marks"):
        rewritten(text, [leaderboard([RUN])])


def test_tables_of_data_sets_that_are_not_given_stay_in_their_place():
    other = {**RUN, "dataset": "another"}
    first = rewritten(f"{START}\n{END}", [leaderboard([RUN]), leaderboard([other])])
    changed = {**RUN, "test": {**RUN["test"], "ndcg@10": 0.5}}
    second = rewritten(first, [leaderboard([changed])])
    assert first.index(RUN["dataset"]) < first.index("another")
    assert second.index(RUN["dataset"]) < second.index("another")
    assert ".5000" in second and second.count("protocol `") == 2
    assert second.split("**another**")[1] == first.split("**another**")[1]
