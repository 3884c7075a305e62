"""Focal loss (Lin et al., ICCV 2017) of the target and sampled negatives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from recpipe.training.losses.negatives import NegativeSamplingLoss


class Focal(NegativeSamplingLoss):
    """Focal loss: BCE with terms multiplied by (1 - p) ** ``gamma``, p the probability of the right answer.

    ``alpha`` weighs the positive, 1 - alpha the negatives; null weighs both by 1. Mean over a target's 1 + k terms.
    Raises ValueError for values out of range.
    """

    def __init__(
        self, negatives: Mapping[str, int], *, gamma: float = 2.0, alpha: float | None = None, **options: object
    ) -> None:
        super().__init__(negatives, **options)  # type: ignore[arg-type]
        if gamma < 0 or not (alpha is None or 0 < alpha < 1):
            raise ValueError(f"gamma is {gamma} and alpha {alpha}; gamma is at least 0, alpha null or in (0, 1)")
        self.gamma = gamma
        self.weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

    def combine(self, positive_N: Tensor, negative_NK: Tensor, mask_NK: Tensor, n_items: int) -> Tensor:
        """Return the loss (N,) of each target from its score (N,) and those of its negatives (N, K)."""
        positive_N = self.weights[0] * self._term(positive_N)
        negative_N = self.weights[1] * (self._term(-negative_NK) * mask_NK).sum(1)
        return (positive_N + negative_N) / (1 + mask_NK.sum(1))

    def _term(self, logit: Tensor) -> Tensor:
        """Return -(1 - p) ** gamma log p for the logit of p."""
        return (-self.gamma * F.softplus(logit)).exp() * F.softplus(-logit)
