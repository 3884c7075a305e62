"""Interpreter of the `python` blocks of a page: a process that executes one request per line of standard input."""

from __future__ import annotations

import ast
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any


def _answer_requests() -> None:
    """Execute requests of standard input, a line of JSON each, and answer with a line of JSON."""
    sys.path[0] = ""  # as in an interpreter that was started in the project, not the folder of this file
    namespace: dict[str, Any] = {"__name__": "__main__"}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C libraries print is no answer
    for request in map(json.loads, sys.stdin):
        stdout, stderr, error, line = StringIO(), StringIO(), "", request["line"]
        try:
            with redirect_stdout(stdout), redirect_stderr(stderr):
                _execute("\n" * (line - 1) + request["code"], request["page"], namespace)
        except BaseException as raised:  # SystemExit too
            error = "".join(traceback.format_exception_only(raised)).strip()
            frames = [f.lineno for f in traceback.extract_tb(raised.__traceback__) if f.filename == request["page"]]
            line = raised.lineno if isinstance(raised, SyntaxError) else (frames or [line])[0]
        answer = {"stdout": stdout.getvalue(), "stderr": stderr.getvalue(), "error": error, "line": line}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _execute(code: str, page: str, namespace: dict[str, Any]) -> None:
    """Execute a block; the value of its last expression is printed, as a notebook does."""
    tree = ast.parse(code, page)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, page, "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), page, "eval"), namespace)  # noqa: S307 - code of our pages
        if value is not None:
            print(value)  # noqa: T201


if __name__ == "__main__":
    _answer_requests()
