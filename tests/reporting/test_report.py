"""The whole report as functions, without Kedro: from runs on disk to the page, and what is said of bad files."""

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
from tests.reporting.finished import IDS, USERS
from tests.reporting.runs_on_disk import VERSION, store, write_json, write_runs
from tests.reporting.test_studies import context
from tests.synthetic import sequences

from recpipe.config.schema import DatasetConfig, ReportConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.reporting import report
from recpipe.reporting.captions import FIGURES
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


def described(protocol):
    return {"id": protocol.id, **protocol.to_dict(), "dataset": "shop"}


@pytest.fixture
def folder(tmp_path, make_run):
    """Four models under the protocol of the split."""
    return write_runs(tmp_path, make_run, protocol=described(SPLIT))


def metrics_file(folder, run):
    return folder / "08_reporting" / "shop" / run / "metrics.json" / VERSION / "metrics.json"


def changed(folder, run, **fields):
    path = metrics_file(folder, run)
    write_json(path, {**json.loads(path.read_text()), **fields})


class Report:
    """All five steps, with what they hand on as JSON."""

    def __init__(self, runs, *, models=("sasrec",), steps=STEPS, config=REPORT):
        rows = [[1 + (user + at) % len(IDS) for at in range(4)] for user in range(USERS)]
        histories = replace(
            sequences(rows), users=np.array([f"u{user}" for user in range(USERS)], dtype=object)
        )
        fold = Fold(histories, histories)
        vocabulary, split = Vocabulary(IDS), json.loads(json.dumps(described(SPLIT)))
        items = pa.table({"item_id": IDS.tolist(), "title": [f"title of {item}" for item in IDS]})
        insights = report.analyse(runs, histories, vocabulary, split, models=models, seed=42, report=config)
        self.insights = json.loads(json.dumps(insights))
        self.board, self.markdown = report.rank(runs, self.insights, metric=config.metric)
        about = {"profile": {}, "steps": steps, "geometry": None}
        self.figures = report.draw(runs, self.insights, self.board, **about, metric=config.metric)
        users = report.pick(runs, self.insights, self.board, fold, vocabulary, items, config)
        self.examples = from_json(json.loads(json.dumps(to_json(users))))
        assert self.examples == users
        self.html, self.summary = report.write(
            runs, self.insights, self.board, self.examples, **about, dataset=DATASET
        )

    @property
    def shown(self):
        return list(self.examples[0].recommendations) if self.examples else []

    @property
    def words(self):
        text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", self.html, flags=re.S)
        return " ".join(unescape(text).split())


def test_a_report_of_finished_runs(folder):
    made = Report(store(folder))
    assert made.board["name"].to_list() == ["sasrec", "item_knn", "popular_recent", "popular"]
    assert made.insights["ranked"] == [f"{name}/seed_42" for name in sorted(made.board["name"].to_list())]
    assert (made.insights["dataset"], made.insights["requested"]) == ("shop", ["sasrec"])
    assert made.insights["split"] == {"id": SPLIT.id, "steps": list(SPLIT.steps)}
    assert (made.insights["problems"], len(made.examples)) == ([], 4)
    assert set(made.figures) == set(FIGURES)
    assert made.figures["certainty"].data and not made.figures["geometry_map"].data
    assert f"A shop: 4 runs under protocol {SPLIT.id}" in made.summary
    for name in ("sasrec", "item_knn", "popular_recent", "popular", "A shop", "title of i3"):
        assert name in made.words
    assert "sasrec" in made.markdown and "What sasrec recommends" in made.summary


