"""Section of the audit: every measure has its text, models stand on both halves, old runs and logs without times."""

import numpy as np
import polars as pl
import pytest
from tests.evaluation.test_audit import log, split_of
from tests.synthetic import sequences

from recpipe.evaluation.audit import NO_TIMES, audit
from recpipe.reporting.audit import audit_section, reference_verdict
from recpipe.reporting.figures import TEXTS
from recpipe.reporting.formatting import MISSING
from recpipe.reporting.html import render_page


def board(**columns):
    names = ["sasrec", "popular", "hop_graph"]
    return pl.DataFrame({"model": names, "name": names, "ndcg@10": [0.06, 0.01, 0.045], **columns})


HALVES = {"memorised_ndcg@10": [0.1, 0.01, None], "generalised_ndcg@10": [0.02, 0.01, 0.0]}


@pytest.fixture(scope="module")
def audited():
    return audit(*split_of(log()))


def test_every_measure_of_the_audit_has_a_text_and_a_value(audited):
    known = {
        f"{block}-{name}" if isinstance(values, dict) else block
        for block, values in audited["measures"].items()
        for name in (values if isinstance(values, dict) else [""])
    }
    assert known - {*TEXTS["audit_measures"]} == {"global_time-after_first", "global_time-after_median"}  # as shares
    section = audit_section(audited, board(), metric="ndcg@10")
    assert len(section.measures) == len(TEXTS["audit_measures"])
    assert all(value != MISSING for _, _, value in section.measures)


def test_models_stand_on_both_halves_of_the_targets(audited):
    section = audit_section(audited, board(**HALVES), metric="ndcg@10")
    head, rows = section.models
    assert head == ["model", "all", "memorised", "generalised"]
    assert rows == [
        ["sasrec", ".0600", ".1000", ".0200"],
        ["popular", ".0100", ".0100", ".0100"],
        ["hop_graph", ".0450", MISSING, ".0000"],
    ]
    lines, *points = section.figures["audit_halves"].data
    assert [point.name for point in points] == ["memorised", "generalised"]
    assert list(points[0].x) == [0.1, 0.01] and list(lines.x) == [0.1, 0.02, None, 0.01, 0.01, None]
    assert audit_section(audited, board(), metric="ndcg@10").models is None  # runs of an older version


def test_the_verdict_names_the_share_of_a_model_that_learns_nothing(audited):
    (line,) = reference_verdict(board(), "ndcg@10")
    assert line.startswith("hop_graph, without trained parameters, reaches 75.0") and "sasrec (.0450 and .0600)" in line
    assert "popular" in reference_verdict(board().filter(pl.col("name") != "hop_graph"), "ndcg@10")[0]
    assert reference_verdict(board().filter(pl.col("name") == "sasrec"), "ndcg@10") == []
    assert audit_section(audited, board(), metric="ndcg@10").headlines[-1] == line


def test_a_log_without_times_says_so(audited):
    times = {"ties": None, "same_day": None, "global_time": None}
    section = audit_section(
        {**audited, "measures": {**audited["measures"], **times}, "notes": [NO_TIMES]}, board(), metric="ndcg@10"
    )
    assert NO_TIMES in section.verdicts
    assert [value for name, _, value in section.measures if name == "tied events"] == [MISSING]


@pytest.mark.parametrize(
    "rows", [[[1, 2, 1, 2]], [[n, n + 1, n + 2] for n in range(1, 8)]], ids=["one user", "no edge"]
)
def test_degenerate_logs_have_a_section(rows):
    section = audit_section(audit(*split_of(sequences(rows))), board(**HALVES), metric="recall@10")
    assert section.verdicts and section.figures
    assert section.models is None  # without recall on the board


def test_times_that_are_no_dates_have_an_axis_of_seconds(audited):
    curve = audited["curves"]["time"]
    curves = {**audited["curves"], "time": {**curve, "time": [1000 * second + 10**12 for second in curve["time"]]}}
    figure = audit_section({**audited, "curves": curves}, board(), metric="ndcg@10").figures["audit_time"]
    assert list(figure.data[0].x) == curves["time"]["time"] and figure.layout.xaxis.type is None
    assert audit_section(audited, board(), metric="ndcg@10").figures["audit_time"].layout.xaxis.type == "date"


def test_the_page_has_the_section_only_with_an_audit(audited, make_run):
    run = make_run("popular", 42)
    section = audit_section(audited, board(**HALVES), metric="ndcg@10")
    page = render_page({"name": "shop"}, [run], audit=section)
    assert 'id="audit"' in page and "Models by part of the targets" in page and section.verdicts[0] in page
    assert all(f'id="{name}"' in page for name in ("audit_halves", "audit_popularity", "audit_time"))
    assert 'id="audit"' not in render_page({"name": "shop"}, [run])
    assert np.isfinite(audited["measures"]["repeats"])
