"""iALS: matrix factorisation for implicit feedback by alternating least squares.

Papers: Hu, Koren, Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008 (doi
10.1109/ICDM.2008.22), in the form of Rendle, Krichene, Zhang, Koren, Revisiting the Performance of iALS on Item
Recommendation Benchmarks, RecSys 2022 (arXiv 2110.14037).

The score of item i for user u is ŷ = ⟨w_u, h_i⟩. With S the pairs that have events, α₀ the weight of all pairs, and the
regularisation scaled by frequency (eq. 3 to 5), alternating least squares minimise

    Σ_S (ŷ − 1)² + α₀ Σ_ui ŷ² + λ (Σ_u (|S_u| + α₀ I)^ν ‖w_u‖² + Σ_i (|S_i| + α₀ U)^ν ‖h_i‖²)

from factors drawn with the deviation σ / √D.

Differences: every user, of training too, gets his factors from his history with the items fixed (the step of users), so
that no users are stored. Where events have weights, the term of a pair in the first sum has the largest weight of the
pair over their mean in training, and so count |S_u| and |S_i|.

Shapes: U users, I items, D width, B batch, T time, P pairs of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import distinct_items, user_item_pairs
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress

ELEMENTS = 1 << 23  # of the systems of equations solved at once, and of the factors of their pairs
SPREAD = 1.2  # ratio of the numbers of pairs of the rows of a batch


class IALS(ClosedForm):
    """Matrix factorisation for implicit feedback by alternating least squares."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the factors and of the regularisation.

        ``penalty``: λ. ``exponent``: ν, 1 scales it by the frequency, 0 is plain. ``unobserved_weight``: α₀.
        ``deviation``: σ.
        """

        dim: int = 128
        penalty: float = 0.005
        exponent: float = 1.0
        unobserved_weight: float = 0.1
        deviation: float = 0.1
        epochs: int = 16

        def __post_init__(self) -> None:
            check_at_least(1, self, "dim", "epochs")
            check_at_least(0, self, "exponent")
            for name in ("penalty", "unobserved_weight", "deviation"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")

    takes_weights = True
    dense_queries = True
    config: Config
    items: Tensor
    mean_weight: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("items", torch.zeros(n_items + 1, config.dim))
        self.register_buffer("mean_weight", torch.ones(()))  # of the pairs of training

    def fit(self, train: Sequences) -> None:
        """Fit the item factors (I + 1, D) by ``epochs`` of alternating least squares."""
        with progress(self.config.epochs, "train", unit="epochs") as bar:
            for change in self.epochs(train):
                bar.add(1, change=change)

    def epochs(self, train: Sequences) -> Iterator[float]:
        """Train and yield the root mean square change of the item factors per epoch; the model is usable after each."""
        pairs = user_item_pairs(train, self.n_items, self.device)
        weight = pairs.relative_weight()
        weight = torch.ones(len(pairs), device=self.device) if weight is None else weight
        if pairs.weight is not None and len(pairs):
            self.mean_weight = pairs.weight.double().mean().float()
        of_users = Rows(pairs.user, pairs.item, weight, pairs.users)
        of_items = Rows(pairs.item, pairs.user, weight, pairs.width)
        start = nn.init.normal_(
            torch.empty(pairs.width, self.config.dim), std=self.config.deviation / self.config.dim**0.5
        )
        start[0] = 0.0
        self.items = start.to(self.device)
        for _ in range(self.config.epochs):
            before, users = self.items, self.solve(of_users, self.items, self.n_items)
            self.items = self.solve(of_items, users, pairs.users)
            yield float((self.items - before).square().mean().sqrt())

    def solve(self, rows: Rows, others: Tensor, n_others: int) -> Tensor:
        """Return the factors (rows, D) of all users or items with the ``others`` fixed; 0 for rows without pairs."""
        factors = torch.zeros(len(rows), self.config.dim, device=others.device)
        gram = others.T @ others
        for index, columns_BP, weights_BP in rows.batches(max(ELEMENTS // self.config.dim**2, 1)):
            factors[index] = self.factors_of(columns_BP, weights_BP, others, gram, n_others)
        return factors

    def factors_of(self, columns_BP: Tensor, weights_BP: Tensor, others: Tensor, gram: Tensor, n_others: int) -> Tensor:
        """Return the factors (B, D) of rows with pairs ``columns_BP``; ``gram`` (D, D) is of all ``others``."""
        config, dim = self.config, self.config.dim
        frequency = weights_BP.sum(1) + config.unobserved_weight * n_others
        normal = (config.unobserved_weight * gram).repeat(len(columns_BP), 1, 1)
        normal.diagonal(dim1=1, dim2=2).add_((config.penalty * frequency**config.exponent)[:, None])
        target = normal.new_zeros(len(columns_BP), dim)
        step = max(ELEMENTS // max(len(columns_BP) * dim, 1), 1)
        for columns, weights in zip(columns_BP.split(step, 1), weights_BP.split(step, 1), strict=True):
            factors_BPD = F.embedding(columns, others)
            weighted_BPD = factors_BPD * weights[..., None]
            normal.baddbmm_(weighted_BPD.transpose(1, 2), factors_BPD)
            target += weighted_BPD.sum(1)
        return torch.cholesky_solve(target[..., None], torch.linalg.cholesky(normal))[..., 0]

    def item_tables(self) -> dict[str, Tensor]:
        """Return the item factors (I + 1, D) as the table ``input``."""
        return {"input": self.items}

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return user factors (B, D), solved for the distinct items of each history with the item factors fixed."""
        items_BT, weights_BT = distinct_items(batch, self.n_items, "binary")
        if batch.weights is not None:
            weights_BT = weights_BT / self.mean_weight
        gram, step = self.items.T @ self.items, max(ELEMENTS // self.config.dim**2, 1)
        parts = zip(items_BT.split(step), weights_BT.split(step), strict=True)
        return torch.cat([self.factors_of(items, weights, self.items, gram, self.n_items) for items, weights in parts])

    def output_vectors(self) -> Tensor:
        """Return the item factors (I + 1, D)."""
        return self.items


class Rows:
    """Weighted pairs (n,) by row (user or item), in padded batches of rows with similar numbers of pairs."""

    def __init__(self, row: Tensor, column: Tensor, weight: Tensor, n_rows: int) -> None:
        order = torch.argsort(row, stable=True)
        self.columns, self.weights = column[order], weight[order]
        self.counts = torch.bincount(row, minlength=n_rows)
        self._first = self.counts.cumsum(0) - self.counts
        self._by_count = torch.argsort(self.counts, stable=True)[int((self.counts == 0).sum()) :]

    def __len__(self) -> int:
        return len(self.counts)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (B,) that have pairs, their columns (B, P) and weights (B, P), 0 at padding."""
        bucket = (self.counts[self._by_count].log() / math.log(SPREAD)).floor()
        sizes = torch.unique_consecutive(bucket, return_counts=True)[1].tolist()
        for index in (part for rows in self._by_count.split(sizes) for part in rows.split(self._limit(rows, size))):
            place = torch.arange(int(self.counts[index[-1]]), device=index.device)
            is_pair = place < self.counts[index][:, None]
            flat = torch.where(is_pair, self._first[index][:, None] + place, 0)
            yield index, torch.where(is_pair, self.columns[flat], 0), torch.where(is_pair, self.weights[flat], 0.0)

    def _limit(self, rows: Tensor, size: int) -> int:
        """Return the number of ``rows`` of a batch: ``size``, or fewer where they have many pairs."""
        return max(min(size, ELEMENTS // int(self.counts[rows[-1]])), 1)
