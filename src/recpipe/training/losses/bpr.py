"""Bayesian personalised ranking (Rendle et al., UAI 2009) with sampled negatives."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from recpipe.training.losses.negatives import NegativeSamplingLoss


class BPR(NegativeSamplingLoss):
    """Bayesian personalised ranking: -log sigmoid(target - negative), mean over a target's negatives."""

    def combine(self, positive_N: Tensor, negative_NK: Tensor, mask_NK: Tensor, n_items: int) -> Tensor:
        """Return the loss (N,) of each target from its score (N,) and those of its negatives (N, K)."""
        pairs_NK = F.softplus(negative_NK - positive_N[:, None]) * mask_NK
        return pairs_NK.sum(1) / mask_NK.sum(1).clamp(min=1)
