"""Section of sequence studies: figures, tables, and messages for unusable results."""

import pytest

from recpipe.reporting.figures.studies import study_section
from recpipe.reporting.formatting import MISSING
from recpipe.reporting.html import render_page
from recpipe.reporting.leaderboard import leaderboard


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
    lists = {"length": 10, "coverage": 0.25, "arp": 40.5, "diversity": 0.8, "tail": 0.05}
    popularity = [{"segment": "tail", "targets": 9, "recall": 0.125, "ndcg": 0.1}]
    more = {"lists": lists, "popularity": popularity, "gradient_norm": 0.51, "gradient_norm_max": 12.0}
    values = {"length": [8, 64], "width": [16, 32], "ablation": [None, None]}[name]
    settings = {"length": "train.window", "width": "dim", "ablation": None}
    names = ["as configured", "without dropout"] if name == "ablation" else map(str, values)
    rows = [
        {
            "name": label,
            "value": value,
            "changed": {},
            "ndcg@10": 0.1 + 0.02 * number,
            **cost,
            **(more if number == 0 else {}),
        }
        for number, (label, value) in enumerate(zip(names, values, strict=True))
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


@pytest.fixture
def board(make_run):
    return leaderboard([make_run("sasrec", 42), make_run("item_knn", 42)])


def section(board, contexts=(), studies=()):
    protocol = board["protocol"][0]
    context_loaders = {f"{model}/seed_42": (lambda m=model: context(m, protocol)) for model in contexts}
    study_loaders = {
        f"{model}/seed_42/studies/{name}": (lambda m=model, n=name: study(m, protocol, n)) for model, name in studies
    }
    return study_section(context_loaders, study_loaders, board, protocol=protocol)


def test_every_study_has_a_figure_with_data_and_a_table_row_per_training(board):
    studies = [("sasrec", "length"), ("item_knn", "length"), ("sasrec", "width"), ("sasrec", "ablation")]
    result = section(board, ["item_knn", "sasrec"], studies)
    names = {"study_length", "study_width", "study_ablation"}
    assert set(result.captions) == names
    assert set(result.figures) == names | {"effective_context", "attribution", "gap_by_length"}
    for figure in result.figures.values():
        assert figure.data
        for trace in figure.data:
            assert len(trace.z if trace.type == "heatmap" else trace.y)
    length = result.tables["study_length"][1]
    assert len(length) == 4
    cells = ["train.window 8", "sasrec", ".1000", "2", "2.0 s", "900", "1\u202f234", "17.2"]
    assert length[0] == [*cells, "25.0\u202f%", "40.5", "0.800", "5.00\u202f%", "12.5\u202f%", "0.51", "12"]
    assert length[1][len(cells) :] == [MISSING] * 7  # a result of an older version
    assert [row[0] for row in result.tables["study_ablation"][1]] == ["as configured", "without dropout"]
    cells = ["sasrec", ".2000", ".1000", ".1900", ".0500 (25.0\u202f%)"]
    assert result.tables["effective_context"][1][0] == cells
    difference = result.figures["study_ablation"].data[0]
    assert list(difference.x) == pytest.approx([0.02])  # to the model as configured
    assert not result.problems


def test_the_heat_map_ends_at_the_last_share_above_zero(board):
    (heatmap,) = section(board, ["sasrec"]).figures["attribution"].data
    assert list(heatmap.x) == [1, 2, 3]


def test_unusable_results_are_named_and_the_others_shown(board):
    protocol = board["protocol"][0]

    def broken():
        raise ValueError("not JSON")

    contexts = {
        "a/seed_1": broken,
        "b/seed_1": lambda: {"model": "b"},
        "c/seed_1": lambda: context("c", "another"),
        "sasrec/seed_42": lambda: context("sasrec", protocol, attribution=False),
    }
    result = study_section(contexts, {}, board, protocol=protocol)
    unreadable, outdated = result.problems
    assert "a/seed_1" in unreadable and "not JSON" in unreadable
    assert "b/seed_1" in outdated and "run the pipeline context again" in outdated
    assert set(result.figures) == {"effective_context", "gap_by_length"}
    assert len(result.tables["effective_context"][1]) == 1
    assert not study_section({}, {}, board, protocol=protocol).figures


def test_seeds_of_one_model_have_distinct_labels(board):
    protocol = board["protocol"][0]
    contexts = {f"sasrec/seed_{n}": (lambda n=n: context("sasrec", protocol, seed=n)) for n in (1, 2)}
    result = study_section(contexts, {}, board, protocol=protocol)
    rows = result.tables["effective_context"][1]
    assert [row[0] for row in rows] == ["sasrec, seed 1", "sasrec, seed 2"]


def test_the_page_has_the_section_only_with_results(board, make_run):
    runs = [make_run("sasrec", 42)]
    for empty in (None, section(board)):
        assert 'id="studies"' not in render_page({"name": "x"}, runs, studies=empty)
    text = render_page({"name": "x"}, runs, studies=section(board, ["sasrec"], [("sasrec", "length")]))
    for name in ("study_length", "effective_context", "attribution", "gap_by_length"):
        assert f'id="{name}-data"' in text
