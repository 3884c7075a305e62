"""Progress of long work: a bar with the remaining time on a terminal, else a log line every ten seconds.

Nested progress shares one line, of the innermost work that has run for three seconds. Logging of `recpipe.progress` at
INFO switches both on::

    with progress(len(users), "rank users", unit="users") as bar:
        for rows in batches:
            bar.add(len(rows))

``report_epoch`` sends rows of a training curve to a listener, and ``report_trial`` trials of tuning, as Kedro calls its
hooks at the end of a node only.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

log = logging.getLogger(__name__)

LONG = 3.0  # seconds, from which on work is shown
LINES = 10.0  # seconds between two lines of a log
REDRAWS = 0.2  # seconds between two looks of a bar
SILENCE = 28.0  # seconds, at most and without `GRACE`, between two lines on work that reports no progress
GRACE = 1.0  # seconds that a line on progress may come late before a line without takes its place
BYTES = "bytes"

Clock = Callable[[], float]
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """`0.4 s`, `42.0 s`, `1 min 20 s`, `2 h 5 min`."""
    return f"{seconds:.1f} s" if round(seconds, 1) < 60 else time_left(seconds)


def time_left(seconds: float) -> str:
    """Like `duration`, in whole seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def current_step() -> str:
    """Label of the running step (`train sasrec`); empty outside of steps."""
    scope = _innermost.get()
    while isinstance(scope, Progress):
        scope = scope.outer
    return "" if scope is None else scope.label


class Display:
    """The line on current work: redrawn in place on a terminal, else logged at intervals."""

    def __init__(self, *, clock: Clock, stream: TextIO | None = None) -> None:
        self.clock, self.stream = clock, stream or sys.stderr
        self.terminal = _is_terminal(self.stream)
        self.due = clock() + LONG  # the time from which on `show` is worth calling
        self._silence = 1.0 if self.terminal else LINES
        self._silent_until = self.due + GRACE
        self._bar: Any = None

    def show(self, name: str, text: str, share: float | None = None) -> None:
        """Draws or logs `name: text`; `share` is how much is done, from 0 to 1."""
        now = self.clock()
        self.due = now + (REDRAWS if self.terminal else LINES)
        self._silent_until = now + self._silence + GRACE
        if self.terminal:
            self.draw(name, text, share)
        else:
            log.info("%s: %s", name, text)

    def draw(self, name: str, text: str = "", share: float | None = None) -> None:
        """Replaces the line on a terminal; does nothing elsewhere."""
        if not self.terminal:
            return
        from tqdm import tqdm

        if self._bar is None:
            look = {"leave": False, "dynamic_ncols": True, "bar_format": " ", "mininterval": 0}
            self._bar = tqdm(total=1.0, file=self.stream, **look)
        between = " |{bar:20}| " if share is not None else ": " if text else ""
        self._bar.bar_format, self._bar.n = f"{_literal(name)}{between}{_literal(text)}", share or 0.0
        self._bar.refresh()

    def beat(self, name: str, seconds: float) -> None:
        """Show that `name` still runs, at growing intervals, unless its progress was shown; for a watching thread."""
        if self.clock() < self._silent_until:
            return
        self.show(name, f"running for {time_left(seconds)}")
        if not self.terminal:
            self._silence, self.due = min(2 * self._silence, SILENCE), self.clock() + LONG

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Step:
    """A step of a pipeline, which encloses its progress; `name` is shown before it, `[ 3/14] embed text`."""

    def __init__(
        self, label: str, *, name: str = "", clock: Clock = time.monotonic, stream: TextIO | None = None
    ) -> None:
        self.label, self.name = label, name or label
        self.started = clock()
        self.display: Display | None = None
        if log.isEnabledFor(logging.INFO):
            self.display = Display(clock=clock, stream=stream)
            self.display.draw(f"{self.name} …")

    def enter(self) -> None:
        """Attach the progress of the calling thread to this step."""
        _innermost.set(self)

    def close(self) -> None:
        """End the step."""
        _innermost.set(None)
        if self.display is not None:
            self.display.close()


