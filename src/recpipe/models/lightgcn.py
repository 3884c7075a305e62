"""LightGCN: user and item embeddings smoothed over the graph of events.

Paper: He, Deng, Wang, Li, Zhang, Wang, LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation,
SIGIR 2020 (arXiv 2002.02126).

Embeddings of users and items E⁰ are smoothed over the bipartite graph, E^(l+1) = D^-½ A D^-½ E^l (eq. 7), and averaged
over the layers l = 0..L (eq. 8); the score is the product of user and item. Trained by BPR with one negative for every
pair and L2 on E⁰ (eq. 15).

Differences: two layers by default (paper: one to four, three suffice); histories are anonymous, so every user is
computed from his history by one propagation, e_u^l = Σ_i e_i^(l-1) / √(n_u n_i) with n the degrees and e_u⁰ = 0, and no
users are stored. ``user_embeddings: false`` trains without E⁰ of users, too, so that training and serving agree. Where
events have weights, the BPR term of a pair has the largest weight of the pair over their mean; the graph and histories
have none.

Shapes: N nodes (users, then items), D width, B batch, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import PairBatches, Pairs, csr, item_counts, user_item_pairs
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress


class LightGCN(ClosedForm):
    """Graph convolution, trained by its own loop on samples of pairs."""

    @dataclass(frozen=True)
    class Config:
        """Settings of propagation and training.

        ``batch``: pairs per step. ``penalty``: weight of L2 on the embeddings of a step.
        """

        dim: int = 64
        layers: int = 2
        user_embeddings: bool = True
        learning_rate: float = 1e-3
        batch: int = 2048
        penalty: float = 1e-4
        epochs: int = 100

        def __post_init__(self) -> None:
            check_at_least(1, self, "dim", "layers", "batch", "epochs")

    takes_weights = True
    dense_queries = True
    config: Config
    items: Tensor
    given: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("items", torch.zeros(n_items + 1, config.dim))  # final embeddings
        self.register_buffer("given", torch.zeros(n_items + 1, config.dim))  # input vectors of histories

    def fit(self, train: Sequences) -> None:
        """Train the embeddings for ``epochs`` and store the item tables (I + 1, D)."""
        with progress(self.config.epochs, "train", unit="epochs") as bar:
            for loss in self.epochs(train):
                bar.add(1, loss=loss)

    def epochs(self, train: Sequences) -> Iterator[float]:
        """Train and yield the mean loss of each epoch; the model is usable after each."""
        config, pairs = self.config, user_item_pairs(train, self.n_items, self.device)
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
            for user, item, negative, weights in batches:
                optimiser.zero_grad()
                nodes = torch.stack([user, item + pairs.users, negative[:, 0] + pairs.users])  # (3, B)
                loss = self.bpr(ego_ND, graph, nodes, weights)
                loss.backward()
                if not config.user_embeddings and ego_ND.grad is not None:
                    ego_ND.grad[: pairs.users] = 0.0
                optimiser.step()
                total += loss.detach() * (len(user) / len(pairs))
            self.set_tables(ego_ND.detach(), graph, pairs)
            yield float(total)

    def bpr(self, ego_ND: Tensor, graph: Tensor, nodes: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """Return the loss (scalar) of equation 15 per pair.

        ``ego_ND`` are the embeddings E⁰, ``graph`` (N, N); ``nodes`` (3, B): users, their items, negatives;
        ``weights_B`` of pairs.
        """
        user, item, negative = F.embedding(nodes, propagate(ego_ND, graph, self.config.layers))
        terms = F.softplus((user * (negative - item)).sum(1))
        bpr = terms.mean() if weights_B is None else (weights_B * terms).mean()
        times = torch.bincount(nodes.flatten(), minlength=len(ego_ND))
        squares = ego_ND.square().sum(1) @ times.to(ego_ND.dtype)
        return bpr + self.config.penalty * squares / (2 * nodes.shape[1])

    def set_tables(self, ego_ND: Tensor, graph: Tensor, pairs: Pairs) -> None:
        """Compute the item tables (I + 1, D) from the embeddings E⁰ ``ego_ND`` and the ``graph`` (N, N)."""
        L = self.config.layers
        below_ND = propagate(ego_ND, graph, L - 1) * (L / (L + 1))  # sum of layers 0..L-1, divided by L + 1
        degree = torch.bincount(pairs.item, minlength=pairs.width).clamp(min=1)
        self.given = below_ND[pairs.users :] / degree.sqrt()[:, None]
        self.items = propagate(ego_ND, graph, L)[pairs.users :]

    def item_tables(self) -> dict[str, Tensor]:
        """Return the tables (I + 1, D) that read histories (``input``) and score items (``output``)."""
        return {"input": self.given, "output": self.items}

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return user vectors (B, D), propagated from the distinct items of each history."""
        in_history = (item_counts(batch.items, self.n_items) > 0).float()
        return (in_history @ self.given) / in_history.sum(1, keepdim=True).clamp(min=1).sqrt()

    def output_vectors(self) -> Tensor:
        """Return the final item embeddings (I + 1, D)."""
        return self.items


def adjacency(pairs: Pairs) -> Tensor:
    """Return D^-½ A D^-½ of the bipartite graph, CSR (N, N): users, then items 0 (without edges) to I."""
    user, item, nodes = pairs.user, pairs.item + pairs.users, pairs.users + pairs.width
    row, column = torch.cat([user, item]), torch.cat([item, user])
    degree = torch.bincount(row, minlength=nodes).float()
    return csr(row, column, (degree[row] * degree[column]).rsqrt(), (nodes, nodes))


def propagate(x_ND: Tensor, graph: Tensor, layers: int) -> Tensor:
    """Return the mean (N, D) of ``graph``^l x over l = 0..layers; ``graph`` (N, N) is symmetric."""
    mean: Tensor = _Propagation.apply(x_ND, graph, layers)  # type: ignore[no-untyped-call]
    return mean


class _Propagation(torch.autograd.Function):
    """Propagation whose gradient is the same map, since it is symmetric; saves no activations."""

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
