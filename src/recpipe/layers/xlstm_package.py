"""The parts of the package ``xlstm`` that models/xlstm.py builds on, to be had without a CUDA toolkit.

When imported on a machine with a CUDA device, the package asks torch where the toolkit is, for an sLSTM kernel that is
compiled only where it is asked for, which is not here. torch's wheels run without a toolkit, and then torch raises
OSError, so that nothing of the package can be used. During the import, and no longer, torch is told of a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils import cpp_extension

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

__all__ = [
    "FeedForwardConfig",
    "RMSNorm",
    "mLSTMBlock",
    "sLSTMBlock",
    "sLSTMBlockConfig",
    "sLSTMLayerConfig",
    "xLSTMLargeConfig",
]
