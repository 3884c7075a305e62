"""The semantic ids of a model's catalogue: those of its items, in the order of its vocabulary.

Shape letters: I items of the vocabulary, L levels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.semantic_ids.ids import COMMAND, SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree


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
            tree.check(ids.hash)
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
