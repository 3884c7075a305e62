"""Columns of items before they become texts: more of them, from files beside the log, and without stand-ins.

An item's text from its columns: ``"{title}. {categories}"``, cleaned of markup, without holes.

Columns are worked on whole, in Arrow.
"""

from __future__ import annotations

import html
import logging
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from recpipe.content.embeddings import check_unique

log = logging.getLogger(__name__)

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
PACKED = (".gz", ".bz2", ".zst")
BLOCK = 1 << 24  # bytes; no row may be longer
SETTING = "content.text.tables"


def with_columns(
    items: pa.Table,
    raw_folder: Path,
    file: str,
    *,
    columns: Sequence[str],
    item_id: str = "item_id",
    optional: bool = False,
    setting: str = SETTING,
) -> pa.Table:
    """`items` with columns of a file in `raw_folder`, null for items that it does not know.

    optional: null for all items where there is no such file; setting: what named the file, for errors. Raises
    ValueError for a file outside the folder, one that is absent or cannot be read, one without these columns, and one
    that knows none of the items.
    """
    path = (raw_folder / file).resolve()
    if not path.is_relative_to(raw_folder.resolve()):
        raise ValueError(f"{setting} names {file!r}, which is outside {raw_folder}: put the file there")
    if path.is_file():
        table = _read(path, [item_id, *(name for name in columns if name != item_id)])
        table = table.set_column(0, item_id, _ids(table[item_id]))
        _check_overlap(_ids(items["item_id"]), table[item_id], path.name, item_id, setting)
        return extra(items, table, item_id)
    if not optional:
        else_ = ", or set `optional: true`" if setting == SETTING else ""
        raise ValueError(f"{setting} names {file!r}, which is not in {raw_folder}: put it there{else_}")
    log.warning("%s is not there: texts are made without %s", path.name, ", ".join(columns))
    for name in columns:
        items = items.append_column(name, pa.nulls(len(items), pa.string()))
    return items


def clear_placeholder_texts(items: pa.Table) -> pa.Table:
    """Null in `title` and `text` where they only repeat the item's id."""
    # An item without a title carries its id as one, so that reports can name it. As a text it would say nothing, yet
    # get a vector, and items would be alike by the spelling of their ids.
    for name in {"title", "text"}.intersection(items.column_names):
        column = items[name]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        same = pc.fill_null(pc.equal(column, items["item_id"].cast(column.type)), False)
        if count := pc.sum(same).as_py():
            log.info("%s items have no %s but their id, which is not embedded", f"{count:,}", name)
            cleared = pc.if_else(same, pa.scalar(None, column.type), column)
            items = items.set_column(items.column_names.index(name), name, cleared)
    return items


def _check_overlap(items: pa.ChunkedArray, there: pa.ChunkedArray, file: str, key: str, setting: str) -> None:
    found = pc.sum(pc.is_in(items, value_set=there)).as_py() or 0
    if len(items) and not found:
        known, wanted = (", ".join(map(repr, ids[:3].to_pylist())) or "none" for ids in (there, items))
        raise ValueError(
            f"0 of {len(items):,} items found in {file}: its column {key!r} holds {known}, while items are {wanted}; "
            f"set `item_id` of {setting} to the column that holds the same ids"
        )
    log.info("%s of %s items found in %s", f"{found:,}", f"{len(items):,}", file)


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as text; whole numbers that pandas turned into floats lose their `.0`."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if (
            pc.all(pc.equal(column, pc.floor(column))).as_py()
            and (pc.max(pc.abs(column)).as_py() or 0) < 1 << 53
        ):
            column = column.cast(pa.int64())
    return column.cast(pa.large_string())


def _read(path: Path, columns: list[str]) -> pa.Table:
    """These columns. Those of CSV and TSV stay text, so that the id 007 does."""
    kind = _format(path)
    try:
        if kind == "parquet":
            source = pq.ParquetFile(path)
            _require(columns, source.schema_arrow.names, path)
            return source.read(columns=columns).select(columns)
        if kind == "jsonl":
            return _read_json(path, columns)
        return _read_csv(path, columns, tabs=kind == "tsv")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path.name} as {kind}: {error}; its text must be utf-8") from error


