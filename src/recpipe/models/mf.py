"""Matrix factorisation by gradient, with squared loss or BPR; the score is the product of user and item factors.

- squared: PMF (Salakhutdinov & Mnih, Probabilistic Matrix Factorization, NIPS 2007) of events: a pair of training has
  the value 1, each of the ``negatives`` items drawn for it the value 0.
- bpr: Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009: a pair shall score higher
  than each item drawn for it.

Deviation: a history carries no name, so every user, known or new, is folded in, and a bundle holds no users. For
squared the factors are the minimum of the training loss of that history with the items held: a ridge regression, the
drawn items being replaced by their expectation. The minimum of bpr has no closed form; there the factors are a linear
map of the sum of the items over the root of their number: the ridge regression of trained users on their histories.

B batch, T time, I items, U users, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import PairBatches, Pairs, counts_of, pairs_of
from recpipe.models.recommender import Scorer
from recpipe.progress import progress

LOSSES = ("squared", "bpr")
RIDGE = 1e-3  # of the map from histories to factors, in mean squares of what it reads
SYSTEMS = 1 << 24  # elements of the equations solved at once


class MF(Scorer):
    """Trained by its own loop: a step is a sample of pairs, and a user has factors of his own while it runs."""

    @dataclass(frozen=True)
    class Config:
        """``batch`` pairs make a step; ``penalty`` weighs the squared length of the factors of a pair and of what is
        drawn for it, halved.
        """

        loss: str = "squared"
        dim: int = 64
        negatives: int = 4
        learning_rate: float = 5e-3
        batch: int = 2048
        penalty: float = 0.05
        epochs: int = 10

        def __post_init__(self) -> None:
            if self.loss not in LOSSES:
                raise ValueError(f"mf.loss is {self.loss!r}; allowed: {', '.join(LOSSES)}")
            for name in ("dim", "negatives", "batch", "epochs"):
                if getattr(self, name) < 1:
                    raise ValueError(f"mf.{name} is {getattr(self, name)}; it must be at least 1")
            if self.penalty <= 0:
                raise ValueError(f"mf.penalty is {self.penalty}; it must be greater than 0")

    closed_form = True
    probabilistic = False
    config: Config
    items: Tensor
    fold: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("items", torch.zeros(n_items + 1, config.dim))
        rows = config.dim + (config.loss == "bpr")
        self.register_buffer("fold", torch.eye(rows, config.dim))  # what fold-in needs besides the items

    def fit(self, train: Sequences) -> None:
        with progress(self.config.epochs, "train", unit="epochs") as bar:
            for loss in self.epochs(train):
                bar.add(1, loss=loss)

    def epochs(self, train: Sequences) -> Iterator[float]:
        """Trains; yields the mean loss of each epoch, after which the model can be asked."""
        config, pairs = self.config, pairs_of(train, self.n_items, self.device)
        tables = [nn.init.normal_(torch.empty(n, config.dim), std=0.1) for n in (pairs.users, pairs.width)]
        users_UD, items_ID = (table.to(self.device).requires_grad_() for table in tables)
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
        batches = PairBatches(pairs, size=config.batch, negatives=config.negatives, generator=generator)
        optimiser = torch.optim.Adam([users_UD, items_ID], config.learning_rate, fused=True)
        for _ in range(config.epochs):
            total = torch.zeros((), device=self.device)
            for user, item, negatives in batches:
                optimiser.zero_grad()
                offered = torch.cat([item[:, None], negatives], 1)  # (B, 1 + negatives)
                loss = self._loss(F.embedding(user, users_UD), F.embedding(offered, items_ID))
                loss.backward()
                optimiser.step()
                total += loss.detach() * (len(user) / len(pairs))
            self._publish(users_UD.detach(), items_ID.detach(), pairs)
            yield float(total)

    def _loss(self, user_BD: Tensor, offered_BND: Tensor) -> Tensor:
        scores = (user_BD[:, None] * offered_BND).sum(2)
        if self.config.loss == "bpr":
            misfit = F.softplus(scores[:, 1:] - scores[:, :1]).sum(1)
        else:
            misfit = (scores[:, 0] - 1).square() + scores[:, 1:].square().sum(1)
        squares = user_BD.square().sum(1) + offered_BND.square().sum((1, 2))
        return (misfit + self.config.penalty / 2 * squares).mean()

    def _publish(self, users_UD: Tensor, items_ID: Tensor, pairs: Pairs) -> None:
        config, self.items = self.config, items_ID.clone()
        self.items[0] = 0.0
        one = torch.eye(config.dim, device=self.device)
        if config.loss == "squared":
            gram = self.items.T @ self.items
            self.fold = config.negatives / self.n_items * gram + config.penalty / 2 * one
        else:
            held = torch.bincount(pairs.user, minlength=pairs.users)
            sums = pairs.matrix(torch.ones_like(pairs.count)) @ self.items
            read = _with_one(sums, held[:, None])
            gram = read.T @ read
            gram.diagonal().add_(RIDGE * gram.diagonal().mean())
            self.fold = torch.linalg.solve(gram, read.T @ users_UD)

    def item_tables(self) -> dict[str, Tensor]:
        return {"input": self.items}

    def score(self, batch: Batch) -> Tensor:
        step = max(SYSTEMS // self.config.dim**2, 1)
        return torch.cat([self.user(part) for part in batch.items.split(step)]) @ self.items.T

    def user(self, items_BT: Tensor) -> Tensor:
        """Factors (B, D) of the distinct items of right-padded histories."""
        times = counts_of(items_BT, self.n_items).gather(1, items_BT)
        once = torch.where(items_BT > 0, 1 / times.clamp(min=1), 0)  # repeated events share one weight
        read_BTD = F.embedding(items_BT, self.items)
        weighted = read_BTD * once[:, :, None]
        sums, held = weighted.sum(1), once.sum(1)[:, None]
        if self.config.loss == "bpr":
            return _with_one(sums, held) @ self.fold
        normal = weighted.transpose(1, 2) @ read_BTD + held.clamp(min=1)[:, :, None] * self.fold
        return torch.linalg.solve(normal, sums)


def _with_one(sums: Tensor, held: Tensor) -> Tensor:
    """What the map reads of histories: Σ q / √n, and 1 for its constant."""
    return torch.cat([sums / held.clamp(min=1).sqrt(), torch.ones_like(sums[:, :1])], 1)
