"""Damaged JSON and Parquet: every line is taken right or quarantined, every file taken right or refused by name.

Python's own JSON parser is the judge of lines and arrays. ``python -m tests.faults.test_json_parquet 500`` tries as
many mutations of each kind and prints what came of them.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.data import readers
from recpipe.data.engines import connect
from recpipe.data.files.fetch import fetch

SIGNS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\0",
    b"\xff",
    b"\r",
    b" ",
    b"1",
    b".0",
    b"null",
    b"\\u00",
    b"/",
]
Rows = list[tuple[str | None, str | None, bool]]  # user, item, whether the row is good


def records(numbers: random.Random, n: int) -> list[dict[str, Any]]:
    """Create records with ids of several JSON types, text and nested values."""

    def item(k: int) -> Any:
        return [k, str(k), float(k), f'say "{k}"', f"é{k}", k + 2**53][k % 6]

    return [
        {"u": f"u{numbers.randrange(50)}", "i": item(k), "more": {"a": [k, {"b": None}], "t": "it's, [x]\n"}}
        for k in range(n)
    ]


def mutated(numbers: random.Random, line: bytes) -> bytes:
    """Change a line in one to three places: other bytes, insertions, deletions, swaps, a cut."""
    for _ in range(numbers.randrange(1, 4)):
        place, sign = numbers.randrange(len(line) + 1), numbers.choice(SIGNS)
        end = place + numbers.choice([0, 1, 1, 1, 3])
        line = line[:place] + (sign if numbers.random() < 0.7 else b"") + line[end:]
        if numbers.random() < 0.05:
            line = line[: numbers.randrange(len(line) + 1)]
    return line


def expected_text(value: Any) -> str | None:
    """Return an id as text by the rules of this project; None for a list, an object, null, blanks and null words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        whole = str(int(value)) if abs(value) < 2**53 else None
        return whole if value.is_integer() else str(value)
    text = str(value).strip() if isinstance(value, str | int) else ""
    return None if text in ("", "null") else text


def parse(content: bytes) -> Any:
    """Parse with Python, but allow a comma before a closing bracket and take the first value of a repeated key.

    None for what is no JSON.
    """
    for text in (content, re.sub(rb",[ \n]*([}\]])", rb"\1", content)):
        try:
            return json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
        except ValueError:
            continue
    return None


def is_right(record: Any, row: tuple[str | None, str | None, bool]) -> bool:
    """Whether a row has the ids of its record, or lacks one and is bad."""
    if not isinstance(record, dict):
        return not row[2]
    texts = expected_text(record.get("u")), expected_text(record.get("i"))
    return (row[0] or None, row[1] or None) == texts or (None in texts and not row[2])


