"""Fusion of several ranked lists into one. B users, K places of a list, M lists, J = M * K candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

DAMPING = 60  # of reciprocal ranks: Cormack, Clarke, Büttcher, SIGIR 2009
BONUS = 1.0  # of items that all lists have: MQL4GRec, section 3.4


class Candidates(NamedTuple):
    """Presence, log-probability and rank of all candidates in one list, each (B, J)."""

    present: Tensor  # bool
    log_probs: Tensor  # -inf where the list lacks the item
    rank: Tensor  # from 1


def fuse(
    lists: Sequence[tuple[Tensor, Tensor]], k: int, *, rule: str, weights: Sequence[float], levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the best ``k`` items (B, k) and scores. ``lists``: M of items (B, K), 0 for none, and log-probabilities.

    ``mixture``: log of the weighted sum of probabilities, 0 where a list lacks the item. ``reciprocal``: weighted sum
    of 1 / (60 + rank). ``paper``: mean log-probability per code (``levels``: codes of each list's ids), averaged over
    lists, plus 1 where all have the item. Missing ones: item 0, score -inf. Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"ensemble is {rule!r}; allowed: {', '.join(RULES)}")
    items = torch.cat([each for each, _ in lists], 1)
    candidates = []
    for list_items, scores in lists:
        match = (items[:, :, None] == list_items[:, None]) & (list_items > 0)[:, None]  # (B, J, K)
        log_probs = torch.where(match, scores[:, None].float(), -torch.inf).amax(-1)
        rank = 1 + torch.where(match, torch.arange(scores.shape[1], device=scores.device), 0).sum(-1)
        candidates.append(Candidates(match.any(-1), log_probs, rank))
    total = RULES[rule](candidates, weights, levels)
    same = items[:, :, None] == items[:, None]
    is_repetition = (same & torch.ones_like(same[0]).tril(-1)).any(-1)  # of an item further left
    total = torch.where(~is_repetition & (items > 0), total, -torch.inf)
    best, places = total.topk(min(k, total.shape[1]))
    best_items = torch.where(best > -torch.inf, items.gather(1, places), 0)
    missing = (0, k - best.shape[1])
    return F.pad(best_items, missing), F.pad(best, missing, value=-torch.inf)


def tune_mixture(weights: Tensor, choices: Sequence[float], validate: Callable[[], float]) -> float:
    """Set ``weights`` (2,) in place to the best by ``validate()``; the first is one of ``choices``, and is returned."""
    metrics = {}
    for choice in choices:
        weights.copy_(torch.tensor([choice, 1 - choice]))
        metrics[choice] = validate()
    best = max(metrics, key=metrics.__getitem__)
    weights.copy_(torch.tensor([best, 1 - best]))
    return best


def _mixture(lists: Sequence[Candidates], weights: Sequence[float], levels: Sequence[int]) -> Tensor:
    log_weights = torch.tensor(weights, dtype=lists[0].log_probs.dtype).log().tolist()
    parts = [each.log_probs + log_weight for each, log_weight in zip(lists, log_weights, strict=True)]
    return torch.stack(parts).logsumexp(0)


def _reciprocal(lists: Sequence[Candidates], weights: Sequence[float], levels: Sequence[int]) -> Tensor:
    parts = [weight * each.present / (DAMPING + each.rank) for each, weight in zip(lists, weights, strict=True)]
    return torch.where((total := torch.stack(parts).sum(0)) > 0, total, -torch.inf)


def _paper(lists: Sequence[Candidates], weights: Sequence[float], levels: Sequence[int]) -> Tensor:
    present = torch.stack([each.present for each in lists])
    values = torch.stack([each.log_probs / count for each, count in zip(lists, levels, strict=True)])
    mean = torch.where(present, values, 0).sum(0) / present.sum(0).clamp(min=1)
    return torch.where(present.any(0), mean + BONUS * (present.all(0) & (len(lists) > 1)), -torch.inf)


Rule = Callable[[Sequence[Candidates], Sequence[float], Sequence[int]], Tensor]
RULES: dict[str, Rule] = {"mixture": _mixture, "reciprocal": _reciprocal, "paper": _paper}
