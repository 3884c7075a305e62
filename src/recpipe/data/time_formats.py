"""Format of the values of a time column: a unit since 1970, ISO 8601, or a strptime format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
YEARS = (1990, 2100)  # of a number since 1970 that is a time
ISO = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}(?:[T ]+\d{1,2}:\d{2}.*)?$")
DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d", "%d %b %Y", "%b %d, %Y", "%m %d, %Y")
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
EXCHANGED = {"%d/%m/%Y": "%m/%d/%Y", "%d-%m-%Y": "%m-%d-%Y"}
CHECKED = 5_000  # values that a format is tried on
PROBES = 20  # of them: a format that fits none is not tried on the others


@dataclass(frozen=True)
class TimeFormat:
    """``name``: value of the option ``timestamp``. share: of the values that have it. first, last: as ISO dates.

    ambiguous: day and month may be exchanged, as in 03/04/2024.
    """

    name: str
    share: float
    first: str
    last: str
    ambiguous: bool = False


def detect_time_format(values: Sequence[str]) -> TimeFormat | None:
    """Return the format that most values have, None for one that no value has. Empty values do not count."""
    present = [value.strip() for value in values if value.strip()]
    step = max(len(present) // CHECKED, 1)
    checked = present[::step]
    readers: dict[str, Callable[[str], datetime | None]] = {"iso": _iso}
    readers |= {unit: _number_reader(factor) for unit, factor in UNITS.items()}
    readers |= {f"{day}{clock}": _strptime_reader(f"{day}{clock}") for day in DAYS for clock in CLOCKS}
    best: tuple[str, list[datetime]] | None = None
    fits: dict[str, int] = {}
    for name, read in readers.items():
        if all(read(value) is None for value in checked[:: max(len(checked) // PROBES, 1)]):
            continue
        times = [time for value in checked if (time := read(value)) is not None]
        fits[name] = len(times)
        if times and (best is None or len(times) > len(best[1])):
            best = name, times
    if best is None:
        return None
    name, times = best
    days, clock = name[:8], name[8:]
    other = EXCHANGED.get(days)
    ambiguous = other is not None and fits.get(f"{other}{clock}") == len(times)
    first, last = min(times), max(times)
    return TimeFormat(name, len(times) / len(checked), first.date().isoformat(), last.date().isoformat(), ambiguous)


def _iso(value: str) -> datetime | None:
    if not ISO.match(value):
        return None
    try:
        year, month, day = map(int, re.split("[-/]", re.split("[T ]", value)[0]))
        return datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        return None


def _number_reader(factor: int) -> Callable[[str], datetime | None]:
    def read(value: str) -> datetime | None:
        try:
            time = datetime.fromtimestamp(float(value) / factor, UTC)
        except (ValueError, OverflowError, OSError):
            return None
        return time if YEARS[0] <= time.year < YEARS[1] else None

    return read


def _strptime_reader(form: str) -> Callable[[str], datetime | None]:
    def read(value: str) -> datetime | None:
        try:
            time = datetime.strptime(value, form).replace(tzinfo=UTC)
        except ValueError:
            return None
        return time if YEARS[0] <= time.year < YEARS[1] else None

    return read
