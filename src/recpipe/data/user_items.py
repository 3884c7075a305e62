"""Sets of items per user, flat: which items a user may get, or must not. U users, I items, n pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.data.sequences import Sequences


@dataclass(frozen=True)
class UserItems:
    """Items of every user: those of user u are ``items[offsets[u]:offsets[u + 1]]``; 0 and repeats have no effect."""

    offsets: NDArray[np.int64]  # (U + 1,)
    items: NDArray[np.integer]  # (n,) int32 or int64, 1..I

    @classmethod
    def of_pairs(cls, users: NDArray[np.integer], items: NDArray[np.integer], n_users: int) -> UserItems:
        """Build from pairs (n,) of a user's row and an item, in any order."""
        order = np.argsort(users, kind="stable")
        counts = np.bincount(users, minlength=n_users)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, items[order].astype(np.int64))

    @classmethod
    def of_histories(cls, histories: Sequences) -> UserItems:
        """Return all items of every history."""
        return cls(histories.offsets, histories.items)

    @classmethod
    def of_lists(cls, lists: Sequence[NDArray[np.integer]]) -> UserItems:
        """Build from an array of items (n,) for each user."""
        offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        items = np.concatenate(lists) if len(lists) else np.zeros(0, np.int64)
        return cls(offsets, items.astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> NDArray[np.int64]:
        """User's row (n,) of every item."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, rows: NDArray[np.integer]) -> UserItems:
        """Select the users ``rows`` (m,), with items int64."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return UserItems(offsets, self.items[index].astype(np.int64, copy=False))

    def joined(self, other: UserItems | None) -> UserItems:
        """Return the union of both for every user; ``other`` has as many users."""
        if other is None or not len(other.items):
            return self
        owner, items = np.concatenate([self.owner, other.owner]), np.concatenate([self.items, other.items])
        return UserItems.of_pairs(owner, items, len(self))

    def mask(self, n_items: int, device: torch.device | str = "cpu") -> Tensor:
        """Return (U, I + 1) bool: the items of each user; column 0 is False."""
        mask = torch.zeros(len(self), n_items + 1, dtype=torch.bool, device=device)
        mask[
            torch.from_numpy(self.owner).to(device),
            torch.from_numpy(self.items.astype(np.int64, copy=False)).to(device),
        ] = True
        mask[:, 0] = False
        return mask


Candidates = Tensor | UserItems
"""Items that may be recommended: bool (I + 1,) for all users, or those of each user."""


def candidates_of(candidates: Candidates | None, rows: NDArray[np.integer]) -> Candidates | None:
    """Return the candidates of the users ``rows`` (m,)."""
    return candidates.select(rows) if isinstance(candidates, UserItems) else candidates
