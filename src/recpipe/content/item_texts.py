"""Item texts from a template over columns, such as ``{title}. {categories}``, cleaned of markup.

Columns may come from further files in the folder of the raw data. Columns are processed as Arrow arrays.
"""

from __future__ import annotations

import html
import logging
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from recpipe.data.features import id_form_hint

log = logging.getLogger(__name__)

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
COMPRESSION = (".gz", ".bz2", ".zst")
BLOCK = 1 << 24  # bytes; no row may be longer
MAX_COMPARED_IDS = 100_000  # in which a common form is sought
SETTING = "content.text.tables"
NULL_WORDS = ("NULL", "null", "NaN", "nan", "None", "\\N", "NA", "N/A", "<NA>")  # as in the options of a data set

SCRIPT = r"(?is)<(?:script|style)\b.*?</(?:script|style)\s*>|<!--.*?-->"
TAG = r"</?[a-zA-Z][^<>]*>"  # a lone < as in "a < b" or "<3" is text
BLANKS = r"[\s\p{Z}\p{Cc}\x{feff}\x{200b}]+"
SEPARATORS = " \t\n.,;:!?|/·•\u2013\u2014-"
CLOSING = ")]}\"'»”"


def build_texts(items: pa.Table, template: str, *, max_chars: int = 20_000) -> list[str | None]:
    """Return a text per item, cut after ``max_chars``; None where all columns of the template are empty.

    Lists, also nested ones, become "a, b" without nulls. The literal before an empty field is left out. Raises
    ValueError for an unknown column and for anything but plain ``{column}`` fields.
    """
    fields = _parse_template(template, items.column_names)
    texts = _fill(fields, {name: _strings(items[name]) for _, name, _ in fields})
    if long := pc.sum(pc.greater(pc.utf8_length(texts), max_chars)).as_py():
        log.warning("%s texts are longer than %s characters and were cut", f"{long:,}", f"{max_chars:,}")
    texts = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 0, max_chars))
    return [text or None for text in texts.to_pylist()]


def clear_placeholder_texts(items: pa.Table) -> pa.Table:
    """Set the columns ``title`` and ``text`` of ``items`` to null where they repeat the column ``item_id``.

    Items without a title have their id as one for reports; its embedding would compare the spelling of ids.
    """
    for name in {"title", "text"}.intersection(items.column_names):
        column = items[name]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        is_id = pc.fill_null(pc.equal(column, items["item_id"].cast(column.type)), False)
        if count := pc.sum(is_id).as_py():
            log.info("%s items have no %s but their id, which is not embedded", f"{count:,}", name)
            cleared = pc.if_else(is_id, pa.scalar(None, column.type), column)
            items = items.set_column(items.column_names.index(name), name, cleared)
    return items


def join_file(
    items: pa.Table,
    raw_folder: Path,
    file: str,
    *,
    columns: Sequence[str],
    item_id: str = "item_id",
    optional: bool = False,
    setting: str = SETTING,
) -> pa.Table:
    """Add columns of a file in ``raw_folder`` to ``items``, null for items that the file lacks.

    ``item_id`` is the file's column with ids. With ``optional`` all rows are null if the file does not exist.
    ``setting`` names the configuration in errors. Raises ValueError for a file that is outside the folder, missing or
    unreadable, lacks one of the columns, or has none of the items, and for a column that ``items`` already has.
    """
    path = (raw_folder / file).resolve()
    if not path.is_relative_to(raw_folder.resolve()):
        raise ValueError(f"{setting} names {file!r}, which is outside {raw_folder}: put the file there")
    if path.is_file():
        table = _read(path, [item_id, *(name for name in columns if name != item_id)])
        return _join(items, table, path.name, item_id, setting)
    if not optional:
        hint = ", or set `optional: true`" if setting == SETTING else ""
        raise ValueError(f"{setting} names {file!r}, which is not in {raw_folder}: put it there{hint}")
    log.warning("%s does not exist: texts are made without %s", path.name, ", ".join(columns))
    for name in columns:
        items = items.append_column(name, pa.nulls(len(items), pa.string()))
    return items


