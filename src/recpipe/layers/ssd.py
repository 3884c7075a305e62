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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

KERNELS = ("auto", "torch", "mamba_ssm")
CHUNK_CPU, CHUNK_ELSEWHERE = (
    40,
    64,
)  # events: the fastest on CPU (docs/decisions/0014), and a size of GPU tiles
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
        z, mixed, dt = self.in_proj(x_BTD).split([self.inner, self.inner + 2 * self.state, self.heads], -1)
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
            y = self.norm(y * F.silu(z.to(y.dtype)))
        return self.out_proj(y.to(x_BTD.dtype))


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
    x_BTHP, B_BTN, C_BTN = x_BTHP.to(kind), B_BTN.to(kind), C_BTN.to(kind)
    x_BKCHP, dt_BKCH, B_BKCN, C_BKCN = (_chunked(v, length, C) for v in (x_BTHP, dt_BTH, B_BTN, C_BTN))
    marks_BKC = None if segments_BT is None else _chunked(segments_BT, length, C)
    X_BKCHP = x_BKCHP * dt_BKCH[..., None]
    decay_BKCH = (dt_BKCH * A_H).cumsum(2)  # the logarithm of what is left of the state before the chunk

    rows = decay_BKCH.transpose(2, 3)  # (B, K, H, C)
    L_BKHCS = (rows[..., None] - rows[..., None, :]).add_(_seen(C, rows, marks_BKC)).exp_()
    y = (((C_BKCN @ B_BKCN.mT)[:, :, None] * L_BKHCS) @ X_BKCHP.transpose(2, 3)).transpose(2, 3)
    if X_BKCHP.shape[1] > 1:
        y = y + _from_before(X_BKCHP, decay_BKCH, B_BKCN, C_BKCN, marks_BKC)
    return torch.addcmul(y, x_BKCHP, D_H[:, None]).flatten(1, 2)[:, :T]


def _from_before(X: Tensor, decay: Tensor, B: Tensor, C: Tensor, marks: Tensor | None) -> Tensor:
    """What the chunks before add to every event (B, K, C, H, P): their states, decayed on the way."""
    whole = decay[:, :, -1:]
    kept, read, passed = (
        (whole - decay).exp(),
        decay.exp(),
        whole[:, :, 0].exp(),
    )  # (B, K, C, H) twice, (B, K, H)
    if marks is not None:
        last = marks[:, :, -1:]
        before = F.pad(last[:, :-1], (0, 0, 1, 0), value=-1)  # the segment that the carried state is of
        kept = kept * (marks == last)[..., None]
        read = read * (marks == before)[..., None]
        passed = passed * (last == before)
    left = (X * kept[..., None]).flatten(3).mT @ B  # (B, K, H P, N): the state that a chunk leaves by itself
    left = left.unflatten(2, X.shape[3:])
    state, states = torch.zeros_like(left[:, 0]), []
    for k in range(X.shape[1]):
        states.append(state)
        state = state * passed[:, k, :, None, None] + left[:, k]
    given = C @ torch.stack(states, 1).flatten(2, 3).mT  # (B, K, C, H P)
    return given.unflatten(3, X.shape[3:]) * read[..., None]


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
    x = F.pad(x_BTD, (0, 0, width - 1, 0)).transpose(1, 2)[:, :, None]  # an image of one row, channels last:
    return F.conv2d(x, weight[:, :, None], bias, groups=len(weight))[:, :, 0].transpose(1, 2)  # fast on a CPU


def equal_chunks(length: int, chunk: int) -> tuple[int, int]:
    """Chunk and padded length: chunks as equal as can be, none above ``chunk``, so that little is added."""
    count = max(-(-length // chunk), 1)
    size = -(-length // count)
    return size, size * count


def _chunked(values: Tensor, length: int, chunk: int) -> Tensor:
    """(B, T, ...) -> (B, K, C, ...), with zeros at the end: dt = 0 neither decays nor takes."""
    short = length - values.shape[1]
    if short:
        values = F.pad(values, (0, 0) * (values.dim() - 2) + (0, short))
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
