"""The session: pipelines for the models of a command, names refused before anything runs, the conf read once.

`seeds=a+b`: which run comes when, under which parameters; what is no seed is refused.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import subprocess
import sys
from functools import wraps
from pathlib import Path

import polars as pl
import pytest
from kedro.framework.session import KedroSession

from recpipe.config import ConfigError
from recpipe.kedro_compat import file_of
from recpipe.pipelines.wiring import current
from recpipe.session import parse_seeds, plan_runs


def planned(session_in, monkeypatch, folder: Path, params: dict, **options):
    """The wiring of a run, with nothing run."""
    seen = []
    original = KedroSession.run

    @wraps(original)
    def run(self, **_) -> None:
        seen.append(current()[1])

    monkeypatch.setattr(KedroSession, "run", run)
    with session_in(folder, runtime_params=params) as session:
        session.run(**options)
    return seen[0]


@pytest.mark.parametrize(
    ("params", "options", "models"),
    [
        ({}, {}, ("sasrec", "popular", "popular_recent", "markov")),
        ({}, {"pipeline_names": ["__default__"]}, ("sasrec", "popular", "popular_recent", "markov")),
        ({}, {"pipeline_name": "train"}, ("sasrec",)),
        ({}, {"pipeline_names": ["train", "evaluate"]}, ("sasrec",)),
        ({"model": "svd+item_knn"}, {"pipeline_names": ["train"]}, ("svd", "item_knn")),
        ({}, {"pipeline_names": ["train"], "from_nodes": ["svd.train_model"]}, ("sasrec", "svd")),
        ({}, {"pipeline_names": ["train"], "tags": ("svd",)}, ("sasrec", "svd")),
        ({}, {"pipeline_names": ["tiger"]}, ("tiger",)),
        ({"model": "svd"}, {"pipeline_names": ["tiger"]}, ("svd", "tiger")),
        ({"dataset": "amazon-beauty"}, {}, ("sasrec", "popular")),
    ],
)
def test_pipelines_are_built_for_the_models_of_the_command(
    project, session_in, monkeypatch, params, options, models
) -> None:
    assert planned(session_in, monkeypatch, project, params, **options).models == models


def test_all_leaves_out_what_the_protocol_or_the_data_set_does_not_allow(project, session_in, monkeypatch) -> None:
    def models(**params: object) -> set[str]:
        return set(
            planned(session_in, monkeypatch, project, {"model": "all", **params}, pipeline_names=["train"]).models
        )

    plain = models()
    assert {"text_knn", "sasrec", "popular", "tiger", "parallel_tiger"} < plain
    assert not {"siglip_knn", "hstu_last_item", "hstu_query"} & plain
    assert "siglip_knn" in models(dataset="ml-1m", modality="text+image")
    assert "hstu_last_item" in models(protocol={"time": "last_item"})
    assert {"hstu_last_item", "hstu_query"} < models(protocol={"time": "query"})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dataset": "online_retai"}, r"unknown dataset 'online_retai' \(did you mean 'online_retail'\?\).*ml-1m"),
        ({"model": "sasrek"}, r"unknown model 'sasrek' \(did you mean 'sasrec'\?\)"),
        ({"model": "popular+sasrek"}, "unknown model 'sasrek'"),
        ({"model": "all+sasrec"}, "unknown model 'all'"),
        ({"model": ""}, "unknown model ''"),
        ({"evaluate": {"recomend": 3}}, r"unknown parameter 'evaluate.recomend' .*\(did you mean 'recommend'"),
        ({"models": {"tiger": {"dropuot": 0.3}}}, r"\(did you mean 'dropout'\?\); it belongs in conf/base/.*tiger.yml"),
        ({"models": {"tiger": {"dropout": 0.3}}}, r"models.tiger \(command line\).*models sasrec; add model=tiger"),
        ({"datasets": {"ml-1m": {"bad_rows": "drop"}}}, r"datasets.ml-1m .*changes nothing.*dataset=ml-1m"),
        ({"model": "popular", "side": {"vectors": "text"}}, "no side information is read by popular"),
        ({"model": "popular+svd", "train": {"max_epochs": 3}}, "no gradient descent trains popular, svd"),
        ({"model": "svd", "train": {"weights": False, "ema": 0.5}}, "no gradient descent trains svd"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(project_copy, session_in, params, message) -> None:
    with session_in(project_copy, runtime_params=params) as session, pytest.raises(ValueError, match=message):
        session.run(pipeline_names=["ingest"])
    assert sorted(path.name for path in (project_copy / "data").iterdir()) == ["01_raw"]
    assert not (project_copy / "mlflow.db").exists()


def test_a_run_takes_what_the_command_line_says(project: Path, session_in, monkeypatch) -> None:
    params = {"train": {"max_epochs": 7}, "protocol": {"exclude_seen": True}}
    monkeypatch.setattr(KedroSession, "run", wraps(KedroSession.run)(lambda self, **_: self.load_context().params))
    with session_in(project, runtime_params=params) as session:
        found = session.run(pipeline_names=["train"])
    assert found["models"]["sasrec"].train["max_epochs"] == 7
    assert found["protocol"].exclude_seen is True


def test_settings_of_training_that_every_model_reads_are_taken_for_models_without_gradients(
    project: Path, session_in, monkeypatch
) -> None:
    params = {"model": "svd", "train": {"weights": False, "train_on_validation": True}}
    monkeypatch.setattr(KedroSession, "run", wraps(KedroSession.run)(lambda self, **_: self.load_context().params))
    with session_in(project, runtime_params=params) as session:
        train = session.run(pipeline_names=["train"])["models"]["svd"].train
    assert (train["weights"], train["train_on_validation"]) == (False, True)


def test_the_conf_is_read_once_in_a_run(project_copy, session_in, monkeypatch) -> None:
    """Opened files are counted, whoever opens them."""
    opened: list[str] = []
    original = builtins.open

    def counting(file, *args, **options):
        if str(file).endswith((".yml", ".yaml")) and "/conf/" in str(file):
            opened.append(str(file))
        return original(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    with session_in(project_copy, env="test", runtime_params={"model": "popular"}) as session:
        opened.clear()
        session.run(pipeline_names=["ingest", "train"])
    parameters = [file for file in opened if "/parameters/" in file]
    assert len(parameters) > 50
    repeated = {file for file in opened if opened.count(file) > 1}
    assert not repeated


@pytest.mark.parametrize("name", ["evaluate", "report", "text", "text_parts"])
def test_no_model_may_have_the_name_of_a_pipeline_or_of_a_kind_of_ids(project_copy, session_in, name) -> None:
    file = project_copy / f"conf/local/parameters/models/{name}.yml"
    file.parent.mkdir(parents=True)
    file.write_text(f"models: {{{name}: {{extends: popular}}}}")
    with session_in(project_copy) as session, pytest.raises(ValueError, match=f"no model can be called '{name}'"):
        session.run(pipeline_names=["ingest"])


def test_two_sessions_of_one_process_keep_to_their_own_data_set(project: Path, session_in) -> None:
    """Kedro resolves ``${globals:...}`` by the loader that was made last."""
    found = {}
    with session_in(project, runtime_params={"dataset": "ml-1m"}) as first:
        context = first.load_context()
        with session_in(project, runtime_params={"dataset": "steam"}) as second:
            second.load_context()
            for name, each in (("ml-1m", context), ("steam", second.load_context())):
                found[name] = each.catalog.get("interactions")._filepath.parent.name
    assert found == {"ml-1m": "ml-1m", "steam": "steam"}


def test_a_conf_folder_elsewhere_leaves_the_data_in_the_project(project_copy: Path, session_in, tmp_path: Path) -> None:
    (project_copy / "conf").rename(tmp_path / "conf")
    with session_in(project_copy, conf_source=str(tmp_path / "conf")) as session:
        paths = session.configuration.parameters()["paths"]
    assert paths["data_root"] == str(project_copy / "data")


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [(None, []), (7, [7]), ("42+123+2023", [42, 123, 2023]), ([1, 2], [1, 2]), ("3+3", [3]), ("0", [0])],
)
def test_seeds_are_read_from_the_command_line_and_from_files(seeds, expected) -> None:
    assert parse_seeds(seeds) == expected


@pytest.mark.parametrize("seeds", ["", "a", "1+", "-1", 1.5, True, []])
def test_what_is_no_seed_is_refused(seeds) -> None:
    with pytest.raises(ValueError, match="give whole numbers from 0, as 42"):
        parse_seeds(seeds)


@pytest.mark.parametrize(
    ("pipelines", "expected"),
    [
        (["train", "evaluate"], [(1, ["train", "evaluate"]), (2, ["train", "evaluate"])]),
        (["ingest", "train", "report"], [(1, ["ingest", "train"]), (2, ["train"]), (1, ["report"])]),
        (None, [(1, None), (2, ["train", "evaluate"]), (1, ["report"])]),
        (["__default__"], [(1, None), (2, ["train", "evaluate"]), (1, ["report"])]),
        (["report"], [(1, ["report"])]),
        (["geometry", "train", "report"], [(1, ["train"]), (2, ["train"]), (1, ["geometry", "report"])]),
        (["__default__", "geometry"], [(1, None), (2, ["train", "evaluate"]), (1, ["geometry", "report"])]),
        (["ingest"], [(1, ["ingest"])]),
        (["refit"], [(1, ["refit"]), (2, ["refit"])]),
    ],
)
def test_nothing_that_no_seed_changes_runs_twice_and_the_report_comes_last(pipelines, expected) -> None:
    assert plan_runs([1, 2], pipelines) == expected


def test_one_seed_or_chosen_nodes_run_as_asked() -> None:
    assert plan_runs([5], ["ingest", "report"]) == [(5, ["ingest", "report"])]
    assert plan_runs([5], None) == [(5, None)]
    assert plan_runs([1, 2], ["train", "report"], filtered=True) == [(1, ["train", "report"]), (2, ["train", "report"])]


@pytest.fixture
def ran(project: Path, session_in, monkeypatch):
    """`ran(params, **options)`: what would have run, as (seed, seeds, pipelines, version) of each run."""

    def call(params: dict, **options) -> list[tuple]:
        seen = []

        @wraps(KedroSession.run)
        def record(self, pipeline_names=None):
            context = self.load_context()
            seed = context.params["seed"], context.params["seeds"]
            folder = file_of(context.catalog.get("popular_evaluation")).parent.name
            seen.append((*seed, pipeline_names, folder, self.store["session_id"]))

        monkeypatch.setattr(KedroSession, "run", record)
        with session_in(project, env="test", runtime_params=params) as session:
            session.run(**options)
        return seen

    return call


def test_every_seed_is_a_run_of_its_own_with_its_own_folder_and_version(ran) -> None:
    seen = ran({"seeds": "1+2", "model": "popular"}, pipeline_names=["train", "evaluate"])
    assert [row[:4] for row in seen] == [
        (1, None, ["train", "evaluate"], "seed_1"),
        (2, None, ["train", "evaluate"], "seed_2"),
    ]
    assert len({row[4] for row in seen}) == 2


def test_where_nothing_is_held_out_a_whole_run_with_seeds_trains_only(ran) -> None:
    seen = ran({"seeds": "1+2", "model": "popular", "protocol": {"split": "none"}})
    assert [row[:3] for row in seen] == [(1, None, []), (2, None, ["train"])]


def test_without_seeds_there_is_one_run(ran) -> None:
    assert [row[:3] for row in ran({"seed": 9}, pipeline_names=["train"])] == [(9, None, ["train"])]


def test_seed_and_seeds_together_are_refused(ran) -> None:
    with pytest.raises(ConfigError, match=r"seed=1 and seeds=2\+3: give one of the two"):
        ran({"seed": 1, "seeds": "2+3"}, pipeline_names=["train"])
    with pytest.raises(ConfigError, match="seeds is 'x'"):
        ran({"seeds": "x"}, pipeline_names=["train"])


def test_two_seeds_are_one_row_of_the_leaderboard_with_a_deviation(project_copy: Path, session_in) -> None:
    params = {"seeds": "1+2", "model": "mf+popular"}
    with session_in(project_copy, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["ingest", "train", "evaluate", "report"])
    reporting = project_copy / "data" / "test" / "08_reporting" / "online_retail"
    board = {row["model"]: row for row in pl.read_parquet(reporting / "leaderboard.parquet").to_dicts()}
    assert {row["seeds"] for row in board.values()} == {2}
    values = []
    for seed in (1, 2):
        (file,) = reporting.glob(f"mf/seed_{seed}/metrics.json/*/metrics.json")
        metrics = json.loads(file.read_text())
        assert metrics["seed"] == seed
        values.append(metrics["test"]["ndcg@10"])
    assert board["mf"]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert board["mf"]["ndcg@10_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert board["popular"]["ndcg@10_std"] == 0


@pytest.mark.parametrize(
    ("params", "options", "expected"),
    [
        ({}, {"pipeline_names": ["ingest"]}, [(["ingest"], "auto")]),
        ({}, {"pipeline_names": ["ingest", "train"]}, [(["ingest"], "auto"), (["train"], "sparse")]),
        ({}, {"pipeline_names": ["train"]}, [(["train"], "sparse")]),
        ({}, {}, [(["ingest"], "auto"), (["embed", "semantic_ids", "train", "evaluate", "report"], "sparse")]),
        (
            {"datasets": {"mine": {"profile": "dense-large"}}},
            {"pipeline_names": ["train"]},
            [(["train"], "dense-large")],
        ),
    ],
)
def test_the_profile_is_chosen_from_the_ingested_log(
    project_copy: Path, session_in, monkeypatch, caplog, params, options, expected
) -> None:
    file = project_copy / "conf/local/parameters/datasets/mine.yml"
    file.parent.mkdir(parents=True)
    file.write_text("datasets: {mine: {source: files, profile: auto, files: {interactions: a.csv}}}")
    seen, models = [], ()

    @wraps(KedroSession.run)
    def record(self, pipeline_names=None):
        nonlocal models
        seen.append((pipeline_names, self.configuration.profile))
        models = current()[1].models
        if "ingest" in pipeline_names:
            statistics = project_copy / "data/08_reporting/mine/data_profile.json"
            statistics.parent.mkdir(parents=True, exist_ok=True)
            statistics.write_text(json.dumps({"rows": 900, "users": 100}))
        return {}

    monkeypatch.setattr(KedroSession, "run", record)
    if options.get("pipeline_names") == ["train"]:
        with session_in(project_copy, runtime_params={"dataset": "mine"}) as session:
            session.run(pipeline_names=["ingest"])
        seen.clear()
    with session_in(project_copy, runtime_params={"dataset": "mine", **params}) as session, caplog.at_level("INFO"):
        session.run(**options)
    assert seen == expected
    if not options:
        assert models == ("sasrec", "popular", "popular_recent", "markov")
    if expected[-1][1] == "sparse":
        assert "profile auto: sparse, as the log has 900 events, 9.0 a user" in caplog.text
        assert "sasrec: steps of 2048 events, histories of 200, dropout 0.5" in caplog.text


@pytest.mark.slow
def test_models_train_and_are_evaluated_in_processes_of_a_parallel_runner(project_copy) -> None:
    names = ["--runner=ParallelRunner", "--env=test", "--pipelines=ingest,train,evaluate"]
    params = "--params=model=popular+svd,datasets.online_retail.profile=auto"  # a session that ingests first
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-m", "kedro", "run", *names, params]
    done = subprocess.run(
        command, cwd=project_copy, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ParallelRunner: no MLflow tracking" in done.stderr and "5 steps in" in done.stderr
    for model in ("popular", "svd"):
        folder = project_copy / f"data/test/08_reporting/online_retail/{model}/seed_42/metrics.json"
        (file,) = folder.glob("*/metrics.json")
        assert json.loads(file.read_text())["model"] == model