def _join(items: pa.Table, table: pa.Table, file: str, item_id: str, setting: str) -> pa.Table:
    """Add the columns of ``table`` other than ``item_id``; of rows with the same id the first is used."""
    names = [name for name in table.column_names if name != item_id]
    if repeated := sorted(set(names) & set(items.column_names)):
        raise ValueError(f"items already have a column {repeated[0]!r}: leave it out of the columns of {setting}")
    item_ids, file_ids = _ids(items, "item_id"), _ids(table, item_id, file, setting)
    is_in_file = pc.is_in(item_ids, value_set=file_ids)
    count = pc.sum(is_in_file).as_py() or 0
    if len(items) and not count:
        examples, expected = (", ".join(map(repr, ids[:3].to_pylist())) or "none" for ids in (file_ids, item_ids))
        raise ValueError(
            f"0 of {len(items):,} items found in {file}: its column {item_id!r} holds {examples}, while items are "
            f"{expected}; set `item_id` of {setting} to the column that holds the same ids"
        )
    message = f"{count:,} of {len(items):,} items found in {file}"
    if 2 * count < len(items):
        missing, others = item_ids.filter(pc.invert(is_in_file)), file_ids.filter(pc.is_valid(file_ids))
        others = others.filter(pc.invert(pc.is_in(others, value_set=item_ids)))
        missing, others = (ids[:MAX_COMPARED_IDS].to_pylist() for ids in (missing, others))
        hint = id_form_hint(missing, others)
        log.warning(
            "%s: items without a row are %s, rows without an item %s%s",
            message, ", ".join(map(repr, missing[:2])), ", ".join(map(repr, others[:2])) or "none",
            f". Of these items {hint}" if hint else "",
        )  # fmt: skip
    else:
        log.info("%s", message)
    if duplicates := len(file_ids) - len(file_ids.unique()):
        log.warning("%s rows of %s repeat an id of %s: the first of each counts", f"{duplicates:,}", file, item_id)
    rows = pc.index_in(item_ids, value_set=file_ids)
    for name in names:
        items = items.append_column(name, table[name].take(rows))
    return items


def _ids(table: pa.Table, name: str, file: str = "items", setting: str = SETTING) -> pa.ChunkedArray:
    """Convert ids to text without blanks around it; whole floats lose their `.0`, decimals their zeros."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise ValueError(
            f"{file}: the column {name!r} is {str(column.type)[:80]}, no id; set `item_id` of {setting} to a column of "
            "single values"
        )
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        is_whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        if is_whole and (pc.max(pc.abs(column)).as_py() or 0) < 1 << 53:
            column = column.cast(pa.int64())
    texts = column.cast(pa.large_string())
    if pa.types.is_decimal(column.type) and column.type.scale > 0:
        return pc.ascii_rtrim(pc.ascii_rtrim(texts, "0"), ".")
    return pc.utf8_trim_whitespace(texts)


def _read(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a file. Those of CSV and TSV stay text, so that the id 007 does."""
    suffix = next((part for part in reversed(path.suffixes) if part.lower() not in COMPRESSION), "").lower()
    if (file_format := FORMATS.get(suffix)) is None:
        raise ValueError(f"cannot tell the format of {path.name}: name it {', '.join(FORMATS)}, plain or .gz")
    try:
        if file_format == "parquet":
            source = pq.ParquetFile(path)
            _require(columns, source.schema_arrow.names, path)
            table = source.read(columns=columns).select(columns)
            views = {field.name for field in table.schema if pa.types.is_string_view(field.type)}
            strings = [field.with_type(pa.large_string()) if field.name in views else field for field in table.schema]
            return table.cast(pa.schema(strings))
        if file_format == "jsonl":
            return _read_json(path, columns)
        return _read_csv(path, columns, tabs=file_format == "tsv")
    except (pa.ArrowException, OSError) as error:
        hint = {"jsonl": "write one record per line, each key of one type", "parquet": "fetch it again"}.get(
            file_format, "its text must be utf-8, and every line have the columns of the header"
        )
        raise ValueError(f"cannot read {path.name} as {file_format}: {error}; {hint}") from error


def _read_csv(path: Path, columns: list[str], *, tabs: bool) -> pa.Table:
    """Read CSV, where quotation marks quote, or TSV, where they are text."""
    read_options = csv.ReadOptions(block_size=BLOCK)
    delimiter, quote = ("\t", False) if tabs else (",", '"')
    parse_options = csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=not tabs)
    with csv.open_csv(path, read_options, parse_options) as reader:
        _require(columns, reader.schema.names, path)
    strings = csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=columns,
        strings_can_be_null=True, null_values=["", *NULL_WORDS],
    )  # fmt: skip
    return csv.read_csv(path, read_options, parse_options, strings)


