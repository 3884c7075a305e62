"""AMINCE, the loss of TCA4Rec: Shi et al., Journal of Big Data 2025.

N targets, M views of candidates, D width, V views of a target's own item.

A place of the batch is seen in ``views`` views: its item's vector under independent dropout. The positives of a
target are all views of all places with its item, the candidates all views of all places:
loss = log sum over candidates of exp(s / temperature) - log sum over positives of exp(s / temperature).
Asymmetry: places of tail items have ``tail_views`` more. Second stage: only tail targets and as many others.

Deviations: candidates are at most ``candidates`` places of the batch besides a target's own; the paper multiplies by
tau (.1 to .6), which is 1 / temperature; its views also differ in how attributes are fused; its memory bank and
prediction of several steps belong to its model and are not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AMINCE(nn.Module):
    """``tail``: items with at most so many training targets (int), or this share of the items, the rarest (float).

    After ``second_stage_after`` validations without a new best (null: never), `SecondStage` of the trainer calls
    ``begin_second_stage``.
    """

    def __init__(
        self,
        *,
        views: int = 4,
        tail_views: int = 6,
        tail: int | float = 50,
        dropout: float = 0.5,
        temperature: float = 1.0,
        candidates: int = 256,
        second_stage_after: int | None = None,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("views", views, 1),
            ("tail_views", tail_views, 0),
            ("candidates", candidates, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not temperature > 0 or not 0 <= dropout < 1:
            raise ValueError(f"temperature is {temperature}, dropout {dropout}; allowed: > 0 and [0, 1)")
        if counts is None:
            raise ValueError("it needs how often items are training targets, to tell the tail")
        self.views, self.tail_views, self.candidates = views, tail_views, candidates
        self.dropout, self.temperature = dropout, temperature
        self.second_stage_after, self.tail_only = second_stage_after, False
        self.register_buffer("is_tail", tail_of(counts, tail), persistent=False)

    is_tail: Tensor  # (I + 1,) bool

    def begin_second_stage(self) -> None:
        """From now on only tail targets and as many others count."""
        self.tail_only = True

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, D), item table (I + 1, D) whose row 0 is padding, targets (N,) in 1..I -> scalar."""
        if len(targets) == 0:
            raise ValueError("a batch without a target has no loss")
        if self.tail_only:
            kept = self._second_stage(targets)
            if len(kept) == 0:
                return hidden.sum() * 0.0
            hidden, targets = hidden[kept], targets[kept]
        hidden = hidden / self.temperature if self.temperature != 1 else hidden
        own_NV, other_NM, same_NM = self._scores(hidden, table, targets)
        everything = torch.cat([own_NV, other_NM], 1).logsumexp(1)
        positives = torch.cat([own_NV, other_NM.masked_fill(~same_NM, -torch.inf)], 1).logsumexp(1)
        return (everything - positives).mean()

    def _scores(self, hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the views of each target's own place, of other places, and which of these have the same item."""
        N = len(targets)
        chosen = torch.randperm(N, device=targets.device)[: self.candidates]
        further = chosen[self.is_tail[targets[chosen]]]
        place_M = torch.cat([chosen.repeat(self.views), further.repeat(self.tail_views)])
        view_MD = self._seen(F.embedding(targets[place_M], table))
        other_NM = _exact(hidden @ view_MD.T)
        itself = place_M == torch.arange(N, device=targets.device)[:, None]
        own_NVD = F.embedding(targets, table)[:, None].expand(-1, self.views + self.tail_views, -1)
        own_NV = _exact((hidden[:, None] * self._seen(own_NVD)).sum(-1))
        absent = torch.arange(own_NV.shape[1], device=targets.device) >= self.views
        own_NV = own_NV.masked_fill(absent & ~self.is_tail[targets][:, None], -torch.inf)
        return own_NV, other_NM.masked_fill(itself, -torch.inf), targets[place_M] == targets[:, None]

    def _seen(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.dropout, self.training)

    def _second_stage(self, targets: Tensor) -> Tensor:
        """Places (n,) of all tail targets and of as many others, drawn at random."""
        tail = self.is_tail[targets]
        order = torch.rand(len(targets), device=targets.device).masked_fill(tail, -1.0).argsort()
        return order[: 2 * int(tail.sum())]


def tail_of(counts: Tensor, tail: int | float) -> Tensor:
    """(I + 1,) bool: items with at most ``tail`` counts (int), or that share of the items, rarest first (float)."""
    if isinstance(tail, int):
        chosen = counts <= tail
    elif 0 <= tail <= 1:
        chosen = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        chosen[1 + counts[1:].argsort(stable=True)[: round(tail * (len(counts) - 1))]] = True
    else:
        raise ValueError(f"tail is {tail}; give a count (int) or a share of the items (0 to 1)")
    return chosen.index_fill(0, torch.zeros(1, dtype=torch.long, device=counts.device), False)


def _exact(scores: Tensor) -> Tensor:
    """At least float32, whatever autocast made the products in."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
