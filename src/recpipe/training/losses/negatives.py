"""Negative sampling: samples of wrong answers, and the base class of losses over them.

N targets, K negatives, D width, I items. Random numbers come from torch's generator of the device, which training
seeds and checkpoints carry on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from recpipe.layers.large_tables import look_up
from recpipe.training.losses import Loss, at_least_float32, weighted_mean

SOURCES = ("uniform", "popularity", "in_batch")


class NegativeSamplingLoss(Loss):
    """Base class of losses of one positive against sampled negatives; a subclass combines their scores in ``combine``.

    ``negatives`` maps sources (uniform, popularity, in_batch) to numbers of negatives; ``power`` is the exponent of
    counts for popularity (word2vec: .75). Scores are divided by ``temperature``, in training only. With ``shared`` all
    targets of a batch have the same negatives (one matrix product); without it every target has its own, which takes N
    × K × D of memory. A negative that equals its target is masked; other items of the user, which some papers mask, are
    not, since a loss sees no users. A batch is a part of a step (`TrainingBatches`): users of similar length. Raises
    ValueError for invalid arguments.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"item_counts"})
    log_q = False  # whether log expected counts are subtracted from the negatives' scores

    def __init__(
        self,
        negatives: Mapping[str, int],
        *,
        shared: bool = True,
        temperature: float = 1.0,
        power: float = 1.0,
        item_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be more than 0")
        self.negatives = NegativeSampler(negatives, item_counts=item_counts, power=power, with_expected=self.log_q)
        self.shared, self.temperature = shared, temperature

    def compute(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss (scalar): the mean of ``combine`` over targets (N,)."""
        items, expected = self.negatives(targets, len(table) - 1, shared=self.shared)
        hidden = hidden / self.temperature if self.temperature != 1 else hidden
        positive_N = at_least_float32((hidden * look_up(targets, table)).sum(-1))
        vectors = look_up(items, table)  # (K, D) or (N, K, D)
        negative_NK = at_least_float32(hidden @ vectors.T if self.shared else (hidden[:, None] * vectors).sum(-1))
        if expected is not None:
            negative_NK = negative_NK - expected.log().to(negative_NK.dtype)
        losses = self.combine(positive_N, negative_NK, items != targets[:, None], len(table) - 1)
        return weighted_mean(losses, weights)

    @abstractmethod
    def combine(self, positive_N: Tensor, negative_NK: Tensor, mask_NK: Tensor, n_items: int) -> Tensor:
        """Return the loss (N,) of each target; ``mask_NK`` is False where a negative equals the target."""


class NegativeSampler(nn.Module):
    """Sampler of negatives from ``sources``, a mapping of source to number of negatives.

    ``uniform``: items with equal probability, with replacement; all items once if the number is that of the catalogue
    or more. ``popularity``: with probability ~ ``item_counts ** power``, with replacement. ``in_batch``: targets at
    random places of the batch; at most all of them where shared. ``with_expected`` asks for expected counts. Raises
    ValueError for unknown sources, numbers below 1 and missing ``item_counts`` (I + 1,).
    """

    popularity: Tensor  # (I + 1,) probability of each item
    in_batch: Tensor
    cumulated: Tensor

    def __init__(
        self,
        sources: Mapping[str, int],
        *,
        item_counts: Tensor | None = None,
        power: float = 1.0,
        with_expected: bool = False,
    ) -> None:
        super().__init__()
        if unknown := set(sources) - set(SOURCES):
            raise ValueError(f"unknown negatives {sorted(unknown)}; allowed: {', '.join(SOURCES)}")
        if not sources or any(not isinstance(n, int) or n < 1 for n in sources.values()):
            raise ValueError(f"negatives are {dict(sources)}; give each source a number of at least 1")
        if item_counts is None and ("popularity" in sources or (with_expected and "in_batch" in sources)):
            raise ValueError(f"negatives {dict(sources)} need how often items are training targets")
        self.sources, self.with_expected = dict(sources), with_expected
        counts = torch.zeros(1) if item_counts is None else item_counts
        counts = counts.double().index_fill(0, torch.zeros(1, dtype=torch.long, device=counts.device), 0)
        smooth = torch.where(counts > 0, counts**power, 0)
        for name, values in (("popularity", smooth), ("in_batch", counts)):
            self.register_buffer(name, values / values.sum().clamp(min=1e-300), persistent=False)
        self.register_buffer("cumulated", self.popularity.cumsum(0), persistent=False)

    def forward(self, targets: Tensor, n_items: int, *, shared: bool) -> tuple[Tensor, Tensor | None]:
        """Return negatives of ``targets`` (N,) in 1..n_items, (K,) if ``shared`` else (N, K), and expected counts.

        An expected count (float64) is the mean number of times that an item is sampled for one target, over all
        sources. Negatives may contain repeats and the target.
        """
        N, rows, device = len(targets), () if shared else (len(targets),), targets.device
        parts = {}
        for source, n in self.sources.items():
            if source == "uniform" and n >= n_items:
                items = torch.arange(1, n_items + 1, device=device).expand(*rows, n_items)
            elif source == "uniform":
                items = torch.randint(1, n_items + 1, (*rows, n), device=device)
            elif source == "popularity":
                place = torch.rand(*rows, n, device=device, dtype=torch.float64)
                items = torch.searchsorted(self.cumulated, place * self.cumulated[-1], right=True).clamp(max=n_items)
            elif shared:
                items = targets[torch.randperm(N, device=device)[:n]]
            else:
                items = targets[torch.randint(N, (N, n), device=device)]
            parts[source] = items
        items = torch.cat([*parts.values()], -1)
        if not self.with_expected:
            return items, None
        expected = torch.zeros(items.shape, dtype=torch.float64, device=device)
        for source, part in parts.items():
            size = float(part.shape[-1])
            expected += size / n_items if source == "uniform" else size * getattr(self, source)[items]
        return items, expected
