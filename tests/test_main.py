"""The console script: help without heavy imports, commands by name, one-line errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import recpipe
from recpipe.__main__ import COMMANDS, main

HEAVY = ("torch", "kedro", "numpy", "pyarrow", "pydantic")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert main([]) == 0


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = f"import sys; from recpipe.__main__ import main; main([{argument!r}]); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, modules = process.stdout.splitlines()
    assert not set(HEAVY) & set(modules.split())
    assert shown if argument == "--help" else shown == [f"recpipe {recpipe.__version__}"]


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, "--help"] for name in COMMANDS),
        ["recommend"],
        ["recommend", "folder", "--user", "ann", "--items", "i01"],
        ["recommend", "data/06_models/films/sasrec"],
        ["serve", "--prams", "x=1"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_arguments_of_a_command_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys; from recpipe.__main__ import main\n"
    code += "try: status = main(sys.argv[1:])\nexcept SystemExit as end: status = end.code\n"
    code += "print(status, *sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    status, *modules = process.stdout.splitlines()[-1].split()
    assert status == ("0" if "--help" in arguments else "2")
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: recpipe {name} ")


def test_an_unknown_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    assert "serve" in capsys.readouterr().err
    assert main(["run", "--env", "test"]) == 2
    assert "`kedro run`" in capsys.readouterr().err


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_torch(_: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", without_torch)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert "the module torch is missing" in error and error.count("\n") == 1
    assert "pip install torch" not in error  # a module may have another name than its package


def test_a_missing_module_of_our_own_is_a_fault_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "new", ("recpipe.no_such_module", ""))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["new"])


def test_a_folder_that_is_no_project_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve"]) == 2
    assert "`recpipe new`" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
def test_a_reader_that_closes_the_pipe_early_gets_no_message(project: Path) -> None:
    command = f"{sys.executable} -m recpipe config show --params model=sasrec | head -n 1"
    process = subprocess.run(["sh", "-c", command], cwd=project, capture_output=True, text=True, check=True)
    assert process.stdout.count("\n") == 1
    assert process.stderr == ""
