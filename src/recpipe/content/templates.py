"""An item's text from its columns: ``"{title}. {categories}"``, cleaned of markup, without holes.

Columns are worked on whole, in Arrow.
"""

from __future__ import annotations

import html
import logging
import re
import string
import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.content.embeddings import check_unique

log = logging.getLogger(__name__)

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