def _format(path: PurePath) -> str:
    suffix = next((part for part in reversed(path.suffixes) if part.lower() not in PACKED), "").lower()
    if suffix not in FORMATS:
        raise ValueError(f"cannot tell the format of {path.name}: name it {', '.join(FORMATS)}, plain or .gz")
    return FORMATS[suffix]


def _read_csv(path: Path, columns: list[str], *, tabs: bool) -> pa.Table:
    """Quotation marks quote in CSV; in TSV they are text, as in the files of a log."""
    reading = csv.ReadOptions(block_size=BLOCK)
    parsing = csv.ParseOptions(
        delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
    )
    with csv.open_csv(path, reading, parsing) as opened:
        _require(columns, opened.schema.names, path)
    types = dict.fromkeys(columns, pa.string())
    return csv.read_csv(
        path, reading, parsing, csv.ConvertOptions(column_types=types, include_columns=columns)
    )


def _read_json(path: Path, columns: list[str]) -> pa.Table:
    reading = json.ReadOptions(block_size=BLOCK)
    table = json.read_json(path, reading)
    _require(columns, table.column_names, path)
    # Arrow makes times of texts that look like them
    times = [(field.name, pa.string()) for field in table.schema if pa.types.is_temporal(field.type)]
    if times:
        table = json.read_json(path, reading, json.ParseOptions(explicit_schema=pa.schema(times)))
    return table.select(columns)


def _require(columns: list[str], there: list[str], path: Path) -> None:
    if absent := [name for name in columns if name not in there]:
        raise ValueError(f"{path.name} has no column {absent[0]!r}; it has {', '.join(there)}")


# Of what remains after entities are resolved; a lone < as in "a < b" or "<3" stays.
NO_TEXT = r"(?is)<(?:script|style)\b.*?</(?:script|style)\s*>|<!--.*?-->"
TAG = r"</?[a-zA-Z][^<>]*>"
BLANKS = r"[\s\p{Z}\p{Cc}\x{feff}\x{200b}]+"
SEPARATORS = " \t\n.,;:!?|/·•\u2013\u2014-"
CLOSING = ")]}\"'»”"


def texts(items: pa.Table, template: str, *, max_chars: int = 20_000) -> list[str | None]:
    """One text per item, None where all its columns are empty; cut after ``max_chars``.

    Lists, also nested, become "a, b"; nulls in them are left out. What stands before an empty field goes with it.
    Raises ValueError for an unknown column, anything but plain ``{column}`` fields, and ids that occur twice.
    """
    if "item_id" in items.column_names:
        check_unique(items["item_id"].to_pylist())
    pieces = _parsed(template, items.column_names)
    out = _filled(pieces, {name: _strings(items[name]) for _, name, _ in pieces})
    long = pc.sum(pc.greater(pc.utf8_length(out), max_chars)).as_py() or 0
    if long:
        log.warning("%s texts are longer than %s characters and were cut", f"{long:,}", f"{max_chars:,}")
    cut = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(out, 0, max_chars))
    return [text or None for text in cut.to_pylist()]


def extra(items: pa.Table, table: pa.Table, on: str) -> pa.Table:
    """``items`` with the other columns of ``table``, whose column ``on`` holds item ids; null for unknown items.

    Raises ValueError for columns that ``items`` has already; of rows with the same id the first counts.
    """
    if on not in table.column_names:
        raise ValueError(f"the further table has no column {on!r}; it has {', '.join(table.column_names)}")
    names = [name for name in table.column_names if name != on]
    if there := sorted(set(names) & set(items.column_names)):
        raise ValueError(
            f"items have a column {there[0]!r} already: leave it out of the further table's columns"
        )
    ids = _plain(table[on])
    if twice := len(ids) - len(ids.unique()):
        log.warning(
            "%s rows of the further table repeat an id in %s: the first of each counts", f"{twice:,}", on
        )
    found = pc.index_in(_plain(items["item_id"]), value_set=ids)
    for name in names:
        items = items.append_column(name, table[name].take(found))
    return items


