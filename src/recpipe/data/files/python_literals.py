"""Lines of Python literals as a source, converted to JSON and never evaluated; lists of values in text."""

from __future__ import annotations

import gzip
import json
import logging
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import ibis

from recpipe.data.files.json_files import INVALID, SAMPLE_LINES, check_keys, json_source, limited_lines
from recpipe.data.files.raw_text import readable_paths
from recpipe.data.files.tables import Source, literal, path_summary
from recpipe.progress import BYTES, progress

logger = logging.getLogger(__name__)

LONG_LINE = 1 << 16  # characters from which a line's values are counted first
MAX_VALUES = 100_000  # texts in a long line, and characters outside of them
WORDS = {"True": "true", "False": "false", "None": "null", "(": "[", ")": "]"}
# A text, a tuple's parenthesis or a word; a comma before a closing bracket; anything else that no JSON has
TOKEN = re.compile(
    r"""u?'(?P<single>(?:[^'\\]|\\.)*+)'|u?"(?P<double>(?:[^"\\]|\\.)*+)"|(?P<word>True\b|False\b|None\b|[()])"""
    r"""|(?P<comma>,)\s*(?=[\])}])|(?P<other>[^\s\[\]{}:,0-9.eE+-])""",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|[0-7]{1,3}|.)", re.DOTALL)
ESCAPED = {
    "\\\\": "\\", "\\'": "'", '\\"': '"', "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\a": "\a", "\\b": "\b",
    "\\f": "\f", "\\v": "\v", "\\\n": "",
}  # fmt: skip

# Regular expressions of a text list with quoted values
QUOTES = """["']"""
VALUE = r"""(?:'(?:[^'\\]|\\['"\\])*'|"(?:[^"\\]|\\['"\\])*"|[^\s,;\[\]()'"]+)"""
VALUES = rf"\s*{VALUE}(?:(?:\s*[,;]\s*|\s+){VALUE})*\s*,?\s*"
QUOTED = rf"(?:{VALUES}|\s*\[{VALUES}\]\s*|\s*\({VALUES}\)\s*)"
UNBRACKETED = r"[^\[\](){}]*"  # what a list without quotation marks holds: `{1, 2}` and `array([1, 2])` are none
UNQUOTED = rf"\s*(?:{UNBRACKETED}|\[{UNBRACKETED}\]|\({UNBRACKETED}\))\s*"


@contextmanager
def literal_source(
    con: ibis.BaseBackend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]
) -> Iterator[Source]:
    """Create a ``json_source`` of Python literals through a temporary file, deleted when the context ends."""
    readable = readable_paths(con, paths)
    with TemporaryDirectory(prefix="recpipe-") as folder:
        converted = Path(folder) / "records.jsonl"
        present: set[str] = set()
        with converted.open("w", encoding="utf-8", errors="surrogatepass") as out:
            for number, record in enumerate(record for path in readable for record in _records(path)):
                if number < SAMPLE_LINES or not present.issuperset(required):
                    present |= record.keys() - {INVALID}
                values = {key: record[key] for key in (*keys, INVALID) if key in record}
                out.write(json.dumps(values, ensure_ascii=False) + "\n")
        check_keys(required, present, path_summary(paths))
        source = json_source(con, [str(converted)], keys=[*keys, INVALID], required=())
        yield source._replace(where=path_summary(paths))


def parse_literal(text: str) -> Any:
    """Parse a literal of dictionaries, lists, tuples (as lists), texts, numbers, True, False and None.

    Raises ValueError for anything else, also where Python would read it: bytes, sets, texts side by side, numbers that
    JSON writes otherwise; and for a long line of more than ``MAX_VALUES`` values. RecursionError for deep nesting.
    """
    if len(text) > LONG_LINE:
        _check_size(text)
    return json.loads(TOKEN.sub(_json_token, text))


def _check_size(text: str) -> None:
    """Raise ValueError for too many values, at a cost that does not depend on their number."""
    outside = end = 0
    for token in islice(TOKEN.finditer(text), MAX_VALUES):
        outside, end = outside + token.start() - end, token.end()
        if outside > MAX_VALUES:
            break
    if outside + len(text) - end > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values in a line")


def _json_token(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "word":
        return WORDS[match["word"]]
    if kind == "comma":
        return ""
    if kind == "other":
        raise ValueError(f"{match['other']!r} is in no literal")
    text: str = match[kind or 0]
    return json.dumps(ESCAPE.sub(_escaped, text) if "\\" in text else text)


def _escaped(match: re.Match[str]) -> str:
    escape = match[0]
    if escape in ESCAPED:
        return ESCAPED[escape]
    if escape[1] in "xuU" and len(escape) > 2:
        return chr(int(escape[2:], 16))
    if escape[1] in "01234567":
        return chr(int(escape[1:], 8))
    if escape[1] == "N" and len(escape) > 2:
        try:
            return unicodedata.lookup(escape[3:-1])
        except KeyError as error:
            raise ValueError(f"{escape} is no character") from error
    if escape[1] in "xuUN":
        raise ValueError(f"{escape} is no escape sequence")
    return escape  # as Python, which leaves unknown ones as they are


def _records(path: str) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries of a file; a line without one gives ``{INVALID: its beginning}``."""
    size = Path(path).stat().st_size
    with open(path, "rb") as raw, progress(size, f"read {Path(path).name}", unit=BYTES) as bar:
        stream: BinaryIO = gzip.open(raw) if path.lower().endswith(".gz") else raw  # type: ignore[assignment]  # noqa: SIM115
        try:
            for line in limited_lines(stream):
                bar.add(raw.tell() - bar.done)
                if line.strip():
                    yield _record(line)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error


def _record(line: bytes) -> dict[str, Any]:
    try:
        value = parse_literal(line.decode("utf-8").strip())
    except (ValueError, RecursionError) as error:
        logger.debug("not a literal: %s", error)
        value = None
    return value if isinstance(value, dict) else {INVALID: line[:60].decode("utf-8", "replace")}


# Lists in text ---------------------------------------------------------------------------------------------------


def text_list_sql(text: str, delimiter: str | None) -> str:
    """Return SQL of the values of a text list, as ``1 2 3``, ``[1, 2]`` or ``['a, b']``; null where it is none."""
    if delimiter is not None:
        return f"CASE WHEN {text} <> '' THEN string_split({text}, {literal(delimiter)}) END"
    bare = f"regexp_replace({text}, '[\\[\\]()]', '', 'g')"
    loose = f"list_filter(regexp_split_to_array({bare}, '[\\s,;]+'), lambda item: item <> '')"
    json = f"TRY_CAST({text} AS JSON)"
    is_flat = f"NOT list_has_any(json_type({json}, '$[*]'), ['ARRAY', 'OBJECT'])"
    unescaped = "regexp_replace(item[2:-2], '\\\\(.)', '\\1', 'g')"
    value = f"CASE WHEN regexp_matches(item[1], {literal(QUOTES)}) THEN {unescaped} ELSE item END"
    python = f"list_transform(regexp_extract_all({text}, {literal(VALUE)}), lambda item: {value})"
    return (
        f"CASE WHEN NOT regexp_matches({text}, {literal(QUOTES)}) "
        f"THEN CASE WHEN regexp_full_match({text}, {literal(UNQUOTED)}) THEN {loose} END "
        f"WHEN json_valid({text}) AND json_type({json}) = 'ARRAY' "
        f"THEN CASE WHEN {is_flat} THEN json_extract_string({json}, '$[*]') END "
        f"WHEN regexp_full_match({text}, {literal(QUOTED)}) THEN {python} END"
    )
