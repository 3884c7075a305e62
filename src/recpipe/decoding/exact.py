"""Exact scores of the whole catalogue, for models whose levels are independent given the history.

B users, N items, L levels, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def exact_scores(log_probs: Sequence[Tensor], codes_NL: Tensor) -> Tensor:
    """(B, N): of every item the sum of the log-probabilities of its codes; ``log_probs`` (L) of (B, V_l)."""
    total = log_probs[0][:, codes_NL[:, 0]]
    for level in range(1, len(log_probs)):
        total = total + log_probs[level][:, codes_NL[:, level]]
    return total
