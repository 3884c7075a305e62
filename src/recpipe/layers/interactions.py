"""The user × item matrix of models that do not look at order. U users, I items, B batch, T time, N distinct pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.data.sequences import Sequences


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, item) pairs of training, sorted by both; ``item`` is 1-based like everywhere."""

    user: Tensor  # (N,) int64
    item: Tensor  # (N,) int64
    count: Tensor  # (N,) float32, events of the pair
    users: int
    width: int  # I + 1

    def __len__(self) -> int:
        return len(self.user)

    def matrix(self, values: Tensor) -> Tensor:
        """CSR (U, I + 1) with ``values`` (N,)."""
        return csr(self.user, self.item, values, (self.users, self.width))

    def by_item(self, values: Tensor) -> Tensor:
        """The transpose of ``matrix``, CSR (I + 1, U)."""
        return csr(self.item, self.user, values, (self.width, self.users))


def pairs_of(train: Sequences, n_items: int, device: torch.device) -> Pairs:
    """The pairs of all events in ``train``."""
    owner = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
    keys, counts = np.unique(owner * (n_items + 1) + train.items, return_counts=True)
    found = torch.from_numpy(keys).to(device)
    count = torch.from_numpy(counts.astype(np.float32)).to(device)
    return Pairs(found // (n_items + 1), found % (n_items + 1), count, len(train), n_items + 1)


def counts_of(items_BT: Tensor, n_items: int) -> Tensor:
    """(B, I + 1) events of each item in each right-padded history; column 0 is 0."""
    counts = torch.zeros(len(items_BT), n_items + 1, device=items_BT.device)
    return counts.scatter_add_(1, items_BT, (items_BT > 0).float())


def csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A compressed sparse matrix; values of equal places are added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        whole = torch.sparse_coo_tensor(torch.stack([row, column]), values, shape, check_invariants=False)
        return whole.coalesce().to_sparse_csr()


class PairBatches:
    """Every pair once per epoch in random order, each with ``negatives`` uniform items its user has no event of.

    An item that the user does have is drawn again, up to ``TRIES`` times; who has nearly the whole catalogue may
    keep one.
    """

    TRIES = 8

    def __init__(self, pairs: Pairs, *, size: int, negatives: int, generator: torch.Generator) -> None:
        self.pairs, self.size, self.generator = pairs, size, generator
        self._owner = pairs.user[:, None].expand(-1, negatives) * pairs.width
        self._keys = pairs.user * pairs.width + pairs.item

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields users (n,), items (n,) and negatives (n, negatives)."""
        negatives = self._negatives()
        order = torch.randperm(len(self.pairs), generator=self.generator).to(self._keys.device)
        for chosen in order.split(self.size):
            yield self.pairs.user[chosen], self.pairs.item[chosen], negatives[chosen]

    def _negatives(self) -> Tensor:
        """For all pairs at once: in the order of the keys a search stays in cache."""
        drawn = self._draw(self._owner.numel()).view_as(self._owner)
        for _ in range(self.TRIES):
            keys = self._owner + drawn
            place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
            known = self._keys[place] == keys
            drawn[known] = self._draw(int(known.sum()))
        return drawn

    def _draw(self, n: int) -> Tensor:
        return torch.randint(1, self.pairs.width, (n,), generator=self.generator).to(self._keys.device)
