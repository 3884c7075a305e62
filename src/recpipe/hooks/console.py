"""Console output of a run: a line per step with its seconds, progress of the current step, summary of the report.

conf/logging.yml mutes Kedro's own lines on nodes, which name every input and output.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from recpipe.kedro_compat import file_of, nodes_to_resume_from
from recpipe.progress import Clock, Step, duration, logging_above_bars

log = logging.getLogger(__name__)
summary_log = logging.getLogger("recpipe.summary")  # conf/logging.yml shows it without time and level

SUMMARY, PAGE = "summary", "report_html"  # catalog entries of the report
WATCH = 0.5  # seconds between two checks of the thread that reports a running step
LABEL = 40  # characters that labels are padded to, at most
MODEL = "_model"  # suffix of node names that the model of the namespace completes
STAGES = ("ingest", "report")  # namespaces that are left out of labels


CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


class PlainLogRecord(logging.LogRecord):
    """Log record without control codes and changes of writing direction, which data may contain."""

    def getMessage(self) -> str:
        """Return the message as a terminal may show it."""
        return CONTROLS.sub("\ufffd", super().getMessage())


def is_interruption(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused `error`; DuckDB turns it into an error of its own."""
    while error is not None:
        is_query = str(error) == "Query interrupted" or type(error).__name__ == "InterruptException"
        if is_query or isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def step_label(node_name: str) -> str:
    """Return `train sasrec` for `sasrec.train_model`, `fit quantizer (text)` for `text.fit_quantizer`."""
    namespace, _, short = node_name.rpartition(".")
    if namespace and short.endswith(MODEL):
        return f"{short.removesuffix(MODEL).replace('_', ' ')} {namespace}"
    words = short.replace("_", " ")
    about = "" if namespace in STAGES else namespace.replace("_", " ")
    return words if not about or words.endswith(about) else f"{words} ({about})"


class ConsoleHooks:
    """Hooks that log a line at the end of each step and of the run.

    The running step is shown on the terminal, or logged after three seconds, with its progress if it reports any.
    `resume_argument` and `close` are for messages about a failed run.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pipeline: Pipeline | None = None
        self._catalog: Any = None
        self._started = self._clock()
        self._steps: dict[str, _RunningStep] = {}
        self._begun, self._width = 0, 0
        self._done: set[Node] = set()
        self._process = os.getpid()
        self._terminal = ExitStack()

    @hook_impl(trylast=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Count the steps, after all checks."""
        self.close()
        self._reset()
        self._pipeline, self._catalog = pipeline, catalog
        labels = [step_label(node.name) for node in pipeline.nodes]
        self._width = min(max(map(len, labels), default=0), LABEL)
        logging.setLogRecordFactory(PlainLogRecord)
        self._terminal.enter_context(logging_above_bars())

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """A step begins with the first dataset that it loads."""
        self._step(node)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Progress from here on is that of this step."""
        self._step(node).step.enter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """A step without outputs ends here."""
        if not node.outputs:
            self._end(node)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """A step ends with the last dataset that it saves."""
        if (running := self._steps.get(node.name)) is not None:
            running.unsaved.discard(dataset_name)
            if not running.unsaved:
                self._end(node)

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline) -> None:
        """Log the number of steps and the seconds of the run."""
        seconds = duration(self._clock() - self._started)
        self.close()
        count = len(self._done) or len(pipeline.nodes)  # the processes of a ParallelRunner end all of them
        log.info("%s %s in %s", count, "step" if count == 1 else "steps", seconds)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Log which step failed or was stopped."""
        self.close("stopped after" if is_interruption(error) else "failed after")

    def close(self, ending: str = "stopped after") -> None:
        """Remove running steps from the terminal and log how they ended."""
        for name in list(self._steps):
            running = self._steps.pop(name)
            running.close()
            self._log(running, f"{ending} {duration(running.seconds())}")
        self._terminal.close()

    def resume_argument(self) -> str | None:
        """The argument `--from-nodes "..."` to resume this run; None before the first step has ended."""
        if self._pipeline is None or not self._done:
            return None
        names = nodes_to_resume_from(self._pipeline, set(self._pipeline.nodes) - self._done, self._catalog)
        return f'--from-nodes "{",".join(sorted(names))}"' if names else None

    def _step(self, node: Node) -> _RunningStep:
        with self._lock:
            if (running := self._steps.get(node.name)) is None:
                self._begun += 1
                number = ""  # a process of Kedro's ParallelRunner has only its own nodes
                if self._pipeline is not None and self._process == os.getpid():
                    total = str(len(self._pipeline.nodes))
                    number = f"[{self._begun:>{len(total)}}/{total}] "
                running = self._steps[node.name] = _RunningStep(node, number, clock=self._clock)
        return running

    def _end(self, node: Node) -> None:
        running = self._steps.pop(node.name)
        running.close()
        self._done.add(node)
        self._log(running, f"{duration(running.seconds()):>14}")

    def _log(self, running: _RunningStep, ending: str) -> None:
        log.info("%s%s  %s", running.number, running.step.label.ljust(self._width), ending)


class _RunningStep:
    """A running step, with a thread that reports it while it reports no progress itself."""

    def __init__(self, node: Node, number: str, *, clock: Clock) -> None:
        self.number, self.unsaved, self._clock = number, set(node.outputs), clock
        label = step_label(node.name)
        self.step = Step(label, name=f"{number}{label}", clock=clock)
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._show, name=f"console: {label}", daemon=True)
        if self.step.display is not None:
            self._watch.start()

    def seconds(self) -> float:
        """Seconds since the start of the step."""
        return self._clock() - self.step.started

    def close(self) -> None:
        """End the thread and remove the line from the terminal."""
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        self.step.close()

    def _show(self) -> None:
        display = self.step.display
        while display is not None and not self._ended.wait(WATCH):
            display.beat(self.step.name, self.seconds())


class SummaryHooks:
    """Hook that shows the summary which the report pipeline wrote."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Log the summary, if this run wrote it."""
        if SUMMARY not in pipeline.all_outputs():
            return
        summary_log.info("%s", catalog.load(SUMMARY))
        if (page := file_of(catalog.get(PAGE))) is not None:
            is_inside = page.is_relative_to(Path.cwd())
            summary_log.info("Report  %s", page.relative_to(Path.cwd()) if is_inside else page)
