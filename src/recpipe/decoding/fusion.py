"""One list of several: what is found by text and what is found by images.

B users, K places of a list, M lists, J = M * K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RULES = ("mixture", "reciprocal", "paper")
DAMPING = 60  # of reciprocal ranks: Cormack, Clarke, Büttcher, SIGIR 2009
BONUS = 1.0  # of items that all lists have: MQL4GRec, section 3.4


def fused(
    lists: Sequence[tuple[Tensor, Tensor]],
    k: int,
    *,
    rule: str,
    weights: Sequence[float],
    codes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The best ``k`` items (B, k) and their scores, of M ``lists`` of items (B, K), 0 for none, and log-probabilities.

    ``mixture``: the log of the weighted sum of probabilities, 0 where a list lacks the item. ``reciprocal``: the
    weighted sum of 1 / (60 + rank). ``paper``: the mean log-probability per code (``codes``: of how many each list's
    ids are), averaged and with 1 added where all lists have the item. Item 0 with score -inf where there are fewer.
    Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"ensemble is {rule!r}; allowed: {', '.join(RULES)}")
    items, matches = _matches(lists)
    each = []
    for number, (_, scores) in enumerate(lists):
        found = matches[number]  # (B, J, K)
        there = found.any(-1)
        value = torch.where(found, scores[:, None].float(), -torch.inf).amax(-1)
        rank = 1 + torch.where(found, torch.arange(scores.shape[1], device=scores.device), 0).sum(-1)
        each.append((there, value, rank))
    total = _RULES[rule](each, weights, codes)
    total = torch.where(~_repeated(items) & (items > 0), total, -torch.inf)
    best, places = total.topk(min(k, total.shape[1]))
    chosen = torch.where(best > -torch.inf, items.gather(1, places), 0)
    missing = (0, k - chosen.shape[1])
    return (
        torch.nn.functional.pad(chosen, missing),
        torch.nn.functional.pad(best, missing, value=-torch.inf),
    )


Each = Sequence[tuple[Tensor, Tensor, Tensor]]  # whether a list has the item, its score there, its rank there


def _mixture(each: Each, weights: Sequence[float], codes: Sequence[int]) -> Tensor:
    logs = [
        value + torch.log(torch.tensor(weight, dtype=value.dtype)).item()
        for (_, value, _), weight in zip(each, weights, strict=True)
    ]
    return torch.stack(logs).logsumexp(0)


def _reciprocal(each: Each, weights: Sequence[float], codes: Sequence[int]) -> Tensor:
    parts = [
        weight * there / (DAMPING + rank) for (there, _, rank), weight in zip(each, weights, strict=True)
    ]
    total = torch.stack(parts).sum(0)
    return torch.where(total > 0, total, -torch.inf)


def _paper(each: Each, weights: Sequence[float], codes: Sequence[int]) -> Tensor:
    there = torch.stack([part for part, _, _ in each])
    values = torch.stack([value / levels for (_, value, _), levels in zip(each, codes, strict=True)])
    mean = torch.where(there, values, 0).sum(0) / there.sum(0).clamp(min=1)
    return torch.where(there.any(0), mean + BONUS * (there.all(0) & (len(each) > 1)), -torch.inf)


_RULES: dict[str, Callable[[Each, Sequence[float], Sequence[int]], Tensor]] = {
    "mixture": _mixture,
    "reciprocal": _reciprocal,
    "paper": _paper,
}


def _matches(lists: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """All items (B, J), and for each list where it has them (B, J, K)."""
    items = torch.cat([found for found, _ in lists], 1)
    return items, [(items[:, :, None] == found[:, None]) & (found > 0)[:, None] for found, _ in lists]


def _repeated(items_BJ: Tensor) -> Tensor:
    """(B, J): whether an item stands further left already."""
    same = items_BJ[:, :, None] == items_BJ[:, None]
    return (same & torch.ones_like(same[0]).tril(-1)).any(-1)
