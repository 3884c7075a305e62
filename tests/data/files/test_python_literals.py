"""Lines of Python literals: the values of ``ast.literal_eval``, at a bounded cost."""

from __future__ import annotations

import ast
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Reading, rows, write_gzip

from recpipe.data.files import json_files
from recpipe.data.files.python_literals import parse_literal

REVIEW = {"username": "a", "product_id": "1", "date": "2017-12-17"}
TEXTS = [
    "",
    "plain",
    "it's",
    'say "hi"',
    "both ' and \"",
    "back\\slash\\",
    "a\nb\tc\r\0",
    "é",
    "😀",
    "\x07\x7f",
    "True, None]",
]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 3:
        return "".join(rng.choices(TEXTS, k=rng.randrange(3)))
    if kind < 6:
        return rng.choice([True, False, None, 0, -17, 10**25, 0.1, -1e-9, 1.5e300])
    values = [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind < 8 else {rng.choice(TEXTS): value for value in values}


def test_literals_have_the_values_of_python() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = repr({"key": random_value(rng)})
        assert parse_literal(text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    [
        r"{u'username': u'Chaos \xe9', u'hours': 0.1, u'early': False, u'found_funny': None}",
        r"""{'description': 'It\'s "so" good', 'categories': [['Beauty', 'Bath'],], 'salesRank': {'Beauty': 7}}""",
        r"""{"a": "\u00e9\U0001f600\101\x41\N{EURO SIGN}\q\
", 'b': "it's", }""",
        "{'also_bought': [" + ", ".join(f"'B{n:09}'" for n in range(20_000)) + "]}",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_literals_as_published(text: str) -> None:
    assert parse_literal(text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    ["{'a': __import__('os')}", "{'a': 1", "{'a': b'x'}", "{'a': 'b' 'c'}", "{1, 2}", "{'a': 1_000}", "{'a': r'x'}",
     r"{'a': '\x4'}", r"{'a': '\N{NO SUCH}'}", "{'a' 1}", "{'a': 1 + 1}", "{'a': nan}", "x", "", "{'a': '"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_literal(text)


@pytest.mark.parametrize("part", ["[],", "'',", "{},", "1,", r"'\'", "(", "'a' ", "-", '"\'"'])
def test_a_hostile_line_is_refused_quickly(part: str) -> None:
    text = "{'a': [" + part * ((1 << 20) // len(part)) + "]}"
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, RecursionError)):
            parse_literal(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1
    assert peak < 16 << 20


def test_a_line_beyond_the_limit_is_a_bad_row(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1000)
    reviews = [REVIEW, {**REVIEW, "username": "b" * 5000}, {**REVIEW, "tags": [[]] * 300}, "[" * 900, REVIEW]
    path = write_gzip(tmp_path / "r.json.gz", reviews, literal=True)
    log = rows(reading("steam", {}, interactions=path).interactions)
    assert [bool(row["problem"]) for row in log] == [False, True, True, True, False]


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "other keys"])
def test_damaged_files_are_refused(tmp_path: Path, reading: Reading, damage: str) -> None:
    path = write_gzip(tmp_path / "r.json.gz", [{**REVIEW, "username": f"user{n}"} for n in range(3000)], literal=True)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "not gzip":
        path.write_text("{'a': 1}\n")
    else:
        write_gzip(path, [{"a": 1}], literal=True)
    with pytest.raises(ValueError, match=r"found: a" if damage != "truncated" else r"r\.json\.gz.*cut short"):
        reading("steam", {}, interactions=path)
