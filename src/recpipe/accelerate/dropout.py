"""Dropout with a cheaper mask on a CPU: 16 random bits per element, four elements from one draw.

torch draws one number per element on a single thread. Here the probability is rounded to a multiple of 1 / 65536, and
the remaining elements are scaled by exactly that. The bits come from torch's generator, the masks differ from torch's.
Elsewhere it is torch's dropout. A training step of T5 models took 15 to 23 % less time (two
rounds, beside other work), one of SASRec 4 to 8 %.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class FastDropout(nn.Dropout):
    """``nn.Dropout`` that is not in place."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)
        self.threshold = min(round(p * LEVELS), LEVELS - 1)  # values below it, of 65536, are dropped

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, any floating type."""
        if not self.training or self.threshold == 0 or input.device.type != "cpu":
            return super().forward(input)
        draws = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        mask = torch.empty(input.shape, dtype=input.dtype)  # in the input's type: no bool in between
        torch.ge(bits, self.threshold - LEVELS // 2, out=mask)
        return input * mask.mul_(LEVELS / (LEVELS - self.threshold))
