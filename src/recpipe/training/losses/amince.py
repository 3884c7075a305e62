"""AMINCE: contrastive loss over views of items, with more views of tail items, the loss of TCA4Rec.

Paper: Shi et al., Journal of Big Data 2025 (TCA4Rec).

A view of a place of the batch is its item's vector under dropout; a place has ``views`` of them. Places are all events
of the batch: the targets and, for next-item models, the first events of the histories. The positives of a target are
all views of all places with its item, the candidates all views of all places: loss = log sum over candidates of exp(s /
temperature) - log sum over positives of exp(s / temperature). Asymmetry: places of tail items that are targets in the
batch have ``tail_views`` more. Second stage: the mean over the tail targets and as many others; the candidates stay the
same.

Differences: candidates are at most ``candidates`` places of the batch besides a target's own; the paper multiplies by
tau (.1 to .6), which is 1 / temperature; its views also differ in how attributes are fused; its memory bank and
prediction of several steps belong to its model and are left out.

Shapes: N targets, M views of candidates, D width, V views of a target's own item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.layers.large_tables import look_up
from recpipe.training.losses import Loss, at_least_float32, weighted_mean

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from recpipe.training.callbacks import Patience


class AMINCE(Loss):
    """Contrastive loss over views of items.

    ``tail``: items with at most this number of training targets (int), or this share of the items, rarest (float).
    ``views``: of each place of the batch, under ``dropout``; ``tail_views`` more for tail items that are targets.
    ``temperature`` divides the scores. ``candidates``: places besides a target's own, at most.

    After ``second_stage_after`` validations without a new best (null: never) the second stage begins. Raises ValueError
    for values out of range and without ``item_counts`` (I + 1,).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"item_counts"})
    uses_context: ClassVar[bool] = True
    is_tail: Tensor  # (I + 1,) bool

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
        item_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("views", views, 1), ("tail_views", tail_views, 0), ("candidates", candidates, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not temperature > 0 or not 0 <= dropout < 1:
            raise ValueError(f"temperature is {temperature}, dropout {dropout}; allowed: > 0 and [0, 1)")
        if item_counts is None:
            raise ValueError("it needs how often items are training targets, to find the tail")
        self.views, self.tail_views, self.candidates = views, tail_views, candidates
        self.dropout, self.temperature = dropout, temperature
        self.second_stage_after, self.tail_only = second_stage_after, False
        self.register_buffer("is_tail", tail_of(item_counts, tail), persistent=False)

    def begin_second_stage(self) -> None:
        """Limit the loss to tail targets and as many others from now on."""
        self.tail_only = True

    def callbacks(self, metric: str, patience: Patience | None) -> list[Callback]:
        """Return the callback that begins the second stage.

        Raises ValueError if there is one and ``patience`` is None.
        """
        from recpipe.training.callbacks import SecondStage

        if self.second_stage_after is None:
            return []
        if patience is None:
            raise ValueError(
                "train.train_on_validation leaves no validation for train.loss.second_stage_after: set null"
            )
        return [SecondStage(self.begin_second_stage, metric, after=self.second_stage_after, patience=patience)]

    def compute(
        self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        """Return the loss (scalar) of targets (N,); in the second stage of tail targets and as many others."""
        rows = torch.arange(len(targets), device=targets.device)
        if self.tail_only:
            tail = self.is_tail[targets]
            order = torch.rand(len(targets), device=targets.device).masked_fill(tail, -1.0).argsort()
            rows = order[: 2 * int(tail.sum())]  # all tail targets and as many random others
            if len(rows) == 0:
                return hidden.sum() * 0.0
        hidden = hidden / self.temperature if self.temperature != 1 else hidden
        places = targets if context is None else torch.cat([targets, context])
        own_NV, other_NM, same_NM = self._scores(hidden[rows], table, targets, rows, places)
        candidates = torch.cat([own_NV, other_NM], 1).logsumexp(1)
        positives = torch.cat([own_NV, other_NM.masked_fill(~same_NM, -torch.inf)], 1).logsumexp(1)
        return weighted_mean(candidates - positives, None if weights is None else weights[rows])

    def _scores(
        self, hidden: Tensor, table: Tensor, targets: Tensor, rows: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of views of a target's own place (N, V) and of other places (N, M), mask (N, M) of the same item.

        rows (N,): the places of the targets in the loss; places: items of all places, those of ``targets`` first.
        """
        chosen = torch.randperm(len(places), device=targets.device)[: self.candidates]
        items = places[chosen]
        has_tail_views = self.is_tail[items]
        if len(places) > len(targets):
            has_tail_views = has_tail_views & torch.isin(items, targets)
        place_M = torch.cat([chosen.repeat(self.views), chosen[has_tail_views].repeat(self.tail_views)])
        view_MD = self._view(look_up(places[place_M], table))
        other_NM = at_least_float32(hidden @ view_MD.T)
        itself = place_M == rows[:, None]
        targets = targets[rows]
        own_NVD = look_up(targets, table)[:, None].expand(-1, self.views + self.tail_views, -1)
        own_NV = at_least_float32((hidden[:, None] * self._view(own_NVD)).sum(-1))
        is_tail_view = torch.arange(own_NV.shape[1], device=targets.device) >= self.views
        own_NV = own_NV.masked_fill(is_tail_view & ~self.is_tail[targets][:, None], -torch.inf)
        return own_NV, other_NM.masked_fill(itself, -torch.inf), places[place_M] == targets[:, None]

    def _view(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.dropout, self.training)


def tail_of(counts: Tensor, tail: int | float) -> Tensor:
    """Mark the items (I + 1,) with at most ``tail`` counts (int), or that share of the items, rarest first (float).

    ``counts`` (I + 1,) are the training targets of items. Raises ValueError for a share outside of 0 to 1.
    """
    if isinstance(tail, int):
        mask = counts <= tail
    elif 0 <= tail <= 1:
        mask = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        mask[1 + counts[1:].argsort(stable=True)[: round(tail * (len(counts) - 1))]] = True
    else:
        raise ValueError(f"tail is {tail}; give a count (int) or a share of the items (0 to 1)")
    return mask.index_fill(0, torch.zeros(1, dtype=torch.long, device=counts.device), False)
