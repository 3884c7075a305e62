"""Pipeline report: its wiring, damaged files of runs on disk, and the smallest logs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from tests.artefacts import forget_digest
from tests.reporting.browser import CHROMIUM, open_page

from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.pipelines import report, semantic_ids
from recpipe.pipelines.content_kinds import KindInputs
from recpipe.pipelines.evaluate import create_geometry
from recpipe.pipelines.report import collect_runs

SEED = "seed_42"
VECTORS_OF = {"text_parts": "text", "foreign": None}


@dataclass(frozen=True)
class PartialWiring:
    """The part of Wiring that these pipelines read."""

    dataset: str = "shop"
    models: tuple[str, ...] = ("sasrec",)
    kinds: tuple[str, ...] = ("text", "text_parts")
    results: tuple[str, ...] = ("sasrec_evaluation", "text_ids_quality", "text_parts_ids_quality")
    requested: tuple[str, ...] = ("semantic_ids", "geometry", "report")

    kind_inputs: dict[str, KindInputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs = {kind: KindInputs(VECTORS_OF.get(kind, kind)) for kind in self.kinds}
        object.__setattr__(self, "kind_inputs", self.kind_inputs or inputs)


def test_metrics_are_collected_by_run_and_other_results_ignored() -> None:
    metrics = {"dataset": "shop", "model": "sasrec", "seed": 42, "protocol": {"id": "x"}, "test": {}}
    quality, ties = {"passed": True}, {"model": "sasrec", "seed": 42, "protocol": "x"}
    results = {"text_ids_quality": quality, "sasrec_tie_sensitivity": ties, "b": None}
    assert collect_runs(sasrec_evaluation=metrics, **results) == {"sasrec/seed_42/x": metrics}
    assert collect_runs() == {}


@pytest.mark.filterwarnings("error")  # Kedro warns about dots outside namespaces
@pytest.mark.parametrize("results", [(), PartialWiring.results])
def test_one_node_collects_runs_for_all_pipelines(results) -> None:
    wiring = PartialWiring(results=results)
    pipeline = semantic_ids.create_pipeline(wiring) + create_geometry(wiring) + report.create_pipeline(wiring)
    (collecting,) = [node for node in pipeline.nodes if node.name == "report.collect_runs"]
    assert collecting.outputs == ["runs"] and set(collecting.inputs) == set(results)
    before = pipeline.to_nodes("report.analyse_runs")
    assert {node.name for node in before.nodes} >= {"report.collect_runs", "report.analyse_runs"}
    measuring = {node.name for node in before.nodes if node.name.endswith("measure_ids")}
    assert measuring == ({f"{kind}.measure_ids" for kind in PartialWiring.kinds} if results else set())


def test_semantic_ids_are_wired_for_the_kinds_of_the_command_only() -> None:
    nodes = semantic_ids.create_pipeline(PartialWiring(kinds=("image",))).nodes
    assert [node.namespace for node in nodes] == ["image"] * 5
    assert semantic_ids.create_pipeline(PartialWiring(kinds=())).nodes == []
    parts = semantic_ids.create_pipeline(PartialWiring(kinds=("text_parts",)))
    assert parts.inputs() == {
        "text_embeddings",
        "params:paths",
        "items",
        "params:semantic_ids.kinds.text_parts",
        "params:datasets.shop",
        "params:dataset",
    }


def test_kinds_of_one_command_are_compared_with_the_item_vectors_that_one_is_aligned_with() -> None:
    kinds = {
        "text": KindInputs("text"),
        "text_collaborative": KindInputs("text", "sasrec"),
        "foreign": KindInputs(None),
    }
    pipeline = semantic_ids.create_pipeline(replace(PartialWiring(kinds=tuple(kinds)), kind_inputs=kinds))
    readers = {node.name for node in pipeline.nodes if "text_collaborative_item_vectors" in node.inputs}
    measuring = {"text.measure_ids", "text_collaborative.measure_ids", "foreign.measure_foreign_ids"}
    assert readers == {"text_collaborative.fit_quantizer", *measuring}
    (reading,) = pipeline.only_nodes_with_outputs("text_collaborative_item_vectors").nodes
    assert set(reading.inputs) == {"sasrec_bundle", "training_data"}


def test_foreign_ids_have_no_quantizer_and_need_no_vectors() -> None:
    pipeline = semantic_ids.create_pipeline(PartialWiring(kinds=("foreign",)))
    names = ("import_ids", "measure_foreign_ids", "check_ids", "build_tree")
    assert [node.name for node in pipeline.nodes] == [f"foreign.{name}" for name in names]
    parameters = {"params:paths", "params:semantic_ids.kinds.foreign", "params:datasets.shop", "params:dataset"}
    assert pipeline.inputs() == {"items"} | parameters


def test_figures_of_ids_are_saved_before_the_quality_that_the_report_reads() -> None:
    nodes = semantic_ids.create_pipeline(PartialWiring(kinds=("text",))).nodes
    (node,) = [node for node in nodes if node.name == "text.measure_ids"]
    assert node.outputs == ["text.id_figures", "text_ids_quality"]  # Kedro saves in this order


def test_the_report_reads_geometry_only_if_this_command_measures_it() -> None:
    assert "geometry" not in report.create_pipeline(PartialWiring(requested=("report",))).inputs()
    assert "geometry" in report.create_pipeline(PartialWiring()).inputs()


def layer(folder: Path, dataset: str = "online_retail", name: str = "08_reporting") -> Path:
    return folder / "data" / "test" / name / dataset


def newest(folder: Path, name: str) -> Path:
    (file,) = (folder / name).glob(f"*/{name}")
    return file


def page_words(path: Path, profile: Path) -> str:
    """Words of the page, which has no empty figure, script error or missing number."""
    if CHROMIUM is not None:
        rendered = open_page(path, profile)
        assert (rendered.console, rendered.empty) == ([], [])
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", path.read_text(), flags=re.S)
    words = " ".join(unescape(text).split())
    assert not re.search(r"\b(nan|inf|None)\b", words)
    return words


@pytest.fixture
def folder(whole_run, tmp_path) -> Path:
    """A copy of the project after a run of sasrec and the baselines."""
    folder = shutil.copytree(whole_run[0], tmp_path / "project", symlinks=True)
    (folder / "conf" / "test" / "mlflow.yml").write_text("enabled: false\n")
    return folder


def change_metrics(folder: Path, model: str, change: Callable[[dict], object]) -> None:
    path = newest(layer(folder) / model / SEED, "metrics.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    forget_digest(path)


def copy_run(folder: Path, model: str, change: Callable[[dict], object] = lambda metrics: metrics) -> None:
    """Copy the run of sasrec under another name, with changed metrics."""
    for name in ("07_model_output", "08_reporting"):
        shutil.copytree(layer(folder, name=name) / "sasrec", layer(folder, name=name) / model)
    change_metrics(folder, model, lambda metrics: change({**metrics, "model": model}))


def output_of(folder: Path, model: str) -> Path:
    """The folder of ranks and lists, named by the protocol."""
    (ranks,) = (layer(folder, name="07_model_output") / model / SEED).glob("*/ranks.parquet")
    return ranks.parent


def set_ranks(folder: Path, model: str, rank: int) -> None:
    """Set the ranks of all targets, 0 for unranked, and the metrics that follow."""
    path = output_of(folder, model) / "ranks.parquet"
    table = pl.read_parquet(path).with_columns(rank=pl.lit(rank, pl.Int32))
    table.write_parquet(path)
    forget_digest(path)
    test = metrics_from_ranks(table.to_arrow(), cutoffs=(1, 5, 10, 20))
    change_metrics(folder, model, lambda metrics: {**metrics, "test": test})


def run_report(folder: Path, session_in, profile: Path) -> str:
    with session_in(folder, env="test") as session:
        session.run(pipeline_names=["report"])
    return page_words(layer(folder) / "report.html", profile)


def test_unusable_metrics_have_messages_and_the_rest_is_shown(folder, session_in, tmp_path) -> None:
    copy_run(folder, "svd", lambda metrics: {**metrics, "dataset": "ml-1m"})
    copy_run(folder, "mf", lambda metrics: {name: metrics[name] for name in ("dataset", "model", "test")})
    copy_run(folder, "nmf", lambda metrics: {**metrics, "cost": [1.5]})
    copy_run(folder, "bpr", lambda metrics: {**metrics, "test": {**metrics["test"], "ndcg@10": None}})
    set_ranks(folder, "sasrec", 0)
    file = newest(output_of(folder, "sasrec"), "test_recommendations.parquet")
    pl.read_parquet(file).head(0).write_parquet(file)
    forget_digest(file)
    words = run_report(folder, session_in, tmp_path / "browser")
    for expected in (
        "holds a run of ml-1m, not of online_retail",
        "mf) is left out: metrics.json has no seed, protocol",
        "(online_retail, nmf, 42) is left out: its cost is not an object",
        f"the ranks of bpr/seed_42/{output_of(folder, 'bpr').name} on disk do not match its metrics",
        "sasrec recommends no item",
    ):
        assert expected in words
    board = pl.read_parquet(layer(folder) / "leaderboard.parquet")
    assert set(board["model"]) == {"markov", "popular", "popular_recent", "sasrec", "bpr"}
    assert board.filter(pl.col("rank").is_null())["model"].to_list() == ["bpr"]


def test_damaged_files_have_messages_and_the_rest_is_shown(folder, session_in, tmp_path) -> None:
    for model in ("svd", "mf", "nmf", "bpr"):
        copy_run(folder, model)
    reporting, protocol = layer(folder), output_of(folder, "nmf").name
    newest(reporting / "svd" / SEED, "metrics.json").write_text('{"dataset": ')
    (output_of(folder, "mf") / "ranks.parquet").write_bytes(b"PAR1 no more")
    file = newest(output_of(folder, "nmf"), "test_recommendations.parquet")
    pl.read_parquet(file).drop("probability").write_parquet(file)
    forget_digest(file)
    (reporting / "bpr" / SEED / "tie_sensitivity.json").write_text("[1, 2]")
    (reporting / "sasrec" / SEED / "curves.parquet").write_bytes(b"")
    words = run_report(folder, session_in, tmp_path / "browser")
    for expected in (
        "the metrics of svd/seed_42 cannot be read: ",
        f"the ranks of mf/seed_42/{protocol} cannot be read: ",
        f"the recommendations of nmf/seed_42/{protocol} have no probability",
        "bpr/seed_42: its tie sensitivity is not an object",
    ):
        assert expected in words
    assert set(pl.read_parquet(reporting / "leaderboard.parquet")["model"]) >= {"mf", "nmf", "bpr", "sasrec"}


def test_models_with_equal_ranks_are_tied(folder, session_in, tmp_path) -> None:
    models = ("markov", "popular", "popular_recent", "sasrec")
    for model in models:
        set_ranks(folder, model, 5)
    words = run_report(folder, session_in, tmp_path / "browser")
    assert f"{', '.join(models)} are tied at a test NDCG@10 of .3869" in words
    (certainty,) = json.loads((layer(folder) / "insights.json").read_text())["certainty"].values()
    assert {difference["p_holm"] for difference in certainty["differences"].values()} == {1.0}


LOGS = {
    "one_user": [("a", f"i{n}") for n in range(8)],
    "one_item": [(f"u{n % 5}", "x") for n in range(40)],
    "all_seen": [(f"u{user}", f"i{n % 4}") for user in range(4) for n in range(8)],  # no candidate is left
}
CONF = """
datasets:
  tiny:
    source: files
    files: {interactions: log.csv}
    options: {columns: {user_id: user, item_id: item, timestamp: time}, timestamp: s}
    steps: []
