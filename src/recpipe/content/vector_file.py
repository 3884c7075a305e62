"""Vectors made elsewhere, by any encoder: a column of lists in a file beside the raw data.

Shape letters: N items, D width.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.content.embeddings import Embeddings, check_unique, content_keys, digest, unit_rows
from recpipe.content.item_texts import with_columns

log = logging.getLogger(__name__)

SETTING = "an encoder of kind file"


@dataclass(frozen=True)
class VectorFileConfig:
    """``file``: Parquet or JSON lines in the folder of the raw data, with the columns ``item_id`` and ``column``."""

    file: str
    item_id: str = "item_id"
    column: str = "vector"
    normalise: bool = True

    def __post_init__(self) -> None:
        for name in ("file", "item_id", "column"):
            if not (isinstance(value := getattr(self, name), str) and value):
                raise ValueError(f"{name} is {value!r}; it must be a name")


def embed_file(items: pa.Table, raw_folder: Path, config: VectorFileConfig, *, modality: str) -> Embeddings:
    """The vectors of ``items`` (N rows, column item_id); none where the file has none or has only zeros.

    Another file is another space: its vectors are not taken for those of an earlier one. Raises ValueError for a file
    that is absent, outside the folder or knows none of the items, for a column that holds no lists of numbers, and for
    vectors that differ in width or are not finite.
    """
    ids = items.select(["item_id"])
    check_unique(ids["item_id"].to_pylist())
    found = with_columns(
        ids, raw_folder, config.file, columns=[config.column], item_id=config.item_id, setting=SETTING
    )
    vectors_ND = _matrix(found[config.column].combine_chunks(), config)
    present: NDArray[np.bool_] = np.any(vectors_ND != 0, axis=1)
    with (raw_folder / config.file).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    space = digest("file", modality, content, config.column, config.normalise)
    rows = [row.tobytes().hex() if there else None for row, there in zip(vectors_ND, present, strict=True)]
    about = {
        "modality": modality,
        "encoder": config.file,
        "items": len(ids),
        "embedded": int(present.sum()),
        "without_vector": int((~present).sum()),
    }
    log.info("%s of %s items have a vector in %s", f"{present.sum():,}", f"{len(ids):,}", config.file)
    return Embeddings(
        np.array(ids["item_id"].to_pylist(), dtype=object),
        unit_rows(vectors_ND) if config.normalise else vectors_ND,
        present,
        content_keys(space, rows),
        space,
        about,
    )


def _matrix(column: pa.Array, config: VectorFileConfig) -> NDArray[np.float32]:
    """(N, D) float32, zeros where the column is null."""
    where = f"column {config.column!r} of {config.file}"
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    if not number:
        raise ValueError(f"{where} is of type {kind}; it must hold a list of numbers for each item")
    there = column.is_valid().to_numpy(zero_copy_only=False)
    given = column.drop_null()
    widths = pc.list_value_length(given).unique().to_pylist()
    if len(widths) > 1:
        raise ValueError(
            f"{where} holds vectors of {min(widths)} to {max(widths)} numbers; all must be as long"
        )
    values = pc.list_flatten(given)
    if values.null_count:
        raise ValueError(f"{where} has vectors in which numbers are missing; leave such items out")
    vectors_ND = np.zeros((len(column), widths[0] if widths else 0), np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused below
        vectors_ND[there] = values.to_numpy(zero_copy_only=False).reshape(len(given), -1)
    if not np.isfinite(vectors_ND).all():
        raise ValueError(f"{where} has numbers that are not finite in float32; leave such items out")
    return vectors_ND
