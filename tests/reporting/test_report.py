"""Report without Kedro: from runs on disk to the page, with messages for unusable files."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from tests.reporting.figures.test_studies import context
from tests.reporting.runs_on_disk import IDS, USERS, VERSION, store, write_json, write_runs
from tests.synthetic import sequences

from recpipe.config.schema import DatasetConfig, ReportConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.reporting import report
from recpipe.reporting.examples import from_json, to_json

STEPS = pl.DataFrame(
    {
        "step": [0, 1],
        "name": ["raw", "last"],
        "detail": ["{}", '{"k": 5}'],
        "rows": [900, 800],
        "users": [150, 150],
        "items": [40, 40],
        "first_timestamp": [0, 0],
        "last_timestamp": [9, 9],
    }
)
SPLIT = Protocol(dataset="shop", fingerprint="f", steps=report.steps_of(STEPS))
UNSEEN = replace(SPLIT, exclude_seen=False)
ELSEWHERE = replace(SPLIT, fingerprint="other")
REPORT = ReportConfig(metric="ndcg@10", baseline="best", resamples=200, examples=4, history=2, recommended=10)
DATASET = DatasetConfig(source="files", title="A shop")


def to_json_fields(protocol):
    return {"id": protocol.id, **protocol.to_dict(), "dataset": "shop"}


@pytest.fixture
def folder(tmp_path, make_run):
    """Four models under the protocol of the split."""
    return write_runs(tmp_path, make_run, protocol=to_json_fields(SPLIT))


def metrics_file(folder, run):
    return folder / "08_reporting" / "shop" / run / "metrics.json" / VERSION / "metrics.json"


def change_metrics(folder, run, **fields):
    path = metrics_file(folder, run)
    write_json(path, {**json.loads(path.read_text()), **fields})


class Report:
    """Results of all five steps; what the catalog saves as JSON goes through JSON."""

    def __init__(self, runs, *, models=("sasrec",), steps=STEPS, config=REPORT, requested=None, profile=None):
        rows = [[1 + (user + event) % len(IDS) for event in range(4)] for user in range(USERS)]
        histories = replace(sequences(rows), users=np.array([f"u{user}" for user in range(USERS)], dtype=object))
        fold = Fold(histories, histories)
        vocabulary, split = Vocabulary(IDS), json.loads(json.dumps(to_json_fields(SPLIT)))
        items = pa.table({"item_id": IDS.tolist(), "title": [f"title of {item}" for item in IDS]})
        inputs, scope = (runs, histories, vocabulary, split), {"models": models, "seed": 42, "report": config}
        insights = report.analyse(*inputs, **scope, requested=requested)
        self.insights = json.loads(json.dumps(insights))
        self.board, self.markdown = report.rank(runs, self.insights, metric=config.metric)
        inputs = {"profile": profile or {}, "steps": steps, "geometry": None}
        self.figures = report.draw(runs, self.insights, self.board, **inputs, metric=config.metric)
        users = report.pick(runs, self.insights, self.board, fold, vocabulary, items, config)
        self.examples = from_json(json.loads(json.dumps(to_json(users))))
        assert self.examples == users
        self.html, self.summary = report.write(
            runs, self.insights, self.board, self.examples, **inputs, dataset=DATASET
        )

    @property
    def example_models(self):
        return list(self.examples[0].recommendations) if self.examples else []

    @property
    def words(self):
        text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", self.html, flags=re.S)
        return " ".join(unescape(text).split())


def evaluate_under(folder, run, protocol):
    """Move the evaluation of a run to another protocol."""
    change_metrics(folder, run, protocol=to_json_fields(protocol))
    output = folder / "07_model_output" / "shop" / run
    (output / SPLIT.id).rename(output / protocol.id)


def test_a_report_of_finished_runs(folder):
    result = Report(store(folder))
    assert result.board["name"].to_list() == ["sasrec", "item_knn", "popular_recent", "popular"]
    assert result.insights["ranked"] == [
        f"{name}/seed_42/{SPLIT.id}" for name in sorted(result.board["name"].to_list())
    ]
    assert (result.insights["dataset"], result.insights["requested"]) == ("shop", ["sasrec"])
    assert result.insights["split"] == {
        "id": SPLIT.id,
        "steps": list(SPLIT.steps),
        "exclude_seen": SPLIT.exclude_seen,
        "warnings": [],
    }
    assert (result.insights["problems"], len(result.examples)) == ([], 4)
    assert set(result.figures) == set(report.FIGURES)
    assert result.figures["certainty"].data and not result.figures["geometry_map"].data
    assert f"A shop: 4 runs under protocol {SPLIT.id}" in result.summary
    for name in ("sasrec", "item_knn", "popular_recent", "popular", "A shop", "title of i3"):
        assert name in result.words
    assert "sasrec" in result.markdown and "Recommendations of sasrec" in result.summary


def test_warnings_that_ingest_has_printed_stand_on_the_page_alone(folder):
    result = Report(store(folder), profile={"rows": 900, "future": 7})
    assert "7 of 900 events are in the future" in result.words
    assert "in the future" not in result.summary


def test_reports_import_neither_kedro_nor_mlflow():
    code = "import sys, recpipe.reporting.report, recpipe.semantic_ids.build, recpipe.reporting.geometry\n"
    code += "print([name for name in ('kedro', 'kedro_datasets', 'mlflow', 'omegaconf') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_without_runs(tmp_path):
    result = Report(store(tmp_path))
    assert (result.board.height, result.examples) == (0, [])
    assert "No finished run yet" in result.markdown


def test_examples_show_requested_models_first_and_the_rest_by_rank(folder):
    assert Report(store(folder)).example_models == ["sasrec", "item_knn", "popular_recent", "popular"]
    result = Report(store(folder), models=("absent", "popular", "item_knn"))
    assert result.example_models == ["popular", "item_knn", "sasrec", "popular_recent"]


def test_examples_are_of_the_protocol_of_the_requested_model(folder):
    evaluate_under(folder, "popular/seed_42", UNSEEN)
    result = Report(store(folder), models=("popular",))
    assert (result.insights["protocol"], result.example_models) == (UNSEEN.id, ["popular"])
    assert f"1 runs under protocol {UNSEEN.id}" in result.summary
    result = Report(store(folder), models=("absent",))
    assert result.insights["protocol"] == SPLIT.id
    assert set(result.example_models) == {"sasrec", "item_knn", "popular_recent"}


def test_lists_of_another_split_are_left_out(folder):
    evaluate_under(folder, "popular/seed_42", ELSEWHERE)
    result = Report(store(folder), models=("popular",))
    assert result.insights["protocol"] == SPLIT.id
    assert "popular" not in result.example_models


def test_metrics_of_this_command_replace_those_on_disk(folder, make_run):
    runs = store(folder, sasrec__42=make_run("sasrec", 42, to_json_fields(UNSEEN)))
    result = Report(runs, requested=UNSEEN.id)
    assert result.insights["protocol"] == UNSEEN.id
    assert "sasrec leads with a test NDCG@10 of" in result.words and f"under protocol {UNSEEN.id}" in result.words
    assert Report(store(folder), requested=UNSEEN.id).insights["protocol"] == SPLIT.id  # no run under it on disk


@pytest.mark.parametrize("requested", [SPLIT, UNSEEN], ids=["split", "other"])
def test_the_page_is_of_the_requested_protocol_of_several(folder, make_run, requested):
    other = {f"{name}__42": make_run(name, 42, to_json_fields(UNSEEN)) for name in ("sasrec", "popular")}
    result = Report(store(folder, **other), requested=requested.id)
    assert result.insights["protocol"] == requested.id
    assert re.search(rf"leads with a test NDCG@10 of \S+ under protocol {requested.id}", result.words)


def test_damaged_files_have_messages_and_the_rest_is_shown(folder):
    reporting, lists = (folder / layer / "shop" for layer in ("08_reporting", "07_model_output"))
    metrics_file(folder, "popular/seed_42").write_text('{"dataset": ')
    (lists / f"popular_recent/seed_42/{SPLIT.id}/ranks.parquet").write_bytes(b"PAR1 no more")
    name = "test_recommendations.parquet"
    (lists / "item_knn/seed_42" / SPLIT.id / name / VERSION / name).write_bytes(b"")
    write_json(reporting / "sasrec/seed_42/tie_sensitivity.json", [1, 2])
    (reporting / "sasrec/seed_42/curves.parquet").write_bytes(b"")
    (reporting / "sasrec/seed_42/context.json").write_text("{")
    quality = reporting / "semantic_ids/text_ids/quality.json"
    write_json(quality, {"modality": "text"})
    result = Report(store(folder))
    for expected in (
        "the metrics of popular/seed_42 cannot be read: ",
        f"the ranks of popular_recent/seed_42/{SPLIT.id} cannot be read: ",
        f"the recommendations of item_knn/seed_42/{SPLIT.id} cannot be read: ",
        "sasrec/seed_42: its tie sensitivity is not an object",
        "the curves of sasrec/seed_42 cannot be read: ",
        "The quality of text_ids is of another version",
    ):
        assert result.words.count(expected) == 1, expected
    assert result.board["name"].to_list() == ["sasrec", "item_knn", "popular_recent"]
    assert result.example_models == ["sasrec"]


def test_runs_of_other_data_sets_and_incomplete_runs_are_left_out(folder):
    change_metrics(folder, "popular/seed_42", dataset="elsewhere")
    change_metrics(folder, "popular_recent/seed_42", cost=[1])
    write_json(metrics_file(folder, "item_knn/seed_42"), {"model": "item_knn"})
    result = Report(store(folder))
    assert result.board["name"].to_list() == ["sasrec"]
    assert f"popular/seed_42/{SPLIT.id} holds a run of elsewhere, not of shop: it is left out" in result.words
    assert "its cost is not an object" in result.words and "metrics.json has no dataset" in result.words


def test_a_log_ingested_with_other_steps_than_the_split_has_a_warning(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="recpipe.reporting.report"):
        assert "other steps" not in Report(store(folder)).words
        assert not caplog.records
        steps = STEPS.with_columns(detail=pl.Series(["{}", '{"k": 6}']))
        assert "other steps" in Report(store(folder), steps=steps).words
    assert "other steps" in caplog.text


def test_context_results_are_on_the_page(folder):
    reporting = folder / "08_reporting" / "shop"
    write_json(reporting / "sasrec/seed_42/context.json", context("sasrec", SPLIT.id))
    result = Report(store(folder))
    assert result.figures["effective_context"].data and "last events" in result.words
