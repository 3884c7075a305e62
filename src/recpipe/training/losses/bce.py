"""Binary cross-entropy of the target and sampled negatives (SASRec, Kang & McAuley, ICDM 2018, with one negative)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from recpipe.training.losses.negatives import NegativeSamplingLoss


class BinaryCrossEntropy(NegativeSamplingLoss):
    """Binary cross-entropy: mean of -log sigmoid(target) and -log(1 - sigmoid(negative)) over 1 + k terms."""

    def combine(self, positive_N: Tensor, negative_NK: Tensor, mask_NK: Tensor, n_items: int) -> Tensor:
        """Return the loss (N,) of each target from its score (N,) and those of its negatives (N, K)."""
        weight = self.positive_weight(negative_NK.shape[1], n_items)
        negative_N = (F.softplus(negative_NK) * mask_NK).sum(1)
        return (weight * F.softplus(-positive_N) + negative_N) / (1 + mask_NK.sum(1))

    def positive_weight(self, k: int, n_items: int) -> float:
        """Return the weight of the positive's term."""
        return 1.0
