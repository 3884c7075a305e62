"""LightGCN: He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020.

Embeddings of users and items E⁰ are smoothed over the graph of who had what, E^(l+1) = D^-½ A D^-½ E^l (eq. 7), and
averaged over the layers l = 0..L (eq. 8); the score is the product of user and item. Trained by BPR with one negative
for every pair and L2 on E⁰ (eq. 15). N nodes (users, then items), D width, B batch, I items.

Deviations: a history carries no name, so a user, known or new, is made of the history that is asked about by one
propagation, e_u^l = Σ_i e_i^(l-1) / √(n_u n_i) with n the degrees and e_u⁰ = 0, and a bundle holds no users.
``user_embeddings: false`` trains without E⁰ of users as well, so that what is served is what was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import PairBatches, Pairs, counts_of, csr, pairs_of
from recpipe.models.recommender import Scorer
from recpipe.progress import progress


class LightGCN(Scorer):
    """Trained by its own loop: a step is a sample of pairs and needs the graph of all of them."""

    @dataclass(frozen=True)
    class Config:
        """``batch`` pairs make a step; ``penalty`` weighs the mean squared length of the embeddings in it."""

        dim: int = 64
        layers: int = 2
        user_embeddings: bool = True
        learning_rate: float = 1e-3
        batch: int = 2048
        penalty: float = 1e-4
        epochs: int = 100

        def __post_init__(self) -> None:
            for name in ("dim", "layers", "batch", "epochs"):
                if getattr(self, name) < 1:
                    raise ValueError(f"lightgcn.{name} is {getattr(self, name)}; it must be at least 1")

    closed_form = True
    probabilistic = False
    config: Config
    items: Tensor
    given: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("items", torch.zeros(n_items + 1, config.dim))  # final embeddings
        self.register_buffer("given", torch.zeros(n_items + 1, config.dim))  # by an item to who has it

    def fit(self, train: Sequences) -> None:
        with progress(self.config.epochs, "train", unit="epochs") as bar:
            for loss in self.epochs(train):
                bar.add(1, loss=loss)

    def epochs(self, train: Sequences) -> Iterator[float]:
        """Trains; yields the mean loss of each epoch, after which the model can be asked."""
        config, pairs = self.config, pairs_of(train, self.n_items, self.device)
        graph = adjacency(pairs)
        ego_ND = torch.empty(len(graph), config.dim, device=self.device)
        ego_ND.copy_(nn.init.normal_(torch.empty(ego_ND.shape), std=0.1))
        if not config.user_embeddings:
            ego_ND[: pairs.users] = 0.0
        ego_ND.requires_grad_()
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
        batches = PairBatches(pairs, size=config.batch, negatives=1, generator=generator)
        optimiser = torch.optim.Adam([ego_ND], config.learning_rate, fused=True)
        for _ in range(config.epochs):
            total = torch.zeros((), device=self.device)
            for user, item, negative in batches:
                optimiser.zero_grad()
                nodes = torch.stack([user, item + pairs.users, negative[:, 0] + pairs.users])  # (3, B)
                loss = self.bpr(ego_ND, graph, nodes)
                loss.backward()
                if not config.user_embeddings and ego_ND.grad is not None:
                    ego_ND.grad[: pairs.users] = 0.0
                optimiser.step()
                total += loss.detach() * (len(user) / len(pairs))
            self._publish(ego_ND.detach(), graph, pairs)
            yield float(total)

    def bpr(self, ego_ND: Tensor, graph: Tensor, nodes: Tensor) -> Tensor:
        """Equation 15 of ``nodes`` (3, B): users, their items and what was drawn; per pair."""
        user, item, negative = F.embedding(nodes, propagate(ego_ND, graph, self.config.layers))
        bpr = F.softplus((user * (negative - item)).sum(1)).mean()
        times = torch.bincount(nodes.flatten(), minlength=len(ego_ND))
        squares = ego_ND.square().sum(1) @ times.to(ego_ND.dtype)
        return bpr + self.config.penalty * squares / (2 * nodes.shape[1])

    def _publish(self, ego_ND: Tensor, graph: Tensor, pairs: Pairs) -> None:
        """The tables of which ``score`` is made."""
        L = self.config.layers
        below_ND = propagate(ego_ND, graph, L - 1) * (L / (L + 1))  # Σ of layers 0..L-1, over L + 1
        degree = torch.bincount(pairs.item, minlength=pairs.width).clamp(min=1)
        self.given = below_ND[pairs.users :] / degree.sqrt()[:, None]
        self.items = propagate(ego_ND, graph, L)[pairs.users :]

    def item_tables(self) -> dict[str, Tensor]:
        return {"input": self.given, "output": self.items}

    def score(self, batch: Batch) -> Tensor:
        held = (counts_of(batch.items, self.n_items) > 0).float()
        users_BD = (held @ self.given) / held.sum(1, keepdim=True).clamp(min=1).sqrt()
        return users_BD @ self.items.T


def adjacency(pairs: Pairs) -> Tensor:
    """D^-½ A D^-½ of the bipartite graph, CSR (N, N): users, then item 0 (which has no edge) to I."""
    nodes = pairs.users + pairs.width
    one, other = pairs.user, pairs.item + pairs.users
    row, column = torch.cat([one, other]), torch.cat([other, one])
    degree = torch.bincount(row, minlength=nodes).float()
    return csr(row, column, (degree[row] * degree[column]).rsqrt(), (nodes, nodes))


def propagate(x_ND: Tensor, graph: Tensor, layers: int) -> Tensor:
    """Mean of ``graph``^l x over l = 0..layers; ``graph`` is symmetric."""
    mean: Tensor = _Propagation.apply(x_ND, graph, layers)
    return mean


class _Propagation(torch.autograd.Function):
    """A symmetric linear map, so its gradient is the same map of the gradient: no transpose, nothing kept."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, graph: Tensor, layers: int) -> Tensor:
        ctx.graph, ctx.layers = graph, layers
        total = x_ND.clone()
        for _ in range(layers):
            x_ND = graph @ x_ND
            total += x_ND
        return total.div_(layers + 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Propagation.forward(ctx, grad.contiguous(), ctx.graph, ctx.layers), None, None
