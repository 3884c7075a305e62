"""xLSTM: causal recurrent network of mLSTM and sLSTM blocks.

Papers: Beck et al., xLSTM: Extended Long Short-Term Memory, NeurIPS 2024 (arXiv 2405.04517); blocks of Beck et al.,
xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference, ICML 2025 (arXiv 2503.13427).

The blocks are those of the package ``xlstm`` (its kernels, ``mlstm_kernels``, are under the NXAI Community License).

Differences:

- One item table for input and output, with small weights, instead of two of N(0, 1) as in the language model.
- Dropout on the embeddings and on both branches of a block; no cap on the logits; forget gates start open.
- ``slstm_at`` chooses blocks that are the sLSTM of the first paper, in plain torch.

Shapes: B batch, T time, D width, H heads, I items.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from unittest.mock import patch

import torch
from mlstm_kernels.torch import get_available_mlstm_kernels, get_mlstm_kernel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import cpp_extension

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.side import Side
from recpipe.layers.ssd import equal_chunks
from recpipe.models.next_item import NextItem

with ExitStack() as _stack:
    # With a GPU the package asks for a CUDA toolkit at import, for an unused kernel; without one torch raises OSError.
    if cpp_extension.CUDA_HOME is None:
        _stack.enter_context(patch.object(cpp_extension, "CUDA_HOME", os.path.join(os.sep, "no_cuda_toolkit")))
        _stack.enter_context(patch.dict(os.environ))  # the package sets CUDA_LIB
    from xlstm.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
    from xlstm.blocks.slstm.layer import sLSTMLayerConfig
    from xlstm.components.feedforward import FeedForwardConfig
    from xlstm.xlstm_large.components import RMSNorm
    from xlstm.xlstm_large.model import mLSTMBlock, xLSTMLargeConfig

AUTO, NATIVE_KERNELS = "auto", ("native_autograd", "native_custbw")
TRITON_KERNELS = ("triton_xl_chunk", "triton_limit_chunk")
TRITON, NATIVE = "chunkwise--triton_xl_chunk", "chunkwise--native_autograd"
TRITON_CHUNK = 64  # events per chunk: the kernel's minimum for long sequences
NATIVE_CHUNK = 40  # events per chunk: the fastest on a CPU
MIN_TRITON_WIDTH = 16  # of a head


class PaddedKernel(nn.Module):
    """Chunkwise mLSTM kernel of the package, for sequences of any length; ``kernel``, ``chunk`` as in xLSTM.Config.

    The package's backend fixes the kernel at construction and takes multiples of the chunk only. A Triton kernel runs
    on a GPU; what was trained with it is also used on a CPU, with the native one. Raises ValueError for a Triton kernel
    that this installation lacks, and for training with one on a CPU.
    """

    def __init__(self, kernel: str = AUTO, chunk: int | None = None) -> None:
        super().__init__()
        available = get_available_mlstm_kernels()
        self.on_cuda, self.on_cpu, self.chunk = TRITON if TRITON in available else NATIVE, NATIVE, chunk
        if kernel != AUTO:
            self.on_cuda = name = f"chunkwise--{kernel}"
            if kernel in TRITON_KERNELS and torch.cuda.is_available() and name not in available:
                raise ValueError(f"kernel is {kernel}, which this installation of mlstm_kernels lacks; set auto")
            self.on_cpu = NATIVE if kernel in TRITON_KERNELS else name
        self.needs_gpu = kernel in TRITON_KERNELS

    def forward(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **_: None) -> tuple[Tensor, None]:
        """Return outputs (B, H, T, Dv) and no state, of q, k (B, H, T, Dqk), v (B, H, T, Dv), i, f (B, H, T)."""
        T, device_type = q.shape[2], q.device.type
        is_wide = min(q.shape[-1], v.shape[-1]) >= MIN_TRITON_WIDTH
        if self.needs_gpu and self.training and device_type == "cpu":
            raise ValueError("kernel names a Triton kernel, which trains on a GPU only; set kernel: auto")
        name = self.on_cpu if device_type == "cpu" else self.on_cuda if is_wide else NATIVE
        uses_triton = "triton" in name
        chunk, length = triton_chunks(T) if uses_triton else equal_chunks(T, self.chunk or NATIVE_CHUNK)
        q, k, v = (F.pad(x, (0, 0, 0, length - T)) for x in (q, k, v))
        i, f = (F.pad(x, (0, length - T)) for x in (i, f))
        kernel = get_mlstm_kernel(name)
        if uses_triton:
            autocast = torch.is_autocast_enabled(device_type)
            dtype = torch.get_autocast_dtype(device_type) if autocast else torch.float32
            return kernel(q, k, v, i, f, chunk_size=chunk, autocast_kernel_dtype=dtype)[:, :, :T], None
        with torch.autocast(device_type, enabled=False):  # exponential gates need float32
            outputs = kernel(*(x.float() for x in (q, k, v, i, f)), chunk_size=chunk)
        return outputs[:, :, :T].to(q.dtype), None


def triton_chunks(length: int) -> tuple[int, int]:
    """Return chunk and padded length of ``triton_xl_chunk``: a power of two from 16, or multiples of 64 from 128 on."""
    if length < 128:
        padded = max(16, 1 << (length - 1).bit_length())
        return min(TRITON_CHUNK, padded), padded
    return TRITON_CHUNK, -(-length // TRITON_CHUNK) * TRITON_CHUNK


class MatrixBlock(mLSTMBlock):
    """The package's block of mLSTM and SwiGLU, with dropout."""

    def __init__(self, config: xLSTM.Config) -> None:
        super().__init__(
            xLSTMLargeConfig(
                embedding_dim=config.dim,
                num_heads=config.heads,
                num_blocks=config.layers,
                vocab_size=0,
                qk_dim_factor=config.qk_dim_factor,
                ffn_proj_factor=config.feed_forward,
                ffn_round_up_to_multiple_of=8,
                chunkwise_kernel=NATIVE,  # replaced below; the names must exist on every machine
                sequence_kernel="native_sequence__native",
                step_kernel="native",
            )
        )
        self.mlstm_layer.mlstm_backend = PaddedKernel(config.kernel, config.chunk)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.mlstm_layer.igate_preact.bias)
        with torch.no_grad():
            self.mlstm_layer.fgate_preact.bias.copy_(torch.linspace(3.0, 6.0, config.heads))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the block's output (B, T, D) of ``x_BTD``."""
        x_BTD = x_BTD + self.dropout(self.mlstm_layer(self.norm_mlstm(x_BTD))[0])
        return x_BTD + self.dropout(self.ffn(self.norm_ffn(x_BTD)))


