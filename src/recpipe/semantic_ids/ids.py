"""Semantic ids as a table of items, and as an array in the order of a model's vocabulary.

Shape letters: N items, I items of the vocabulary, L levels after resolution, Lq levels of the quantizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.semantic_ids.collisions import check_codes, row_groups
from recpipe.semantic_ids.prefix_tree import COMMAND, PrefixTree

METADATA = b"recpipe.semantic_ids"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Semantic ids, one row per item. Raises ValueError for duplicate items, codes out of range and wrong shapes.

    ``about`` has at least ``quantizer`` (its hash), ``space`` and ``embeddings`` (theirs), ``policy``, ``modality``.
    """

    item_ids: NDArray[np.object_]  # (N,) of str
    codes: NDArray[np.int32]  # (N, L)
    quantized: NDArray[np.int32]  # (N, Lq) codes of the quantizer, before resolution
    added: NDArray[np.bool_]  # (N,) True for items that were appended to earlier ids
    sizes: tuple[int, ...]  # (L,) codes per level
    about: dict[str, Any] = field(default_factory=dict)
    # (N,) of str: hash of the content that the codes were made from, "" if unknown
    keys: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, object))

    def __post_init__(self) -> None:
        if not len(self.keys):
            object.__setattr__(self, "keys", np.full(len(self.item_ids), "", object))
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        n, levels = len(self.item_ids), len(self.sizes)
        shapes = (self.codes.shape, self.quantized.shape[:1], self.added.shape, self.keys.shape)
        if shapes != ((n, levels), (n,), (n,), (n,)) or self.quantized.ndim != 2 or self.quantized.shape[1] > levels:
            raise ValueError(
                f"{n} items with {levels} sizes need codes ({n}, {levels}), quantized ({n}, ≤{levels}), added and keys "
                f"({n},); got {self.codes.shape}, {self.quantized.shape}, {self.added.shape}, {self.keys.shape}"
            )
        counts = pc.value_counts(pa.array(self.item_ids, pa.string()))
        duplicates = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(duplicates):
            raise ValueError(f"{len(duplicates)} items have more than one row: {', '.join(duplicates[:5].to_pylist())}")
        check_codes(self.codes, self.sizes, item_ids=self.item_ids)
        quantized_sizes = self.sizes[: self.quantized.shape[1]]
        check_codes(self.quantized, quantized_sizes, what="quantized codes", item_ids=self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def unique(self) -> bool:
        """Whether no two items share all their codes."""
        return not len(self) or int(row_groups(self.codes).max()) == len(self) - 1

    @property
    def hash(self) -> str:
        """Hex digest of items, codes, sizes and the quantizer, in the order of the rows."""
        header = json.dumps([self.sizes, self.about.get("quantizer")]) + json.dumps(self.item_ids.tolist())
        return hashlib.sha256(header.encode() + np.ascontiguousarray(self.codes, "<i4").tobytes()).hexdigest()

    def rows(self, item_ids: NDArray[np.object_] | list[str]) -> NDArray[np.int64]:
        """Return the row (n,) of each item, -1 for items without an id."""
        rows = pc.index_in(pa.array(item_ids, pa.string()), value_set=pa.array(self.item_ids, pa.string()))
        return rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def append(self, new: SemanticIds) -> SemanticIds:
        """Append the rows of ``new``; ``about`` is that of ``new``."""
        names = ("item_ids", "codes", "quantized", "added", "keys")
        arrays = {name: np.concatenate([getattr(self, name), getattr(new, name)]) for name in names}
        return SemanticIds(**arrays, sizes=self.sizes, about=new.about)

    def write(self, path: Path) -> None:
        """Write a Parquet file: item_id, codes, quantized, added, key; sizes and about as JSON in its metadata."""
        header = {"format": 1, "sizes": self.sizes, "levels": self.quantized.shape[1], "about": self.about}
        columns = {
            "item_id": pa.array(self.item_ids, pa.string()),
            "codes": _to_lists(self.codes),
            "quantized": _to_lists(self.quantized),
            "added": pa.array(self.added, pa.bool_()),
            "key": pa.array(self.keys, pa.string()),
        }
        table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(header)})
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> SemanticIds:
        """Read a file of ``write``. Raises ValueError for a missing, damaged or foreign file."""
        try:
            table = pq.read_table(verified(path), partitioning=None)
            header = json.loads((table.schema.metadata or {})[METADATA])
            item_ids, keys = (np.array(table[name].to_pylist(), object) for name in ("item_id", "key"))
            codes = _from_lists(table["codes"], len(sizes := header["sizes"]))
            quantized = _from_lists(table["quantized"], header["levels"])
            return cls(item_ids, codes, quantized, table["added"].to_numpy(), sizes, header["about"], keys)
        except (OSError, KeyError, TypeError, pa.ArrowException, ValueError) as error:
            raise ValueError(f"{path} is not a file of semantic ids ({error}); run `{COMMAND}`") from error


