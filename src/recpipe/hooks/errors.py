"""Errors of a run on one line: the message, and the argument to resume the run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import click
from kedro.framework.cli.utils import KedroCliError
from kedro.framework.project import settings
from kedro.io import DatasetError

from recpipe.hooks.console import ConsoleHooks, is_interruption
from recpipe.reporting.formatting import printable

# packages with error messages for users
USER_FACING = {"recpipe", "kedro", "yaml", "omegaconf", "pydantic_core"}
# packages whose errors come from data, files or the machine
DATA_LIBRARIES = {"duckdb", "_duckdb", "ibis", "mlflow", "polars", "pyarrow", "safetensors", "zipfile", "zlib"}
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
LONGEST = 1000  # characters of a message
STOPPED = "stopped; run the same command again"
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
    """Turn errors into `RunError` and Ctrl-C into `RunInterrupted`, which click shows without traceback.

    With `is_verbose` errors keep their traceback.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except (Exception, KeyboardInterrupt) as error:
        console = _console_hooks()
        argument = None if console is None else console.resume_argument()
        if is_interruption(error):
            if console is not None:
                console.close()
            message = str(error) if isinstance(error, KeyboardInterrupt) and str(error) else STOPPED
            message += f", with {argument} to skip the steps that are done" if argument else ""
            raise RunInterrupted(message) from error
        if is_verbose():
            raise
        message = error_message(error)
        message += f"\nOnce that is mended, the same command goes on from here with {argument}" if argument else ""
        raise RunError(message) from error


def be_verbose() -> None:
    """Switch on Kedro's log lines on nodes and datasets, and tracebacks."""
    for name in KEDRO_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def is_verbose() -> bool:
    """Return whether Kedro's own logging is at INFO, by `--verbose` or conf/logging.yml."""
    return KedroCliError.VERBOSE_ERROR or logging.getLogger("kedro").isEnabledFor(logging.INFO)


def is_bug(error: BaseException) -> bool:
    """Return whether `error` is a fault of the program rather than of data, settings or machine."""
    cause = _root_cause(error)
    if isinstance(cause, PROGRAMMING_ERRORS):
        return True
    is_known = _package(type(cause).__module__) in {*USER_FACING, *DATA_LIBRARIES}
    return not is_known and not isinstance(cause, ValueError | OSError | MemoryError)


def error_message(error: BaseException) -> str:
    """Return the innermost message on one line, with the place of a bug and the type of another library's error."""
    cause = _root_cause(error)
    text = _text(cause)
    if cause is not error and (match := DATASET.search(str(error))) and Path(match["path"]).name not in text:
        text = f"{match['path']}: {text}"
    frames = [frame for frame, _ in walk_tb(cause.__traceback__)]
    modules = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    if is_bug(error):
        own = [f"{module}.{frame.f_code.co_name}" for module, frame in zip(modules, frames, strict=True)]
        place = next((f" in {name}" for name in reversed(own) if _package(name) == "recpipe"), "")
        kind = type(cause).__name__
        return f"{kind}{place}: {text}. This may be a fault of the program; --verbose shows the traceback"
    if {_package(type(cause).__module__), *map(_package, modules[-1:])} & USER_FACING or isinstance(cause, OSError):
        return text
    return f"{text} ({type(cause).__name__}; --verbose shows where)"


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return printable(f"{error.filename}: {error.strerror}")
    text = printable(str(error)) or type(error).__name__
    for pattern, plain in SIMPLIFICATIONS:
        text = pattern.sub(plain, text)
    text = text.rstrip("; ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


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
