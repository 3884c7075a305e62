"""Errors of a run as its user sees them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import duckdb
import pytest
from click.testing import CliRunner
from kedro.config import MissingConfigException
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro_datasets.json import JSONDataset
from kedro_datasets.polars import EagerPolarsDataset
from pydantic import BaseModel

from recpipe import cli
from recpipe.config import ConfigError
from recpipe.data.files.fetch import SourceMissingError
from recpipe.hooks import ConsoleHooks, errors
from recpipe.hooks.errors import RunError, RunInterrupted, error_message, one_line_errors
from recpipe.progress import duration


@pytest.fixture(autouse=True)
def quiet_kedro() -> Iterator[None]:
    """Kedro's logging as conf/logging.yml has it, whatever a test sets."""
    loggers = [logging.getLogger(name) for name in errors.KEDRO_LOGGERS]
    levels = [logger.level for logger in loggers]
    loggers[0].setLevel(logging.WARNING)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> ConsoleHooks:
    """The hooks of a run in which some steps were done."""
    hooks = ConsoleHooks()
    monkeypatch.setattr(hooks, "resume_argument", lambda: '--from-nodes "sasrec.train_model"')
    monkeypatch.setattr(errors, "settings", SimpleNamespace(HOOKS=(object(), hooks)))
    return hooks


class Block(BaseModel):
    epochs: int


def of(action: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def test_a_value_that_is_refused_ends_as_one_sentence_and_how_to_go_on(console) -> None:
    with pytest.raises(RunError) as caught, one_line_errors():
        raise SourceMissingError("log.csv is not there: put it into data")
    assert caught.value.message.splitlines() == [
        "log.csv is not there: put it into data",
        'Once that is mended, the same command goes on from here with --from-nodes "sasrec.train_model"',
    ]
    assert caught.value.exit_code == 1
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, click.ClickException)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        ConfigError("no"),
        DatasetError("no"),
        MissingConfigException("no"),
        FileNotFoundError(2, "no", "x"),
    ],
)
def test_what_a_user_can_change_has_no_traceback(error) -> None:
    with pytest.raises(RunError), one_line_errors():
        raise error


@pytest.mark.parametrize("kind", [TypeError, KeyError, AssertionError, AttributeError, RuntimeError])
def test_a_fault_of_the_program_is_one_line_with_its_kind_and_the_way_to_the_traceback(kind) -> None:
    with pytest.raises(RunError) as caught, one_line_errors():
        raise kind("of the program")
    assert caught.value.message.startswith(kind.__name__) and "of the program" in caught.value.message
    assert "--verbose" in caught.value.message and "\n" not in caught.value.message


def test_a_fault_of_the_program_names_the_function_of_ours_where_it_occurred() -> None:
    with pytest.raises(RunError, match=r"^TypeError in recpipe\.progress\.duration: "), one_line_errors():
        duration("long")


def test_messages_cannot_command_a_terminal() -> None:
    with pytest.raises(RunError) as caught, one_line_errors():
        raise ValueError("item '\x1b[2Ja\u202eb\nc' is odd" + "x" * 5000)
    assert not set("\x1b\u202e\n") & {*caught.value.message} and len(caught.value.message) < 1100


def interrupted_query() -> None:
    con = duckdb.connect()
    threading.Timer(0.2, con.interrupt).start()
    con.execute("SELECT count(*) FROM range(1000000000000) t WHERE hash(t.range) % 3 = 1").fetchall()


def test_ctrl_c_in_a_query_is_no_error_of_duckdb(console) -> None:
    def save() -> None:
        try:
            interrupted_query()
        except Exception as error:
            raise DatasetError("Failed while saving data") from error

    for action in (interrupted_query, save):
        with pytest.raises(RunInterrupted, match="stopped; run the same command again"), one_line_errors():
            action()
    with pytest.raises(RunInterrupted), one_line_errors():  # as DuckDB ends where Python gets the signal
        raise RuntimeError("Query interrupted")


@pytest.mark.parametrize("query", ["SELECT 'x'::INT", "SELECT * FROM missing"])
def test_an_error_of_the_engine_is_one_line_and_no_bug(query) -> None:
    with pytest.raises(RunError) as caught, one_line_errors():
        duckdb.connect().execute(query)
    assert "\n" not in caught.value.message and "fault of the program" not in caught.value.message


