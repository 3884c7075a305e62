"""Item embeddings with content keys and a vector space fingerprint, on disk as Parquet; vectors from a user's file.

Shape letters: N items, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recpipe.content.item_texts import join_file
from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified

log = logging.getLogger(__name__)

METADATA = b"recpipe.embeddings"
MAPPED = 1 << 28  # elements, 1 GiB, above which vectors are in a memory map instead of in memory
ROW_GROUP = 1 << 16  # rows of a file that are written together
ROWS_AT_ONCE = 1 << 13  # rows that are read, or scaled, together


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Item embeddings in the order of the items table; ``present`` masks items without content.

    Raises ValueError for repeated ids, vectors that are not finite, and shapes that do not agree.
    """

    item_ids: NDArray[np.object_]  # (N,) str, unique
    vectors: NDArray[np.float32]  # (N, D); zero where not present; D is 0 if no item has content
    present: NDArray[np.bool_]  # (N,)
    keys: NDArray[np.object_]  # (N,) hash of the item's content under this encoder, "" where not present
    space: str  # vector space fingerprint
    about: dict[str, Any] = field(default_factory=dict)  # metadata for reports

    def __post_init__(self) -> None:
        shapes = {"present": self.present.shape, "keys": self.keys.shape, "vectors": self.vectors.shape[:1]}
        for name, shape in shapes.items():
            if shape != (len(self),):
                raise ValueError(f"{name} has shape {shape} for {len(self)} items; there must be one row per item")
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise ValueError(
                f"vectors are {self.vectors.dtype} {self.vectors.shape}; they must be float32 (items, width)"
            )
        check_unique(self.item_ids)
        bad = ~np.isfinite(self.vectors.sum(axis=1, dtype=np.float64))
        if bad.any():
            names = ", ".join(repr(name) for name in self.item_ids[bad][:3])
            raise ValueError(
                f"vectors of {int(bad.sum())} items hold NaN or infinity, such as those of {names}; an encoder in fp32 "
                "gives finite ones: set `precision: fp32`"
            )
        if self.vectors[~self.present].any() or (self.keys[~self.present] != "").any():
            raise ValueError("items that are not present must have a zero vector and an empty key")

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @cached_property
    def hash(self) -> str:
        """Hash of the space and of all (item, key), independent of the order of items."""
        order = np.argsort(self.item_ids, kind="stable")
        return digest(self.space, self.item_ids[order].tolist(), self.keys[order].tolist())

    def rows(self, item_ids: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
        """Return the row (n,) of each id, -1 for an unknown id."""
        rows = pc.index_in(pa.array(item_ids, pa.string()), value_set=pa.array(self.item_ids, pa.string()))
        return rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def write(self, path: Path) -> None:
        """Write Parquet with item_id, key and vector (null where not present); the rest is JSON in its metadata."""
        with (
            atomic_file(path) as temporary,
            pq.ParquetWriter(temporary, self._schema, compression="zstd", use_dictionary=["item_id", "key"]) as writer,
        ):
            for start in range(0, max(len(self), 1), ROW_GROUP):
                writer.write_table(self._table(slice(start, start + ROW_GROUP)))

    @property
    def _schema(self) -> pa.Schema:
        metadata = {"format": 1, "space": self.space, "width": self.width, "about": self.about}
        # Lists of any length, since Arrow cannot read back a Parquet column of fixed-size lists that holds nulls.
        types = {"item_id": pa.string(), "key": pa.string(), "vector": pa.large_list(pa.float32())}
        return pa.schema(types.items(), {METADATA: json.dumps(metadata)})

    def _table(self, rows: slice) -> pa.Table:
        present, vectors = self.present[rows], self.vectors[rows]
        offsets = pa.array(np.concatenate([[0], np.cumsum(present * self.width)]), pa.int64())
        lists = pa.LargeListArray.from_arrays(offsets, pa.array(vectors[present].reshape(-1)), mask=pa.array(~present))
        ids, keys = (pa.array(values[rows], pa.string()) for values in (self.item_ids, self.keys))
        return pa.table([ids, keys, lists], schema=self._schema)

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read the file of ``write``; large ones into a memory map (`empty_vectors`).

        Raises ValueError for a damaged file and any other Parquet file.
        """
        with pq.ParquetFile(verified(path, "run `kedro run --pipelines=embed`"), memory_map=True) as file:
            metadata = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"null"))
            if metadata is None:
                raise ValueError(f"{path} holds no embeddings of recpipe; make them with `kedro run --pipelines=embed`")
            rows, width = file.metadata.num_rows, metadata["width"]
            vectors, present, start = empty_vectors(rows, width, path.parent), np.zeros(rows, bool), 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["vector"]):
                part = slice(start, start := start + len(batch))
                column = batch.column(0)
                present[part] = column.is_valid().to_numpy(zero_copy_only=False)
                if width:
                    vectors[part][present[part]] = column.flatten().to_numpy().reshape(-1, width)
            table = file.read(columns=["item_id", "key"])
        ids, keys = (np.array(table[name].to_pylist(), dtype=object) for name in ("item_id", "key"))
        return cls(ids, vectors, present, keys, metadata["space"], metadata["about"])


def empty_vectors(rows: int, width: int, folder: Path | None = None) -> NDArray[np.float32]:
    """Return zeros (N, D) of N ``rows`` and D ``width``, as a memory map of a temporary file above ``MAPPED`` elements.

    The file is in ``folder``, by default that of the system; it has no name and disappears with the array. Raises
    OSError where the disk has no room for it.
    """
    if rows * width <= MAPPED:
        return np.zeros((rows, width), np.float32)
    is_writable = folder is not None and os.access(folder, os.W_OK)
    with tempfile.TemporaryFile(dir=folder if is_writable else None) as stream:
        size = 4 * rows * width
        try:
            if hasattr(os, "posix_fallocate"):  # Linux: no room is an error here, not a signal in a later write
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
        except OSError as error:
            place = folder if is_writable else tempfile.gettempdir()
            raise OSError(
                error.errno, f"no room for {size / 2**30:.1f} GiB of vectors in {place} ({error.strerror}); free some"
            ) from None
        return np.memmap(stream, np.float32, "r+", shape=(rows, width)).view(np.ndarray)


def concatenate_embeddings(text: Embeddings, image: Embeddings) -> Embeddings:
    """Concatenate to (N, D + D'): unit vectors times 1/sqrt(2), zero for a modality that an item lacks.

    An item is present if it has either. Raises ValueError unless both have the same items in the same order.
    """
    if not np.array_equal(text.item_ids, image.item_ids):
        raise ValueError(
            f"text embeddings are of {len(text):,} items and image embeddings of {len(image):,}, not of the same "
            "ones in the same order; make both anew with `kedro run --pipelines=embed`"
        )
    present = text.present | image.present
    pairs = zip(text.keys.tolist(), image.keys.tolist(), present.tolist(), strict=True)
    keys = [digest(*pair) if is_present else "" for *pair, is_present in pairs]
    about = {"modality": "text_image", "items": len(text), "without_content": int((~present).sum())}
    vectors = empty_vectors(len(text), text.width + image.width)
    for start in range(0, len(text), ROWS_AT_ONCE):
        parts = [unit_rows(each.vectors[start : start + ROWS_AT_ONCE]) for each in (text, image)]
        vectors[start : start + ROWS_AT_ONCE] = np.concatenate(parts, axis=1) * np.float32(0.5**0.5)
    return Embeddings(
        text.item_ids,
        vectors,
        present,
        np.array(keys, dtype=object),
        digest("joined", text.space, image.space),
        {**about, "text": text.about, "image": image.about},
    )


@dataclass(frozen=True)
class VectorFileConfig:
    """An encoder of ``kind: file``: ready vectors in a Parquet or JSON lines file in the folder of the raw data."""

    file: str  # name in the folder of the raw data
    item_id: str = "item_id"  # name of the column with item ids
    column: str = "vector"  # name of the column with lists of numbers
    normalise: bool = True  # vectors of length 1

    def __post_init__(self) -> None:
        for name in ("file", "item_id", "column"):
            if not (isinstance(value := getattr(self, name), str) and value):
                raise ValueError(f"{name} is {value!r}; it must be a name")


def embed_from_file(items: pa.Table, raw_folder: Path, config: VectorFileConfig, *, modality: str) -> Embeddings:
    """Read the vectors of ``items`` from a file; items without a vector, or with zeros only, are not present.

    The content of the file is part of the space. Raises ValueError for a file that is absent, outside the folder or has
    none of the items, for a column that holds no lists of numbers, and for vectors of several widths or not finite.
    """
    ids = items.select(["item_id"])
    check_unique(ids["item_id"].to_pylist())
    table = join_file(
        ids, raw_folder, config.file, columns=[config.column], item_id=config.item_id, setting="an encoder of kind file"
    )
    vectors_ND = _vectors_of_column(table[config.column].combine_chunks(), config)
    present: NDArray[np.bool_] = np.any(vectors_ND != 0, axis=1)
    with (raw_folder / config.file).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    space = digest("file", modality, content, config.column, config.normalise)
    keys = content_keys(space, (row.tobytes().hex() if row.any() else None for row in vectors_ND))
    if config.normalise:
        for start in range(0, len(vectors_ND), ROWS_AT_ONCE):
            vectors_ND[start : start + ROWS_AT_ONCE] = unit_rows(vectors_ND[start : start + ROWS_AT_ONCE])
    about = {
        "modality": modality,
        "encoder": config.file,
        "items": len(ids),
        "embedded": int(present.sum()),
        "without_vector": int((~present).sum()),
    }
    log.info("%s of %s items have a vector in %s", f"{present.sum():,}", f"{len(ids):,}", config.file)
    return Embeddings(np.array(ids["item_id"].to_pylist(), dtype=object), vectors_ND, present, keys, space, about)


def _vectors_of_column(column: pa.Array, config: VectorFileConfig) -> NDArray[np.float32]:
    """Convert a column of lists to (N, D), zeros where it is null."""
    where, kind = f"column {config.column!r} of {config.file}", column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ValueError(f"{where} is of type {kind}; it must hold a list of numbers for each item")
    lists = column.drop_null()
    widths = pc.list_value_length(lists).unique().to_pylist()
    if len(widths) > 1:
        raise ValueError(f"{where} holds vectors of {min(widths)} to {max(widths)} numbers; all must be as long")
    values = pc.list_flatten(lists)
    if values.null_count:
        raise ValueError(f"{where} has vectors in which numbers are missing; leave such items out")
    vectors_ND = empty_vectors(len(column), widths[0] if widths else 0)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # an overflow is reported below
        vectors_ND[present] = values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    if not np.isfinite(vectors_ND).all():
        raise ValueError(f"{where} has numbers that are not finite in float32; leave such items out")
    return vectors_ND


def unit_rows(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the rows (N, D) to length one; zero rows stay zero."""
    norms = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return (x_ND / np.where(norms > 0, norms, 1)).astype(np.float32)


def digest(*parts: object) -> str:
    """Return the SHA-256 hash, in hex, of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_space(encoder: str, template: str) -> str:
    """Return the vector space fingerprint of texts from a template under an encoder's fingerprint."""
    return digest("text", encoder, template)


def content_keys(space: str, contents: Iterable[str | None]) -> NDArray[np.object_]:
    """Hash each content together with the space to keys (N,) in hex, "" for None."""
    prefix = hashlib.sha256(space.encode())

    def key(text: str) -> str:
        hashed = prefix.copy()
        hashed.update(text.encode("utf-8", "surrogatepass"))
        return hashed.hexdigest()

    return np.array([key(text) if text is not None else "" for text in contents], dtype=object)


def check_items(item_ids: Sequence[str], values: Sequence[object], what: str) -> None:
    """Raise ValueError unless ids are unique and there is a value per item."""
    if len(item_ids) != len(values):
        raise ValueError(f"{len(item_ids)} items and {len(values)} {what}: there must be one per item")
    check_unique(item_ids)


def check_unique(item_ids: Sequence[str] | NDArray[np.object_]) -> None:
    """Raise ValueError with the first repeated ids of ``item_ids`` (N,)."""
    counts = pc.value_counts(pa.array(item_ids, pa.string()))
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        names = ", ".join(repr(name) for name in repeated[:3].to_pylist())
        raise ValueError(
            f"{len(repeated)} item ids occur more than once in the items table, such as {names}; ids must be unique"
        )
