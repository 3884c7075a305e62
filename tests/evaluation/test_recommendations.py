"""Recommendation tables and submission files."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest

from recpipe.config import build_config
from recpipe.evaluation.recommendations import SeparatorError, SubmissionLayout, recommendations_table, submission_csv

IDS = np.array(["7", "x,1", "9"], dtype=object)
TITLES = pa.table({"item_id": ["9", "7", "x,1"], "title": ["Nine", None, "  "]})
SCORES = np.array([[3.0, 1.0], [2.0, 0.0], [0.0, 0.0]], np.float32)
ITEMS = np.array([[3, 1], [2, 0], [0, 0]], np.int32)
USERS = np.array(["a", "b", "c"], dtype=object)


@pytest.fixture
def table():
    return recommendations_table(USERS, ITEMS, SCORES, None, item_ids=IDS, titles=TITLES)


def test_ids_titles_and_ranks(table):
    assert table.drop(["logit", "probability", "source"]).to_pylist() == [
        {"user_id": "a", "rank": 1, "item_id": "9", "title": "Nine"},
        {"user_id": "a", "rank": 2, "item_id": "7", "title": "7"},
        {"user_id": "b", "rank": 1, "item_id": "x,1", "title": "x,1"},
    ]
    assert table["probability"].null_count == table.num_rows


def test_the_source_is_the_model_or_its_fallback():
    cold = np.array([False, True, True])
    table = recommendations_table(USERS, ITEMS, SCORES, None, item_ids=IDS, titles=TITLES, cold=cold)
    assert table["source"].to_pylist() == ["model", "model", "cold_users"]
    layout = SubmissionLayout(columns={"user": "u", "source": "by"}, one_row_per="recommendation")
    assert submission_csv(table, layout) == "u,by\na,model\na,model\nb,cold_users\n"


def test_probabilities_over_the_whole_catalogue_are_a_softmax():
    scores = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 20
    order = np.argsort(-scores, axis=1)
    sorted_scores = np.take_along_axis(scores, order, axis=1)
    log_normalizer = np.logaddexp.reduce(scores.astype(np.float64), axis=1)
    ids = np.array([str(i) for i in range(50)], dtype=object)
    titles = pa.table({"item_id": pa.array(ids, pa.string()), "title": pa.array(ids, pa.string())})
    users = [f"u{i}" for i in range(4)]
    table = recommendations_table(users, order + 1, sorted_scores, log_normalizer, item_ids=ids, titles=titles)
    probability = table["probability"].to_numpy().reshape(4, 50)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        probability[:, 0] / probability[:, 1], np.exp(sorted_scores[:, 0] - sorted_scores[:, 1]), rtol=1e-4
    )


def test_an_empty_place_leaves_no_gap_in_the_ranks():
    items = np.array([[0, 3, 1]])
    table = recommendations_table(["a"], items, np.ones((1, 3), np.float32), None, item_ids=IDS, titles=TITLES)
    assert table["rank"].to_pylist() == [1, 2]
    assert table["item_id"].to_pylist() == ["9", "7"]


def test_empty_lists_leave_no_row():
    none = np.zeros((3, 2), np.int32)
    table = recommendations_table(USERS, none, SCORES, np.zeros(3), item_ids=IDS, titles=TITLES)
    assert table.num_rows == 0
    assert submission_csv(table, SubmissionLayout()) == "user_id,item_ids\n"


@pytest.mark.parametrize(
    ("items", "scores", "message"),
    [
        (ITEMS[:2], SCORES, "do not belong together"),
        (ITEMS, SCORES[:, :1], "do not belong together"),
        (ITEMS + 1, SCORES, "but there are 3 item ids"),
        (ITEMS - 1, SCORES, "holds -1"),
    ],
)
def test_arrays_that_do_not_match_are_errors(items, scores, message):
    with pytest.raises(ValueError, match=message):
        recommendations_table(USERS, items, scores, None, item_ids=IDS, titles=TITLES)


def test_submission_per_user(table):
    assert submission_csv(table, SubmissionLayout()) == 'user_id,item_ids\na,9 7\nb,"x,1"\n'
    top_1 = SubmissionLayout(columns={"items": "prediction", "user": "customer"}, top=1, delimiter="\t", header=False)
    assert submission_csv(table, top_1) == "9\ta\nx,1\tb\n"


def test_every_requested_user_gets_a_row(table):
    text = submission_csv(table, SubmissionLayout(), users=["c", "b"])
    assert list(csv.reader(io.StringIO(text))) == [["user_id", "item_ids"], ["c", ""], ["b", "x,1"]]


def test_submission_per_recommendation(table):
    conf = {"one_row_per": "recommendation", "columns": {"user": "u", "item": "i", "rank": "r", "title": "t"}}
    text = submission_csv(table, SubmissionLayout(**conf))
    expected = [["u", "i", "r", "t"], ["a", "9", "1", "Nine"], ["a", "7", "2", "7"], ["b", "x,1", "1", "x,1"]]
    assert list(csv.reader(io.StringIO(text))) == expected


def test_order_in_the_cell_is_the_rank_not_the_row(table):
    assert submission_csv(table.take([1, 2, 0]), SubmissionLayout()) == submission_csv(table, SubmissionLayout())


def test_a_separator_inside_an_id_is_an_error(table):
    with pytest.raises(SeparatorError, match="'x,1' contain the separator"):
        submission_csv(table, SubmissionLayout(separator=","))


@pytest.mark.parametrize(
    ("ids", "separator"),
    [
        (["7", "8"], " "),
        (["7", "The Band"], "|"),
        (["a|b", "The Band"], ";"),
        (["a|b;c", "The Band"], ","),
        (["a|b;c", "Tea, green"], "\t"),
    ],
)
def test_the_separator_is_one_that_no_id_of_the_catalogue_contains(ids, separator):
    lists = pa.table({"user_id": ["u"] * 2, "item_id": ids, "rank": [1, 2]})
    _, row = csv.reader(io.StringIO(submission_csv(lists, SubmissionLayout())))
    assert row == ["u", separator.join(ids)]
    only_first = lists.slice(0, 1)  # as others of the catalogue are in the lists of other models
    assert submission_csv(lists, SubmissionLayout(top=1)) == submission_csv(
        only_first, SubmissionLayout(), item_ids=ids
    )
    with pytest.raises(SeparatorError, match="one_row_per=recommendation"):
        submission_csv(lists, SubmissionLayout(), item_ids=[*ids, " |;,\t"])


def test_cells_that_a_spreadsheet_would_run_are_quoted_on_request():
    ids = ["=1+1", "@sum", "+7", "-7", "plain"]
    lists = pa.table({"user_id": ["=cmd"] * 5, "item_id": ids, "rank": range(1, 6), "logit": [-1.5] * 5})
    columns = {"user": "u", "item": "i", "logit": "score"}

    def rows(**options):
        layout = SubmissionLayout(columns=columns, one_row_per="recommendation", header=False, **options)
        return list(csv.reader(io.StringIO(submission_csv(lists, layout))))

    assert rows() == [["=cmd", item, "-1.5"] for item in ids]
    assert rows(spreadsheet_safe=True) == [
        ["'=cmd", item, "-1.5"] for item in ("'=1+1", "'@sum", "'+7", "'-7", "plain")
    ]
    assert submission_csv(lists, SubmissionLayout(spreadsheet_safe=True, top=2)).splitlines()[1] == "'=cmd,'=1+1 @sum"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"seperator": ","}, "submission.seperator.*did you mean .separator.*columns"),
        ({"one_row_per": "line"}, "'line'; allowed: user, recommendation"),
        ({"columns": {"user": "u", "title": "t"}}, r"\['title'\]; one row per user offers: user, items"),
        ({"columns": {}}, "no column"),
        ({"top": 0}, "top is 0"),
        ({"top": True}, "submission.top.*True"),
        ({"header": "yes"}, "submission.header.*yes"),
        ({"delimiter": ", "}, "one character"),
        ({"separator": ""}, "at least one character"),
    ],
)
def test_invalid_layouts_are_errors(conf, message):
    with pytest.raises(ValueError, match=message):
        build_config(SubmissionLayout, conf, where="evaluate.submission")
