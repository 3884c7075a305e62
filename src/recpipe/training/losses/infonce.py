"""InfoNCE (van den Oord et al. 2018): softmax over the targets of the batch."""

from __future__ import annotations

from typing import ClassVar

from recpipe.training.losses.sampled_softmax import SampledSoftmax


class InfoNCE(SampledSoftmax):
    """Cross-entropy of the target against at most ``candidates`` targets of other places in the batch."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, candidates: int = 1024, *, temperature: float = 1.0) -> None:
        super().__init__({"in_batch": candidates}, temperature=temperature)
