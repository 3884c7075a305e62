"""The parts of the package ``xlstm`` that models/xlstm.py builds on, to be had without a CUDA toolkit.

When imported on a machine with a CUDA device, the package asks torch where the toolkit is, for an sLSTM kernel that is
compiled only where it is asked for, which is not here. torch's wheels run without a toolkit, and then torch raises
OSError, so that nothing of the package can be used. During the import, and no longer, torch is told of a folder.

xLSTM: Beck et al., Extended Long Short-Term Memory, NeurIPS 2024; blocks of Beck et al., xLSTM 7B, ICML 2025.

B batch, T time, D width, H heads, I items.

The blocks are those of the package ``xlstm`` (its kernels, ``mlstm_kernels``, are under the NXAI Community License).
Deviations from its language model: a small tied item table instead of two of N(0, 1); dropout on the embedding and on
what each half of a block adds; no cap on the logits; forget gates start open. Where ``slstm_at`` says so, a block is
the sLSTM of the first paper (convolution, scalar memory, gated feed-forward), in plain torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mlstm_kernels.torch import get_available_mlstm_kernels, get_mlstm_kernel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import cpp_extension

from recpipe.data.batches import Batch
from recpipe.layers.dropout import Dropout
from recpipe.layers.side import Side
from recpipe.models.recommender import NextItem

NOWHERE = os.path.join(os.sep, "no_cuda_toolkit")


@contextmanager
def toolkit() -> Iterator[None]:
    """Inside, torch knows of a CUDA toolkit, there or not."""
    if cpp_extension.CUDA_HOME is not None:
        yield
        return
    kept = os.environ.get("CUDA_LIB")  # which the package sets to a folder of the toolkit
    cpp_extension.CUDA_HOME = NOWHERE
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = None
        if kept is not None:
            os.environ["CUDA_LIB"] = kept
        elif os.environ.get("CUDA_LIB", "").startswith(NOWHERE):
            del os.environ["CUDA_LIB"]


with toolkit():
    from xlstm.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
    from xlstm.blocks.slstm.layer import sLSTMLayerConfig
    from xlstm.components.feedforward import FeedForwardConfig
    from xlstm.xlstm_large.components import RMSNorm
    from xlstm.xlstm_large.model import mLSTMBlock, xLSTMLargeConfig


TRITON, NATIVE = "chunkwise--triton_xl_chunk", "chunkwise--native_autograd"
TRITON_CHUNK, NATIVE_CHUNK = (
    64,
    40,
)  # events in a chunk: the least the first takes of long sequences, the fastest on CPU
NARROWEST = 16  # heads that the Triton kernels can multiply


class AnyLength(nn.Module):
    """The library's chunkwise mLSTM kernel for sequences of any length, chosen by device.

    Zeros fill up the last chunk; they come after all that is read. In the library's own backend the kernel is fixed
    when a block is made, a length must be a multiple of the chunk, and its layer cannot call the mode that pads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_cuda = TRITON if TRITON in get_available_mlstm_kernels() else NATIVE

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **_: None
    ) -> tuple[Tensor, None]:
        """q, k (B, H, T, Dqk), v (B, H, T, Dv), gates i, f (B, H, T) -> (B, H, T, Dv) and no state."""
        T, kind = q.shape[2], q.device.type
        wide = min(q.shape[-1], v.shape[-1]) >= NARROWEST
        name = self.on_cuda if kind == "cuda" and wide else NATIVE
        chunk, length = _triton_chunks(T) if name == TRITON else _native_chunks(T)
        q, k, v = (F.pad(x, (0, 0, 0, length - T)) for x in (q, k, v))
        i, f = (F.pad(x, (0, length - T)) for x in (i, f))
        kernel, kept = get_mlstm_kernel(name), q.dtype
        if name == TRITON:
            low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
            return kernel(q, k, v, i, f, chunk_size=chunk, autocast_kernel_dtype=low)[:, :, :T], None
        with torch.autocast(kind, enabled=False):  # plain torch: exponential gates need float32
            mixed = kernel(q.float(), k.float(), v.float(), i.float(), f.float(), chunk_size=chunk)
        return mixed[:, :, :T].to(kept), None


