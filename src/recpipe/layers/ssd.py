"""Mamba-2: Dao & Gu, Transformers are SSMs, ICML 2024: the selective state space of section 6 and the block of 7.

B batch, T time, D width, E inner width, H heads, P width of a head, N size of the state, K chunks, C events in a chunk.

The recurrence S_t = exp(Δ_t A) S_(t-1) + Δ_t B_t x_t', y_t = C_t S_t + D x_t is linear in S, so that it can be done as
matrix products inside chunks and one short recurrence between them (their listing 1). It is right-to-left blind, so
that padding on the right reaches nothing. Sequences packed into one row keep apart by ``segments``: no decay, state or
convolution crosses from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 64  # events; on a CPU 32 to 100 are within 10 %
KERNELS = ("auto", "torch", "mamba_ssm")


class Mamba2(nn.Module):
    """The block: projection, causal depthwise convolution, state space, gated RMSNorm, projection. One group of B, C.

    Widths: E = ``expand`` D, P = ``head_dim``, N = ``state``; ``conv``: events that the convolution sees. ``kernel``:
    mamba_ssm's on CUDA where it is installed (``auto``), or one of the two. Weights are laid out as mamba-ssm's.
    """

    def __init__(
        self, dim: int, *, state: int, head_dim: int, expand: int, conv: int, kernel: str = "auto"
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}; allowed: {', '.join(KERNELS)}")
        if kernel == "mamba_ssm" and find_spec("mamba_ssm") is None:
            raise ValueError(
                "kernel is mamba_ssm and it is not installed: pip install 'recpipe[cuda]', or kernel: auto"
            )
        inner = expand * dim
        if inner % head_dim:
            raise ValueError(f"expand x dim = {inner} is not a multiple of head_dim {head_dim}")
        self.kernel, self.heads = kernel, inner // head_dim
        self.widths = [inner, inner + 2 * state, self.heads]  # z; x, B and C; Δ
        self.inner, self.state = inner, state
        self.in_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv1d = nn.Conv1d(self.widths[1], self.widths[1], conv, groups=self.widths[1])
        step = torch.exp(torch.empty(self.heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BTD: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``segments`` (B, T) where sequences are packed."""
        z, mixed, dt = self.in_proj(x_BTD).split(self.widths, -1)
        mixed = F.silu(causal_conv(mixed, self.conv1d.weight[:, 0], self.conv1d.bias, segments))
        x, b, c = mixed.split([self.inner, self.state, self.state], -1)
        x_BTHP = x.unflatten(-1, (self.heads, -1))
        dt = F.softplus(dt.float() + self.dt_bias)
        scan = fused_scan if self._fused(x_BTD.device) else chunked_scan
        y = scan(x_BTHP, dt, -self.A_log.exp(), b, c, segments=segments)
        y = (y + self.D[:, None] * x_BTHP).flatten(-2)
        return self.out_proj(self.norm(y.to(z.dtype) * F.silu(z)))

    def _fused(self, device: torch.device) -> bool:
        if self.kernel == "mamba_ssm" and device.type != "cuda":
            raise ValueError("kernel is mamba_ssm, which needs CUDA; set kernel: auto")
        return device.type == "cuda" and self.kernel != "torch" and find_spec("mamba_ssm") is not None


def causal_conv(x_BTE: Tensor, weight: Tensor, bias: Tensor | None, segments: Tensor | None = None) -> Tensor:
    """Depthwise: at every event the weighted sum of it and the ones before, ``weight`` (E, W), newest last.

    As W shifted products: on a CPU faster than a convolution, and packed sequences keep apart by a mask.
    """
    T, W = x_BTE.shape[1], weight.shape[1]
    total = x_BTE * weight[:, -1]
    for back in range(1, min(W, T)):
        earlier = F.pad(x_BTE[:, :-back], (0, 0, back, 0))
        if segments is not None:
            same = segments[:, back:] == segments[:, :-back]
            earlier = earlier * F.pad(same, (back, 0))[..., None]
        total = total + earlier * weight[:, -1 - back]
    return total if bias is None else total + bias


