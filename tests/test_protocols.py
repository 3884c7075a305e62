"""Runs of a command under several protocols: what runs how often, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.framework.session import KedroSession

from recpipe.config import ConfigError, Configuration, parse_overrides
from recpipe.session import check_same_training, plan_protocols

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
