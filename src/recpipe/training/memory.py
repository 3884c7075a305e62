"""Peak memory of the process or the card."""

from __future__ import annotations

import sys

import torch


def peak_memory_mib(device: str) -> float:
    """MiB: what torch allocated at most on a CUDA device, else the process's largest resident set so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