def _native_chunks(length: int) -> tuple[int, int]:
    """Chunk and padded length: chunks as equal as can be, so that next to nothing is added."""
    count = -(-length // NATIVE_CHUNK)
    chunk = -(-length // count)
    return chunk, chunk * count


def _triton_chunks(length: int) -> tuple[int, int]:
    """The same by the rules of ``triton_xl_chunk``: below 128 events a power of two from 16, then multiples of 64."""
    padded = (
        max(16, 1 << (length - 1).bit_length()) if length < 128 else -(-length // TRITON_CHUNK) * TRITON_CHUNK
    )
    return min(TRITON_CHUNK, padded), padded


class MatrixBlock(mLSTMBlock):
    """The library's block of mLSTM and SwiGLU, with dropout."""

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
                chunkwise_kernel=NATIVE,  # never called: the names only have to exist on every machine
                sequence_kernel="native_sequence__native",
                step_kernel="native",
            )
        )
        self.mlstm_layer.mlstm_backend = AnyLength()
        self.dropout = Dropout(config.dropout)
        nn.init.zeros_(self.mlstm_layer.igate_preact.bias)
        with torch.no_grad():
            self.mlstm_layer.fgate_preact.bias.copy_(torch.linspace(3.0, 6.0, config.heads))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.mlstm_layer(self.norm_mlstm(x_BTD))[0])
        return x_BTD + self.dropout(self.ffn(self.norm_ffn(x_BTD)))


class ScalarBlock(sLSTMBlock):
    """The library's block of sLSTM and gated feed-forward, with dropout; a loop over time in plain torch."""

    def __init__(self, config: xLSTM.Config, place: int) -> None:
        super().__init__(
            sLSTMBlockConfig(
                slstm=sLSTMLayerConfig(embedding_dim=config.dim, num_heads=config.heads, backend="vanilla"),
                feedforward=FeedForwardConfig(embedding_dim=config.dim),
                _num_blocks=config.layers,
                _block_idx=place,
            )
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.xlstm(self.xlstm_norm(x_BTD)))
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))


class xLSTM(NextItem):
    """Predicts the next item at every position from the events up to it."""

    @dataclass(frozen=True)
    class Config:
        """``slstm_at`` are the places, from 0, of sLSTM blocks among the ``layers``; the others are mLSTM."""

        dim: int = 64
        layers: int = 2
        heads: int = 2
        qk_dim_factor: float = 0.5
        feed_forward: float = 2.667
        dropout: float = 0.2
        slstm_at: tuple[int, ...] = ()

        def __post_init__(self) -> None:
            object.__setattr__(self, "slstm_at", tuple(self.slstm_at))  # conf gives a list
            for width in (self.dim, int(self.dim * self.qk_dim_factor)):
                if width < 1 or width % self.heads:
                    raise ValueError(
                        f"a width of {width} (dim {self.dim}, qk_dim_factor {self.qk_dim_factor}) "
                        f"is not a multiple of heads {self.heads}"
                    )
            if self.slstm_at and self.dim // self.heads < 2:
                raise ValueError(
                    f"an sLSTM head needs a width of 2, dim {self.dim} / heads {self.heads} is less"
                )
            if bad := [place for place in self.slstm_at if not 0 <= place < self.layers]:
                raise ValueError(f"slstm_at has {bad}; places are 0 to {self.layers - 1}")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ScalarBlock(config, place) if place in config.slstm_at else MatrixBlock(config)
            for place in range(config.layers)
        )
        self.norm = RMSNorm(config.dim)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = self.dropout(x_BTD * math.sqrt(self.config.dim))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)