"""
EXPECTED = {
    "one_user": "more than one test user",
    "one_item": "tied at a test NDCG@10 of 1.0000",
    "all_seen": "popular recommends no item",
}


@pytest.mark.parametrize("name", LOGS)
def test_the_smallest_logs_have_a_report(name, project_copy, session_in, tmp_path) -> None:
    (project_copy / "data" / "01_raw").unlink()
    raw = project_copy / "data" / "01_raw" / "tiny"
    raw.mkdir(parents=True)
    rows = "".join(f"{user},{item},{1000 + row}\n" for row, (user, item) in enumerate(LOGS[name]))
    (raw / "log.csv").write_text(f"user,item,time\n{rows}")
    (project_copy / "conf/base/parameters/datasets/tiny.yml").write_text(CONF)
    (project_copy / "conf/test/mlflow.yml").write_text("enabled: false\n")
    params = {"dataset": "tiny", "model": "popular", "protocol": {"exclude_seen": name == "all_seen"}}
    with session_in(project_copy, env="test", runtime_params=params) as session:
        session.run()
    assert EXPECTED[name] in page_words(layer(project_copy, "tiny") / "report.html", tmp_path / "browser")
    assert pl.read_parquet(layer(project_copy, "tiny") / "leaderboard.parquet").height == 3