def test_what_was_said_well_already_stays(console) -> None:
    error = click.UsageError("no such option: --piplines")
    with pytest.raises(click.UsageError) as caught, one_line_errors():
        raise error
    assert caught.value is error


def test_where_kedro_logs_everything_tracebacks_are_shown() -> None:
    logging.getLogger("kedro").setLevel(logging.INFO)
    with pytest.raises(ValueError) as caught, one_line_errors():
        raise ValueError("no")
    assert not isinstance(caught.value, RunError)


@pytest.mark.parametrize("words", [(), ("training stopped; run the same command again",)])
def test_ctrl_c_says_how_to_go_on(console, words) -> None:
    with pytest.raises(RunInterrupted) as caught, one_line_errors():
        raise KeyboardInterrupt(*words)
    assert caught.value.exit_code == 130
    assert "run the same command again" in caught.value.message
    assert '--from-nodes "sasrec.train_model"' in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path) -> None:
    catalog = DataCatalog({"items": JSONDataset(filepath=str(tmp_path / "items.json"))})
    message = error_message(of(lambda: catalog.load("items")))
    assert message == f"{tmp_path / 'items.json'}: No such file or directory"


def test_a_file_that_cannot_be_read_is_named_once(tmp_path) -> None:
    (tmp_path / "items.parquet").write_text("junk")
    path = str(tmp_path / "items.parquet")
    catalog = DataCatalog({"items": EagerPolarsDataset(filepath=path, file_format="parquet")})
    error = of(lambda: catalog.load("items"))
    message = error_message(error)
    assert not errors.is_bug(error)
    assert message.startswith(f"{path}: ") and message.count("items.parquet") == 1
    assert "Dataset(" not in message and "\n" not in message


def test_a_fault_while_loading_is_one_of_the_program() -> None:
    class Faulty(MemoryDataset):
        def load(self):
            return None + 1

    assert errors.is_bug(of(lambda: DataCatalog({"items": Faulty(1)}).load("items")))


def test_pydantic_is_put_in_plain_words() -> None:
    message = error_message(of(lambda: Block(epochs="many")))
    assert "epochs" in message and "valid integer" in message and "many" in message
    assert "https" not in message and "\n" not in message


def test_a_message_of_another_library_says_how_to_see_where() -> None:
    assert error_message(of(lambda: int("x"))).endswith("(ValueError; --verbose shows where)")


@pytest.mark.parametrize("verbose", [False, True])
def test_the_command_line_shows_a_traceback_only_if_asked(monkeypatch, verbose) -> None:
    def failing(**options: object) -> None:
        raise ValueError("no such loss")

    monkeypatch.setattr(cli.kedro_run, "callback", failing)
    found = CliRunner().invoke(cli.run, ["--verbose"] if verbose else [])
    if verbose:
        assert type(found.exception) is ValueError
    else:
        assert found.exit_code == 1 and "Error: no such loss" in found.output
        assert "Traceback" not in found.output


def test_the_singular_option_of_pipelines_is_the_same_and_kedro_does_not_warn(monkeypatch) -> None:
    seen: list[tuple[str | None, list[str]]] = []
    monkeypatch.setattr(
        cli.kedro_run, "callback", lambda *, pipeline, pipelines, **_: seen.append((pipeline, pipelines))
    )
    for option in ("--pipeline=train", "--pipelines=train"):
        assert CliRunner().invoke(cli.run, [option]).exit_code == 0
    assert [pipelines for pipeline, pipelines in seen if not pipeline] == [["train"], ["train"]]


@pytest.mark.parametrize("value", ["x=[1", "seed", "seed=1,seed.a=2"])
def test_params_that_cannot_be_read_are_one_line(value: str) -> None:
    found = CliRunner().invoke(cli.run, [f"--params={value}"])
    assert found.exit_code == 1
    assert found.output.startswith("Error: --params: ") and found.output.count("\n") == 1


def test_kedro_run_names_what_is_wrong_and_ends_with_1(project_copy: Path, project: Path) -> None:
    """From a subfolder too, with the project's own logging."""
    command = [sys.executable, "-m", "kedro", "run", "--env", "test", "--pipelines=evaluate"]
    done = subprocess.run(
        [*command, "--params=model=popular"],
        cwd=project_copy / "data",
        env=os.environ | {"PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [done.stderr.splitlines()[-1]]
    assert "failed after" in done.stderr and "popular" in done.stderr.splitlines()[-1]
