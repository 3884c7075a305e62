"""Mamba-2 layer in plain torch (state-space duality, SSD): Dao & Gu, Transformers are SSMs, ICML 2024.

The recurrence of a head, with input x (P), state S (P, N), and B, C (N) shared by all heads:
``S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T``, ``y_t = S_t C_t + D x_t``. Within a chunk it is a masked product as in
attention; between chunks only states are passed on: four matrix products and a loop over chunks, no custom kernel.
Weights have the names and shapes of ``mamba_ssm`` and ``transformers``.

B batch, T time, D width, H heads, P width of a head, N state, K chunks, C events of a chunk (S as source).
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
CHUNK_CPU = 40  # events: the fastest on a CPU, docs/decisions/0014
CHUNK_GPU = 64  # events: a size of GPU tiles
MIN_DT, MAX_DT, MAX_A = 1e-3, 0.1, 16.0  # initial ranges of the authors' code


class Mamba2(nn.Module):
    """Mamba-2: causal state-space mixer (B, T, D) -> (B, T, D).

    ``chunk``: events per chunk, 0 chooses by device. ``kernel``: torch, mamba_ssm (CUDA only), or auto, which is
    mamba_ssm if available. Raises ValueError for invalid sizes and for a kernel that cannot run.
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
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; use a number of events, or 0 to choose by device")
        _check_kernel(kernel)
        self.inner, self.state, self.head_dim, self.heads = inner, state, head_dim, inner // head_dim
        self.chunk, self.kernel = chunk, kernel
        mixed = inner + 2 * state
        self.in_proj = nn.Linear(dim, inner + mixed + self.heads, bias=False)  # to z, x, B, C, dt
        self.conv1d = nn.Conv1d(mixed, mixed, conv, groups=mixed)
        dt = torch.empty(self.heads).uniform_(math.log(MIN_DT), math.log(MAX_DT)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1.0, MAX_A).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Return outputs (B, T, D) of ``x_BTD``; each depends on its own event and earlier ones.

        ``segments_BT``: number of the sequence of every event in packed rows; nothing crosses sequences.
        """
        parts = self.in_proj.weight.split([self.inner, self.inner + 2 * self.state, self.heads])
        z, mixed, dt = (F.linear(x_BTD, part) for part in parts)
        assert self.conv1d.bias is not None
        mixed = F.silu(causal_conv(mixed, self.conv1d.weight, self.conv1d.bias, segments_BT))
        x, B_BTN, C_BTN = mixed.split([self.inner, self.state, self.state], -1)
        x_BTHP = x.unflatten(-1, (self.heads, self.head_dim))
        scan = mamba_ssm_scan if choose_kernel(self.kernel, x_BTD.device) == "mamba_ssm" else ssd
        with torch.autocast(x_BTD.device.type, enabled=False):  # decays multiply up: float32 at least
            dt_BTH = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + self.dt_bias)
            A_H = -self.A_log.exp()
            y = scan(x_BTHP, dt_BTH, A_H, B_BTN, C_BTN, self.D, self.chunk, segments_BT).flatten(2)
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
    """Compute y (B, T, H, P) in chunks of at most ``chunk`` events, in the type of ``dt_BTH``; A_H < 0, dt_BTH > 0."""
    T, dtype = x_BTHP.shape[1], dt_BTH.dtype
    C, length = equal_chunks(T, chunk or (CHUNK_CPU if x_BTHP.device.type == "cpu" else CHUNK_GPU))
    x, B_BKCN, C_BKCN = (_to_chunks(v.to(dtype), length, C) for v in (x_BTHP, B_BTN, C_BTN))
    x_BKHCP = x.transpose(2, 3).contiguous()
    segments_BKC = None if segments_BT is None else _to_chunks(segments_BT, length, C)
    decay_BKHC = _to_chunks(dt_BTH * A_H, length, C).cumsum(2).mT.contiguous()  # log, from the chunk's start
    log_dt = dt_BTH.clamp(min=torch.finfo(dtype).tiny).log()
    log_dt_BKHC = _to_chunks(log_dt, length, C, value=-torch.inf).mT.contiguous()
    mask = _causal_mask(C, decay_BKHC, segments_BKC)
    M_BKHCS = _DecayedProducts.apply(C_BKCN @ B_BKCN.mT, decay_BKHC, decay_BKHC - log_dt_BKHC, mask, D_H)  # type: ignore[no-untyped-call]
    if x.shape[1] == 1:
        y_BKHCP = M_BKHCS @ x_BKHCP
    else:
        # decays from an event to the end of its chunk, from the start to an event, and from start to end
        last = decay_BKHC[..., -1:]
        to_end, from_start, through = (last - decay_BKHC + log_dt_BKHC).exp(), decay_BKHC.exp(), last.exp()
        if segments_BKC is not None:  # zero where event and state belong to different sequences
            end = segments_BKC[:, :, None, -1:]
            start = F.pad(end[:, :-1], (0, 0, 0, 0, 1, 0), value=-1)
            segment = segments_BKC[:, :, None]
            to_end, from_start = to_end * (segment == end), from_start * (segment == start)
            through = through * (end == start)
        state_BKHNP = (B_BKCN[:, :, None] * to_end[..., None]).mT @ x_BKHCP  # of each chunk alone
        read_BKHCN = C_BKCN[:, :, None] * from_start[..., None]
        incoming = [torch.zeros_like(state_BKHNP[:, 0])]  # the state before each chunk
        for state, decay in zip(state_BKHNP.unbind(1)[:-1], through[..., None].unbind(1)[:-1], strict=True):
            incoming.append(torch.addcmul(state, incoming[-1], decay))
        incoming_BKHNP = torch.stack(incoming, 1)
        within = M_BKHCS.flatten(0, 2) @ x_BKHCP.flatten(0, 2)
        y = torch.baddbmm(within, read_BKHCN.flatten(0, 2), incoming_BKHNP.flatten(0, 2))
        y_BKHCP = y.unflatten(0, M_BKHCS.shape[:3])
    return y_BKHCP.transpose(2, 3).flatten(1, 2)[:, :T]


def mamba_ssm_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_H: Tensor,
    chunk: int = 0,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """Compute ``ssd``, y (B, T, H, P), by the Triton kernels of mamba_ssm, whose chunks are powers of two."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    size = min(chunk or CHUNK_GPU, max(x_BTHP.shape[1], 16), 256)
    y = mamba_chunk_scan_combined(
        x_BTHP.contiguous(),
        dt_BTH,
        A_H.float(),
        B_BTN[:, :, None].contiguous(),  # one group
        C_BTN[:, :, None].contiguous(),
        chunk_size=max(16, 1 << (size - 1).bit_length()),
        D=D_H,
        seq_idx=None if segments_BT is None else segments_BT.to(torch.int32).contiguous(),
    )
    return y.to(dt_BTH.dtype)


