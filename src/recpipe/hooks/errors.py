"""Errors of a run on one line: the message, and the argument to resume the run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import KedroCliError
from kedro.framework.project import settings
from kedro.io import DatasetError

from recpipe.hooks.console import ConsoleHooks

# packages with error messages for users
USER_FACING = {"recpipe", "kedro", "yaml", "omegaconf", "pydantic_core"}
PROGRAMMING_ERRORS = (TypeError, LookupError, AttributeError, NameError, AssertionError, NotImplementedError)
VALIDATOR = "kedro.validation.parameter_validator"
KEDRO_LOGGERS = ("kedro", "kedro.pipeline.node", "kedro.runner", VALIDATOR)  # which conf/logging.yml mutes
DATASET = re.compile(  # as Kedro shows one, with parentheses in parentheses in it
    r"[\w.]+\((?:\w+='[^']*', )*filepath=(?:\w+\()?'?(?P<path>[^',)]+)(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)+"
)
SIMPLIFICATIONS = (  # what Kedro and pydantic say, without what only a programmer needs
    (DATASET, r"\g<path>"),
    (re.compile(r"Failed to instantiate \w+ for parameter '[^']*': \d+ validation errors? for \w+ "), ""),
    (re.compile(r" \[type=\w+, input_value=(.+?), input_type=\w+\]"), r", not \1"),
    (re.compile(r" For further information visit \S+"), ";"),
)
INTERRUPTED = 130  # what shells give for a command that ended by Ctrl-C


class RunError(click.ClickException, ValueError):
    """A run failed for a reason that the user can change; shown without a traceback."""


class RunInterrupted(click.ClickException):
    """A run was stopped by Ctrl-C; the message says how to resume it."""

    exit_code = INTERRUPTED

    def show(self, file: Any = None) -> None:
        """Without the word Error, which click puts before the message."""
        click.echo(f"\n{self.message}", file=file, err=file is None)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of the user into `RunError` and Ctrl-C into `RunInterrupted`, which click shows without traceback.

    Errors of the user are ValueError, OSError and those of recpipe, Kedro and the YAML readers. Others, such as
    TypeError, are bugs and keep their traceback; with `is_verbose` all do.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt as stop:
        if (console := _console_hooks()) is not None:
            console.close()
        message = str(stop) or "stopped; run the same command again"
        if console is not None and (argument := console.resume_argument()):
            message += f", with {argument} to skip the steps that are done"
        raise RunInterrupted(message) from stop
    except Exception as error:
        if is_verbose() or not is_for_users(error):
            raise
        message, console = error_message(error), _console_hooks()
        if console is not None and (argument := console.resume_argument()):
            message += f"\nOnce that is mended, the same command goes on from here with {argument}"
        raise RunError(message) from error


def be_verbose() -> None:
    """Switch on Kedro's log lines on nodes and datasets, and tracebacks."""
    for name in KEDRO_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def is_verbose() -> bool:
    """Whether Kedro's own logging is at INFO, by `--verbose` or conf/logging.yml."""
    return KedroCliError.VERBOSE_ERROR or logging.getLogger("kedro").isEnabledFor(logging.INFO)


def is_for_users(error: BaseException) -> bool:
    """Whether `error` is one of the user, and not a bug."""
    cause = _root_cause(error)
    if cause is not error:  # of a file that cannot be read or written
        return not isinstance(cause, PROGRAMMING_ERRORS)
    return isinstance(cause, ValueError | OSError) or _package(type(cause).__module__) in USER_FACING


def error_message(error: BaseException) -> str:
    """The innermost message on one line, with a hint to `--verbose` where another library wrote it."""
    cause = _root_cause(error)
    text = _text(cause)
    if cause is not error and (match := DATASET.search(str(error))) and Path(match["path"]).name not in text:
        text = f"{match['path']}: {text}"
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    if {_package(type(cause).__module__), _package(raised_in)} & USER_FACING:
        return text
    return text if isinstance(cause, OSError) else f"{text} ({type(cause).__name__}; --verbose shows where)"


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, plain in SIMPLIFICATIONS:
        text = pattern.sub(plain, text)
    return text.rstrip("; ")


def _root_cause(error: BaseException) -> BaseException:
    """The original error of a failed load or save, which Kedro wraps in DatasetError; other errors as they are."""
    while isinstance(error, DatasetError) and isinstance(error.__cause__, Exception):
        if "Failed while" not in str(error) and not isinstance(error.__cause__, DatasetError):
            break
        error = error.__cause__
    return error


def _package(module: str) -> str:
    return module.partition(".")[0]


def _console_hooks() -> ConsoleHooks | None:
    return next((hook for hook in settings.HOOKS if isinstance(hook, ConsoleHooks)), None)
