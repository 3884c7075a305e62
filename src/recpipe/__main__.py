"""Console script `recpipe`, also `python -m recpipe`: a new project folder, and commands that need no Kedro.

Pipelines run with `kedro run` in the project folder.
"""

from __future__ import annotations

import importlib
import signal
import sys

from recpipe import __version__

COMMANDS = {  # name: module with `main(arguments) -> int`, imported when it is called; line of the help
    "new": ("recpipe.new_project", "create a project folder with configuration and a small data set"),
    "config": ("recpipe.config.__main__", "show the resolved settings, each with its origin"),
    "dataset": ("recpipe.data.describe", "describe a raw log, and write its data-set file"),
    "recommend": ("recpipe.serving.__main__", "recommend items for one user, from a trained model"),
    "serve": ("recpipe.serving.server", "serve trained models over HTTP, with the explorer"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for an unknown one."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"recpipe {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return 2
    if arguments is None and name != "serve" and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the command without a message
    try:
        status: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "recpipe":
            raise
        fix = "install recpipe again in this environment, with the extra that has it (onnx, spark, viz)"
        print(f"error: the module {error.name} is missing: {fix}", file=sys.stderr)
        return 2
    return status


def _unknown(name: str) -> str:
    from recpipe.config.checks import nearest

    if name in ("run", "viz"):
        return f"recpipe has no command {name!r}: type `kedro {name}` in a project folder"
    return f"recpipe has no command {name!r}{nearest(name, COMMANDS)}; `recpipe --help` lists them"


def _help() -> str:
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: recpipe COMMAND ...",
            "",
            "Commands, each with --help:",
            *lines,
            "",
            "Pipelines run with `kedro run` in a project folder; `kedro viz run` shows them.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
