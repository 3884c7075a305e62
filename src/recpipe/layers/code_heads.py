"""Heads that predict the codes of an item independently, by cosines with embeddings of codes (RPG, KDD 2025).

M targets, L levels, V codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CodeHeads(nn.Module):
    """Heads of all levels, each a residual block h + SiLU(W_l h + b_l); logits are cosines / temperature.

    At first they are the identity. ``fast_loss``, if set, computes ``loss`` for float32 on a CPU; see
    ``recpipe.accelerate.code_heads``.
    """

    fast_loss: Callable[..., Tensor] | None = None

    def __init__(self, levels: int, dim: int, *, temperature: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(levels, dim, dim)), nn.Parameter(torch.zeros(levels, dim))
        self.temperature = temperature

    def forward(self, hidden_MD: Tensor, levels: slice) -> Tensor:
        """Return the heads (L, M, D) of ``levels``, of length 1 / temperature, from hidden states."""
        weight_LDD, bias_LD = self.weight[levels], self.bias[levels]
        hidden_LMD = torch.baddbmm(bias_LD[:, None], hidden_MD.expand(len(bias_LD), -1, -1), weight_LDD)
        return F.normalize(hidden_MD + F.silu(hidden_LMD), dim=-1) / self.temperature

    def loss(
        self,
        hidden_MD: Tensor,
        levels: slice,
        tables: Sequence[Tensor],
        codes_ML: Tensor,
        criterion: Callable[..., Tensor],
        weights_M: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss (scalar) of the targets' codes (M, L) over ``levels``.

        ``tables`` are L tensors (V_l, D), normalised; ``weights_M`` of the targets.
        """
        is_float32 = hidden_MD.dtype == torch.float32 and not torch.is_autocast_enabled(hidden_MD.device.type)
        if self.fast_loss is not None and hidden_MD.device.type == "cpu" and is_float32:
            return self.fast_loss(self, hidden_MD, levels, tables, codes_ML, weights_M)
        parts = zip(self(hidden_MD, levels).unbind(0), tables, codes_ML.unbind(1), strict=True)
        losses = [criterion(head, F.pad(table, (0, 0, 1, 0)), codes + 1, weights_M) for head, table, codes in parts]
        return torch.stack(losses).mean()
