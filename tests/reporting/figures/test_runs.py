"""Figures of runs: one protocol, distinct models, closed-form models without curves."""

import polars as pl

from recpipe.reporting.figures.runs import run_figures


def test_figures_show_one_protocol_only(runs):
    traces = run_figures(runs)["ndcg_at_cutoffs"].data
    assert [trace.name for trace in traces] == ["sasrec", "item_knn", "popular_recent", "popular"]


def test_twenty_models_have_distinct_markers(make_run):
    figures = run_figures([make_run(f"model {n}", 42, quality=0.1 + n / 100) for n in range(20)])
    for name in ("ndcg_at_cutoffs", "quality_seconds"):
        markers = {(trace.marker.color, trace.marker.symbol) for trace in figures[name].data}
        assert len(markers) == 20


def test_closed_form_models_have_no_curves(curves):
    closed_form = pl.DataFrame({"epoch": [], "step": [], "seconds": [], "loss": []})
    assert "training_loss" not in run_figures(curves={"popular": closed_form})
    assert len(run_figures(curves={"popular": closed_form, **curves})["training_loss"].data) == 3
