"""Execution of the fenced code blocks of a Markdown page, in order, in one project folder.

| block | what happens |
|---|---|
| `bash` | runs with ``bash -eu`` |
| `python` | runs in one interpreter per page: later blocks see the names of earlier ones |
| `yaml` | is parsed |
| any of them whose first line is ``# path/of/file.ext`` | is written to that path of the project |
| `text`, `json`, `csv`, `toml` | are output or file contents to look at, never run |

An HTML comment on the line above a block gives a directive: ``<!-- test: background -->`` (a service: it is started,
waited for until its port answers, and stopped at the end of the page), ``<!-- test: skip, REASON -->`` (for what a
machine cannot do: only parsed, options compared with ``--help``), ``<!-- test: output -->`` (never run).
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

PROJECT = Path(__file__).parents[2]
RUN = ("bash", "python", "yaml")
SHOWN = ("text", "json", "csv", "toml")
DIRECTIVES = ("background", "skip", "output")
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*) *(?P<rest>.*)$")
DIRECTIVE = re.compile(r"^ *<!-- test: *(\w+)(?:, *(.+?))? *-->$")
PATH = re.compile(r"^# ((?:[\w.-]+/)+[\w-]+\.\w+)$")
ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")
TIMEOUT = 900  # seconds of one block
TAIL = 25  # lines of output in an error


class SnippetError(AssertionError):
    """A block that cannot be run or failed: page, line, command, last lines of its output."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block; ``line`` is the number of its first line of code in the page, from 1."""

    page: str
    line: int
    language: str
    text: str
    directive: str = ""
    reason: str = ""

    @property
    def path(self) -> str | None:
        """Path of the file that the block is written to."""
        match = PATH.match(self.text.partition("\n")[0])
        return match[1] if match and self.language in RUN else None

    def fail(self, message: str, *, line: int | None = None) -> SnippetError:
        return SnippetError(f"{self.page}:{line or self.line}: {message}")


@dataclass(frozen=True)
class Output:
    """What a block printed."""

    snippet: Snippet
    stdout: str
    stderr: str


def read_snippets(path: Path) -> list[Snippet]:
    """Read the blocks of a page. Raises SnippetError for an unknown language, directive or an open fence."""
    page = str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name
    lines, result, number = path.read_text(encoding="utf-8").splitlines(), [], 0
    while number < len(lines):
        start = FENCE.match(lines[number])
        directive = DIRECTIVE.match(lines[number - 1]) if number else None
        number += 1
        if start is None:
            continue
        first, end = number, re.compile(rf" *{start['ticks']} *$")
        while number < len(lines) and not end.match(lines[number]):
            number += 1
        indent = len(start["indent"])
        text = "".join(f"{line[indent:]}\n" for line in lines[first:number])
        command, reason = (directive[1], directive[2] or "") if directive else ("", "")
        snippet = Snippet(page, first + 1, start["language"], text, command, reason)
        if number == len(lines):
            raise snippet.fail("the block is never closed", line=first)
        if snippet.language not in RUN + SHOWN:
            allowed = ", ".join(RUN + SHOWN)
            raise snippet.fail(f"language {snippet.language!r} of a block: write one of {allowed}", line=first)
        if command and command not in DIRECTIVES:
            raise snippet.fail(f"directive {command!r}: write one of {', '.join(DIRECTIVES)}", line=first)
        if command == "skip" and not reason:
            raise snippet.fail("`skip` needs a reason, as `<!-- test: skip, needs CUDA -->`", line=first)
        result.append(snippet)
        number += 1
    return result


def run_page(path: Path, project: Path, environment: dict[str, str] | None = None) -> list[Output]:
    """Run the blocks of a page in the folder ``project``; raises SnippetError at the first one that fails."""
    with PageRunner(project, environment) as runner:
        return [output for snippet in read_snippets(path) if (output := runner.run(snippet))]


