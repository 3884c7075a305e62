"""EASE: linear item-to-item model of the whole history, fitted in closed form (EASE^R).

Paper: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019 (arXiv 1905.03375).

B minimises ‖X − X B‖² + λ ‖B‖² with a zero diagonal, for the user × item matrix X. With P = (XᵀX + λ 1)⁻¹ it is B = 1 −
P diag(1 / diag P), and a user with row x is scored by x B.

P is dense: memory grows with I², time with I³. Only one matrix of I² float64 numbers is in memory, which LAPACK inverts
in place, and then the weights as float32.

Differences: every user is scored from his history, so that no training users are stored. X holds events, scaled by
``scaling``; where events have weights, binary is the largest weight of a pair.

Shapes: I items, U users, B batch, T time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import distinct_items, user_item_pairs
from recpipe.layers.item_pairs import BLOCK, check_memory, gram_matrix, user_item_matrix
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress

BYTES = 12  # of an entry of the item × item matrices in training: float64, and float32 of the weights
STEPS = 4  # of the progress bar


class EASE(ClosedForm):
    """Linear model of the whole history, fitted in closed form."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the ridge regression.

        ``penalty``: λ. ``scaling``: of X, binary: 1, log: ln(1 + c) for c events, count: c. ``memory_gib``: limit of
        the item × item matrices in training, 12 I² bytes.
        """

        penalty: float = 500.0
        scaling: str = "binary"
        memory_gib: float = 4.0

        def __post_init__(self) -> None:
            check_choices(self, scaling=("binary", "log", "count"))
            for name in ("penalty", "memory_gib"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")

    takes_weights = True
    config: Config
    weights: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("weights", torch.zeros(1, 1))  # B (I + 1, I + 1), row and column 0 are padding

    def fit(self, train: Sequences) -> None:
        """Compute the item × item weights (I + 1, I + 1) from training events.

        Raises ValueError if the matrices exceed ``memory_gib`` or the regularised Gram matrix has no inverse.
        """
        check_memory(self.n_items, BYTES, self.config.memory_gib, model="ease")
        pairs = user_item_pairs(train, self.n_items, torch.device("cpu"))
        with progress(STEPS, "train", unit="steps") as bar:
            gram = gram_matrix(user_item_matrix(pairs, self.config.scaling), np.float64)
            bar.add(1)
            gram.flat[:: len(gram) + 1] += self.config.penalty
            factor, failed = lapack.dpotrf(gram.T, lower=1, overwrite_a=1)  # .T: Fortran order, symmetric
            bar.add(1)
            inverse, failed_too = lapack.dpotri(factor, lower=1, overwrite_c=1)
            if failed or failed_too:
                raise ValueError(f"the matrix of item pairs has no inverse for penalty {self.config.penalty}; raise it")
            bar.add(1)
            self.weights = torch.from_numpy(regression_weights(inverse)).to(self.device)
            bar.add(1)

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): sums over a user's distinct items of their scaled counts times their weights."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        items_BT, values_BT = distinct_items(batch, self.n_items, self.config.scaling)
        return F.embedding_bag(items_BT, self.weights, per_sample_weights=values_BT, mode="sum")


def regression_weights(inverse: np.ndarray) -> np.ndarray:
    """Return B (I + 1, I + 1) float32 with a zero diagonal for the lower triangle of P (I, I) in Fortran order."""
    size = len(inverse)
    weights, diagonal = np.zeros((size + 1, size + 1), np.float32), inverse.diagonal()
    for first in range(0, size, step := max(BLOCK // max(size, 1), 1)):
        rows = slice(first, min(first + step, size))
        block = np.tril(inverse[rows], first)  # columns up to the diagonal
        block += np.tril(inverse[:, rows], -first - 1).T  # and those behind it
        weights[1:][rows, 1:] = -block / diagonal
    np.fill_diagonal(weights, 0.0)
    return weights