def test_it_needs_neither_kedro_nor_mlflow():
    code = "import sys, recpipe.reporting.report, recpipe.semantic_ids.build, recpipe.reporting.geometry\n"
    code += (
        "print([name for name in ('kedro', 'kedro_datasets', 'mlflow', 'omegaconf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_run_at_all_is_a_report_too(tmp_path):
    made = Report(store(tmp_path))
    assert (made.board.height, made.examples) == (0, [])
    assert "No finished run yet" in made.markdown


def test_requested_models_come_first_in_the_examples_and_the_rest_by_rank(folder):
    assert Report(store(folder)).shown == ["sasrec", "item_knn", "popular_recent", "popular"]
    made = Report(store(folder), models=("absent", "popular", "item_knn"))
    assert made.shown == ["popular", "item_knn", "sasrec", "popular_recent"]


def test_the_lists_are_of_the_protocol_that_the_requested_model_was_evaluated_under(folder):
    changed(folder, "popular/seed_42", protocol=described(UNSEEN))
    made = Report(store(folder), models=("popular",))
    assert (made.insights["protocol"], made.shown) == (UNSEEN.id, ["popular"])
    assert f"1 runs under protocol {UNSEEN.id}" in made.summary
    made = Report(store(folder), models=("absent",))
    assert made.insights["protocol"] == SPLIT.id
    assert set(made.shown) == {"sasrec", "item_knn", "popular_recent"}


def test_lists_of_another_split_do_not_stand_beside_the_histories_of_this_one(folder):
    changed(folder, "popular/seed_42", protocol=described(ELSEWHERE))
    made = Report(store(folder), models=("popular",))
    assert made.insights["protocol"] == SPLIT.id
    assert "popular" not in made.shown


def test_metrics_of_this_command_win_over_those_on_disk(folder, make_run):
    runs = store(folder, sasrec__42=make_run("sasrec", 42, described(UNSEEN)))
    assert Report(runs).insights["protocol"] == UNSEEN.id
    assert Report(store(folder)).insights["protocol"] == SPLIT.id


def test_damaged_files_cost_their_own_part_of_the_report(folder):
    told, lists = (folder / layer / "shop" for layer in ("08_reporting", "07_model_output"))
    metrics_file(folder, "popular/seed_42").write_text('{"dataset": ')
    (lists / "popular_recent/seed_42/ranks.parquet").write_bytes(b"PAR1 no more")
    (lists / "item_knn/seed_42/recommendations.parquet" / VERSION / "recommendations.parquet").write_bytes(
        b""
    )
    write_json(told / "sasrec/seed_42/tie_sensitivity.json", [1, 2])
    (told / "sasrec/seed_42/curves.parquet").write_bytes(b"")
    (told / "sasrec/seed_42/context.json").write_text("{")
    quality = told / "semantic_ids/text_ids/quality.json"
    write_json(quality, {"modality": "text"})
    made = Report(store(folder))
    for expected in (
        "the metrics of popular/seed_42 cannot be read: ",
        "the ranks of popular_recent/seed_42 cannot be read: ",
        "the recommendations of item_knn/seed_42 cannot be read: ",
        "sasrec/seed_42: its tie sensitivity is not an object",
        "the curves of sasrec/seed_42 cannot be read: ",
        "The quality of text_ids is of another version",
    ):
        assert made.words.count(expected) == 1, expected
    assert made.board["name"].to_list() == ["sasrec", "item_knn", "popular_recent"]
    assert made.shown == ["sasrec"]


def test_runs_that_are_not_this_data_sets_or_not_whole_are_left_out(folder):
    changed(folder, "popular/seed_42", dataset="elsewhere")
    changed(folder, "popular_recent/seed_42", cost=[1])
    write_json(metrics_file(folder, "item_knn/seed_42"), {"model": "item_knn"})
    made = Report(store(folder))
    assert made.board["name"].to_list() == ["sasrec"]
    assert "popular/seed_42 holds a run of elsewhere, not of shop: it is left out" in made.words
    assert "its cost is not an object" in made.words and "metrics.json has no dataset" in made.words


def test_a_log_ingested_with_other_steps_than_the_split_saw_is_said(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="recpipe.reporting.report"):
        assert "not of the data behind the numbers" not in Report(store(folder)).words
        assert not caplog.records
        steps = STEPS.with_columns(detail=pl.Series(["{}", '{"k": 6}']))
        assert "not of the data behind the numbers" in Report(store(folder), steps=steps).words
    assert "not of the data behind the numbers" in caplog.text


def test_what_models_were_asked_besides_stands_on_the_page(folder):
    told = folder / "08_reporting" / "shop"
    write_json(told / "sasrec/seed_42/context.json", context("sasrec", SPLIT.id))
    made = Report(store(folder))
    assert made.figures["effective_context"].data and "last events" in made.words
