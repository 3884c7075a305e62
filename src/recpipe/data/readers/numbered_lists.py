"""Sequences as repositories of generative models publish them: one JSON object with the items of every user.

LC-Rec, LETTER, MQL4GRec: ``<name>.inter.json`` is ``{"0": [17, 4, ...], ...}``, items in the order of time;
``<name>.item.json`` is ``{"17": {"title": ..., "description": ...}, ...}``. The numbers are those of their files of
semantic ids (``index.json``). Files are read into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ibis

from recpipe.data.files.json_files import json_source, json_text, json_words
from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.raw_text import byte_chunks
from recpipe.data.files.tables import Entities, RawTables, Source, create_entities

USER, ITEM = "user_id", "item_id"
TEXT_KEYS = ("title", "brand", "categories", "description")


@dataclass(frozen=True)
class Options:
    """No options: the layout is fixed."""


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read events without times, in the order of the lists, and items with title, brand, categories and description."""
    del options
    events = (
        {USER: user, ITEM: item}
        for path in files["interactions"]
        for user, items in _entries(path, list)
        for item in items
    )
    with _records(con, events, files["interactions"], (USER, ITEM)) as source:
        log = create_log(con, source, LogColumns(json_text(USER), json_text(ITEM)))
    return RawTables.of(log, _items(files["items"], con) if files.get("items") else None)


def _items(paths: Sequence[str], con: ibis.BaseBackend) -> Entities:
    records = ({**fields, ITEM: item} for path in paths for item, fields in _entries(path, dict))
    texts = {name: json_words(name, separator=", ") for name in TEXT_KEYS}
    columns = {ITEM: json_text(ITEM), **texts, "text": f"nullif(concat_ws('. ', {', '.join(texts.values())}), '')"}
    with _records(con, records, paths, (ITEM, *TEXT_KEYS)) as source:
        return create_entities(con, source, columns, key=ITEM)


@contextmanager
def _records(
    con: ibis.BaseBackend, records: Iterator[Mapping[str, Any]], paths: Sequence[str], keys: Sequence[str]
) -> Iterator[Source]:
    """Create a source of records through a temporary file, deleted when the context ends."""
    with TemporaryDirectory(prefix="recpipe-") as folder:
        lines = Path(folder) / "records.jsonl"
        with lines.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({key: record.get(key) for key in keys}) + "\n" for record in records)
        source = json_source(con, [str(lines)], keys=keys, required=())
        yield source._replace(where=", ".join(map(str, paths)))


def _entries(path: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the object in a file. Raises ValueError for another layout and for a repeated key."""
    layout = '{"0": [17, 4], ...}' if kind is list else '{"17": {"title": ...}, ...}'
    try:
        content = json.loads(b"".join(byte_chunks(path)), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON object {layout}: {error}") from error
    if not isinstance(content, _Pairs) or not content:
        raise ValueError(f"{path} must hold one JSON object {layout}, not {type(content).__name__} or nothing")
    keys: set[str] = set()
    for key, value in content:
        entry = dict(value) if isinstance(value, _Pairs) else value
        if not isinstance(entry, kind):
            raise ValueError(f"{path}: the value of {key!r} is {str(entry)[:60]!r}; the layout is {layout}")
        if kind is list and any(isinstance(item, list) for item in entry):
            raise ValueError(f"{path}: the list of {key!r} holds lists or objects; the layout is {layout}")
        if key in keys:
            raise ValueError(f"{path} has {key!r} twice: keep one of them")
        keys.add(key)
        yield key, entry


class _Pairs(list[tuple[str, Any]]):
    """Pairs of a JSON object, which keep a key that stands twice."""