class Reader:
    """Writes a file, fetches it and reads its log, as ingest does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._con = connect({"memory_limit": "500MB", "threads": 1, "spill_folder": str(folder / "spill")})

    def __call__(self, name: str, content: bytes) -> Rows:
        (self._folder / name).write_bytes(content)
        options = {"columns": {"user_id": "u", "item_id": "i"}, "format": "parquet" if ".parquet" in name else "jsonl"}
        conf = {"source": "files", "files": {"interactions": name}, "options": options}
        log = readers.read(conf, fetch(conf, self._folder), self._con).interactions
        rows = log.order_by("order").to_pyarrow().to_pylist()
        return [(row["user_id"], row["item_id"], row["problem"] is None) for row in rows]


def line_outcomes(folder: Path, mutations: int, seed: int = 0) -> Counter[str]:
    """Count what became of lines of which every second one is mutated."""
    numbers, counts = random.Random(seed), Counter[str]()
    good = [json.dumps(record, ensure_ascii=False).encode() for record in records(numbers, mutations)]
    lines = [mutated(numbers, line) if number % 2 else line for number, line in enumerate(good * 2)]
    lines = [line for line in b"\n".join(lines).split(b"\n") if line.strip(b" \t\r")]
    rows = Reader(folder)("log.jsonl", b"\n".join(lines))
    assert len(rows) == len(lines), "taken + quarantined = lines"
    for line, row in zip(lines, rows, strict=True):
        kind = "taken" if row[2] else "quarantined"
        counts[kind if is_right(parse(line), row) else f"wrong: {line!r}, {row}"] += 1
    return counts


def array_outcomes(folder: Path, mutations: int, seed: int = 0) -> Counter[str]:
    """Count what became of arrays with a mutation each."""
    numbers, counts, read = random.Random(seed), Counter[str](), Reader(folder)
    content = json.dumps(records(numbers, 12), ensure_ascii=False, indent=1).encode()
    for _ in range(mutations):
        copy = mutated(numbers, content)
        try:
            rows = read("log.json", copy)
        except ValueError as error:
            counts["refused" if "log.json" in str(error) or "'" in str(error) else f"refused, no name: {error}"] += 1
            continue
        array = parse(copy) or []
        are_right = len(rows) == len(array) and all(map(is_right, array, rows))
        counts["taken" if are_right else f"wrong: {copy!r}"] += 1
    return counts


def file_outcomes(folder: Path, kind: str, mutations: int, seed: int = 0) -> Counter[str]:
    """Count what became of compressed lines and of Parquet with page checksums: zeroed, overwritten, cut, doubled."""
    numbers, counts, read = random.Random(seed), Counter[str](), Reader(folder)
    table = pa.table({"u": [f"u{n % 97}" for n in range(900)], "i": list(range(900))})
    content, out = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode(), io.BytesIO()
    pq.write_table(table, out, write_page_checksum=True, row_group_size=300)
    content = gzip.compress(content) if kind == "log.jsonl.gz" else out.getvalue()
    expected = read(kind, content)
    for _ in range(mutations):
        start, length = numbers.randrange(len(content)), numbers.choice([1, 1, 2, 8, 64])
        part = content[start : start + length]
        other = numbers.choice(
            [bytes(len(part)), numbers.randbytes(len(part)), part * 2, b"", bytes([part[0] ^ 1]) + part[1:]]
        )
        copy = content[:start] + other + content[start + length :]
        copy = copy[:start] if numbers.random() < 0.1 else copy
        try:
            counts["same rows" if read(kind, copy) == expected else f"other rows: {start, length, other}"] += 1
        except ValueError as error:
            counts["refused" if kind in str(error) else f"refused, no name: {error}"] += 1
    return counts


def test_mutated_lines_are_right_or_quarantined(tmp_path: Path) -> None:
    counts = line_outcomes(tmp_path, 1000)
    assert counts.keys() == {"taken", "quarantined"} and min(counts.values()) > 300


def test_mutated_arrays_are_right_or_refused(tmp_path: Path) -> None:
    assert array_outcomes(tmp_path, 30).keys() == {"taken", "refused"}


@pytest.mark.parametrize("kind", ["log.jsonl.gz", "log.parquet"])
def test_mutated_files_are_refused_by_name_or_have_the_same_rows(tmp_path: Path, kind: str) -> None:
    counts = file_outcomes(tmp_path, kind, 30)
    assert counts.keys() <= {"same rows", "refused"} and counts["refused"] > 15


if __name__ == "__main__":
    n = int(sys.argv[1])
    tests: dict[str, Callable[[Path], Counter[str]]] = {
        "lines": lambda folder: line_outcomes(folder, n),
        "arrays": lambda folder: array_outcomes(folder, n),
        "log.jsonl.gz": lambda folder: file_outcomes(folder, "log.jsonl.gz", n),
        "log.parquet": lambda folder: file_outcomes(folder, "log.parquet", n),
    }
    for name, outcomes in tests.items():
        with tempfile.TemporaryDirectory() as place:
            sys.stdout.write(f"{name:14} {dict(outcomes(Path(place)))}\n")
