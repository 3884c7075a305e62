"""Semantic ids inside a model: the codes of its catalogue, and their numbers as tokens.

L levels, I items, N items with an id. Tokens are numbered from 1, level after level: code c of level l is
``first[l] + c``; 0 is padding. Behind all codes comes one token per level for items without an id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.semantic_ids.catalogue import CatalogueIds
from recpipe.semantic_ids.prefix_tree import PrefixTree


def told_apart(criterion: Callable[..., Tensor]) -> Tensor | None:
    """(I + 1,) bool: the items that a loss over items tells targets apart from; None: all of them."""
    found: Tensor | None = getattr(criterion, "trained", None)
    return found


class ItemCodes(nn.Module):
    """The codes of the catalogue, kept with the weights. Raises ValueError, if ``unique``, where items share an id."""

    def __init__(self, ids: CatalogueIds, *, unique: bool = True) -> None:
        super().__init__()
        self.ids, self.unique = ids, unique
        self.sizes, self.levels = ids.sizes, len(ids.sizes)
        self.first = tuple(int(each) for each in 1 + np.cumsum((0, *ids.sizes[:-1])))
        self.size = sum(ids.sizes)  # tokens of codes
        self._part: tuple[Tensor, PrefixTree, Tensor] | None = None
        self.codes: Tensor
        self.register_buffer("codes", torch.from_numpy(ids.codes.copy()))

    @property
    def tokens(self) -> Tensor:
        """(I + 1, L): tokens of every item, ``size + 1 + l`` at level l where it has no id, 0 for padding."""
        device = self.codes.device
        tokens = self.codes + torch.tensor(self.first, device=device)
        unknown = torch.arange(self.size + 1, self.size + 1 + self.levels, device=device)
        tokens = torch.where(self.codes >= 0, tokens, unknown)
        return tokens * (torch.arange(len(tokens), device=device) > 0)[:, None]

    @property
    def known(self) -> Tensor:
        """(I + 1,) bool: which items have an id; others can be no target."""
        return self.codes[:, 0] >= 0

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,) items that have an id; places here are the rows of the tree."""
        return np.flatnonzero(self.codes[:, 0].cpu().numpy() >= 0)

    @cached_property
    def tree(self) -> PrefixTree:
        """Over the items that have an id. Raises ValueError where some share one and none may."""
        codes = self.codes.cpu().numpy()[self.rows]
        return PrefixTree.build(codes, self.sizes, source=self.ids.source, shared=not self.unique)

    @cached_property
    def row_of(self) -> Tensor:
        """(I + 1,) row of the tree of every item, -1 without one."""
        row = np.full(len(self.codes), -1, np.int64)
        row[self.rows] = np.arange(len(self.rows))
        return torch.from_numpy(row)

    def tree_of(self, items: Tensor | None) -> tuple[PrefixTree, Tensor]:
        """The tree over those of ``items`` (I + 1,) bool that have an id, None: all; and the rows (I + 1,) in it.

        That of the items asked for last is kept.
        """
        if items is None:
            return self.tree, self.row_of
        if self._part is None or self._part[0] is not items:
            inside = self.rows[items.cpu().numpy()[self.rows]]
            row = np.full(len(self.codes), -1, np.int64)
            row[inside] = np.arange(len(inside))
            tree = PrefixTree.build(self.codes.cpu().numpy()[inside], self.sizes, shared=not self.unique)
            self._part = items, tree, torch.from_numpy(row)
        return self._part[1:]

    def forget(self) -> None:
        """After other codes were loaded."""
        self._part = None
        for name in ("rows", "tree", "row_of"):
            self.__dict__.pop(name, None)

    def described(self) -> dict[str, Any]:
        """What a bundle says of them."""
        return replace(self.ids, codes=self.codes.cpu().numpy()).to_dict()

    def check(self, digest: str) -> None:
        """Raises ValueError unless the codes are those with this digest."""
        if (found := self.described()["digest"]) != digest:
            raise ValueError(
                f"the weights were saved with the ids {found[:12]}, beside them is written {digest[:12]}; they do not "
                "belong together: train the model again"
            )
