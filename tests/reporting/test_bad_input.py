"""What a report may find on disk, and logs of next to nothing: said in its place, and the rest is made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from tests.reporting.browser import CHROMIUM, open_page

from recpipe.evaluation.metrics import metrics_from_ranks

RUN = "seed_42"


def output(folder: Path, dataset: str, layer: str = "08_reporting") -> Path:
    return folder / "data" / "test" / layer / dataset


def newest(folder: Path, name: str) -> Path:
    (file,) = (folder / name).glob(f"*/{name}")
    return file


def words(page: str) -> str:
    return " ".join(unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.S)).split())


def checked_page(path: Path, folder: Path) -> str:
    """Its words; nothing on it is empty or not a number."""
    if CHROMIUM is not None:
        shown = open_page(path, folder)
        assert (shown.console, shown.empty) == ([], [])
    told = words(path.read_text())
    assert not re.search(r"\b(nan|inf|None(?! of this))\b", told)
    return told


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory) -> Path:
    folder = shutil.copytree(whole_run[0], tmp_path_factory.mktemp("bad") / "project", symlinks=True)
    (folder / "conf" / "test" / "mlflow.yml").write_text("enabled: false\n")
    return folder


def changed(folder: Path, model: str, change: Callable[[dict], object]) -> None:
    path = newest(output(folder, "online_retail") / model / RUN, "metrics.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def planted(folder: Path, model: str, change: Callable[[dict], object]) -> None:
    """A run that is sasrec's in all but its name and what `change` makes of its metrics."""
    for layer in ("07_model_output", "08_reporting"):
        place = output(folder, "online_retail", layer)
        shutil.copytree(place / "sasrec", place / model)
    changed(folder, model, lambda metrics: change({**metrics, "model": model}))


def ranked(folder: Path, model: str, rank: int) -> None:
    """All its targets at one rank, 0 for nowhere, and metrics that say so."""
    path = output(folder, "online_retail", "07_model_output") / model / RUN / "ranks.parquet"
    table = pl.read_parquet(path).with_columns(rank=pl.lit(rank, pl.Int32))
    table.write_parquet(path)
    test = metrics_from_ranks(table.to_arrow(), cutoffs=(1, 5, 10, 20))
    changed(folder, model, lambda metrics: {**metrics, "test": test})


def test_what_is_wrong_with_runs_is_said_and_the_rest_is_made(finished, session_in, tmp_path) -> None:
    planted(finished, "svd", lambda metrics: {**metrics, "dataset": "ml-1m"})
    planted(finished, "mf", lambda metrics: {name: metrics[name] for name in ("dataset", "model", "test")})
    planted(finished, "nmf", lambda metrics: {**metrics, "cost": [1.5]})
    planted(finished, "bpr", lambda metrics: {**metrics, "test": {**metrics["test"], "ndcg@10": None}})
    ranked(finished, "sasrec", 0)
    lists = output(finished, "online_retail", "07_model_output") / "sasrec" / RUN
    file = newest(lists, "recommendations.parquet")
    pl.read_parquet(file).head(0).write_parquet(file)
    with session_in(finished, env="test") as session:
        session.run(pipeline_names=["report"])
    told = checked_page(output(finished, "online_retail") / "report.html", tmp_path)
    for expected in (
        "svd/seed_42 holds a run of ml-1m, not of online_retail: it is left out",
        "mf) is left out: metrics.json has no seed, protocol: written by an older version?",
        "(online_retail, nmf, 42) is left out: its cost is not an object",
        "the ranks of bpr/seed_42 on disk are not those behind its metrics",
        "sasrec recommends nothing to anybody",
    ):
        assert expected in told
    board = pl.read_parquet(output(finished, "online_retail") / "leaderboard.parquet")
    assert set(board["model"]) == {"popular", "popular_recent", "sasrec", "bpr"}
    assert board.filter(pl.col("rank").is_null())["model"].to_list() == ["bpr"]


