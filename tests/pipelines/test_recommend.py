"""Pipeline recommend on a finished run: lists of the log and of requests, of several models, and its messages."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import pytest
from kedro.io import DatasetError

from recpipe.config import ConfigError
from recpipe.serving.__main__ import main

pytestmark = pytest.mark.slow

DATASET = "online_retail"
DATA = Path("data") / "test"


@pytest.fixture(scope="module")
def folder(whole_run, tmp_path_factory) -> Path:
    """The finished project, copied, since tests here write into it."""
    return shutil.copytree(whole_run[0], tmp_path_factory.mktemp("copy") / "project", symlinks=True)


@pytest.fixture
def recommend(folder, session_in):
    """`recommend(model=…, …)` runs the pipeline; the latest output folder of each model of the command."""

    def run(**params: object) -> dict[str, Path]:
        with session_in(folder, env="test", runtime_params=params) as session:
            session.run(pipeline_names=["recommend"])
        outputs = folder / DATA / "07_model_output" / DATASET
        return {
            model: max((outputs / model / "seed_42" / "recommendations").iterdir())
            for model in str(params["model"]).split("+")
        }

    return run


def test_every_user_of_the_log_gets_a_list_of_every_model(folder, recommend, caplog):
    with caplog.at_level(logging.INFO):
        outputs = recommend(model="sasrec+popular", recommend={"k": 5})
    interactions = pl.read_parquet(folder / DATA / "03_primary" / DATASET / "interactions.parquet")
    users = sorted(interactions["user_id"].unique())
    for output in outputs.values():
        lists = pl.read_parquet(output / "recommendations.parquet")
        assert lists["user_id"].unique(maintain_order=True).to_list() == users
        assert set(lists.group_by("user_id").len()["len"]) == {5}
        submission = pl.read_csv(output / "submission.csv", schema_overrides={"user_id": pl.String})
        assert submission["user_id"].to_list() == users
    assert "sasrec: lists from the measured bundle" in caplog.text
    assert "pipeline=refit --params model=sasrec" in caplog.text


@pytest.mark.parametrize("model", ["sasrec", "popular"])
def test_the_list_of_a_user_on_the_command_line_is_that_of_the_pipeline(folder, recommend, capsys, model):
    lists = pl.read_parquet(recommend(model=model)[model] / "recommendations.parquet")
    for user in lists["user_id"].unique(maintain_order=True).to_list()[:60:20]:
        assert main([str(folder / DATA / "06_models" / DATASET / model), "--user", user, "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = lists.filter(pl.col("user_id") == user)
        assert [row["item_id"] for row in rows] == expected["item_id"].to_list()
        assert [row["score"] for row in rows] == pytest.approx(expected["score"].to_list(), rel=1e-4)


def test_a_file_of_requests_is_short_for_the_setting(folder, recommend):
    (folder / "my.csv").write_text("user_id,item_id\nnew,22423\nold,22423\nnew,unknown\n")
    outputs = [
        recommend(model="popular", requests="my.csv"),
        recommend(model="popular", recommend={"requests": "my.csv"}),
    ]
    first, second = (pl.read_parquet(output["popular"] / "recommendations.parquet") for output in outputs)
    assert first["user_id"].unique(maintain_order=True).to_list() == ["new", "old"]
    assert first.equals(second)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"requests": "absent.csv"}, "absent.csv is no file"),
        ({"recommend": {"users": "absent.csv"}}, "absent.csv is no file"),
        ({"recommend": {"k": 0}}, "recommend.k"),
        ({"recommend": {"k": -1}}, "recommend.k"),
        ({"recommend": {"k": "ten"}}, "recommend.k"),
        ({"recommend": {"bundle": "best"}}, "recommend.bundle"),
        ({"recommend": {"bundle": "production"}}, "there is no production"),
        ({"recommend": {"rules": {"where": "in_stock ="}}}, "where|in_stock"),
        ({"recommend": {"columns": {"user_id": "visitor"}}, "requests": "my.csv"}, "no column 'visitor'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_errors_that_name_them(folder, recommend, params, message):
    (folder / "my.csv").write_text("user_id,item_id\nnew,22423\n")
    with pytest.raises((ValueError, ConfigError, DatasetError), match=message):
        recommend(model="popular", **params)