def _parsed(template: str, columns: list[str]) -> list[tuple[str, str, str]]:
    """For each field: the literal before it, its column, and the brackets or quotes that close after it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} cannot be read: {error}") from error
    _check_fields(template, parsed, columns)
    literals, names = [""], []
    for literal, name, *_ in parsed:
        literals[-1] += literal
        if name is not None:
            names.append(name)
            literals.append("")
    starts = [literals[0], *(literal.lstrip(CLOSING) for literal in literals[1:-1])]
    closing = [literal[: len(literal) - len(literal.lstrip(CLOSING))] for literal in literals[1:-1]]
    return list(zip(starts, names, [*closing, literals[-1]], strict=True))


def _check_fields(template: str, parsed: list[tuple], columns: list[str]) -> None:
    fields = [(name, form, conversion) for _, name, form, conversion in parsed if name is not None]
    there = ", ".join(columns)
    if not fields:
        raise ValueError(f"template {template!r} names no column; there are {there}")
    for name, form, conversion in fields:
        if name not in columns and re.fullmatch(r"\w+", name):
            raise ValueError(
                f"template {template!r} names the column {name!r}, which items lack; there are {there}"
            )
        if name not in columns or form or conversion:
            raise ValueError(
                f"template {template!r} has a field {name!r} that is more than a column's name; there are {there}"
            )


def _filled(pieces: list[tuple[str, str, str]], values: dict[str, pa.Array]) -> pa.Array:
    out = pa.array([""] * len(next(iter(values.values()))), pa.large_string())
    for place, (before, name, after) in enumerate(pieces):
        value, trimmed = values[name], before.lstrip(SEPARATORS) if place else before
        joint = pc.if_else(pc.equal(out, ""), _large(trimmed), _large(before))
        with_it = pc.binary_join_element_wise(out, joint, value, _large(after), _large(""))
        out = pc.if_else(pc.equal(value, ""), out, with_it)
    return out


def _strings(column: pa.ChunkedArray) -> pa.Array:
    """Clean text per row, "" where there is none."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows, in some versions
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return _text(array)


def _text(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.array([""] * len(array), pa.large_string())
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _listed(array)
    if (
        pa.types.is_nested(array.type)
        or pa.types.is_binary(array.type)
        or pa.types.is_large_binary(array.type)
    ):
        raise ValueError(
            f"a column of type {array.type} has no text: use one of strings, numbers or lists of them"
        )
    return _clean(_plain(array))


def _listed(array: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(array)), lengths)
    parts = _text(pc.list_flatten(array))
    kept = pc.not_equal(parts, "")
    counts = np.bincount(rows[kept.to_numpy(zero_copy_only=False)], minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, parts.filter(kept))
    return pc.binary_join(lists, _large(", "))


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Values as strings, 5.0 as 5; null and NaN as null."""
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    return array.cast(pa.large_string())


def _clean(array: pa.Array) -> pa.Array:
    array = pc.fill_null(array, "")
    array = _changed(array, pc.match_substring(array, "&"), html.unescape)
    for pattern in (NO_TEXT, TAG, BLANKS):
        array = pc.replace_substring_regex(array, pattern, " ")
    # Arrow's own utf8_normalize leaves NFC decomposed: https://github.com/apache/arrow/issues/51225
    array = _changed(
        array, pc.invert(pc.string_is_ascii(array)), lambda text: unicodedata.normalize("NFC", text)
    )
    return pc.utf8_trim_whitespace(array)


def _changed(array: pa.Array, where: pa.Array, change: Callable[[str], str]) -> pa.Array:
    changed = [change(text) for text in array.filter(where).to_pylist()]
    return pc.replace_with_mask(array, where, pa.array(changed, array.type)) if changed else array


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())
