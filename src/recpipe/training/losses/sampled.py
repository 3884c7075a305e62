"""Losses of one positive against sampled negatives. N targets, D width, K negatives, I items.

A negative that equals its row's target is no negative and is left out. With ``shared`` one set of negatives serves
all targets of a batch (one matrix product); without it every target has its own, which costs N × K × D of memory.
A user's other items are not left out, as they are in some of the papers: a loss sees targets, not users. A batch
here is a part of a step (`TrainingBatches`): users of like length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.training.losses.negatives import Negatives


class NegativeSampling(nn.Module):
    """Scores targets and negatives, both over ``temperature``; a loss says what to make of them in ``combine``.

    ``negatives`` maps sources (uniform, popularity, in_batch) to how many of each; ``power`` is the exponent of
    counts for popularity (word2vec: .75). ``temperature`` is of training only: the ranking does not depend on it.
    """

    expects = False

    def __init__(
        self,
        negatives: Mapping[str, int],
        *,
        shared: bool = True,
        temperature: float = 1.0,
        power: float = 1.0,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be more than 0")
        self.negatives = Negatives(negatives, counts=counts, power=power, expects=self.expects)
        self.shared, self.temperature = shared, temperature

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, D), item table (I + 1, D) whose row 0 is padding, targets (N,) in 1..I -> scalar."""
        if len(targets) == 0:
            raise ValueError("a batch without a target has no loss")
        drawn = self.negatives(targets, len(table) - 1, shared=self.shared)
        hidden = hidden / self.temperature if self.temperature != 1 else hidden
        positive_N = _exact((hidden * F.embedding(targets, table)).sum(-1))
        rows = F.embedding(drawn.items, table)  # (K, D) or (N, K, D)
        negative_NK = _exact(hidden @ rows.T if self.shared else (hidden[:, None] * rows).sum(-1))
        if drawn.expected is not None:
            negative_NK = negative_NK - drawn.expected.log().to(negative_NK.dtype)
        return self.combine(positive_N, negative_NK, drawn.items != targets[:, None], len(table) - 1)

    @abstractmethod
    def combine(self, positive_N: Tensor, negative_NK: Tensor, real_NK: Tensor, n_items: int) -> Tensor:
        """The scalar loss; ``real_NK`` is False where a negative is the row's target."""


class SampledSoftmax(NegativeSampling):
    """Cross-entropy of the target against itself and the negatives.

    ``log_q`` subtracts from every negative's logit the log of how often it was to be expected in the sample, over all
    sources together (Bengio & Senécal 2008; Yi et al., RecSys 2019; mixed sources: Yang et al., WWW 2020). The
    target, always there, is not corrected (Khrylchenko et al., RecSys 2025), so that the denominator's mean is that
    of the full softmax. Off, uniform negatives give what eSASRec and gSASRec's authors call sampled softmax.
    """

    def __init__(self, negatives: Mapping[str, int], *, log_q: bool = False, **options: object) -> None:
        self.expects = log_q
        super().__init__(negatives, **options)  # type: ignore[arg-type]

    def combine(self, positive_N: Tensor, negative_NK: Tensor, real_NK: Tensor, n_items: int) -> Tensor:
        logits = torch.cat([positive_N[:, None], negative_NK.masked_fill(~real_NK, -torch.inf)], 1)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class InfoNCE(SampledSoftmax):
    """Van den Oord et al. 2018: the target against targets of other places in the batch, ``candidates`` at most."""

    def __init__(
        self, candidates: int = 1024, *, temperature: float = 1.0, counts: Tensor | None = None
    ) -> None:
        super().__init__({"in_batch": candidates}, temperature=temperature)


class BinaryCrossEntropy(NegativeSampling):
    """Yes for the target, no for each negative, mean over all of a target's 1 + k (SASRec, ICDM 2018, has k = 1)."""

    def combine(self, positive_N: Tensor, negative_NK: Tensor, real_NK: Tensor, n_items: int) -> Tensor:
        weight = self.positive_weight(negative_NK.shape[1], n_items)
        no_N = (F.softplus(negative_NK) * real_NK).sum(1)
        return ((weight * F.softplus(-positive_N) + no_N) / (1 + real_NK.sum(1))).mean()

    def positive_weight(self, k: int, n_items: int) -> float:
        """What the positive's term counts for."""
        return 1.0


class GBCE(BinaryCrossEntropy):
    """Petrov & Macdonald, gSASRec, RecSys 2023: BCE with the positive's probability raised to beta.

    alpha = k / (I - 1) is the share of negatives that are sampled, beta = alpha (t (1 - 1 / alpha) + 1 / alpha);
    t = 0 is BCE, t = 1 takes all overconfidence out. log(sigmoid ** beta) is beta log-sigmoid: nothing overflows, and
    the paper's change of the positive's logit in float64 is not needed.
    """

    def __init__(self, negatives: Mapping[str, int], *, t: float = 0.75, **options: object) -> None:
        super().__init__(negatives, **options)  # type: ignore[arg-type]
        if not 0 <= t <= 1:
            raise ValueError(f"t is {t}; it is between 0 (BCE) and 1")
        self.t = t

    def positive_weight(self, k: int, n_items: int) -> float:
        alpha = min(k / max(n_items - 1, 1), 1.0)
        return alpha * (self.t * (1 - 1 / alpha) + 1 / alpha)


class Focal(NegativeSampling):
    """Lin et al., ICCV 2017: BCE whose terms shrink by (1 - p) ** gamma, p the probability of what is right.

    ``alpha`` weighs the positive, 1 - alpha the negatives; null weighs both by 1. Mean over a target's 1 + k.
    """

    def __init__(
        self,
        negatives: Mapping[str, int],
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        **options: object,
    ) -> None:
        super().__init__(negatives, **options)  # type: ignore[arg-type]
        if gamma < 0 or not (alpha is None or 0 < alpha < 1):
            raise ValueError(
                f"gamma is {gamma} and alpha {alpha}; gamma is at least 0, alpha null or in (0, 1)"
            )
        self.gamma = gamma
        self.weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

    def combine(self, positive_N: Tensor, negative_NK: Tensor, real_NK: Tensor, n_items: int) -> Tensor:
        yes_N = self.weights[0] * self._term(positive_N)
        no_N = self.weights[1] * (self._term(-negative_NK) * real_NK).sum(1)
        return ((yes_N + no_N) / (1 + real_NK.sum(1))).mean()

    def _term(self, right: Tensor) -> Tensor:
        """-(1 - p) ** gamma log p for the logit of p."""
        return (-self.gamma * F.softplus(right)).exp() * F.softplus(-right)


class BPR(NegativeSampling):
    """Rendle et al., UAI 2009: -log sigmoid(target - negative), mean over a target's negatives."""

    def combine(self, positive_N: Tensor, negative_NK: Tensor, real_NK: Tensor, n_items: int) -> Tensor:
        pairs_NK = F.softplus(negative_NK - positive_N[:, None]) * real_NK
        return (pairs_NK.sum(1) / real_NK.sum(1).clamp(min=1)).mean()


def _exact(scores: Tensor) -> Tensor:
    """At least float32, whatever autocast made the products in."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
