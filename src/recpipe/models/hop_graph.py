"""Hop graph: nearest items in the graph of item transitions; no parameters are learned.

Paper: Han et al., An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential
Recommendation, 2026 (arXiv 2605.07125), there TGH-1 (last item) and TGH-2 (last two items).

An edge leads from an item to each one that directly follows it in training. Ring h of an item has the items that are h
edges away and no fewer. The sources are the latest items of the history. ``budgets`` says how many items a list takes
of each ring of each source.

In ring 1 items are ordered by cos(v_i, v_j) + w ln(1 + c_ij) / max_j ln(1 + c_ij), with content vectors v, edge counts
c and the weight w; in further rings by cos(v_i, v_j).

Differences:

- Without content vectors (``side.vectors: none``) rings are ordered by the probability of the paths to an item, the
  product of c_ij / Σ_j c_ij along them.
- At most ``neighbours`` items of a ring are stored.
- Items of a ring beyond its budget follow all budgets, and a ring with fewer items than its budget leaves its places to
  those behind.
- Items in no ring follow by popularity, where the paper draws at random. Equal items are in the fixed random order of
  ties.

Shapes: I items, B batch, S sources, H hops (rings), K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags_array, eye_array
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.side import Side
from recpipe.layers.top_k import tie_order
from recpipe.layers.transition_graph import last_known_items, transition_counts
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress

PATHS = 1 << 22  # paths of two edges from a block of items, and entries of a ring whose cosines are computed at once


class HopGraph(ClosedForm):
    """Graph heuristic: scores items by the ring of the latest items in which they are, and their place there."""

    @dataclass(frozen=True)
    class Config:
        """Settings of rings and budgets.

        ``budgets``: items that a list takes of ring 1, ring 2, ... of the last item, then of the item before it, and so
        on. ``edge_weight``: w, no effect without content vectors. ``neighbours``: items stored of each ring.
        """

        budgets: Sequence[Sequence[int]] = ((5, 1), (3, 1))
        edge_weight: float = 0.5
        neighbours: int = 50

        def __post_init__(self) -> None:
            budgets = tuple(tuple(rings) for rings in self.budgets)
            if not budgets or not all(rings and min(rings) >= 0 for rings in budgets):
                raise ValueError(
                    f"budgets is {self.budgets!r}; each source needs one number per ring, none below 0, as [[7, 2, 1]]"
                )
            object.__setattr__(self, "budgets", budgets)
            check_at_least(1, self, "neighbours")
            check_at_least(0, self, "edge_weight")

        @property
        def hops(self) -> int:
            """Number of rings (H)."""
            return max(len(rings) for rings in self.budgets)

        def places(self) -> np.ndarray:
            """Return the place (S, H, K) in a list of the k-th item of each ring; -1 for rings that are not read."""
            places = np.full((len(self.budgets), self.hops, self.neighbours), -1)
            rank, first = np.arange(self.neighbours), 0
            behind = sum(map(sum, self.budgets))  # of all budgets
            for source, rings in enumerate(self.budgets):
                for hop, budget in enumerate(rings):
                    places[source, hop] = np.where(rank < budget, first + rank, behind + rank)
                    first, behind = first + budget, behind + self.neighbours
            return places

    takes_side = True
    takes_weights = True
    config: Config
    near: Tensor
    popularity: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        if side is not None:
            side.config.check_vectors_only("hop_graph")
        near = torch.zeros(n_items + 1, config.hops, config.neighbours, dtype=torch.int32)  # (I + 1, H, K), 0: none
        self.register_buffer("near", near)
        self.register_buffer("popularity", torch.zeros(n_items + 1))  # in 0..1, excluding 1

    def fit(self, train: Sequences) -> None:
        """Store the nearest items (I + 1, H, K) of every ring and the popularity (I + 1,) of items."""
        counts, order = transition_counts(train, self.n_items), tie_order(self.n_items + 1).numpy()
        near = np.zeros(self.near.shape, np.int32)
        vectors = self._vectors()
        with progress(self.n_items + 1, "train", unit="items") as bar:
            for rows, hop, paths in rings(counts, self.config.hops):
                ring = (
                    paths if vectors is None else self._with_cosines(paths, rows, vectors, counts if hop == 0 else None)
                )
                near[rows, hop] = best_of_rows(ring, self.config.neighbours, order)
                bar.add(len(rows) if hop == 0 else 0)
        events = np.bincount(train.items, train.weights, minlength=self.n_items + 1).astype(np.float64)
        self.near = torch.from_numpy(near).to(self.device)
        popularity = events / np.nextafter(max(events.max(), 1e-30), np.inf) * (1 - 2**-20)
        self.popularity = torch.from_numpy(popularity.astype(np.float32)).to(self.device)

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): points of at least 1 by place for ring items, popularity below 1 for others."""
        places = torch.from_numpy(self.config.places()).to(self.device)  # (S, H, K)
        sources_BS = last_known_items(batch.items, len(places))
        near = self.near[sources_BS].long()  # (B, S, H, K)
        points = (places.max() + 1 - places).float()  # at least 1: above popularity
        points = torch.where((near > 0) & (places >= 0), points, 0.0)
        scores = self.popularity.repeat(len(sources_BS), 1)
        return scores.scatter_reduce_(1, near.flatten(1), points.flatten(1), "amax")

    def _vectors(self) -> np.ndarray | None:
        """Return unit content vectors (I + 1, V), the concatenation of all kinds; None without."""
        values = [] if self.side is None else [self.side.values.get(f"vectors.{kind}") for kind in self.side.widths]
        tables = [F.normalize(torch.from_numpy(table[:, :-1])) for table in values if table is not None]
        return torch.cat(tables, 1).div_(len(tables) ** 0.5).numpy() if tables else None

    def _with_cosines(
        self, ring: csr_matrix, rows: np.ndarray, vectors: np.ndarray, counts: csr_matrix | None
    ) -> csr_matrix:
        """Return ``ring`` (n, I + 1) of items ``rows`` with cosines as values, plus the weights of edges."""
        row = np.repeat(np.arange(len(rows)), np.diff(ring.indptr))
        parts = np.array_split(np.arange(len(row)), -(-max(len(row), 1) * vectors.shape[1] // PATHS))
        values = np.concatenate(
            [np.einsum("nv,nv->n", vectors[rows[row[part]]], vectors[ring.indices[part]]) for part in parts]
        )
        if counts is not None:
            logs = counts[rows].log1p()
            largest = np.maximum(logs.max(1).toarray().ravel(), 1e-30)
            values += self.config.edge_weight * logs.data / largest[row]
        return csr_matrix((values, ring.indices, ring.indptr), ring.shape)


def rings(counts: csr_matrix, hops: int) -> Iterator[tuple[np.ndarray, int, csr_matrix]]:
    """Yield items (n,), hop from 0, and the ring (n, I + 1) of these items with the probability of the paths to it.

    Items come in blocks with about ``PATHS`` paths of two edges.
    """
    degree = np.diff(counts.indptr)
    total = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    step = (diags_array(1 / np.where(total > 0, total, 1)) @ counts).tocsr()
    step.sort_indices()  # as those of counts
    paths = np.cumsum((counts != 0).astype(np.int64) @ degree + counts.shape[1] // 64)
    block_of = paths // PATHS
    for rows in np.split(np.arange(len(block_of)), np.flatnonzero(np.diff(block_of)) + 1):
        walk = step[rows]
        visited = (walk != 0).astype(np.int8)
        yield rows, 0, walk
        visited = visited + eye_array(counts.shape[0], dtype=np.int8, format="csr")[rows]
        for hop in range(1, hops):
            walk = walk @ step
            walk = (walk - walk.multiply(visited != 0)).tocsr()
            walk.eliminate_zeros()
            yield rows, hop, walk
            visited = visited + (walk != 0).astype(np.int8)


def best_of_rows(matrix: csr_matrix, k: int, order: np.ndarray) -> np.ndarray:
    """Return the columns (n, k) int32 of the greatest entries of each row, greatest first; 0 where there are fewer.

    Of equal entries the column with the lower ``order`` comes first.
    """
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    values = matrix.data.astype(np.float32)  # equal, where sums of float64 differ by their order only
    by_value = np.lexsort((order[matrix.indices], -values, row))
    row, column = row[by_value], matrix.indices[by_value]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    best = np.zeros((matrix.shape[0], k), np.int32)
    is_best = rank < k
    best[row[is_best], rank[is_best]] = column[is_best]
    return best