class PageRunner:
    """Context of the blocks of a page: environment, interpreter, services."""

    def __init__(self, project: Path, environment: dict[str, str] | None = None) -> None:
        self.project = project
        self._stack, self._interpreter = ExitStack(), None
        commands = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (commands / "recpipe").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m recpipe "$@"\n')
        (commands / "recpipe").chmod(0o755)  # as the wheel installs it
        programs = os.pathsep.join(map(str, (commands, Path(sys.executable).parent, os.environ.get("PATH", ""))))
        modules = os.pathsep.join(map(str, (project / "src", PROJECT / "src")))
        self.environment = (
            os.environ | {"PATH": programs, "PYTHONPATH": modules, "COLUMNS": "100"} | (environment or {})
        )
        self.ports: dict[str, str] = {}

    def __enter__(self) -> PageRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, snippet: Snippet) -> Output | None:
        """Run one block; None where nothing was run. Raises SnippetError."""
        if snippet.directive == "output" or snippet.language in SHOWN:
            return None
        if snippet.directive == "skip":
            return check_syntax(snippet, self.project, self.environment)
        if snippet.language == "yaml":
            _parse_yaml(snippet)
        if snippet.path:
            target = self.project / snippet.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(snippet.text, encoding="utf-8")
            return None
        if snippet.directive == "background":
            return self._start(snippet)
        run = {"bash": self._bash, "python": self._python}.get(snippet.language)
        return run(snippet) if run else None

    def _with_free_ports(self, text: str) -> str:
        """Replace ports of services of this page by free ones: pages are tested side by side."""
        return ADDRESS.sub(lambda match: f"127.0.0.1:{self.ports.get(match[1], match[1])}", text)

    def _bash(self, snippet: Snippet) -> Output:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "block.sh"
            trap = 'trap \'printf "block line %s: %s\\n" "$LINENO" "$BASH_COMMAND" >&2\' ERR'
            # line numbers of the script are those of the page
            script.write_text(f"set -E; {trap}{chr(10) * (snippet.line - 1)}{self._with_free_ports(snippet.text)}")
            process = subprocess.Popen(
                ["bash", "-eu", script],
                cwd=self.project,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                stdout, stderr = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired as error:
                raise snippet.fail(f"not done after {TIMEOUT} s:\n{snippet.text}") from error
            finally:
                _stop(process)
        if process.returncode:
            failed = re.search(r"^block line (\d+): ([^\0]*)\Z", stderr, re.MULTILINE)
            line, command = (int(failed[1]), failed[2].strip()) if failed else (snippet.line, snippet.text)
            output = _tail(stdout + stderr)
            raise snippet.fail(f"exit status {process.returncode} of\n  {command}\n{output}", line=line)
        return Output(snippet, stdout, stderr)

    def _python(self, snippet: Snippet) -> Output:
        if self._interpreter is None:
            self._interpreter = self._stack.enter_context(_interpreter(self.project, self.environment))
        request = {"code": self._with_free_ports(snippet.text), "page": snippet.page, "line": snippet.line}
        self._interpreter.stdin.write(json.dumps(request) + "\n")
        self._interpreter.stdin.flush()
        answer = self._interpreter.stdout.readline()
        if not answer:
            raise snippet.fail(f"the interpreter ended with status {self._interpreter.wait()}")
        result = json.loads(answer)
        if result["error"]:
            raise snippet.fail(f"{result['error']}\n{_tail(result['stdout'] + result['stderr'])}", line=result["line"])
        return Output(snippet, result["stdout"], result["stderr"])

    def _start(self, snippet: Snippet) -> Output:
        """Start a service; its port is that of ``port=N``, ``--port N``, or 8000 of conf, replaced by a free one."""
        named = re.search(r"port[= ](\d+)", snippet.text)
        port, free = named[1] if named else "8000", str(_free_port())
        self.ports[port] = free
        text = re.sub(r"(port[= ])\d+", rf"\g<1>{free}", snippet.text)
        if not named:
            file = self.project / "conf" / "local" / "parameters" / "free_port.yml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"serve: {{port: {free}}}\n", encoding="utf-8")
        log = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = subprocess.Popen(
            ["bash", "-eu", "-c", text],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(_stop, process)
        limit = time.monotonic() + 120
        while not _is_ready(int(free)):
            if process.poll() is not None or time.monotonic() > limit:
                log.seek(0)
                raise snippet.fail(f"the service does not answer on port {free}:\n{text}\n{_tail(log.read())}")
            time.sleep(0.1)
        return Output(snippet, "", "")


def check_syntax(snippet: Snippet, project: Path, environment: dict[str, str]) -> None:
    """Parse a block that is not run, and look up options of our commands and kedro's in their ``--help``."""
    if snippet.language == "python":
        ast.parse(snippet.text, snippet.page)
    elif snippet.language == "yaml":
        _parse_yaml(snippet)
    else:
        script = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True, check=False)
        if script.returncode:
            raise snippet.fail(f"bash cannot read this block: {script.stderr.strip()}")
        for words in _commands(snippet.text):
            _check_options(snippet, words, project, environment)


def _commands(text: str) -> Iterator[list[str]]:
    """Words of the commands of a block, from `-m recpipe…`, `recpipe`, `kedro` or `make` on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            module = word == "-m" and words[start + 1].startswith("recpipe")
            if module or word in ("kedro", "recpipe") or (word == "make" and start == 0):
                yield words[start:]
                break


def _check_options(snippet: Snippet, words: Sequence[str], project: Path, environment: dict[str, str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        if unknown := [word for word in words[1:] if not re.search("[-=]", word[:1]) and word not in targets]:
            raise snippet.fail(f"make has no target {', '.join(unknown)}")
        return
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    command = [sys.executable, "-m", *(words[1:2] if words[0] == "-m" else words[:2]), "--help"]
    shown = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if unknown := sorted(option for option in options if not re.search(rf"{option}\b", shown.stdout)):
        raise snippet.fail(f"{' '.join(command[2:-1])} has no option {', '.join(unknown)}")


def _parse_yaml(snippet: Snippet) -> None:
    try:
        yaml.safe_load(snippet.text)
    except yaml.YAMLError as error:
        raise snippet.fail(f"no YAML: {error}") from error


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("block line ")]
    return "\n".join(lines[-TAIL:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _is_ready(port: int) -> bool:
    """Return whether a service answers, and its route /ready, if there is one, not with 503."""
    try:
        urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
    except HTTPError as error:
        return error.code != HTTPStatus.SERVICE_UNAVAILABLE
    except OSError:
        return False
    return True


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _interpreter(project: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("interpreter.py")],
        cwd=project,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
