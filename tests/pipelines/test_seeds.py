"""`seeds=a+b`: which run comes when, under which parameters; what is no seed is refused."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path

import polars as pl
import pytest
from kedro.framework.session import KedroSession

from recpipe.config import ConfigError
from recpipe.kedro_compat import file_of
from recpipe.pipelines.seeds import parse_seeds, plan


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
        (
            ["ingest", "train", "report"],
            [(1, ["ingest", "train"]), (2, ["train"]), (1, ["report"])],
        ),
        (None, [(1, None), (2, ["train", "evaluate"]), (1, ["report"])]),
        (["__default__"], [(1, None), (2, ["train", "evaluate"]), (1, ["report"])]),
        (["report"], [(1, ["report"])]),
        (
            ["geometry", "train", "report"],
            [(1, ["train"]), (2, ["train"]), (1, ["geometry", "report"])],
        ),
        (
            ["__default__", "geometry"],
            [(1, None), (2, ["train", "evaluate"]), (1, ["geometry", "report"])],
        ),
        (["ingest"], [(1, ["ingest"])]),
    ],
)
def test_nothing_that_no_seed_changes_runs_twice_and_the_report_comes_last(pipelines, expected) -> None:
    assert plan([1, 2], pipelines) == expected


def test_one_seed_or_chosen_nodes_run_as_asked() -> None:
    assert plan([5], ["ingest", "report"]) == [(5, ["ingest", "report"])]
    assert plan([5], None) == [(5, None)]
    assert plan([1, 2], ["train", "report"], filtered=True) == [
        (1, ["train", "report"]),
        (2, ["train", "report"]),
    ]


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
