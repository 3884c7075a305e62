"""Semantic ids: the codes of every item, what they were before collisions were resolved, and where they come from.

Shape letters: N items, L levels after resolution, Lq levels of the quantizer.

The semantic ids of a model's catalogue: those of its items, in the order of its vocabulary.

Shape letters: I items of the vocabulary, L levels.
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
from recpipe.semantic_ids.collisions import groups
from recpipe.semantic_ids.prefix_tree import PrefixTree

METADATA = b"recpipe.semantic_ids"
COMMAND = "kedro run --pipelines=semantic_ids"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """One row per item. Raises ValueError for duplicate items, codes out of range, shapes that do not fit.

    ``about`` holds at least ``quantizer`` (its hash), ``space`` and ``embeddings`` (theirs), ``policy``, ``modality``.
    """

    item_ids: NDArray[np.object_]  # (N,) of str
    codes: NDArray[np.int32]  # (N, L)
    quantized: NDArray[np.int32]  # (N, Lq) as the quantizer gave them, before resolution
    added: NDArray[np.bool_]  # (N,) given to an item that came after the first ids were given
    sizes: tuple[int, ...]  # (L,) codes per level
    about: dict[str, Any] = field(default_factory=dict)
    # (N,) of str: hash of the content that the codes were made from, "" unknown
    keys: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, object))

    def __post_init__(self) -> None:
        if not len(self.keys):
            object.__setattr__(self, "keys", np.full(len(self.item_ids), "", object))
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        self._check_shapes()
        _check_items(self.item_ids)
        _check_range(self.item_ids, self.codes, self.sizes, "codes")
        _check_range(self.item_ids, self.quantized, self.sizes, "quantized codes")

    def __len__(self) -> int:
        return len(self.item_ids)

    def _check_shapes(self) -> None:
        n, levels = len(self.item_ids), len(self.sizes)
        shapes = (self.codes.shape, self.quantized.shape[:1], self.added.shape, self.keys.shape)
        if shapes != ((n, levels), (n,), (n,), (n,)) or self.quantized.ndim != 2:
            raise ValueError(
                f"{n} items with {levels} sizes need codes ({n}, {levels}), quantized ({n}, ≤{levels}), added and keys "
                f"({n},); got {self.codes.shape}, {self.quantized.shape}, {self.added.shape}, {self.keys.shape}"
            )
        if self.quantized.shape[1] > levels:
            raise ValueError(f"{self.quantized.shape[1]} quantized levels, but only {levels} sizes")

    @property
    def unique(self) -> bool:
        """Whether no two items share all their codes."""
        return not len(self) or int(groups(self.codes).max()) == len(self) - 1

    @property
    def hash(self) -> str:
        """Hex digest of items, codes, sizes and the quantizer; the order of the rows is part of it."""
        digest = hashlib.sha256(json.dumps([self.sizes, self.about.get("quantizer")]).encode())
        digest.update(json.dumps(self.item_ids.tolist()).encode())
        digest.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
        return digest.hexdigest()

    def rows(self, item_ids: NDArray[np.object_] | list[str]) -> NDArray[np.int64]:
        """Row of every given item, -1 where it has no id."""
        found = pc.index_in(pa.array(item_ids, pa.string()), value_set=pa.array(self.item_ids, pa.string()))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def write(self, path: Path) -> None:
        """One Parquet file: item_id, codes, quantized, added, key; sizes and about as JSON in its metadata."""
        described = {"format": 1, "sizes": self.sizes, "levels": self.quantized.shape[1], "about": self.about}
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "codes": _lists(self.codes),
                "quantized": _lists(self.quantized),
                "added": pa.array(self.added, pa.bool_()),
                "key": pa.array(self.keys, pa.string()),
            }
        ).replace_schema_metadata({METADATA: json.dumps(described)})
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> SemanticIds:
        """What ``write`` wrote. Raises ValueError that says what is wrong with the file and what to run."""
        try:
            table = pq.read_table(path, partitioning=None)
            described = json.loads((table.schema.metadata or {})[METADATA])
            sizes, about = described["sizes"], described["about"]
            item_ids, keys = (_strings(table[name]) for name in ("item_id", "key"))
            codes = _matrix(table["codes"], len(sizes))
            quantized = _matrix(table["quantized"], described["levels"])
            added = table["added"].to_numpy()
            return cls(item_ids, codes, quantized, added, sizes, about, keys)
        except (OSError, KeyError, TypeError, pa.ArrowException, ValueError) as error:
            raise ValueError(f"{path} holds no semantic ids ({error}); run `{COMMAND}`") from error


def _check_items(item_ids: NDArray[np.object_]) -> None:
    counted = pc.value_counts(pa.array(item_ids, pa.string()))
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    if len(twice):
        raise ValueError(f"{len(twice)} items have more than one row: {', '.join(twice[:5].to_pylist())}")


def _check_range(
    item_ids: NDArray[np.object_], codes: NDArray[np.int32], sizes: tuple[int, ...], what: str
) -> None:
    wrong = (codes < 0) | (codes >= np.array(sizes[: codes.shape[1]]))
    if wrong.any():
        row, level = np.argwhere(wrong)[0]
        raise ValueError(
            f"{what} of {int(wrong.any(1).sum())} items are out of range: item {item_ids[row]!r} has "
            f"{codes[row, level]} at level {level + 1}, allowed 0 to {sizes[level] - 1}"
        )


def _lists(codes_NL: NDArray[np.int32]) -> pa.Array:
    offsets = np.arange(len(codes_NL) + 1, dtype=np.int32) * codes_NL.shape[1]
    values = np.ascontiguousarray(codes_NL, np.int32).reshape(-1)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))


def _matrix(column: pa.ChunkedArray, levels: int) -> NDArray[np.int32]:
    lists = column.combine_chunks()
    if not pc.all(pc.equal(lists.value_lengths(), levels), min_count=0).as_py():
        raise ValueError(f"not every item has {levels} codes")
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32).reshape(len(lists), levels)


def _strings(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.array([*column.to_pylist()], dtype=object)


@dataclass(frozen=True, eq=False)
class CatalogueIds:
    """Row i of ``codes`` is item i; row 0 is padding. An item without an id has -1 at every level.

    ``source`` is the hash of the SemanticIds they were taken from, ``quantizer`` that of what made those: ids of equal
    quantizers mean the same, also in different catalogues.
    """

    codes: NDArray[np.int64]  # (I + 1, L)
    sizes: tuple[int, ...]  # (L,) codes per level
    source: str = ""
    quantizer: str = ""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.sizes) or len(self.codes) < 2:
            raise ValueError(
                f"codes are (items + 1, {len(self.sizes)}), one column for each of the sizes {self.sizes}; "
                f"got {self.codes.shape}"
            )

    @classmethod
    def of(
        cls, ids: SemanticIds, item_ids: NDArray[np.object_], tree: PrefixTree | None = None
    ) -> CatalogueIds:
        """The ids of ``item_ids`` (I,). ``tree``, if given, must have been built from the same ids.

        Raises ValueError where it was not, or where no item has an id.
        """
        if tree is not None:
            tree.check_source(ids.hash)
        rows = ids.rows(item_ids)
        if not (rows >= 0).any():
            raise ValueError(
                f"none of {len(rows)} items has a semantic id; run `{COMMAND}` for this data set"
            )
        codes = np.full((len(rows) + 1, len(ids.sizes)), -1, np.int64)
        codes[1:] = np.where(rows[:, None] >= 0, ids.codes[rows], -1)
        return cls(codes, ids.sizes, ids.hash, str(ids.about.get("quantizer", "")))

    @property
    def digest(self) -> str:
        """Hex digest of codes and sizes."""
        digest = hashlib.sha256(json.dumps(self.sizes).encode())
        digest.update(np.ascontiguousarray(self.codes, "<i8").tobytes())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the codes themselves are kept with a model's tensors."""
        return {
            "sizes": list(self.sizes),
            "source": self.source,
            "quantizer": self.quantizer,
            "digest": self.digest,
        }

    @classmethod
    def empty(cls, fields: Mapping[str, Any], n_items: int) -> CatalogueIds:
        """Of ``to_dict``, without codes: these come with the tensors."""
        sizes = tuple(int(size) for size in fields["sizes"])
        codes = np.full((n_items + 1, len(sizes)), -1, np.int64)
        return cls(codes, sizes, str(fields["source"]), str(fields["quantizer"]))
