"""Full softmax: cross-entropy against the whole catalogue, in chunks. N targets, D width, I items.

Only a chunk of the N × I logits exists at a time, and its gradient is computed in the same pass while it is in cache
(the idea of Cut Cross-Entropy, Wijmans et al., ICLR 2025, without its kernels).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recpipe.training.losses import Loss

MAX_LOGITS = 1 << 26  # elements of a chunk, 256 MiB in float32: the whole ``chunk`` up to 131,072 items


class FullSoftmax(Loss):
    """Mean cross-entropy of the next item against all items, in chunks of at most ``chunk`` targets.

    ``items: trained`` leaves out items without training events (False in ``trained_items`` (I + 1,) bool), which a
    softmax only pushes down: for catalogues with new items. Exact in float32. Under autocast matrix products are in its
    type and the softmax is in float32. Raises ValueError for invalid arguments, and when it is computed of another
    table than that of the items.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"trained_items"})
    candidates: Tensor | None  # item numbers of candidate_mask

    def __init__(self, chunk: int = 512, items: str = "all", trained_items: Tensor | None = None) -> None:
        super().__init__()
        if items not in ("all", "trained"):
            raise ValueError(f"loss.items is {items!r}; allowed: all, trained")
        if items == "trained" and trained_items is None:
            raise ValueError("loss.items is trained, which needs the mask of the items with training events")
        if chunk < 1:
            raise ValueError(f"loss.chunk is {chunk}; it is the number of targets whose logits exist at once")
        self.chunk = chunk
        self.candidate_mask = trained_items if items == "trained" else None
        candidates = None if self.candidate_mask is None else self.candidate_mask.nonzero()[:, 0]
        self.register_buffer("candidates", candidates, persistent=False)

    def compute(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean cross-entropy (scalar) of targets (N,) among the items of ``table`` (I + 1, D).

        Raises ValueError for a table of codes, which leaves no items out, with ``items: trained``.
        """
        if self.candidate_mask is not None and self.candidates is not None:
            if len(table) != len(self.candidate_mask):
                reason = f"loss.items: trained leaves out items, and this softmax is over {len(table) - 1} codes"
                raise ValueError(f"{reason}; set softmax: children or items")
            table = torch.cat([table[:1], table[self.candidates]])
            targets = self.candidate_mask.cumsum(0)[targets]
        kind = hidden.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        settings = (weights, max(min(self.chunk, MAX_LOGITS // len(table)), 1), low)
        loss: Tensor = _ChunkedCrossEntropy.apply(hidden, table, targets, *settings)  # type: ignore[no-untyped-call]
        return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        chunk: int,
        low: torch.dtype | None,
    ) -> Tensor:
        N, device = len(targets), hidden.device
        h, w = hidden.detach(), table.detach()[1:]
        if low is not None:
            h, w = h.to(low), w.to(low)
        has_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dh = torch.empty_like(h) if has_gradient else None
        dtable = torch.zeros_like(table) if has_gradient else None
        dw = None if dtable is None else dtable[1:]
        logits = torch.empty(min(chunk, N), len(w), device=device, dtype=h.dtype)
        softmax = torch.empty(logits.shape, device=device, dtype=torch.promote_types(h.dtype, torch.float32))
        total = torch.zeros((), device=device, dtype=softmax.dtype)
        for start in range(0, N, chunk):
            hc, yc = h[start : start + chunk], targets[start : start + chunk, None] - 1
            out, p = logits[: len(hc)], softmax[: len(hc)]
            torch.mm(hc, w.T, out=out)
            torch.log_softmax(out, 1, dtype=p.dtype, out=p)
            log_probs = p.gather(1, yc)
            wc = None if weights is None else weights[start : start + chunk, None].to(p.dtype)
            total -= (log_probs if wc is None else log_probs * wc).sum()
            if dh is not None and dw is not None:
                p.exp_().scatter_add_(1, yc, p.new_full((1, 1), -1.0).expand_as(yc))
                g = (p if wc is None else p.mul_(wc)).to(h.dtype)
                torch.mm(g, w, out=dh[start : start + chunk])
                dw += torch.mm(g.T, hc)
        if dh is not None and dtable is not None:
            ctx.save_for_backward(dh.div_(N), dtable.div_(N))
            ctx.types = hidden.dtype
        return total / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        dh, dtable = ctx.saved_tensors
        return dh.to(ctx.types).mul(grad), dtable * grad, None, None, None, None
