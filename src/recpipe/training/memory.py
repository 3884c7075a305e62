"""Peak memory of the process or the card, and how busy the card is."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

LINUX_CLEAR, LINUX_STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_memory(device: str) -> None:
    """From now on the peak is counted anew, where the system can do that: CUDA and Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform.startswith("linux"):
        try:
            LINUX_CLEAR.write_text("5")
        except OSError:  # a hardened container: the peak stays that of the whole process
            return


def peak_memory_mib(device: str) -> float:
    """MiB: what torch allocated at most on a CUDA device, else the process's largest resident set.

    Both since ``reset_peak_memory``; on macOS and Windows since the process began.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform.startswith("linux"):
        line = next(line for line in LINUX_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_state(device: torch.device) -> dict[str, float]:
    """Of a CUDA device: memory in use (MiB) and, where nvidia-ml-py is installed, utilisation (percent)."""
    if device.type != "cuda":
        return {}
    state = {"gpu_memory_mib": torch.cuda.memory_allocated(device) / 2**20}
    if find_spec("pynvml") is not None:
        state["gpu_utilisation"] = float(torch.cuda.utilization(device))
    return state
