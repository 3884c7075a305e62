"""Kedro's command line with `--verbose` for `kedro run`, and errors of a run on one line."""

from __future__ import annotations

import copy
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run


@click.group(name="recpipe")
def cli() -> None:
    """Commands of this project, which replace Kedro's of the same name."""


def _run(*args: Any, verbose: bool, **options: Any) -> Any:
    from recpipe.hooks.errors import be_verbose, one_line_errors

    if verbose:
        be_verbose()
    callback = kedro_run.callback
    assert callback is not None
    with one_line_errors():
        return callback(*args, **options)


def _with_verbose(command: click.Command) -> click.Command:
    """`command` with the option `--verbose`."""
    command = copy.copy(command)
    help_text = "Kedro's own log lines, and the traceback of an error."
    command.params = [*command.params, click.Option(["--verbose"], is_flag=True, help=help_text)]
    command.callback = _run
    return command


run = _with_verbose(kedro_run)
cli.add_command(run)
