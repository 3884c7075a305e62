"""Columns of items before they become texts: more of them, from files beside the log, and without stand-ins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from recpipe.content import templates

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
        return templates.extra(items, table, item_id)
    if not optional:
        else_ = ", or set `optional: true`" if setting == SETTING else ""
        raise ValueError(f"{setting} names {file!r}, which is not in {raw_folder}: put it there{else_}")
    log.warning("%s is not there: texts are made without %s", path.name, ", ".join(columns))
    for name in columns:
        items = items.append_column(name, pa.nulls(len(items), pa.string()))
    return items


def without_stand_ins(items: pa.Table) -> pa.Table:
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
