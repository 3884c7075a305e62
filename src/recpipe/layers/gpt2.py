"""Pre-norm transformer block of GPT-2 (Radford et al., 2019) in nanoGPT's form. B batch, T time, D width, H heads."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.layers.attention import Mask, attend, init_normal


class GPT2Block(nn.Module):
    """Transformer block: causal attention and a feed-forward of ``inner`` width with exact GELU, each residual.

    ``dropout`` is of both branches, ``attention_dropout`` of attention weights.
    """

    def __init__(
        self, dim: int, *, heads: int, inner: int, dropout: float, bias: bool, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim, bias=bias), nn.LayerNorm(dim, bias=bias)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.up, self.down = nn.Linear(dim, inner, bias=bias), nn.Linear(inner, dim, bias=bias)
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(attention_dropout) if attention_dropout else None

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        """Return the block's output (B, T, D) of ``x_BTD`` under the causal ``mask``."""
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        return x_BTD + self.dropout(self.down(F.gelu(self.up(self.norm_feed(x_BTD)))))

    def attention(self, x_BTD: Tensor, mask: Mask) -> Tensor:
        """Return the attention branch (B, T, D) of ``x_BTD`` under the causal ``mask``."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask, self.attention_dropout).transpose(1, 2).reshape(B, T, D))


def init_gpt2(positions: nn.Embedding, blocks: Iterable[nn.Module]) -> None:
    """Initialise as GPT-2: N(0, 0.02²), for the outputs of residual branches divided by the root of their number."""
    blocks = nn.ModuleList(blocks)
    for module in (positions, *blocks):
        module.apply(init_normal)
    for name, weight in blocks.named_parameters():
        if name.endswith(("out.weight", "down.weight")):
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(blocks)))
