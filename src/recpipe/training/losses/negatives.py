"""Negative items for a batch of targets, and how often each was to be expected among them. N targets, K negatives.

Numbers come from torch's own generator of the device, which `fit` seeds and checkpoints carry on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SOURCES = ("uniform", "popularity", "in_batch")


@dataclass(frozen=True)
class Drawn:
    """``expected`` is the mean number of times that the item is drawn for one target, over all sources."""

    items: Tensor  # (K,) shared by all targets, or (N, K); an item may come twice and may equal the target
    expected: Tensor | None  # the same shape, float64


class Negatives(nn.Module):
    """Draws ``sources``, a mapping of ``uniform``, ``popularity`` and ``in_batch`` to how many of each.

    ``uniform``: items with equal probability, with replacement; from as many as there are items on, every item
    once. ``popularity``: with probability ~ ``counts ** power``, with replacement, so never an item without a count.
    ``in_batch``: targets of random places of the batch, shared at most as many as there are. ``expects`` asks for
    ``Drawn.expected``.
    """

    def __init__(
        self,
        sources: Mapping[str, int],
        *,
        counts: Tensor | None = None,
        power: float = 1.0,
        expects: bool = False,
    ) -> None:
        super().__init__()
        if unknown := set(sources) - set(SOURCES):
            raise ValueError(f"unknown negatives {sorted(unknown)}; there are {', '.join(SOURCES)}")
        if not sources or any(not isinstance(n, int) or n < 1 for n in sources.values()):
            raise ValueError(f"negatives are {dict(sources)}; give each source a number of at least 1")
        if counts is None and ("popularity" in sources or (expects and "in_batch" in sources)):
            raise ValueError(f"negatives {dict(sources)} need how often items are training targets")
        self.sources, self.expects = dict(sources), expects
        counts = torch.zeros(1) if counts is None else counts
        counts = counts.double().index_fill(0, torch.zeros(1, dtype=torch.long, device=counts.device), 0)
        smooth = torch.where(counts > 0, counts**power, 0)
        for name, values in (("popularity", smooth), ("in_batch", counts)):
            self.register_buffer(name, values / values.sum().clamp(min=1e-300), persistent=False)
        self.register_buffer("cumulated", self.popularity.cumsum(0), persistent=False)

    popularity: Tensor  # (I + 1,) probability of each item
    in_batch: Tensor
    cumulated: Tensor

    def forward(self, targets: Tensor, n_items: int, *, shared: bool) -> Drawn:
        """Negatives of ``targets`` (N,) in 1..n_items: one set for all of them, or one for each."""
        N, rows = len(targets), () if shared else (len(targets),)
        drawn, means = [], {}
        for source, n in self.sources.items():
            if source == "uniform" and n >= n_items:
                items = torch.arange(1, n_items + 1, device=targets.device).expand(*rows, n_items)
                means[source] = float(n_items)
            elif source == "uniform":
                items = torch.randint(1, n_items + 1, (*rows, n), device=targets.device)
                means[source] = float(n)
            elif source == "popularity":
                place = torch.rand(*rows, n, device=targets.device, dtype=torch.float64)
                items = torch.searchsorted(self.cumulated, place * self.cumulated[-1], right=True)
                items = items.clamp(max=n_items)
                means[source] = float(n)
            elif shared:
                items = targets[torch.randperm(N, device=targets.device)[:n]]
                means[source] = float(len(items))
            else:
                items = targets[torch.randint(N, (N, n), device=targets.device)]
                means[source] = float(n)
            drawn.append(items)
        items = torch.cat(drawn, -1)
        return Drawn(items, self._expected(items, means, n_items) if self.expects else None)

    def _expected(self, items: Tensor, means: Mapping[str, float], n_items: int) -> Tensor:
        expected = torch.zeros(items.shape, dtype=torch.float64, device=items.device)
        for source, n in means.items():
            expected += n / n_items if source == "uniform" else n * getattr(self, source)[items]
        return expected
