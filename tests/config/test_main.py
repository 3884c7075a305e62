"""``python -m recpipe.config``: every value with its origin; faults in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recpipe.config.__main__ import main

ROOT = Path(__file__).parents[2]


def run(*words: str) -> int:
    return main([*words, "--conf", str(ROOT / "conf")])


def test_show_names_file_or_command_line(capsys) -> None:
    params = "dataset=ml-1m,model=tiger,models.tiger.beam=5"
    assert run("show", "--params", params) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["models.tiger.beam"].endswith("5                                         # command line")
    assert "conf/base/parameters/models/tiger.yml: models.tiger.train.window" in lines["models.tiger.train.window"]
    assert "conf/base/parameters/train.yml: train.max_minutes" in lines["models.tiger.train.max_minutes"]
    assert "conf/base/parameters/datasets/ml-1m.yml" in lines["cold_users.segments"]


def test_show_can_be_narrowed_and_refuses_what_is_not_there(capsys) -> None:
    assert run("show", "protocol", "--params", "dataset=ml-1m") == 0
    assert {line.split(".")[0] for line in capsys.readouterr().out.splitlines()} == {"protocol"}
    assert run("show", "protocl") == 1
    assert capsys.readouterr().err.startswith("error: nothing is called protocl")


def test_diff_shows_only_what_differs(capsys) -> None:
    assert run("diff", "--params", "dataset=ml-1m,model=sasrec+esasrec") == 0
    lines = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert "train.loss.name" in lines
    assert "dim" not in lines


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("model=tigr", "did you mean 'tiger'?"),
        ("models.tiger.dropuot=.3", "did you mean 'dropout'?); it belongs in conf/base/parameters/models/tiger.yml"),
        ("dataset=ml-1", "did you mean 'ml-1m'?"),
    ],
)
def test_faults_are_one_line(params: str, message: str, capsys) -> None:
    assert run("show", "--params", params) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
