"""Progress of long work, by a clock that stands still until a test moves it."""

from __future__ import annotations

import io
import itertools
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from recpipe.progress import BYTES, Display, Step, current_step, duration, progress, time_left


class Clock:
    """Seconds since the test began, and how often somebody looked."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


class Terminal(io.StringIO):
    """An error stream on which a line can be drawn anew."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """All that stood on the line, one after the other."""
        return [line.strip() for line in self.getvalue().split("\r") if line.strip()]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Messages that were logged, as they come."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("recpipe.progress"), Kept()
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, logger="recpipe"):
        yield found
    logger.removeHandler(handler)


def work(clock: Clock, units: int, *, seconds: float = 1.0, **options: object) -> None:
    """As many units of a second each."""
    options = {"what": "rank users", "unit": "users", "stream": io.StringIO(), **options}
    with progress(units, clock=clock, **options) as bar:
        for _ in range(units):
            clock.now += seconds
            bar.add()


def test_short_work_shows_nothing(clock, lines) -> None:
    terminal = Terminal()
    work(clock, 1000, seconds=0.002)
    work(clock, 1000, seconds=0.002, stream=terminal)
    assert lines == [] and terminal.getvalue() == ""


def test_without_a_terminal_there_is_a_line_after_three_seconds_and_then_every_ten(clock, lines) -> None:
    work(clock, 60)
    assert [line.partition(",")[0] for line in lines] == [
        f"rank users: {n} of 60 users" for n in (3, 13, 23, 33, 43, 53)
    ]
    assert lines[1] == "rank users: 13 of 60 users, 22 %, 47 s left"


def test_what_may_end_early_says_at_most(clock, lines) -> None:
    work(clock, 100, at_most=True)
    assert lines[0] == "rank users: 3 of 100 users, 3 %, at most 1 min 37 s left"


def test_what_is_loaded_before_the_first_unit_is_no_part_of_the_time_left(clock, lines) -> None:
    with progress(10, "embed", unit="texts", clock=clock, stream=io.StringIO()) as bar:
        clock.now += 100
        for _ in range(4):
            bar.add()
            clock.now += 4
    assert lines[-1] == "embed: 4 of 10 texts, 40 %, 24 s left"


def test_units_of_an_earlier_time_count_as_done_but_not_as_fast(clock, lines) -> None:
    with progress(1000, "train", clock=clock, stream=io.StringIO()) as bar:
        bar.skip(900)
        for _ in range(3):
            clock.now += 5
            bar.add()
    assert lines[-1] == "train: 903 of 1,000 steps, 90 %, 8 min 5 s left"


def test_numbers_and_tensors_are_shown_behind(clock, lines) -> None:
    with progress(8, "train", clock=clock, stream=io.StringIO()) as bar:
        clock.now = 4.0
        bar.add(1, loss=torch.tensor(5.3125), lr=1e-3)
    assert lines == ["train: 1 of 8 steps, 12 %, loss 5.312, lr 0.001"]


@pytest.mark.parametrize(
    "total, unit, expected",
    [
        (None, "rows", "read: 5,000,000 rows, 10 s so far"),
        (20_000_000, BYTES, "read: 5.0 of 20.0 MB, 25 %"),
        (20_000_000_000, BYTES, "read: 0.0 of 20.0 GB, 0 %"),
        (None, BYTES, "read: 5.0 MB, 10 s so far"),
        (0, "rows", "read: 5,000,000 of 0 rows, 0 %"),
    ],
)
def test_units_and_unknown_totals(clock, lines, total, unit, expected) -> None:
    with progress(total, "read", unit=unit, clock=clock, stream=io.StringIO()) as bar:
        clock.now = 10.0
        bar.add(5_000_000)
    assert lines == [expected]


def test_a_step_says_where_and_does_not_repeat_itself(clock, lines) -> None:
    step = Step("train sasrec", name="[ 2/14] train sasrec", clock=clock, stream=io.StringIO())
    step.enter()
    assert current_step() == "train sasrec"
    work(clock, 4, what="train")
    clock.now += 10
    work(clock, 4)
    step.close()
    assert current_step() == ""
    work(clock, 4)
    assert [line.partition(" of")[0] for line in lines] == [
        "[ 2/14] train sasrec: 3",
        "[ 2/14] train sasrec: rank users: 3",
        "rank users: 3",
    ]


def test_nested_progress_shares_one_line_and_short_parts_leave_it_to_the_whole(clock, lines) -> None:
    with progress(10, "train", unit="epochs", clock=clock, stream=io.StringIO()) as bar:
        for _ in range(10):
            work(clock, 20, seconds=0.1)
            bar.add()
    assert len(lines) == 2
    assert all(line.startswith("train: ") and "epochs" in line for line in lines)


def test_a_long_part_is_shown_within_the_whole(clock, lines) -> None:
    with progress(2, "train", unit="epochs", clock=clock, stream=io.StringIO()) as bar:
        work(clock, 20)
        bar.add()
    assert [line.partition(" of")[0] for line in lines] == ["train: rank users: 3", "train: rank users: 13"]


def test_a_terminal_gets_a_bar_and_no_lines(clock, lines) -> None:
    terminal = Terminal()
    work(clock, 60, stream=terminal)
    assert lines == []
    drawn = terminal.lines()
    assert drawn[-1].startswith("rank users |") and drawn[-1].endswith("60 of 60 users, 100 %, 0 s left")
    assert len(drawn) == 58
    assert terminal.getvalue().split("\r")[-2].strip() == ""  # erased at the end


def test_a_bar_goes_where_work_is_broken_off(clock, lines) -> None:
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), progress(9, "fit", clock=clock, stream=terminal) as bar:
        clock.now = 5.0
        bar.add()
        raise KeyboardInterrupt
    assert terminal.lines() and terminal.getvalue().split("\r")[-2].strip() == ""
    work(clock, 4)
    assert lines[0].startswith("rank users: ")  # nothing encloses it any more


def test_a_terminal_shows_a_step_at_once(clock, lines) -> None:
    terminal = Terminal()
    step = Step("embed text", name="[3/4] embed text", clock=clock, stream=terminal)
    assert terminal.lines() == ["[3/4] embed text …"]
    step.close()


def test_braces_in_names_are_shown_as_they_are(clock, lines) -> None:
    terminal = Terminal()
    work(clock, 5, what="{rank} {0}", stream=terminal)
    assert terminal.lines()[-1].startswith("{rank} {0} |")


def test_what_is_not_logged_is_not_drawn_either(clock, caplog) -> None:
    terminal = Terminal()
    with caplog.at_level(logging.WARNING, logger="recpipe.progress"):
        Step("embed text", clock=clock, stream=terminal).close()
        work(clock, 60, stream=terminal)
        work(clock, 60)
    assert terminal.getvalue() == "" and caplog.records == []


def test_a_unit_costs_one_look_at_the_clock(clock, lines) -> None:
    work(clock, 10_000, seconds=0.0)
    assert clock.looks < 10_010
    clock.looks = 0
    logging.getLogger("recpipe.progress").setLevel(logging.WARNING)
    try:
        work(clock, 10_000)
    finally:
        logging.getLogger("recpipe.progress").setLevel(logging.NOTSET)
    assert clock.looks < 10


def test_values_are_passed_on_and_counted(clock, lines) -> None:
    with progress(3, "read", clock=clock, stream=io.StringIO()) as bar:
        assert list(bar.over("abc")) == ["a", "b", "c"] and bar.done == 3


def test_work_without_progress_is_mentioned_ever_more_seldom(clock, lines) -> None:
    display = Display(clock=clock, stream=io.StringIO())
    for second in range(301):
        clock.now = float(second)
        display.beat("ingest log", clock.now)
    assert lines[0] == "ingest log: running for 4 s"
    seconds = [4, *[_seconds(line) for line in lines[1:]]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    assert gaps == sorted(gaps) and gaps[0] <= 15 and gaps[-1] <= 30


def test_a_long_step_has_a_line_every_30_seconds_also_where_its_progress_stands_still(clock, lines) -> None:
    times: list[float] = []
    step = Step("train", clock=clock, stream=io.StringIO())
    step.enter()
    with progress(400, "train", clock=clock) as bar:
        for second in range(1, 401):
            clock.now = float(second)
            before = len(lines)
            if not 50 < second < 300:
                bar.add()
            step.display.beat("train", clock.now)
            times += [clock.now] * (len(lines) > before)
    step.close()
    assert max(later - earlier for earlier, later in itertools.pairwise([0.0, *times, 400.0])) <= 30


def test_work_with_progress_needs_no_mention(clock, lines) -> None:
    step = Step("train", clock=clock, stream=io.StringIO())
    step.enter()
    with progress(100, "train", clock=clock) as bar:
        for _ in range(100):
            clock.now += 1
            bar.add()
            step.display.beat("train", clock.now)
    step.close()
    assert lines and not any("running" in line for line in lines)


@pytest.mark.parametrize(
    "seconds, short, whole",
    [
        (0.04, "0.0 s", "0 s"),
        (18.24, "18.2 s", "18 s"),
        (59.96, "1 min 0 s", "1 min 0 s"),
        (108.2, "1 min 48 s", "1 min 48 s"),
        (3600, "1 h 0 min", "1 h 0 min"),
        (7530, "2 h 5 min", "2 h 5 min"),
    ],
)
def test_durations(seconds, short, whole) -> None:
    assert (duration(seconds), time_left(seconds)) == (short, whole)


def test_it_needs_neither_torch_nor_kedro() -> None:
    code = "import sys, recpipe.progress; sys.exit(any(name in sys.modules for name in ('torch', 'kedro', 'tqdm')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def _seconds(line: str) -> int:
    minutes, _, seconds = line.rpartition(" for ")[2].removesuffix(" s").rpartition(" min ")
    return 60 * int(minutes or 0) + int(seconds)
