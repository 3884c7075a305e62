"""Runs of a command under several protocols or folds: what runs how often, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.framework.session import KedroSession

from recpipe.config import ConfigError, Configuration, parse_overrides
from recpipe.session import check_same_training, plan_protocols, requested_folds

STAGES = ["ingest", "embed", "semantic_ids", "train", "evaluate", "report"]


@pytest.mark.parametrize(
    ("pipelines", "requested", "expected"),
    [
        (["evaluate"], ["evaluate"], [("a", ["evaluate"]), ("b", ["evaluate"])]),
        (
            ["train", "evaluate", "ensemble", "ties", "report"],
            ["train", "evaluate", "ensemble", "ties", "report"],
            [("a", ["train", "evaluate", "ensemble", "ties"]), ("b", ["evaluate", "ensemble"]), ("a", ["report"])],
        ),
        ([], STAGES, [("a", []), ("b", ["evaluate"]), ("a", ["report"])]),
        (["svd"], STAGES, [("a", ["svd"]), ("b", ["evaluate"]), ("a", ["report"])]),
    ],
    ids=["evaluate", "several", "whole", "model"],
)
def test_only_the_evaluation_runs_under_every_protocol_and_the_report_comes_last(
    pipelines, requested, expected
) -> None:
    assert plan_protocols(["a", "b"], pipelines, requested) == expected


def test_chosen_nodes_run_under_every_protocol() -> None:
    assert plan_protocols(["a", "b"], ["train"], ["train"], filtered=True) == [("a", ["train"]), ("b", ["train"])]


@pytest.mark.parametrize("pipelines", [["report"], ["geometry", "report"], ["ingest", "embed"]])
def test_what_is_the_same_under_all_protocols_runs_once(pipelines) -> None:
    assert plan_protocols(["a", "b"], pipelines, pipelines) == [("a", pipelines)]


def test_a_command_without_an_evaluation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"protocol=a\+b: only evaluate and ensemble .* has train, study"):
        plan_protocols(["a", "b"], ["train", "study"], ["train", "study"])


def read(params: str) -> Configuration:
    return Configuration.read(Path("conf"), "test", parse_overrides(f"dataset=amazon-beauty,{params}"))


def test_protocols_that_need_another_training_are_refused_with_the_fields() -> None:
    check_same_training(read("protocol=papers+papers_unseen"))
    check_same_training(read("protocol=sas+papers_unseen,protocol.history=30"))
    with pytest.raises(ConfigError, match=r"protocol=sas\+papers: .* sas and papers differ in history, 50 and 20"):
        check_same_training(read("protocol=sas+papers"))


def test_every_seed_is_evaluated_under_every_protocol_and_trained_once(project, session_in, monkeypatch) -> None:
    runs = []

    def record(session, pipeline_names=()):
        parameters = session.load_context().params
        protocol = parameters["protocol"]
        runs.append((protocol.name, protocol.exclude_seen, parameters["seed"], list(pipeline_names)))

    monkeypatch.setattr(KedroSession, "run", record)
    params = {"protocol": "repeats+sas", "seeds": "1+2", "model": "popular"}
    with session_in(project, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["train", "evaluate", "report"])
    assert runs == [
        ("repeats", False, 1, ["train", "evaluate"]),
        ("repeats", False, 2, ["train", "evaluate"]),
        ("sas", True, 1, ["evaluate"]),
        ("sas", True, 2, ["evaluate"]),
        ("repeats", False, 1, ["report"]),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "repeats+sas"}, [("repeats", None, ["train", "evaluate"]), ("sas", None, ["evaluate"])]),
        (
            {"name": "rolling", "fold": "1+3"},
            [("rolling", 1, ["train", "evaluate"]), ("rolling", 3, ["train", "evaluate"])],
        ),
    ],
    ids=["protocols", "folds"],
)
def test_protocols_and_folds_may_be_overrides_of_the_data_set(
    project, session_in, monkeypatch, fields, expected
) -> None:
    runs = []

    def record(session, pipeline_names=()):
        protocol = session.load_context().params["protocol"]
        runs.append((protocol.name, protocol.fold, list(pipeline_names)))

    monkeypatch.setattr(KedroSession, "run", record)
    params = {"model": "popular", "datasets": {"online_retail": {"protocol": fields}}}
    with session_in(project, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["train", "evaluate"])
    assert runs == expected


def folds_of(params: str, pipelines: list[str]) -> list[int]:
    configuration = Configuration.read(Path("conf"), "test", parse_overrides(f"dataset=online_retail,{params}"))
    return requested_folds(configuration, pipelines)


def test_a_rolling_split_runs_its_folds_and_pipelines_without_a_split_run_once() -> None:
    assert (
        folds_of("protocol=rolling", ["train", "evaluate", "report"]) == folds_of("protocol=rolling", []) == [1, 2, 3]
    )
    assert folds_of("protocol=rolling,protocol.folds=2", ["svd"]) == [1, 2]
    assert folds_of("protocol=rolling,protocol.fold=1+3", ["train"]) == [1, 3]
    assert folds_of("protocol=rolling", ["ingest", "report"]) == [3]
    assert folds_of("protocol=rolling,protocol.fold=2", ["train"]) == []  # a single run
    assert folds_of("protocol=temporal", ["train"]) == []


@pytest.mark.parametrize(
    ("params", "pipelines", "message"),
    [
        ("protocol.fold=1+4", ["train"], r"protocol.fold is '1\+4'; give folds from 1 to 3, as 1\+2"),
        ("protocol.fold=last", ["train"], r"protocol.fold is 'last'; give folds from 1 to 3"),
        ("protocol.folds=0", ["train"], "protocol.folds is 0; give the number of test windows"),
        ("protocol.folds=null", ["train"], "protocol.folds is None; give the number of test windows"),
        ("protocol.folds=3", ["tune", "train"], r"tune cannot run over the folds .* --params protocol.fold=3"),
    ],
)
def test_folds_that_cannot_run_are_refused(params: str, pipelines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folds_of(f"protocol=rolling,{params}", pipelines)


def test_every_fold_is_trained_for_every_seed_and_the_report_comes_last(project, session_in, monkeypatch) -> None:
    runs = []

    def record(session, pipeline_names=()):
        parameters = session.load_context().params
        protocol = parameters["protocol"]
        runs.append((protocol.name, protocol.fold, parameters["seed"], parameters["model"], list(pipeline_names)))

    monkeypatch.setattr(KedroSession, "run", record)
    params = {"protocol": {"name": "rolling", "fold": "1+3"}, "seeds": "5+6", "model": "mf"}
    with session_in(project, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["ingest", "train", "report"])
    assert runs == [
        ("rolling", 1, 5, "mf", ["ingest", "train"]),
        ("rolling", 1, 6, "mf", ["train"]),
        ("rolling", 3, 5, "mf", ["train"]),
        ("rolling", 3, 6, "mf", ["train"]),
        ("rolling", 3, 5, "mf", ["report"]),
    ]
