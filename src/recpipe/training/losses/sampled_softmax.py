"""Sampled softmax: cross-entropy of the target against itself and sampled negatives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.training.losses.negatives import NegativeSamplingLoss


class SampledSoftmax(NegativeSamplingLoss):
    """Cross-entropy over the target and its negatives.

    ``log_q`` subtracts the log of a negative's expected count, over all sources, from its logit (Bengio & Senécal 2008;
    Yi et al., RecSys 2019; mixed sources: Yang et al., WWW 2020). The target, which is always there, is not corrected
    (Khrylchenko et al., RecSys 2025), so that the mean of the denominator is that of the full softmax. Without it,
    uniform negatives give the sampled softmax of eSASRec and gSASRec.
    """

    def __init__(self, negatives: Mapping[str, int], *, log_q: bool = False, **options: object) -> None:
        self.log_q = log_q
        super().__init__(negatives, **options)  # type: ignore[arg-type]

    def combine(self, positive_N: Tensor, negative_NK: Tensor, mask_NK: Tensor, n_items: int) -> Tensor:
        """Return the loss (N,) of each target from its score (N,) and those of its negatives (N, K)."""
        logits = torch.cat([positive_N[:, None], negative_NK.masked_fill(~mask_NK, -torch.inf)], 1)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")
