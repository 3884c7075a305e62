"""Item-to-item transition graph: how often an item directly follows another one in the training sequences.

A sparse matrix (I + 1, I + 1) in CSR layout with a row per item and an entry per edge. B batch, T time, I items,
E edges.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recpipe.data.sequences import Sequences
from recpipe.data.transitions import consecutive_items


def transition_counts(train: Sequences, n_items: int) -> csr_matrix:
    """Count transitions (I + 1, I + 1) float32 between consecutive events of a user; row: the first item, column: next.

    Where events have weights, a transition counts by the weight of its second event; with weight 0 there is none. An
    item may follow itself. Without consecutive events the matrix has no entries. Memory is for the edges and the events
    of one part of ``train``.
    """
    shape = (n_items + 1, n_items + 1)
    counts = csr_matrix(shape)
    for first, second, weights in consecutive_items(train):
        values = np.ones(len(first)) if weights is None else weights.astype(np.float64)
        counts += csr_matrix((values, (first, second)), shape)  # adds up equal pairs
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts.astype(np.float32)


def store_matrix(matrix: csr_matrix, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return row offsets (rows + 1,) int64, columns (E,) int32 and values (E,) float32 of a CSR matrix as buffers."""
    arrays = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
    offsets, columns, values = (torch.from_numpy(array).to(device) for array in arrays)
    return offsets, columns, values


def load_matrix(offsets: Tensor, columns: Tensor, values: Tensor) -> csr_matrix:
    """Return the square CSR matrix (I + 1, I + 1) of the buffers of ``store_matrix``, on the CPU."""
    size = len(offsets) - 1
    arrays = (values.cpu().numpy(), columns.cpu().numpy(), offsets.cpu().numpy())
    return csr_matrix(arrays, (size, size))


def last_known_items(items_BT: Tensor, n: int) -> Tensor:
    """Return the last ``n`` known items (B, n) of right-padded histories, the last one first; 0 where there are fewer.

    Items of the history that the vocabulary lacks are 0, as padding is, and are passed over.
    """
    is_known = items_BT > 0
    age_BT = is_known.flip(1).cumsum(1).flip(1) - 1  # 0 for the last known item
    last = items_BT.new_zeros(items_BT.shape[0], n + 1)  # the last column takes what is not among the last n
    place_BT = torch.where(is_known, age_BT.clamp(max=n), n)
    return last.scatter_(1, place_BT, items_BT)[:, :n]
