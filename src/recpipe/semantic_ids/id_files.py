"""Files of semantic ids in the formats of other repositories: ``index.json``, lists of integers, Parquet.

``index.json`` (LC-Rec, LETTER, MQL4GRec): ``{"0": ["<a_1>", "<b_3>"], "1": ...}``, one letter per level, capital ones
for ids of images. The values may also be lists of integers, or the tokens as one text; instead of an object the file
may be a list, whose n-th entry has the key n. Parquet: a column of keys and one of such values. Codes count from 0.

Shape letters: N items, L levels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file

MAX_BYTES = 1 << 30  # of a file: some 20 million items in JSON
MAX_LEVELS = 256
MAX_CODE = (1 << 20) - 1
TOKEN = re.compile(r"<([A-Za-z])_([0-9]{1,9})>")
JSON, PARQUET = (".json",), (".parquet", ".pq")
FORMATS = ("tokens", "integers", "parquet")
SHOWN = 3  # examples in a message


@dataclass(frozen=True, eq=False)
class IdTable:
    """Semantic ids read from a file: keys, which are item ids or dense numbers, and codes."""

    keys: NDArray[np.object_]  # (N,) of str, unique
    codes: NDArray[np.int32]  # (N, L)
    letters: str | None = None  # of the levels, where the file has tokens


def read_ids(path: Path, *, item_id: str = "item_id", column: str = "codes") -> IdTable:
    """Read a file of ids; ``item_id`` and ``column`` are columns of a Parquet file.

    Raises ValueError for a missing, unreadable or too large file, repeated keys, items with different numbers of codes,
    and codes that are no tokens of one level and no whole numbers from 0 to ``MAX_CODE``.
    """
    keys, values = _entries(_checked(path), item_id, column)
    if not keys:
        raise ValueError(f"{path.name} has no ids")
    if repeated := _repeated(keys):
        raise ValueError(f"{path.name} has several ids of an item: {_examples(repeated)}; keep one of each")
    rows = [_tokens(value, key, path) for key, value in zip(keys, values, strict=True)]
    lengths = np.array([len(row) for row in rows])
    levels = int(np.bincount(lengths).argmax())
    if len(wrong := np.flatnonzero(lengths != levels)):
        examples = ", ".join(f"{keys[row]!r} has {lengths[row]}" for row in wrong[:SHOWN])
        raise ValueError(
            f"{path.name}: {len(wrong):,} of {len(rows):,} items do not have {levels} codes as most do: {examples}; "
            "ids of different lengths cannot be used, complete the file"
        )
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"{path.name}: items have {levels} codes; allowed: 1 to {MAX_LEVELS}")
    letters = _level_letters(rows, keys, path)
    codes = [[code for _, code in row] for row in rows]
    for key, own in zip(keys, codes, strict=True):
        if min(own) < 0 or max(own) > MAX_CODE:
            raise ValueError(f"{path.name}: item {key!r} has the codes {str(own)[:80]}; allowed: 0 to {MAX_CODE}")
    return IdTable(np.array(keys, object), np.array(codes, np.int32), letters)


def read_item_map(path: Path) -> dict[str, str]:
    """Read the item id of each dense number, as text.

    A JSON object ``{"B004": 0}`` or ``{"0": "B004"}``: the side that is a number in JSON, or an object's key beside
    texts, is the dense number. Other files have an item id, a tab and a number per line (``item2id`` of LC-Rec).
    Raises ValueError for a missing or unreadable file, and for an item or a number that occurs twice.
    """
    _checked(path)
    if path.suffix in JSON:
        pairs = _load_json(path)
        if not isinstance(pairs, list) or not all(isinstance(pair, _Pair) for pair in pairs):
            raise ValueError(f"{path.name} must be a JSON object of item ids and numbers")
        if other := [pair for pair in pairs if type(pair[1]) not in (int, str)]:
            raise ValueError(f"{path.name}: {tuple(other[0])!r} is no pair of an item id and a number")
        by_number = [(str(value), key) if type(value) is int else (key, str(value)) for key, value in pairs]
    else:
        lines = [line.split("\t") for line in _text(path).split("\n") if line.strip()]
        if wrong := [line for line in lines if len(line) != 2 or not line[1].strip().isdecimal()]:
            raise ValueError(f"{path.name}: {wrong[0]!r} is no item id, a tab and a number, as in a file item2id")
        by_number = [(number.strip(), item) for item, number in lines]
    for what, side in (("numbers", 0), ("items", 1)):
        if repeated := _repeated([pair[side] for pair in by_number]):
            raise ValueError(f"{path.name}: {what} that occur more than once: {_examples(repeated)}")
    return dict(by_number)


def write_ids(
    path: Path, keys: Sequence[str], codes_NL: NDArray[np.int32], *, form: str, capital: bool = False
) -> None:
    """Write ids as ``tokens`` (``index.json``), ``integers`` (JSON) or ``parquet`` (item_id, codes).

    ``capital``: letters of MQL4GRec's image ids. Raises ValueError for more levels than letters in ``tokens``.
    """
    if form not in FORMATS:
        raise ValueError(f"the format is {form!r}; allowed: {', '.join(FORMATS)}")
    with atomic_file(path, digest=False) as temporary:
        if form == "parquet":
            lists = pa.array(codes_NL.tolist(), pa.list_(pa.int32()))
            pq.write_table(pa.table({"item_id": pa.array(list(keys), pa.string()), "codes": lists}), temporary)
            return
        values: list[Any] = codes_NL.tolist()
        if form == "tokens":
            letters = level_letters(codes_NL.shape[1], capital=capital)
            values = [[f"<{x}_{code}>" for x, code in zip(letters, row, strict=True)] for row in values]
        temporary.write_text(json.dumps(dict(zip(keys, values, strict=True))), encoding="utf-8")


def level_letters(levels: int, *, capital: bool = False) -> str:
    """Return the letters of ``levels`` levels. Raises ValueError for more than the alphabet has."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if capital else "abcdefghijklmnopqrstuvwxyz"
    if levels > len(alphabet):
        raise ValueError(f"{levels} levels have no letters, only {len(alphabet)} do: write integers or parquet instead")
    return alphabet[:levels]