class Progress:
    """Progress of some work, as a context manager; `add` is cheap enough for inner loops."""

    def __init__(
        self, total: int | None, what: str, *, unit: str, at_most: bool, clock: Clock, stream: TextIO | None
    ) -> None:
        self.total, self.what, self.unit, self.at_most = total, what, unit, at_most
        self.done = 0
        self._first: tuple[float, int] | None = None  # time and units at the first `add`, after loading
        self.outer = _innermost.get()
        self._clock, self._stream = clock, stream
        self._notes: dict[str, Any] = {}
        self.display: Display | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Progress:
        self.started = self._clock()
        if log.isEnabledFor(logging.INFO):
            self.display = None if self.outer is None else self.outer.display
            if self.display is None:
                self.display = Display(clock=self._clock, stream=self._stream)
                self._closing.callback(self.display.close)
                if self.display.terminal:
                    self._closing.enter_context(logging_above_bars())
        _innermost.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        if _innermost.get() is self:
            _innermost.set(self.outer)
        self.display = None
        self._closing.close()

    def add(self, count: int = 1, **notes: Any) -> None:
        """Add `count` finished units; `notes` such as `loss=2.31` (numbers or tensors) are shown behind them."""
        self.done += count
        if self.display is None:
            return
        now = self._clock()
        if self._first is None:
            self._first = now, self.done
        if now >= self.display.due:
            self._notes = notes
            self._show(now)

    def skip(self, count: int) -> None:
        """Count units that were finished at an earlier time; call it before `add`."""
        self.done += count

    def over(self, values: Iterable[Item]) -> Iterator[Item]:
        """Iterate over `values` and count each as one unit."""
        for value in values:
            yield value
            self.add()

    @property
    def name(self) -> str:
        """Name with that of the enclosing step: `evaluate sasrec: rank users`."""
        if self.outer is None:
            return self.what
        label = self.outer.label if isinstance(self.outer, Step) else self.outer.what
        is_same = label.startswith(self.what) or self.what.startswith(label)
        return self.outer.name if is_same else f"{self.outer.name}: {self.what}"

    def text(self, now: float) -> str:
        """`1,240 of 3,900 steps, 32 %, at most 1 min 20 s left, loss 5.31`."""
        notes = [f"{key} {float(value):.4g}" for key, value in self._notes.items()]
        if self.total is None:
            return ", ".join([_amount(self.done, self.unit), f"{time_left(now - self.started)} so far", *notes])
        parts = [_amount(self.done, self.unit, self.total), f"{100 * self.share:.0f} %"]
        if self._first is not None and self.done > self._first[1]:
            seconds, units = now - self._first[0], self.done - self._first[1]
            left = time_left(seconds * max(self.total - self.done, 0) / units)
            parts.append(f"at most {left} left" if self.at_most else f"{left} left")
        return ", ".join([*parts, *notes])

    @property
    def share(self) -> float:
        """Finished share of the work, from 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def _show(self, now: float) -> None:
        assert self.display is not None
        if now - self.started < LONG and not isinstance(self.outer, Progress):
            self.display.due = self.started + LONG
            return
        scope = self
        while isinstance(scope.outer, Progress) and now - scope.started < LONG:
            scope = scope.outer
        self.display.show(scope.name, scope.text(now), None if scope.total is None else scope.share)


def progress(
    total: int | None,
    what: str,
    *,
    unit: str = "steps",
    at_most: bool = False,
    clock: Clock = time.monotonic,
    stream: TextIO | None = None,
) -> Progress:
    """Create progress of `total` units of work, or of an unknown number.

    `at_most`: the work may end early, so the time left is a bound. `unit="bytes"` is shown in MB.
    """
    return Progress(total, what, unit=unit, at_most=at_most, clock=clock, stream=stream)


def logging_above_bars() -> AbstractContextManager[None]:
    """Context in which log lines on the terminal appear above the bar."""
    streams = {getattr(handler, "stream", None) for handler in logging.root.handlers}
    if not _is_terminal(sys.stderr) or not {sys.stderr, sys.stdout}.intersection(streams):
        return nullcontext()  # else the redirection would log to a terminal that no handler logs to
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()


def _is_terminal(stream: TextIO) -> bool:
    """Whether a line of `stream` can be redrawn; not on a terminal without a size, such as some in CI."""
    if not stream.isatty():
        return False
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except (OSError, ValueError):
        return True


def _amount(done: int, unit: str, total: int | None = None) -> str:
    if unit == BYTES:
        scale, name = (1e9, "GB") if (total or done) >= 1e9 else (1e6, "MB")
        of_total = "" if total is None else f" of {total / scale:.1f}"
        return f"{done / scale:.1f}{of_total} {name}"
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def _literal(text: str) -> str:
    """Escape `text` for tqdm's `bar_format`."""
    return text.replace("{", "{{").replace("}", "}}")


Listener = Callable[[Mapping[str, Any]], None]
_innermost: ContextVar[Step | Progress | None] = ContextVar("innermost step or progress", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener to epochs", default=None)
_trial_listener: ContextVar[Listener | None] = ContextVar("listener to trials", default=None)


def set_epoch_listener(listener: Listener | None) -> None:
    """Set the function that `report_epoch` calls in this thread; None removes it."""
    _listener.set(listener)


def report_epoch(row: Mapping[str, Any]) -> None:
    """Send a row of a training curve to the listener."""
    if (listener := _listener.get()) is not None:
        listener(row)


def set_trial_listener(listener: Listener | None) -> None:
    """Set the function that `report_trial` calls in this thread; None removes it."""
    _trial_listener.set(listener)


def report_trial(row: Mapping[str, Any]) -> None:
    """Send a finished trial of tuning to the listener."""
    if (listener := _trial_listener.get()) is not None:
        listener(row)