def _read_json(path: Path, columns: list[str]) -> pa.Table:
    options = json.ReadOptions(block_size=BLOCK)
    table = json.read_json(path, options)
    _require(columns, table.column_names, path)
    # Arrow parses texts that look like times
    times = [(field.name, pa.string()) for field in table.schema if pa.types.is_temporal(field.type)]
    if times:
        table = json.read_json(path, options, json.ParseOptions(explicit_schema=pa.schema(times)))
    return table.select(columns)


def _require(columns: list[str], names: list[str], path: Path) -> None:
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(names)}")


def _parse_template(template: str, columns: list[str]) -> list[tuple[str, str, str]]:
    """Return for each field the literal before it, its column, and the brackets or quotes that close after it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} cannot be read: {error}") from error
    literals, names = [""], []
    for literal, name, form, conversion in parts:
        literals[-1] += literal
        if name is not None:
            _check_field(template, name, columns, is_plain=not (form or conversion))
            names.append(name)
            literals.append("")
    if not names:
        raise ValueError(f"template {template!r} names no column; there are {', '.join(columns)}")
    before = [literals[0], *(literal.lstrip(CLOSING) for literal in literals[1:-1])]
    closing = [literal[: len(literal) - len(literal.lstrip(CLOSING))] for literal in literals[1:-1]]
    return list(zip(before, names, [*closing, literals[-1]], strict=True))


def _check_field(template: str, name: str, columns: list[str], *, is_plain: bool) -> None:
    if name in columns and is_plain:
        return
    if name not in columns and re.fullmatch(r"\w+", name):
        problem = f"names the column {name!r}, which items lack"
    else:
        problem = f"has a field {name!r} that is more than a column's name"
    raise ValueError(f"template {template!r} {problem}; there are {', '.join(columns)}")


def _fill(fields: list[tuple[str, str, str]], values: dict[str, pa.Array]) -> pa.Array:
    out = pa.repeat(_scalar(""), len(next(iter(values.values()))))
    for position, (before, name, after) in enumerate(fields):
        value, trimmed = values[name], before.lstrip(SEPARATORS) if position else before
        joint = pc.if_else(pc.equal(out, ""), _scalar(trimmed), _scalar(before))
        extended = pc.binary_join_element_wise(out, joint, value, _scalar(after), _scalar(""))
        out = pc.if_else(pc.equal(value, ""), out, extended)
    return out


def _strings(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Convert a column to clean text, "" where it is empty; "5.0" to "5"."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_null(kind):
        return pa.repeat(_scalar(""), len(array))
    if pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.large_list(kind.value_type))
        kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _join_lists(array)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"a column of type {kind} has no text: use one of strings, numbers or lists of them")
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), None, array)
    return _clean(array.cast(pa.large_string()))


def _join_lists(array: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(array)), lengths)
    parts = _strings(pc.list_flatten(array))
    has_text = pc.not_equal(parts, "")
    counts = np.bincount(rows[has_text.to_numpy(zero_copy_only=False)], minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, parts.filter(has_text))
    return pc.binary_join(lists, _scalar(", "))


def _clean(array: pa.Array) -> pa.Array:
    array = pc.fill_null(array, "")
    array = _replace(array, pc.match_substring(array, "&"), html.unescape)
    for pattern in (SCRIPT, TAG, BLANKS):
        array = pc.replace_substring_regex(array, pattern, " ")
    # Arrow's own utf8_normalize leaves NFC decomposed: https://github.com/apache/arrow/issues/51225
    is_unicode = pc.invert(pc.string_is_ascii(array))
    array = _replace(array, is_unicode, lambda text: unicodedata.normalize("NFC", text))
    return pc.utf8_trim_whitespace(array)


def _replace(array: pa.Array, mask: pa.Array, function: Callable[[str], str]) -> pa.Array:
    values = [function(text) for text in array.filter(mask).to_pylist()]
    return pc.replace_with_mask(array, mask, pa.array(values, array.type)) if values else array


def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())