class _Pair(tuple[str, Any]):
    """Key and value of a JSON object, in the order of the file, so that repeated keys are seen."""


def _entries(path: Path, item_id: str, column: str) -> tuple[list[str], list[Any]]:
    """Return keys and unparsed ids."""
    if path.suffix in PARQUET:
        return _parquet_entries(path, item_id, column)
    if path.suffix not in JSON:
        raise ValueError(f"{path.name} is neither JSON ({', '.join(JSON)}) nor Parquet ({', '.join(PARQUET)})")
    content = _load_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path.name} must be a JSON object of ids by item, or a list of ids")
    if content and all(isinstance(entry, _Pair) for entry in content):
        return [key for key, _ in content], [value for _, value in content]
    return [str(number) for number in range(len(content))], content


def _parquet_entries(path: Path, item_id: str, column: str) -> tuple[list[str], list[Any]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in (item_id, column) if name not in names]:
                raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(names)}")
            if twice := [name for name in (item_id, column) if names.count(name) > 1]:
                raise ValueError(f"{path.name} has {names.count(twice[0])} columns {twice[0]!r}; keep one of them")
            table = file.read(columns=[item_id, column])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not a Parquet file that can be read ({error})") from error
    table = table.filter(pa.compute.is_valid(table[column]))  # items without an id are absent
    try:
        keys = table[item_id].cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        kind = table[item_id].type
        raise ValueError(f"{path.name}: the column {item_id!r} of type {kind} holds no item ids ({error})") from error
    if None in keys:
        raise ValueError(f"{path.name}: {keys.count(None):,} rows have no {item_id}")
    return keys, table[column].to_pylist()


def _checked(path: Path) -> Path:
    """Raise ValueError for a file that is missing or too large."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: put it there")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path.name} has {size / 2**20:,.0f} MiB; allowed: {MAX_BYTES >> 20:,} MiB")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not text in UTF-8 ({error})") from error


def _load_json(path: Path) -> Any:
    """Load JSON with objects as lists of ``_Pair``."""
    try:
        return json.loads(_text(path), object_pairs_hook=lambda pairs: [_Pair(pair) for pair in pairs])
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise ValueError(f"{path.name} is not JSON ({error})") from error


def _tokens(value: Any, key: str, path: Path) -> list[tuple[str, int]]:
    """Return letter and code per level; the letter of an integer is empty."""
    if isinstance(value, str):
        value = TOKEN.sub(r"\g<0> ", value).split()
    if isinstance(value, list) and all(type(code) is int for code in value):
        return [("", code) for code in value]
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        matches = [TOKEN.fullmatch(token) for token in value]
        if all(matches):
            return [(match[1], int(match[2])) for match in matches if match is not None]
    raise ValueError(
        f"{path.name}: the id of item {key!r} is {str(value)[:80]!r}; allowed are tokens such as <a_12>, "
        "one letter per level, or whole numbers"
    )


def _level_letters(rows: list[list[tuple[str, int]]], keys: list[str], path: Path) -> str | None:
    """Return the letters of the levels, None for integers. Raises ValueError where items differ in them."""
    letters = ["".join(letter for letter, _ in row) for row in rows]
    for key, own in zip(keys, letters, strict=True):
        if own != letters[0]:
            raise ValueError(
                f"{path.name}: levels of item {key!r} have the letters {own or 'of integers'!r}, those of {keys[0]!r} "
                f"{letters[0] or 'of integers'!r}; all items need the same"
            )
    return letters[0] or None


def _repeated(values: Sequence[str]) -> list[str]:
    """Return values that occur more than once."""
    unique, counts = np.unique(np.array(values, dtype=object).astype(str), return_counts=True)
    return [str(value) for value in unique[counts > 1]]


def _examples(values: Sequence[str]) -> str:
    rest = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return f"{', '.join(map(repr, values[:SHOWN]))}{rest}"
