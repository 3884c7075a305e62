"""Damaged logs as text: no line is lost without a word, and no row is taken that does not stand in the file.

By hand, with any number of damaged files: ``python -m tests.faults.test_damaged_text 500``.
"""

from __future__ import annotations

import csv
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ibis
import pytest
from ibis.backends.duckdb import Backend

from recpipe.data.readers import read

OPTIONS = {"columns": {"user_id": "user", "item_id": "item", "timestamp": "time"}}
EVENTS = [(f"u{n % 7}", f"i{n}", 1_500_000_000 + n) for n in range(40)]
HEADER = b"user,item,time\n"
Row = tuple[str, str, int]


def _plain() -> bytes:
    return b"".join(f"{user},{item},{time}\n".encode() for user, item, time in EVENTS)


def _quoted() -> bytes:
    return b"".join(f'"{user}","{item}","{time}"\n'.encode() for user, item, time in EVENTS)


def _partly_quoted() -> bytes:
    return b"".join(f'{user},"{item}",{time}\r\n'.encode() for user, item, time in EVENTS)


def _insert(value: bytes) -> Callable[[bytes, random.Random], bytes]:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        place = rng.randrange(len(data))
        return data[:place] + value + data[place:]

    return mutate


def _remove(value: bytes) -> Callable[[bytes, random.Random], bytes]:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        places = [place for place in range(len(data)) if data[place : place + 1] == value]
        if not places:
            return data
        place = rng.choice(places)
        return data[:place] + data[place + 1 :]

    return mutate


def _quote_twice(data: bytes, rng: random.Random) -> bytes:
    return _insert(b'"')(_insert(b'"')(data, rng), rng)


def _quote_at_values(data: bytes, rng: random.Random) -> bytes:
    """Open a quotation mark before one value and close one after another."""
    places = [place for place, byte in enumerate(data) if byte in b",\n"]
    first, second = sorted(rng.sample(places, 2))
    return data[: first + 1] + b'"' + data[first + 1 : second] + b'"' + data[second:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _replace_slice(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20))) + data[start + 20 :]


def _carriage_returns(data: bytes, rng: random.Random) -> bytes:
    """Other line ends from some place on, as in parts that were put together."""
    place = rng.randrange(len(data))
    return data[:place] + data[place:].replace(b"\r\n", b"\n").replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n"]))


MUTATIONS = {
    "insert a quotation mark": _insert(b'"'), "insert two quotation marks": _quote_twice,
    "quote values": _quote_at_values, "remove a quotation mark": _remove(b'"'), "insert a delimiter": _insert(b","),
    "remove a delimiter": _remove(b","), "insert a line end": _insert(b"\n"),
    "insert a carriage return": _insert(b"\r"), "remove a line end": _remove(b"\n"),
    "insert a null byte": _insert(b"\0"), "append null bytes": lambda data, _: data + bytes(9),
    "insert a byte that is no UTF-8": _insert(b"\xff"), "insert a backslash": _insert(b"\\"), "cut": _cut,
    "replace bytes": _replace_slice, "other line ends": _carriage_returns,
}  # fmt: skip
CONTENTS = {"plain": _plain(), "quoted": _quoted(), "partly quoted": _partly_quoted()}


def _outcome(con: Backend, path: Path) -> str:
    """Read a damaged log: refused, unchanged or bad lines. Raises AssertionError for a line lost or a row made up."""
    data = path.read_bytes()
    try:
        log = read({"source": "files", "options": OPTIONS}, {"files": {"interactions": [str(path)]}}, con).interactions
    except ValueError as error:
        assert str(path) in str(error)
        return "refused"
    table = log.to_pyarrow().to_pylist()
    good = [(row["user_id"], row["item_id"], row["timestamp"]) for row in table if row["problem"] is None]
    good = [row for row in good if all(row)]  # ingest puts rows without an id into quarantine
    lines = [line for line in data.splitlines() if line][1:]
    assert len(table) == len(lines), f"{len(table)} rows of {len(lines)} lines"
    # Rows that are not of the original log are exactly a line without quotation marks inside its values
    spare = Counter(good) - Counter(EVENTS)
    unquoted = Counter(values for line in lines if (values := _values(line)))
    assert not spare - unquoted, f"rows that do not stand in the file: {spare - unquoted}"
    return "unchanged" if good == EVENTS else "bad lines"


def _values(line: bytes) -> Row | None:
    """Values of a line by itself, by Python's csv; None where a quotation mark is inside one."""
    try:
        values = next(csv.reader([line.decode("utf-8", "replace").replace("\0", "")], strict=True))
    except (csv.Error, StopIteration):
        return None
    if len(values) != 3 or any('"' in value for value in values) or not re.fullmatch("[0-9]+", values[2].strip()):
        return None
    return values[0].strip(), values[1].strip(), int(values[2])


def _run(n_files: int, folder: Path, *, seed: int) -> Counter[str]:
    con, rng = ibis.duckdb.connect(threads=1, temp_directory=str(folder)), random.Random(seed)
    outcomes: Counter[str] = Counter()
    path = folder / "log.csv"
    for number in range(n_files):
        name = list(MUTATIONS)[number % len(MUTATIONS)]
        content = CONTENTS[list(CONTENTS)[number // len(MUTATIONS) % len(CONTENTS)]]
        path.write_bytes(HEADER + MUTATIONS[name](content, rng))
        try:
            outcomes[_outcome(con, path)] += 1
        except AssertionError as error:
            raise AssertionError(f"file {number}, {name}: {error}") from error
    return outcomes


@pytest.mark.parametrize("seed", range(2))
def test_damaged_logs_lose_no_line_and_gain_no_row(tmp_path: Path, seed: int) -> None:
    outcomes = _run(96, tmp_path, seed=seed)
    assert outcomes["refused"] < 5 and outcomes["bad lines"] > 60  # else the files would test nothing


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.stdout.write(f"{dict(_run(int(sys.argv[1]), Path(temporary), seed=0))}\n")
