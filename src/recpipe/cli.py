"""Command line: `kedro run` with the option `--verbose` and with errors on one line."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import configure_logging
from kedro.utils import find_kedro_project

from recpipe import __version__
from recpipe.config.checks import ConfigError
from recpipe.config.files import parse_overrides, read_yaml

log = logging.getLogger(__name__)


@click.group(name="recpipe")
def cli() -> None:
    """Commands of this project, which replace those of Kedro with the same name."""


def _run(*args: Any, verbose: bool, **options: Any) -> Any:
    from recpipe.hooks.errors import be_verbose, one_line_errors

    _use_project_logging()
    check_version(find_kedro_project(Path.cwd()))
    if verbose:
        be_verbose()
    if options["pipeline"] and not options["pipelines"]:  # the singular is no different here, and Kedro deprecates it
        options |= {"pipeline": None, "pipelines": [options["pipeline"]]}
    callback = kedro_run.callback
    assert callback is not None
    with one_line_errors(), stop_at_sigterm():
        return callback(*args, **options)


@contextmanager
def stop_at_sigterm() -> Iterator[None]:
    """Let SIGTERM stop a run as Ctrl-C does, which closes its MLflow runs; the second one ends the process at once."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt("stopped by SIGTERM; run the same command again")

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _use_project_logging() -> None:
    """Read conf/logging.yml in a subfolder of the project too; Kedro looks for it in the working directory only."""
    project = find_kedro_project(Path.cwd())
    if project is not None and project != Path.cwd() and "KEDRO_LOGGING_CONFIG" not in os.environ:
        configure_logging(read_yaml((project / "conf/logging.yml").read_text(encoding="utf-8")))


def check_version(project: Path | None) -> None:
    """Warn where the settings of a project that `recpipe new` made are of another minor version than the package."""
    if project is None:
        return
    tools = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    created = tools.get("recpipe", {}).get("version")
    if created is not None and created.split(".")[:2] != __version__.split(".")[:2]:
        log.warning(
            "conf/ of this project is of recpipe %s, and %s is installed: compare it with what `recpipe new` writes to "
            "another folder, then change the version in [tool.recpipe] of pyproject.toml", created, __version__,
        )  # fmt: skip


def _overrides(_: click.Context, option: click.Parameter, value: Any) -> dict[str, Any]:
    """``--params`` as nested values. Raises ClickException for values that cannot be read."""
    try:
        return value if isinstance(value, dict) else parse_overrides(value)
    except ConfigError as error:
        raise click.ClickException(f"--{option.name}: {error}") from error


def _with_verbose(command: click.Command) -> click.Command:
    """Add the option `--verbose` to a command, and read its `--params` as `recpipe config` does."""
    command = copy.copy(command)
    help_text = "Kedro's own log lines, and the traceback of an error."
    verbose = click.Option(["--verbose"], is_flag=True, help=help_text)
    command.params = [*map(copy.copy, command.params), verbose]
    next(option for option in command.params if option.name == "params").callback = _overrides
    command.callback = _run
    return command


run = _with_verbose(kedro_run)
cli.add_command(run)