def test_damaged_files_cost_their_own_part_of_the_report(whole_run, session_in, tmp_path) -> None:
    folder = shutil.copytree(whole_run[0], tmp_path / "project", symlinks=True)
    (folder / "conf" / "test" / "mlflow.yml").write_text("enabled: false\n")
    for model in ("svd", "mf", "nmf", "bpr"):
        planted(folder, model, lambda metrics: metrics)
    told, lists = (output(folder, "online_retail", layer) for layer in ("08_reporting", "07_model_output"))
    newest(told / "svd" / RUN, "metrics.json").write_text('{"dataset": ')
    (lists / "mf" / RUN / "ranks.parquet").write_bytes(b"PAR1 no more")
    file = newest(lists / "nmf" / RUN, "recommendations.parquet")
    pl.read_parquet(file).drop("probability").write_parquet(file)
    (told / "bpr" / RUN / "tie_sensitivity.json").write_text("[1, 2]")
    (told / "sasrec" / RUN / "curves.parquet").write_bytes(b"")
    with session_in(folder, env="test") as session:
        session.run(pipeline_names=["report"])
    page = checked_page(told / "report.html", tmp_path)
    for expected in (
        "the metrics of svd/seed_42 cannot be read: ",
        "the ranks of mf/seed_42 cannot be read: ",
        "the recommendations of nmf/seed_42 have no probability",
        "bpr/seed_42: its tie sensitivity is not an object",
    ):
        assert expected in page
    assert set(pl.read_parquet(told / "leaderboard.parquet")["model"]) >= {"mf", "nmf", "bpr", "sasrec"}


def test_models_with_all_ranks_tied_are_level(finished, session_in, tmp_path) -> None:
    for name in ("svd", "mf", "nmf", "bpr"):
        shutil.rmtree(output(finished, "online_retail") / name, ignore_errors=True)
    models = ("popular", "popular_recent", "sasrec")
    for model in models:
        ranked(finished, model, 5)
    with session_in(finished, env="test") as session:
        session.run(pipeline_names=["report"])
    told = checked_page(output(finished, "online_retail") / "report.html", tmp_path)
    assert f"{', '.join(models)} are level at a test NDCG@10 of .3869" in told
    sure = json.loads((output(finished, "online_retail") / "insights.json").read_text())["certainty"]
    (sure,) = sure.values()
    assert {each["p_holm"] for each in sure["differences"].values()} == {1.0}


LOGS = {
    "one_user": [("a", f"i{n}") for n in range(8)],
    "one_item": [(f"u{n % 5}", "x") for n in range(40)],
    "all_seen": [
        (f"u{user}", f"i{n % 4}") for user in range(4) for n in range(8)
    ],  # nothing is left to recommend
}
CONF = """
datasets:
  tiny:
    source: files
    files: {interactions: log.csv}
    options: {columns: {user_id: user, item_id: item, timestamp: time}, timestamp: s}
    steps: []
"""
SAID = {
    "one_user": "One test user says nothing of others.",
    "one_item": "level at a test NDCG@10 of 1.0000",
    "all_seen": "popular recommends nothing to anybody",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_next_to_nothing_ends_in_a_report(name, project_copy, session_in, tmp_path) -> None:
    (project_copy / "data" / "01_raw").unlink()
    raw = project_copy / "data" / "01_raw" / "tiny"
    raw.mkdir(parents=True)
    rows = "".join(f"{user},{item},{1000 + at}\n" for at, (user, item) in enumerate(LOGS[name]))
    (raw / "log.csv").write_text(f"user,item,time\n{rows}")
    (project_copy / "conf/base/parameters/datasets/tiny.yml").write_text(CONF)
    (project_copy / "conf/test/mlflow.yml").write_text("enabled: false\n")
    protocol = {"exclude_seen": name == "all_seen"}
    asked = {"dataset": "tiny", "model": "popular", "protocol": protocol}
    with session_in(project_copy, env="test", runtime_params=asked) as session:
        session.run()
    told = checked_page(output(project_copy, "tiny") / "report.html", tmp_path / "browser")
    assert SAID[name] in told
    assert pl.read_parquet(output(project_copy, "tiny") / "leaderboard.parquet").height == 2
