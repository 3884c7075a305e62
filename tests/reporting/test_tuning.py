"""Section of the report on tuning: figures, the best trials, and messages for unusable results."""

from __future__ import annotations

import math

import pytest
from tests.reporting.browser import open_page
from tests.reporting.test_html import Page

from recpipe.reporting.figures.tuning import tuning_figures
from recpipe.reporting.html import render_page
from recpipe.reporting.tuning import tuning_section

SPACE = {
    "dim": {"choices": [16, 32, None]},
    "dropout": {"low": 0.0, "high": 0.5},
    "train.optimiser.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
}


def trial(number, value, *, state="complete", dim=16, dropout=0.1, rate=0.01, **more):
    settings = {"dim": dim, "dropout": dropout, "train.optimiser.learning_rate": rate}
    row = {
        "number": number,
        "value": value,
        "state": state,
        "settings": settings,
        "seconds": 30.0,
        "train_seconds": 20.0,
    }
    return {**row, "configured": number == 0, "epochs": 3, "reason": "", "curve": [], **more}


def study(*trials, best=2, **changes):
    result = {
        "study": "shop/sasrec/seed_42/p",
        "model": "sasrec",
        "seed": 42,
        "protocol": "p",
        "metric": "ndcg@10",
        "search_space": SPACE,
        "trials": list(trials),
        "best": best,
        "configured": trials[0]["value"],
        "pareto": [],
        "importance": {"dropout": 0.75, "dim": 0.25},
        "command": "kedro run --pipelines=train,evaluate,report --params model=sasrec_tuned",
    }
    return {**result, **changes}


TRIALS = (
    trial(0, 0.11),
    trial(1, 0.05, state="pruned"),
    trial(2, 0.13, dim=32, rate=0.1),
    trial(3, None, state="pruned", dim=None),
    trial(4, 0.12, dim=None, dropout=0.5, rate=0.001),
)


def test_history_shows_every_value_and_the_best_of_the_completed_ones():
    best, completed, pruned = tuning_figures(study(*TRIALS))["history"].data
    assert (list(best.x), list(best.y)) == ([0, 2, 4], [0.11, 0.13, 0.13])
    assert (list(completed.x), list(completed.y)) == ([0, 2, 4], [0.11, 0.13, 0.12])
    assert (list(pruned.x), list(pruned.y)) == ([1], [0.05])  # trial 3 has no value


def test_parallel_coordinates_put_each_setting_on_its_scale():
    (trace,) = tuning_figures(study(*TRIALS))["coordinates"].data
    dim, dropout, rate, metric = trace.dimensions
    assert list(dim["values"]) == [0, 1, 2]
    assert list(dim.ticktext) == ["16", "32", "None"]
    assert list(dropout["values"]) == [0.1, 0.1, 0.5]
    assert list(rate["values"]) == pytest.approx([math.log10(each) for each in (0.01, 0.1, 0.001)])
    assert [rate.ticktext[0], rate.ticktext[-1]] == ["0.001", "0.1"]
    assert list(metric["values"]) == [0.11, 0.13, 0.12]


def test_figures_without_data_are_left_out():
    assert set(tuning_figures(study(TRIALS[0], best=0, importance={}))) == {"history"}


def section(*results, protocol="p"):
    return tuning_section({f"run {n}": (lambda each=each: each) for n, each in enumerate(results)}, protocol=protocol)


def test_the_table_has_the_best_completed_trials_first():
    (part,) = section(study(*TRIALS)).parts
    head, rows = part.table
    assert head == ["trial", "validation NDCG@10", *SPACE, "epochs", "training"]
    assert [row[0] for row in rows] == ["2", "4", "0 (as configured)"]
    assert rows[0] == ["2", ".1300", "32", "0.1", "0.1", "3", "20.0 s"]
    assert "5 trials, 2 of them pruned, 2.5 min" in part.lead
    assert "Trial 2 is the best, with a validation NDCG@10 of .1300, against .1100 as configured" in part.lead
    (same,) = section(study(TRIALS[0], best=0)).parts
    assert "configuration as it stands is the best" in same.lead


def test_the_pareto_front_is_in_the_table_and_marked():
    trials = [trial(n, 0.2 - 0.01 * n, inference_seconds=9.0 - n) for n in range(7)]
    (part,) = section(study(*trials, best=0, pareto=[0, 6])).parts
    head, rows = part.table
    assert head[-2:] == ["ranking of the fold", "on the Pareto front"]
    assert [row[0].split()[0] for row in rows] == ["0", "1", "2", "3", "4", "6"]
    assert [row[-1] for row in rows] == ["yes", "", "", "", "", "yes"]


def test_unusable_results_are_named_and_those_of_another_protocol_left_out():
    def damaged():
        raise ValueError("digest")

    loaders = {
        "a/seed_1": damaged,
        "b/seed_1": lambda: {"study": "old"},
        "c/seed_1": lambda: study(*TRIALS, protocol="q"),
    }
    result = tuning_section(loaders, protocol="p")
    assert result.parts == []
    assert result.problems == [
        "the tuning of a/seed_1 cannot be read: digest",
        "the tuning of b/seed_1 is of another version: run the pipeline tune again",
    ]


def test_the_page_has_a_part_per_tuned_model_with_figures_and_the_command():
    hostile = study(*TRIALS, model="<b>svd</b>", seed=1)
    text = render_page({"name": "shop"}, [], tuning=section(study(*TRIALS), hostile))
    page = Page(text)
    assert [name for name in page.plots if name.startswith("tuning")] == [
        f"tuning_{kind}_run_{run}" for run in (0, 1) for kind in ("history", "importance", "coordinates")
    ]
    assert 'href="#tuning"' in text
    assert "model=sasrec_tuned" in text
    assert "<b>svd</b>" not in text
    assert 'id="tuning"' not in render_page({"name": "shop"}, [])


@pytest.mark.browser
def test_a_browser_draws_the_figures(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_page({"name": "shop"}, [], tuning=section(study(*TRIALS))))
    rendered = open_page(path, tmp_path / "user")
    assert "data-error" not in rendered.html and rendered.empty == []
    assert {name for name in rendered.figures if "tuning" in name} == {
        f"tuning_{kind}_run_0" for kind in ("history", "importance", "coordinates")
    }