def _to_lists(codes_NL: NDArray[np.int32]) -> pa.Array:
    offsets = np.arange(len(codes_NL) + 1) * codes_NL.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(codes_NL.reshape(-1), pa.int32()))


def _from_lists(column: pa.ChunkedArray, levels: int) -> NDArray[np.int32]:
    lists = column.combine_chunks()
    if not pc.all(pc.equal(lists.value_lengths(), levels), min_count=0).as_py():
        raise ValueError(f"not every item has {levels} codes")
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32).reshape(len(lists), levels)


@dataclass(frozen=True, eq=False)
class CatalogueIds:
    """Semantic ids in vocabulary order: row i is item i, row 0 is padding, items without an id have -1 throughout."""

    codes: NDArray[np.int64]  # (I + 1, L)
    sizes: tuple[int, ...]  # (L,) codes per level
    source: str = ""  # hash of the SemanticIds
    quantizer: str = ""  # hash of their quantizer; equal ones give ids the same meaning, also in different catalogues

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.sizes) or len(self.codes) < 2:
            raise ValueError(
                f"codes are (items + 1, {len(self.sizes)}), one column for each of the sizes {self.sizes}; "
                f"got {self.codes.shape}"
            )

    @classmethod
    def of(cls, ids: SemanticIds, item_ids: NDArray[np.object_], tree: PrefixTree | None = None) -> CatalogueIds:
        """Look up ``item_ids`` (I,). Raises ValueError for a ``tree`` of other ids, and if no item has an id."""
        if tree is not None:
            tree.check_source(ids.hash)
        rows = ids.rows(item_ids)
        if not (rows >= 0).any():
            raise ValueError(f"none of {len(rows)} items has a semantic id; run `{COMMAND}` for this data set")
        codes = np.full((len(rows) + 1, len(ids.sizes)), -1, np.int64)
        codes[1:] = np.where(rows[:, None] >= 0, ids.codes[rows], -1)
        return cls(codes, ids.sizes, ids.hash, str(ids.about.get("quantizer", "")))

    @property
    def digest(self) -> str:
        """Hex digest of codes and sizes."""
        content = json.dumps(self.sizes).encode() + np.ascontiguousarray(self.codes, "<i8").tobytes()
        return hashlib.sha256(content).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the codes, which are among a model's tensors."""
        return {"sizes": list(self.sizes), "source": self.source, "quantizer": self.quantizer, "digest": self.digest}

    @classmethod
    def empty(cls, fields: Mapping[str, Any], n_items: int) -> CatalogueIds:
        """Restore ``to_dict`` with codes of -1, to be overwritten by a model's tensors."""
        sizes = tuple(int(size) for size in fields["sizes"])
        codes = np.full((n_items + 1, len(sizes)), -1, np.int64)
        return cls(codes, sizes, str(fields["source"]), str(fields["quantizer"]))
