"""Mamba-2 in plain torch: Dao & Gu, Transformers are SSMs, ICML 2024 (state-space duality, SSD).

B batch, T time, D width, H heads, P width of a head, N state, K chunks, C events in a chunk (S where it is the source).

The recurrence of a head, with its input x (P), its state S (P, N), and B, C (N) that all heads share:
``S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T``, ``y_t = S_t C_t + D x_t``. In a chunk it is a masked product as of
attention; between chunks only states travel. So it takes four matrix products and a loop over chunks, no kernel.

One group of B and C. Weights have the names and shapes of ``mamba_ssm`` and ``transformers``.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

KERNELS = ("auto", "torch", "mamba_ssm")
CHUNK_CPU = 40  # events: the fastest there, docs/decisions/0014
CHUNK_ELSEWHERE = 64  # a size of GPU tiles
DT_LEAST, DT_MOST, A_MOST = 1e-3, 0.1, 16.0  # initial ranges of the paper's code


class Mamba2(nn.Module):
    """The mixer (B, T, D) -> (B, T, D), causal: padding on the right reaches nothing before it.

    ``chunk`` events are mixed at once, 0 chooses by device. ``kernel``: torch, mamba_ssm (CUDA only), or auto, which
    is mamba_ssm where it can run. Raises ValueError for a kernel that cannot run.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 64,
        conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        chunk: int = 0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * dim
        if head_dim < 1 or inner % head_dim:
            raise ValueError(f"head_dim is {head_dim}; expand {expand} * dim {dim} is not a multiple of it")
        for name, value in (("state", state), ("conv", conv)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it needs at least 1")
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; give a number of events, or 0 to choose by device")
        _check(kernel)
        self.inner, self.state, self.head_dim, self.heads = inner, state, head_dim, inner // head_dim
        self.chunk, self.kernel = chunk, kernel
        mixed = inner + 2 * state
        self.in_proj = nn.Linear(dim, inner + mixed + self.heads, bias=False)  # to z, x, B, C, dt
        self.conv1d = nn.Conv1d(mixed, mixed, conv, groups=mixed)
        dt = torch.empty(self.heads).uniform_(math.log(DT_LEAST), math.log(DT_MOST)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1.0, A_MOST).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """``segments_BT``: the sequence of every event where a row holds several, and nothing crosses."""
        parts = self.in_proj.weight.split([self.inner, self.inner + 2 * self.state, self.heads])
        z, mixed, dt = (F.linear(x_BTD, part) for part in parts)  # apart: round widths, nothing to join
        assert self.conv1d.bias is not None
        mixed = F.silu(causal_conv(mixed, self.conv1d.weight, self.conv1d.bias, segments_BT))
        x, B_BTN, C_BTN = mixed.split([self.inner, self.state, self.state], -1)
        x_BTHP = x.unflatten(-1, (self.heads, self.head_dim))
        scan = _on_mamba_ssm if chosen_kernel(self.kernel, x_BTD.device) == "mamba_ssm" else ssd
        with torch.autocast(x_BTD.device.type, enabled=False):  # decays multiply up: float32 at least
            wide = torch.promote_types(dt.dtype, torch.float32)
            dt_BTH = F.softplus(dt.to(wide) + self.dt_bias)
            y = scan(
                x_BTHP, dt_BTH, -self.A_log.exp(), B_BTN, C_BTN, self.D, self.chunk, segments_BT
            ).flatten(2)
            y = y * F.silu(z.to(y.dtype))
            norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
            scale = (norm.square() / self.inner + self.norm.eps).rsqrt()
        weight = self.out_proj.weight * self.norm.weight  # RMSNorm behind the projection, where it is narrow
        return (F.linear(y, weight) * scale).to(x_BTD.dtype)


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_H: Tensor,
    chunk: int = 0,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """y (B, T, H, P) by chunks of at most ``chunk`` events, in the type of ``dt_BTH``; A_H < 0, dt_BTH > 0."""
    T, kind = x_BTHP.shape[1], dt_BTH.dtype
    C, length = equal_chunks(T, chunk or (CHUNK_CPU if x_BTHP.device.type == "cpu" else CHUNK_ELSEWHERE))
    x, B_BKCN, C_BKCN = (_chunked(v.to(kind), length, C) for v in (x_BTHP, B_BTN, C_BTN))
    x_BKHCP = x.transpose(2, 3).contiguous()
    marks_BKC = None if segments_BT is None else _chunked(segments_BT, length, C)
    decay_BKHC = _chunked(dt_BTH * A_H, length, C).cumsum(2).mT.contiguous()  # log of what is left of a start
    taken = dt_BTH.clamp(min=torch.finfo(kind).tiny).log()  # as a logarithm too: no product with x
    taken_BKHC = _chunked(taken, length, C, value=-torch.inf).mT.contiguous()

    seen = _seen(C, decay_BKHC, marks_BKC)
    M_BKHCS = _Decayed.apply(C_BKCN @ B_BKCN.mT, decay_BKHC, decay_BKHC - taken_BKHC, seen, D_H)
    if x.shape[1] == 1:
        y_BKHCP = M_BKHCS @ x_BKHCP
    else:
        whole = decay_BKHC[..., -1:]
        kept, read, passed = (whole - decay_BKHC + taken_BKHC).exp(), decay_BKHC.exp(), whole.exp()
        if marks_BKC is not None:
            kept, read, passed = _within_segments(kept, read, passed, marks_BKC)
        kept_BKHCN = B_BKCN[:, :, None] * kept[..., None]
        left_BKHNP = kept_BKHCN.mT @ x_BKHCP  # the state that a chunk leaves by itself
        read_BKHCN = C_BKCN[:, :, None] * read[..., None]
        y_BKHCP = _sum_of_products(M_BKHCS, x_BKHCP, read_BKHCN, _carried(left_BKHNP, passed[..., None]))
    return y_BKHCP.transpose(2, 3).flatten(1, 2)[:, :T]


class _Decayed(torch.autograd.Function):
    """G exp(to_C - from_S + seen) + D on the diagonal: torch's own gradient of it takes twice the passes."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, to: Tensor, source: Tensor, seen: Tensor, D: Tensor) -> Tensor:
        L = (to[..., None] - source[..., None, :]).add_(seen).exp_()
        M = G[:, :, None] * L
        M.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
        ctx.save_for_backward(L, M, D)
        return M

    @staticmethod
    def backward(ctx: Any, dM: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        L, M, D = ctx.saved_tensors
        diagonal = dM.diagonal(dim1=-2, dim2=-1)
        dE = dM * M
        dE.diagonal(dim1=-2, dim2=-1).sub_(diagonal * D[:, None])
        return (dM * L).sum(2), dE.sum(-1), dE.sum(-2).neg_(), None, diagonal.sum((0, 1, 3))


def _sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """a @ b + c @ d of batches of matrices, added where they are multiplied."""
    first = a.flatten(0, 2) @ b.flatten(0, 2)
    return torch.baddbmm(first, c.flatten(0, 2), d.flatten(0, 2)).unflatten(0, a.shape[:3])


def _carried(left_BKHNP: Tensor, passed_BKH11: Tensor) -> Tensor:
    """The state before every chunk, of what each leaves and lets pass."""
    states = [torch.zeros_like(left_BKHNP[:, 0])]
    for left, passed in zip(left_BKHNP.unbind(1)[:-1], passed_BKH11.unbind(1)[:-1], strict=True):
        states.append(torch.addcmul(left, states[-1], passed))
    return torch.stack(states, 1)


def _within_segments(
    kept: Tensor, read: Tensor, passed: Tensor, marks_BKC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with zeros where the state that goes on, or comes, is of another sequence than the event."""
    last = marks_BKC[:, :, None, -1:]
    before = F.pad(last[:, :-1], (0, 0, 0, 0, 1, 0), value=-1)
    marks = marks_BKC[:, :, None]
    return kept * (marks == last), read * (marks == before), passed * (last == before)


def recurrence(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_H: Tensor,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """The same step by step, as the module's docstring has it: slow, and what ``ssd`` is tested against."""
    state, outputs = x_BTHP.new_zeros(*x_BTHP.shape[:1], *x_BTHP.shape[2:], B_BTN.shape[-1]), []
    for t in range(x_BTHP.shape[1]):
        left = (dt_BTH[:, t] * A_H).exp()
        if segments_BT is not None and t:
            left = left * (segments_BT[:, t] == segments_BT[:, t - 1])[:, None]
        x_BHP = x_BTHP[:, t]
        taken = (dt_BTH[:, t, :, None] * x_BHP)[..., None] * B_BTN[:, t, None, None]
        state = state * left[..., None, None] + taken
        outputs.append((state * C_BTN[:, t, None, None]).sum(-1) + D_H[:, None] * x_BHP)
    return torch.stack(outputs, 1)


def causal_conv(x_BTD: Tensor, weight: Tensor, bias: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Depthwise convolution over an event and the ones before, ``weight`` (D, 1, width) as of ``nn.Conv1d``."""
    width = weight.shape[-1]
    if segments_BT is not None:
        y = torch.addcmul(bias, x_BTD, weight[:, 0, -1])
        for back in range(1, min(width, x_BTD.shape[1])):
            own = segments_BT[:, back:] == segments_BT[:, :-back]
            seen = F.pad(x_BTD[:, :-back] * own[..., None], (0, 0, back, 0))
            y = torch.addcmul(y, seen, weight[:, 0, -1 - back])
        return y
    x = F.pad(x_BTD, (0, 0, width - 1, 0)).mT.unsqueeze(2)  # an image of one row, channels last:
    y = F.conv2d(x, weight[:, :, None], groups=len(weight))  # fast on a CPU, but not with its own bias
    return y.add_(bias[:, None, None]).squeeze(2).transpose(1, 2)


def equal_chunks(length: int, chunk: int) -> tuple[int, int]:
    """Chunk and padded length: chunks as equal as can be, none above ``chunk``, so that little is added."""
    count = max(-(-length // chunk), 1)
    size = -(-length // count)
    return size, size * count


def _chunked(values: Tensor, length: int, chunk: int, *, value: float = 0.0) -> Tensor:
    """(B, T, ...) -> (B, K, C, ...), filled up at the end: events with dt = 0 neither decay nor take."""
    short = length - values.shape[1]
    if short:
        values = F.pad(values, (0, 0) * (values.dim() - 2) + (0, short), value=value)
    return values.unflatten(1, (-1, chunk))


def _seen(chunk: int, like: Tensor, marks_BKC: Tensor | None) -> Tensor:
    """0 where event C may see S, else -inf: (C, S), or (B, K, 1, C, S) with segments."""
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=like.device).tril()
    if marks_BKC is not None:
        seen = (seen & (marks_BKC[..., None] == marks_BKC[..., None, :]))[:, :, None]
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)


def chosen_kernel(kernel: str, device: torch.device) -> str:
    """torch or mamba_ssm; raises ValueError where ``mamba_ssm`` is asked for and cannot run."""
    _check(kernel)
    if kernel == "auto":
        kernel = "mamba_ssm" if device.type == "cuda" and _installed() else "torch"
        _tell(kernel, device.type)
    elif kernel == "mamba_ssm" and device.type != "cuda":
        raise ValueError(
            f"kernel mamba_ssm runs on CUDA, the model is on {device.type}; set kernel: torch or auto"
        )
    return kernel


def _check(kernel: str) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; allowed: {', '.join(KERNELS)}")
    if kernel == "mamba_ssm" and not _installed():
        raise ValueError(
            "kernel is 'mamba_ssm', which is not installed; pip install 'recpipe[cuda]', or torch, auto"
        )


@cache
def _installed() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


@cache
def _tell(kernel: str, device: str) -> None:
    log.info("Mamba-2 runs with the kernel %s on %s", kernel, device)


def _on_mamba_ssm(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_H: Tensor,
    chunk: int = 0,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """As ``ssd`` by the Triton kernels, which pad by themselves and take chunks that are powers of two."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    wanted = min(chunk or CHUNK_ELSEWHERE, max(x_BTHP.shape[1], 16), 256)
    y = mamba_chunk_scan_combined(
        x_BTHP.contiguous(),
        dt_BTH,
        A_H.float(),
        B_BTN[:, :, None].contiguous(),  # one group
        C_BTN[:, :, None].contiguous(),
        chunk_size=max(16, 1 << (wanted - 1).bit_length()),
        D=D_H,
        seq_idx=None if segments_BT is None else segments_BT.to(torch.int32).contiguous(),
    )
    return y.to(dt_BTH.dtype)
