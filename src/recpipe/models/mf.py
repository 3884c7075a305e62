"""MF: matrix factorisation with squared loss or BPR; the score is the product of user and item factors.

Papers: Salakhutdinov, Mnih, Probabilistic Matrix Factorization, NIPS 2007 (``loss: squared``); Rendle, Freudenthaler,
Gantner, Schmidt-Thieme, BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009, arXiv 1205.2618 (``loss:
bpr``).

With squared loss the value is 1 for a training pair and 0 for each of its ``negatives``. With BPR a training pair is
ranked above each of its ``negatives``.

Differences: histories are anonymous, so the factors of every user are computed from his history, and no users are
stored. For squared they minimise the training loss of that history with fixed items (ridge regression; negatives enter
by their expectation). BPR has no closed form: the factors are a linear map of the sum of the items' factors divided by
the root of their number, fitted by ridge regression to the trained users. Squared loss is of events, not of ratings.
Adam in place of the papers' stochastic gradient descent. Where events have weights, the term of a pair, with its
negatives and penalty, has the largest weight of the pair over their mean; so has an item of a history for squared. The
map of BPR reads histories without weights.

Shapes: B batch, T time, I items, U users, N items of a pair (the positive one, then its negatives), D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import PairBatches, Pairs, item_counts, largest_weights, user_item_pairs
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress

RIDGE = 1e-3  # of the map from histories to factors, relative to the mean square of its inputs
SYSTEMS = 1 << 24  # elements of the systems of equations solved at once


class MF(ClosedForm):
    """Matrix factorisation, trained by its own loop on samples of pairs."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the factors and of training.

        ``batch``: pairs per step. ``penalty``: weight of half the squared norms of the factors of a step.
        """

        loss: str = "squared"
        dim: int = 64
        negatives: int = 4
        learning_rate: float = 5e-3
        batch: int = 2048
        penalty: float = 0.05
        epochs: int = 10

        def __post_init__(self) -> None:
            check_choices(self, loss=("squared", "bpr"))
            check_at_least(1, self, "dim", "negatives", "batch", "epochs")
            if self.penalty <= 0:
                raise ValueError(f"penalty is {self.penalty}; it must be greater than 0")

    takes_weights = True
    dense_queries = True
    config: Config
    items: Tensor
    fold: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("items", torch.zeros(n_items + 1, config.dim))
        self.register_buffer("fold", torch.eye(config.dim + (config.loss == "bpr"), config.dim))  # of ``user_factors``

    def fit(self, train: Sequences) -> None:
        """Train the factors for ``epochs`` and store those of items (I + 1, D)."""
        with progress(self.config.epochs, "train", unit="epochs") as bar:
            for loss in self.epochs(train):
                bar.add(1, loss=loss)

    def epochs(self, train: Sequences) -> Iterator[float]:
        """Train and yield the mean loss of each epoch; the model is usable after each."""
        config, pairs = self.config, user_item_pairs(train, self.n_items, self.device)
        tables = [nn.init.normal_(torch.empty(n, config.dim), std=0.1) for n in (pairs.users, pairs.width)]
        users_UD, items_ID = (table.to(self.device).requires_grad_() for table in tables)
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
        batches = PairBatches(pairs, size=config.batch, negatives=config.negatives, generator=generator)
        optimiser = torch.optim.Adam([users_UD, items_ID], config.learning_rate, fused=True)
        for _ in range(config.epochs):
            total = torch.zeros((), device=self.device)
            for user, item, negatives, weights in batches:
                optimiser.zero_grad()
                items = torch.cat([item[:, None], negatives], 1)  # (B, 1 + negatives)
                loss = self.pair_loss(F.embedding(user, users_UD), F.embedding(items, items_ID), weights)
                loss.backward()
                optimiser.step()
                total += loss.detach() * (len(user) / len(pairs))
            self.set_factors(users_UD.detach(), items_ID.detach(), pairs)
            yield float(total)

    def pair_loss(self, users_BD: Tensor, items_BND: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """Return the mean loss (scalar) of pairs of users (B, D) and items (B, N, D) with weights ``weights_B``.

        The first item of N is the positive one, the others are its negatives.
        """
        scores = (users_BD[:, None] * items_BND).sum(2)
        if self.config.loss == "bpr":
            error = F.softplus(scores[:, 1:] - scores[:, :1]).sum(1)
        else:
            error = (scores[:, 0] - 1).square() + scores[:, 1:].square().sum(1)
        squares = users_BD.square().sum(1) + items_BND.square().sum((1, 2))
        terms = error + self.config.penalty / 2 * squares
        return terms.mean() if weights_B is None else (weights_B * terms).mean()

    def set_factors(self, users_UD: Tensor, items_ID: Tensor, pairs: Pairs) -> None:
        """Store the item factors (I + 1, D) and fit the map from histories to the user factors (U, D)."""
        config, self.items = self.config, items_ID.clone()
        self.items[0] = 0.0
        if config.loss == "squared":
            one, gram = torch.eye(config.dim, device=self.device), self.items.T @ self.items
            self.fold = config.negatives / self.n_items * gram + config.penalty / 2 * one
        else:
            lengths = torch.bincount(pairs.user, minlength=pairs.users)
            sums = pairs.matrix(torch.ones_like(pairs.count)) @ self.items
            features = _history_features(sums, lengths[:, None])
            gram = features.T @ features
            gram.diagonal().add_(RIDGE * gram.diagonal().mean())
            self.fold = torch.linalg.solve(gram, features.T @ users_UD)

    def item_tables(self) -> dict[str, Tensor]:
        """Return the item factors (I + 1, D) as the table ``input``."""
        return {"input": self.items}

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return user factors (B, D), computed from histories."""
        step = max(SYSTEMS // self.config.dim**2, 1)
        weights = torch.ones_like(batch.items, dtype=torch.float32) if batch.weights is None else batch.weights
        parts = zip(batch.items.split(step), weights.split(step), strict=True)
        return torch.cat([self.user_factors(*part) for part in parts])

    def output_vectors(self) -> Tensor:
        """Return the item factors (I + 1, D)."""
        return self.items

    def user_factors(self, items_BT: Tensor, weights_BT: Tensor | None = None) -> Tensor:
        """Return factors (B, D) of users with right-padded histories; a repeated item has its largest weight, once."""
        counts = item_counts(items_BT, self.n_items).gather(1, items_BT)
        weights = torch.where(items_BT > 0, 1 / counts.clamp(min=1), 0)
        if weights_BT is not None and self.config.loss == "squared":
            weights = weights * largest_weights(items_BT, weights_BT, self.n_items).gather(1, items_BT)
        items_BTD = F.embedding(items_BT, self.items)
        weighted = items_BTD * weights[:, :, None]
        sums, lengths = weighted.sum(1), weights.sum(1)[:, None]
        if self.config.loss == "bpr":
            return _history_features(sums, lengths) @ self.fold
        lengths = torch.where(lengths > 0, lengths, 1)
        normal = weighted.transpose(1, 2) @ items_BTD + lengths[:, :, None] * self.fold
        return torch.linalg.solve(normal, sums)


def _history_features(sums: Tensor, lengths: Tensor) -> Tensor:
    """Inputs of the map from histories to factors: Σ q / √n, and 1 for the intercept."""
    return torch.cat([sums / lengths.clamp(min=1).sqrt(), torch.ones_like(sums[:, :1])], 1)