class ScalarBlock(sLSTMBlock):
    """The package's block of sLSTM and gated feed-forward, with dropout; loops over time in plain torch."""

    def __init__(self, config: xLSTM.Config, index: int) -> None:
        slstm = sLSTMLayerConfig(embedding_dim=config.dim, num_heads=config.heads, backend="vanilla")
        feed_forward = FeedForwardConfig(embedding_dim=config.dim)
        super().__init__(sLSTMBlockConfig(slstm, feed_forward, _num_blocks=config.layers, _block_idx=index))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the block's output (B, T, D) of ``x_BTD``."""
        x_BTD = x_BTD + self.dropout(self.xlstm(self.xlstm_norm(x_BTD)))
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))


class xLSTM(NextItem):
    """Causal recurrent network of mLSTM and sLSTM blocks."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the blocks and of the kernel.

        ``slstm_at``: indices, from 0, of sLSTM blocks among the ``layers``; the others are mLSTM. ``kernel``: of the
        package's chunkwise mLSTM kernels, native_autograd, native_custbw (the gradient by hand), or for a GPU
        triton_xl_chunk or triton_limit_chunk; auto is triton_xl_chunk where it runs, else native_autograd. ``chunk``:
        events per chunk of a native kernel, by default about 40.
        """

        dim: int = 64
        layers: int = 2
        heads: int = 2
        qk_dim_factor: float = 0.5
        feed_forward: float = 2.667
        dropout: float = 0.2
        slstm_at: tuple[int, ...] = ()
        kernel: str = AUTO
        chunk: int | None = None

        def __post_init__(self) -> None:
            object.__setattr__(self, "slstm_at", tuple(self.slstm_at))  # conf gives a list
            check_choices(self, kernel=(AUTO, *NATIVE_KERNELS, *TRITON_KERNELS))
            if self.chunk is not None and self.chunk < 1:
                raise ValueError(f"chunk is {self.chunk}; it is a number of events, at least 1, or null")
            for width in (self.dim, int(self.dim * self.qk_dim_factor)):
                if width < 1 or width % self.heads:
                    settings = f"dim {self.dim}, qk_dim_factor {self.qk_dim_factor}"
                    raise ValueError(f"a width of {width} ({settings}) is not a multiple of heads {self.heads}")
            if self.slstm_at and self.dim // self.heads < 2:
                raise ValueError(f"dim is {self.dim} and heads {self.heads}; an sLSTM head must be at least 2 wide")
            if invalid := [index for index in self.slstm_at if not 0 <= index < self.layers]:
                raise ValueError(f"slstm_at has {invalid}; allowed: 0 to {self.layers - 1}")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ScalarBlock(config, i) if i in config.slstm_at else MatrixBlock(config) for i in range(config.layers)
        )
        self.norm = RMSNorm(config.dim)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        x_BTD = self.dropout(x_BTD * math.sqrt(self.config.dim))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)
