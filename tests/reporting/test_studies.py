"""The section of sequence studies: every figure has data, every table its rows, whatever else lies on disk is named."""

import pytest

from recpipe.reporting.html import page
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.studies import studies


def context(model, protocol, *, attribution=True, seed=42):
    shares = [0.6, 0.3, 0.1] + [0.0] * 47
    group = {"history": "10 to 19", "users": 50}
    return {
        "model": model,
        "seed": seed,
        "protocol": protocol,
        "metric": "ndcg@10",
        "users": 100,
        "effective": {
            "whole": 0.2,
            "shuffled_all": 0.05,
            "longest": 12,
            "rows": [
                {"events": 1, "truncated": 0.1, "shuffled": 0.16, "longer": 0.9},
                {"events": 5, "truncated": 0.19, "shuffled": 0.2, "longer": 0.3},
            ],
        },
        "attribution": [{**group, "shares": shares, "older": 0.0}] if attribution else None,
        "gap": [{"history": "10 to 19", "train": 0.4, "valid": 0.2, "train_users": 40, "valid_users": 50}],
    }


def study(model, protocol, name="length"):
    cost = {
        "train_seconds": 4.0,
        "seconds_per_epoch": 2.0,
        "tokens_per_second": 900.0,
        "epochs": 2,
        "best_epoch": 2,
        "parameters": 1234,
        "used_dimensions": 17.25,
    }
    values = {"length": [8, 64], "width": [16, 32], "ablation": [None, None]}[name]
    settings = {"length": "train.window", "width": "dim", "ablation": None}
    names = ["as configured", "without dropout"] if name == "ablation" else map(str, values)
    rows = [
        {"name": each, "value": value, "changed": {}, "ndcg@10": 0.1 + 0.02 * at, **cost}
        for at, (each, value) in enumerate(zip(names, values, strict=True))
    ]
    return {
        "study": name,
        "model": model,
        "seed": 42,
        "setting": settings[name],
        "protocol": protocol,
        "metric": "ndcg@10",
        "rows": rows,
        "left_out": {},
    }


def loads(**found):
    return {name.replace("__", "/"): (lambda each=each: each) for name, each in found.items()}


@pytest.fixture
def board(make_run):
    return leaderboard([make_run("sasrec", 42), make_run("item_knn", 42)])


def made(board, contexts=(), studied=()):
    protocol = board["protocol"][0]
    asked = {f"{model}/seed_42": (lambda m=model: context(m, protocol)) for model in contexts}
    varied = {
        f"{model}/seed_42/studies/{name}": (lambda m=model, n=name: study(m, protocol, n))
        for model, name in studied
    }
    return studies(asked, varied, board, protocol=protocol)


def test_every_study_has_a_figure_with_data_and_a_table_with_a_row_for_each_training(board):
    kinds = [("sasrec", "length"), ("item_knn", "length"), ("sasrec", "width"), ("sasrec", "ablation")]
    found = made(board, ["item_knn", "sasrec"], kinds)
    assert set(found.figures) == {
        "study_length",
        "study_width",
        "study_ablation",
        "effective_context",
        "attribution",
        "gap_by_length",
    }
    for figure in found.figures.values():
        assert figure.data
        for trace in figure.data:
            assert len(trace.z if trace.type == "heatmap" else trace.y)
    assert len(found.tables["study_length"][1]) == 4
    assert found.tables["study_length"][1][0] == [
        *("train.window 8", "sasrec", ".1000", "2", "2.0 s", "900"),
        "1\u202f234",
        "17.2",
    ]
    assert [row[0] for row in found.tables["study_ablation"][1]] == ["as configured", "without dropout"]
    assert found.tables["effective_context"][1][0] == [
        "sasrec",
        ".2000",
        ".1000",
        ".1900",
        ".0500 (25.0\u202f%)",
    ]
    drop = found.figures["study_ablation"].data[0]
    assert list(drop.x) == pytest.approx([0.02])  # against the model as configured
    assert not found.problems


def test_the_heat_map_ends_where_nobody_looks(board):
    found = made(board, ["sasrec"])
    (heat,) = found.figures["attribution"].data
    assert list(heat.x) == [1, 2, 3]


def test_what_cannot_be_shown_is_named_and_the_rest_is_made(board):
    protocol = board["protocol"][0]

    def broken():
        raise ValueError("not JSON")

    contexts = {
        "a/seed_1": broken,
        "b/seed_1": lambda: {"model": "b"},
        "c/seed_1": lambda: context("c", "another"),
        "sasrec/seed_42": lambda: context("sasrec", protocol, attribution=False),
    }
    found = studies(contexts, {}, board, protocol=protocol)
    assert found.problems == [
        "the context of a/seed_1 cannot be read: not JSON",
        "the context of b/seed_1 is of another version: run the pipeline context again",
    ]
    assert set(found.figures) == {"effective_context", "gap_by_length"}
    assert len(found.tables["effective_context"][1]) == 1
    assert not studies({}, {}, board, protocol=protocol).figures


def test_seeds_of_one_model_are_told_apart(board):
    protocol = board["protocol"][0]
    both = {f"sasrec/seed_{n}": (lambda n=n: context("sasrec", protocol, seed=n)) for n in (1, 2)}
    found = studies(both, {}, board, protocol=protocol)
    assert [row[0] for row in found.tables["effective_context"][1]] == ["sasrec, seed 1", "sasrec, seed 2"]


def test_the_page_holds_the_section_only_where_there_is_something(board, make_run):
    runs = [make_run("sasrec", 42)]
    assert "Sequence studies" not in page({"name": "x"}, runs)
    assert "Sequence studies" not in page({"name": "x"}, runs, studies=studies({}, {}, board, protocol="-"))
    text = page({"name": "x"}, runs, studies=made(board, ["sasrec"], [("sasrec", "length")]))
    for name in ("study_length", "effective_context", "attribution", "gap_by_length"):
        assert f'id="{name}-data"' in text
    assert "How long a history helps" in text
