"""Generalised binary cross-entropy of gSASRec (Petrov & Macdonald, RecSys 2023)."""

from __future__ import annotations

from collections.abc import Mapping

from recpipe.training.losses.bce import BinaryCrossEntropy


class GBCE(BinaryCrossEntropy):
    """Generalised BCE: the positive's probability is raised to beta, against overconfidence.

    alpha = k / (I - 1) is the sampled share of negatives, beta = alpha (t (1 - 1 / alpha) + 1 / alpha). ``t`` = 0 is
    BCE, 1 removes all overconfidence. log(sigmoid ** beta) is beta log-sigmoid, which does not overflow, so that the
    paper's change of the positive's logit in float64 is not needed. Raises ValueError for t outside of 0 to 1.
    """

    def __init__(self, negatives: Mapping[str, int], *, t: float = 0.75, **options: object) -> None:
        super().__init__(negatives, **options)  # type: ignore[arg-type]
        if not 0 <= t <= 1:
            raise ValueError(f"t is {t}; it is between 0 (BCE) and 1")
        self.t = t

    def positive_weight(self, k: int, n_items: int) -> float:
        """Return beta for ``k`` negatives of ``n_items`` items."""
        alpha = min(k / max(n_items - 1, 1), 1.0)
        return alpha * (self.t * (1 - 1 / alpha) + 1 / alpha)
