"""Cross-entropy against the whole catalogue. N targets, D width, I items.

Full softmax costs N × I logits; here they exist only a chunk at a time, and the gradient is taken in the same pass
while a chunk is still in cache (the idea of Cut Cross-Entropy, Wijmans et al., ICLR 2025, without its kernels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FullSoftmax(nn.Module):
    """Mean cross-entropy of the next item against all items, in chunks of ``chunk`` targets.

    ``items: trained`` leaves out of it those that training has no event of, which it would only push down: for
    catalogues with new items. ``trained`` (I + 1,) bool says which are in.
    Exact in float32. Under autocast the matrix products run in its type and the softmax in float32.
    """

    trained: Tensor | None
    rows: Tensor | None

    def __init__(self, chunk: int = 512, items: str = "all", trained: Tensor | None = None) -> None:
        super().__init__()
        if items not in ("all", "trained"):
            raise ValueError(f"loss.items is {items!r}; allowed: all, trained")
        if items == "trained" and trained is None:
            raise ValueError("loss.items is trained, and which items training has is not known here")
        left = trained if items == "trained" else None
        self.register_buffer("trained", left, persistent=False)
        self.register_buffer("rows", None if left is None else left.nonzero()[:, 0], persistent=False)
        if chunk < 1:
            raise ValueError(f"loss.chunk is {chunk}; it is the number of targets whose logits exist at once")
        self.chunk = chunk

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, D), item table (I + 1, D) whose row 0 is padding, targets (N,) in 1..I -> scalar."""
        if len(targets) == 0:
            raise ValueError("a batch without a target has no loss")
        if self.trained is not None and self.rows is not None:
            if len(table) != len(self.trained):
                raise ValueError(
                    f"loss.items: trained leaves out items, and this softmax is over {len(table) - 1} codes; set "
                    "softmax: children or items"
                )
            table = torch.cat([table[:1], table[self.rows]])
            targets = self.trained.cumsum(0)[targets]
        kind = hidden.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        loss: Tensor = _ChunkedCrossEntropy.apply(hidden, table, targets, self.chunk, low)
        return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, chunk: int, low: torch.dtype | None
    ) -> Tensor:
        N, device = len(targets), hidden.device
        h, w = hidden.detach(), table.detach()[1:]
        if low is not None:
            h, w = h.to(low), w.to(low)
        wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dh = torch.empty_like(h) if wants else None
        dw = torch.zeros(w.shape, device=device, dtype=table.dtype) if wants else None
        logits = torch.empty(min(chunk, N), len(w), device=device, dtype=h.dtype)
        softmax = torch.empty(logits.shape, device=device, dtype=torch.promote_types(h.dtype, torch.float32))
        total = torch.zeros((), device=device, dtype=softmax.dtype)
        for start in range(0, N, chunk):
            hc, yc = h[start : start + chunk], targets[start : start + chunk, None] - 1
            out, p = logits[: len(hc)], softmax[: len(hc)]
            torch.mm(hc, w.T, out=out)
            torch.log_softmax(out, 1, dtype=p.dtype, out=p)
            total -= p.gather(1, yc).sum()
            if dh is not None and dw is not None:
                p.exp_().scatter_add_(1, yc, p.new_full((1, 1), -1.0).expand_as(yc))
                g = p.to(h.dtype)
                torch.mm(g, w, out=dh[start : start + chunk])
                dw += torch.mm(g.T, hc)
        if dh is not None and dw is not None:
            ctx.save_for_backward(dh.div_(N), dw.div_(N))
            ctx.types = hidden.dtype
        return total / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dh, dw = ctx.saved_tensors
        dtable = torch.cat([dw.new_zeros(1, dw.shape[1]), dw])
        return dh.to(ctx.types).mul(grad), dtable.mul_(grad), None, None, None
