"""Sections: published rows and ours meet under equal protocols only; differences count beyond the interval."""

import pytest

from recpipe.reporting.results.sections import ABOVE, BELOW, WITHIN, describe, sections


def models(part):
    return [row.model for row in part.rows]


def test_rows_of_one_protocol_are_sorted_together_by_ndcg(paper_row, our_row, results, protocols):
    published = [paper_row("RPG", ndcg=0.0464), paper_row("TIGER", ndcg=0.0384)]
    (part,) = sections(results(*published), [our_row("tiger", 0.0400), our_row("popular", 0.005)], protocols)
    assert models(part) == ["RPG", "tiger", "TIGER", "popular"]
    assert part.title == "`papers`"


def test_rows_without_ndcg_come_last(paper_row, results, protocols):
    rows = [paper_row("A", metrics={"recall@10": 0.9}), paper_row("B", ndcg=0.01)]
    (part,) = sections(results(*rows), [], protocols)
    assert models(part) == ["B", "A"]


def test_numbers_of_other_protocols_never_meet(paper_row, our_row, results, protocols):
    """Seen items, length of histories, order of ties and times each make a section of their own."""
    variants = [{}, {"exclude_seen": True}, {"history": 30}, {"ties": "shuffle"}, {"time": "query"}]
    rows = [our_row("tiger", fields=protocols["papers"] | variant) for variant in variants]
    parts = sections(results(paper_row()), rows, protocols)
    assert [len(part.ours) for part in parts] == [1] * 5
    assert [len(part.published) for part in parts] == [1, 0, 0, 0, 0]
    assert [part.title for part in parts[1:]] == [  # the nearest name, and what differs
        "`sas`, `history: 20`",
        "`papers`, `history: 30`",
        "`papers`, `ties: shuffle`",
        "`papers`, `time: query`",
    ]


def test_published_rows_meet_ours_of_a_variant_of_a_protocol(paper_row, our_row, results, protocols):
    row = paper_row("HSTU", "sas", differs={"time": "query"}, ours=["hstu_query"])
    (part,) = sections(results(row), [our_row("hstu_query", fields=protocols["sas"] | {"time": "query"})], protocols)
    assert part.title == "`sas`, `time: query`" and part.mark(row).symbol == WITHIN
    assert "may know the time of the target" in describe(part.fields)


def test_cut_offs_and_seeds_of_training_make_no_other_protocol(our_row, results, protocols, paper_row):
    rows = [our_row(), our_row("rpg", fields=protocols["papers"] | {"cutoffs": (5, 10)})]
    assert rows[0].protocol["id"] != rows[1].protocol["id"]
    assert len(sections(results(paper_row()), rows, protocols)) == 1


def test_runs_on_other_data_are_not_compared(paper_row, our_row, results, protocols):
    row = paper_row()
    parts = sections(results(row), [our_row(users=4)], protocols)
    assert [(len(part.published), len(part.ours), part.other_data) for part in parts] == [(1, 0, False), (0, 1, True)]
    assert parts[0].mark(row) is None


def test_test_users_of_a_split_in_time_are_fewer_than_those_of_the_data(our_row, results, paper_row, protocols):
    temporal = {"split": "temporal", "history": 50}
    parts = sections(results(paper_row()), [our_row(fields=temporal, users=3)], protocols | {"temporal": temporal})
    assert [(part.title, part.other_data) for part in parts] == [("`papers`", False), ("`temporal`", False)]


def test_rows_of_unknown_protocols_stand_alone(paper_row, our_row, results, protocols):
    row = paper_row(protocol="unknown", caveats=["seen items not stated"])
    parts = sections(results(row), [our_row()], protocols)
    assert [part.fields is None for part in parts] == [False, True]
    assert parts[1].mark(row) is None


@pytest.mark.parametrize(
    ("ndcg", "width", "symbol"),
    [
        (0.0410, 0.0010, ABOVE),
        (0.0390, 0.0010, WITHIN),
        (0.0378, 0.0010, WITHIN),
        (0.0370, 0.0010, BELOW),
        (0.03842, None, WITHIN),  # without an interval: equal as printed
        (0.0385, None, ABOVE),
    ],
)
def test_a_difference_counts_beyond_our_interval(ndcg, width, symbol, paper_row, our_row, results, protocols):
    row = paper_row("TIGER", ndcg=0.0384)
    (part,) = sections(results(row), [our_row("tiger", ndcg, width)], protocols)
    assert part.mark(row).symbol == symbol


def test_a_row_is_compared_with_our_best_run_of_the_same_model(paper_row, our_row, results, protocols):
    row = paper_row("TIGER")
    rows = [our_row("tiger", 0.03), our_row("tiger_tuned", 0.05), our_row("rpg", 0.09)]
    (part,) = sections(results(row), rows, protocols)
    mark = part.mark(row)
    assert (mark.model, mark.symbol, mark.metric) == ("tiger_tuned", ABOVE, "ndcg@10")
    assert part.mark(paper_row("BARGE", ours=[])) is None


def test_a_row_of_aligned_ids_is_compared_with_runs_that_read_them(paper_row, our_row, results, protocols):
    plain, aligned = paper_row("TIGER"), paper_row("LETTER", ours=["tiger"], kind_of_ids="text_collaborative")
    rows = [
        our_row("tiger", 0.03, kinds_of_ids=("text",)),
        our_row("tiger", 0.05, kinds_of_ids=("text_collaborative",)),
    ]
    (part,) = sections(results(plain, aligned), rows, protocols)
    assert (part.mark(plain).symbol, part.mark(aligned).symbol) == (BELOW, ABOVE)


def test_a_row_without_ndcg_is_compared_by_recall(paper_row, our_row, results, protocols):
    row = paper_row(metrics={"recall@10": 0.09})
    (part,) = sections(results(row), [our_row()], protocols)
    assert (part.mark(row).metric, part.mark(row).symbol) == ("recall@10", BELOW)


def test_data_sets_without_published_rows_have_sections_of_ours(our_row):
    (part,) = sections(None, [our_row()], {})
    assert part.title == "leave_one_out" and models(part) == ["tiger"]