def causal_conv(x_BTD: Tensor, weight: Tensor, bias: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Convolve each channel (B, T, D) over an event and those before it; ``weight`` (D, 1, width) of ``nn.Conv1d``."""
    width = weight.shape[-1]
    if segments_BT is not None:
        y = torch.addcmul(bias, x_BTD, weight[:, 0, -1])
        for lag in range(1, min(width, x_BTD.shape[1])):
            same_segment = segments_BT[:, lag:] == segments_BT[:, :-lag]
            shifted = F.pad(x_BTD[:, :-lag] * same_segment[..., None], (0, 0, lag, 0))
            y = torch.addcmul(y, shifted, weight[:, 0, -1 - lag])
        return y
    x = F.pad(x_BTD, (0, 0, width - 1, 0)).mT.unsqueeze(2)  # an image of one row, channels last:
    y = F.conv2d(x, weight[:, :, None], groups=len(weight))  # fast on a CPU, without its bias
    return y.add_(bias[:, None, None]).squeeze(2).transpose(1, 2)


def equal_chunks(length: int, chunk: int) -> tuple[int, int]:
    """Return chunk and padded length: chunks of equal size, at most ``chunk``, with the least padding."""
    count = max(-(-length // chunk), 1)
    size = -(-length // count)
    return size, size * count


def choose_kernel(kernel: str, device: torch.device) -> str:
    """Return torch or mamba_ssm. Raises ValueError for ``mamba_ssm`` where it cannot run."""
    _check_kernel(kernel)
    if kernel == "auto":
        kernel = "mamba_ssm" if device.type == "cuda" and has_mamba_ssm() else "torch"
        _log_kernel(kernel, device.type)
    elif kernel == "mamba_ssm" and device.type != "cuda":
        raise ValueError(f"kernel mamba_ssm runs on CUDA, the model is on {device.type}; set kernel: torch or auto")
    return kernel


@cache
def has_mamba_ssm() -> bool:
    """Return whether the package mamba_ssm is installed."""
    return importlib.util.find_spec("mamba_ssm") is not None


def _check_kernel(kernel: str) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; allowed: {', '.join(KERNELS)}")
    if kernel == "mamba_ssm" and not has_mamba_ssm():
        raise ValueError(
            "kernel is mamba_ssm, which is not installed; run pip install 'recpipe[cuda]', or set torch or auto"
        )


@cache
def _log_kernel(kernel: str, device_type: str) -> None:
    log.info("Mamba-2 runs with the kernel %s on %s", kernel, device_type)


class _DecayedProducts(torch.autograd.Function):
    """G · exp(to_C - from_S + mask) + D on the diagonal; torch's own gradient takes twice the passes."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, to: Tensor, source: Tensor, mask: Tensor, D: Tensor) -> Tensor:
        L = (to[..., None] - source[..., None, :]).add_(mask).exp_()
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


def _to_chunks(values: Tensor, length: int, chunk: int, *, value: float = 0.0) -> Tensor:
    """(B, T, ...) -> (B, K, C, ...), padded at the end: events with dt = 0 change no state."""
    if padding := length - values.shape[1]:
        values = F.pad(values, (0, 0) * (values.dim() - 2) + (0, padding), value=value)
    return values.unflatten(1, (-1, chunk))


def _causal_mask(chunk: int, like: Tensor, segments_BKC: Tensor | None) -> Tensor:
    """0 where event C may see S, else -inf: (C, S), or (B, K, 1, C, S) with segments."""
    allowed = torch.ones(chunk, chunk, dtype=torch.bool, device=like.device).tril()
    if segments_BKC is not None:
        allowed = (allowed & (segments_BKC[..., None] == segments_BKC[..., None, :]))[:, :, None]
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill_(~allowed, -torch.inf)