def chunked_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    *,
    segments: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """y (B, T, H, P) of the recurrence without D x, in float32 or better, in chunks of at most ``chunk`` events."""
    T = x_BTHP.shape[1]
    kind = torch.promote_types(x_BTHP.dtype, torch.float32)
    with torch.autocast(x_BTHP.device.type, enabled=False):  # decays multiply along the sequence
        K = -(-T // chunk)
        C = -(-T // K)
        cut = lambda v: F.pad(v.to(kind), (0, 0) * (v.ndim - 2) + (0, K * C - T)).unflatten(1, (K, C))  # noqa: E731
        dt, b, c = cut(dt_BTH), cut(b_BTN), cut(c_BTN)
        x_BKHCP = (cut(x_BTHP) * dt[..., None]).transpose(2, 3)
        logs_BKHC = (dt * a_H).transpose(2, 3).cumsum(-1)  # of the decay from the chunk's start
        seen = torch.ones(C, C, dtype=torch.bool, device=x_BTHP.device).tril()
        kept = None
        if segments is not None:
            kept = F.pad(segments, (0, K * C - T)).unflatten(1, (K, C))[:, :, None]  # (B, K, 1, C)
            seen = seen & (kept[..., :, None] == kept[..., None, :])
        lag = (logs_BKHC[..., :, None] - logs_BKHC[..., None, :]).masked_fill(~seen, -torch.inf)
        inside = (c @ b.transpose(-1, -2))[:, :, None] * lag.exp()
        y = inside @ x_BKHCP
        if K > 1:
            y = y + _between(x_BKHCP, logs_BKHC, b, c, kept)
    return y.transpose(2, 3).flatten(1, 2)[:, :T]


def _between(x: Tensor, logs: Tensor, b: Tensor, c: Tensor, kept: Tensor | None) -> Tensor:
    """What chunks add to later ones (B, K, H, C, P): the state at each end, carried on and read."""
    to_end, from_start, whole = (logs[..., -1:] - logs).exp(), logs.exp(), logs[..., -1].exp()
    if kept is not None:
        before = F.pad(kept[:, :-1, :, -1:], (0, 0, 0, 0, 1, 0), value=-1)  # the segment that the state is of
        to_end = to_end * (kept == kept[..., -1:])
        from_start = from_start * (kept == before)
        whole = whole * (kept[..., -1:] == before)[..., 0]
    ends = (b[:, :, None] * to_end[..., None]).transpose(-1, -2) @ x  # (B, K, H, N, P)
    state, states = torch.zeros_like(ends[:, 0]), []
    for k in range(ends.shape[1]):
        states.append(state)
        state = state * whole[:, k, :, None, None] + ends[:, k]
    return (c[:, :, None] * from_start[..., None]) @ torch.stack(states, 1)


def recurrent_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    *,
    segments: Tensor | None = None,
) -> Tensor:
    """The same event by event, as the paper's equation 1 has it: slow, what the others are held against."""
    B, T, H, P = x_BTHP.shape
    state, ys = x_BTHP.new_zeros(B, H, b_BTN.shape[-1], P), []
    for t in range(T):
        decay = torch.exp(dt_BTH[:, t] * a_H)
        if segments is not None and t:
            decay = decay * (segments[:, t] == segments[:, t - 1])[:, None]
        update = b_BTN[:, t, None, :, None] * (dt_BTH[:, t, :, None] * x_BTHP[:, t])[:, :, None]
        state = state * decay[..., None, None] + update
        ys.append((c_BTN[:, t, None, None] @ state)[:, :, 0])
    return torch.stack(ys, 1)


def fused_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    *,
    segments: Tensor | None = None,
) -> Tensor:
    """mamba_ssm's Triton kernel."""
    numbers = None if segments is None else segments.to(torch.int32)
    scanned: Tensor = _kernel()(
        x_BTHP, dt_BTH, a_H, b_BTN[:, :, None], c_BTN[:, :, None], chunk_size=CHUNK, seq_idx=numbers
    )
    return scanned


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined
