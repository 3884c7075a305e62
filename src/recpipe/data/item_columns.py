"""Item columns that a bundle carries, such as price and stock: selection, and alignment with its items."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.data.features import align_rows, id_form_hint

log = logging.getLogger(__name__)

OWN_COLUMNS = ("item_id", "title", "train_events")  # columns of every bundle
LONG_TEXT = 200  # characters of an item on average, from which on a column is left out


def item_columns(items: pa.Table, ids: Sequence[str] | np.ndarray) -> pa.Table | None:
    """Return the columns of ``items`` for bundles, a row for each of ``ids`` (I,), null where ``items`` lacks it.

    Columns of long text and of nested values beyond lists are left out and logged. None without any column.
    """
    omitted = {name: reason for name in items.column_names if (reason := _omission(name, items[name]))}
    if reasons := [f"{name} ({reason})" for name, reason in omitted.items() if name not in OWN_COLUMNS]:
        log.info("item columns that the bundle leaves out: %s", ", ".join(reasons))
    names = [name for name in items.column_names if name not in omitted]
    if not names:
        return None
    return align_rows(items.select(["item_id", *names]), "item_id", ids).select(names).combine_chunks()


def current_item_columns(items: pa.Table, ids: Sequence[str] | np.ndarray, *, where: str) -> pa.Table | None:
    """Return `item_columns` (I rows, for ``ids`` (I,)) of a table of current values, without unknown items.

    Raises ValueError, which begins with ``where``, without a column item_id, for ids that stand there twice, and where
    no id is known.
    """
    if "item_id" not in items.column_names:
        raise ValueError(f"{where} has no column item_id, only {', '.join(items.column_names) or 'none'}")
    keys = items["item_id"].cast(pa.string()).combine_chunks()
    counts = pc.value_counts(keys.drop_null())
    if len(double := counts.field("values").filter(pc.greater(counts.field("counts"), 1))):
        raise ValueError(
            f"{where} has {len(double):,} items in several rows, such as {double[0].as_py()!r}; give one row"
        )
    known = pc.is_in(keys, value_set=pa.array(ids, pa.string()))
    if len(items) and not pc.any(known).as_py():
        hint = id_form_hint(keys.drop_null().slice(0, 10_000).to_pylist(), list(ids))
        raise ValueError(
            f"{where} has none of the {len(ids):,} items of the bundle, but {keys[0].as_py()!r}"
            f"{f'; {hint}' if hint else ''}"
        )
    count = pc.sum(known).as_py() or 0
    log.info("%s: columns of %s of %s items, %s rows of other items", where, count, len(ids), len(items) - count)
    return item_columns(items.filter(known), ids)


def _omission(name: str, column: pa.ChunkedArray) -> str:
    """Return why a column is not stored; empty if it is."""
    types, type_ = pa.types, column.type
    is_list = types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)
    values = type_.value_type if is_list or types.is_dictionary(type_) else type_
    if name in OWN_COLUMNS:
        return "in every bundle"
    if types.is_nested(values):
        return "nested"
    if types.is_binary(values) or types.is_large_binary(values) or types.is_binary_view(values):
        return "binary"
    if types.is_string(values) or types.is_large_string(values) or types.is_string_view(values):
        texts = column.combine_chunks().flatten() if is_list else column.cast(pa.large_string())
        characters = pc.sum(pc.utf8_length(texts)).as_py() or 0
        if characters > LONG_TEXT * max(len(column) - column.null_count, 1):
            return f"more than {LONG_TEXT} characters on average"
    return ""
