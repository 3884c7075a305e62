"""Training cost: peak memory, load of the GPU, size of the model; versions and hardware that numbers depend on."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from recpipe.models.recommender import Recommender

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux
PROCESSORS = Path("/proc/cpuinfo")  # of Linux


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "lightning", "numpy")}}


def hardware(device: str) -> str:
    """Return the name of the GPU, or that of the processor with the number of threads that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def processor() -> str:
    """Return the name of the processor; its architecture, such as arm64, where the system tells no name."""
    try:
        lines = PROCESSORS.read_text(encoding="utf-8").splitlines()
    except OSError:  # macOS, Windows
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def model_size(model: Recommender, device: str) -> dict[str, float]:
    """Return the number of values in the state of the model, and the peak memory."""
    return {"parameters": n_parameters(model), "peak_memory_mib": peak_memory_mib(device)}


def n_parameters(model: Recommender) -> int:
    """Return the number of values in the state of the model, with those that are not trained."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def reset_peak_memory(device: str) -> None:
    """Reset the count of peak memory where the system can (CUDA and Linux)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform.startswith("linux"):
        try:
            CLEAR_REFS.write_text("5")
        except OSError:  # a hardened container: the peak stays that of the whole process
            return


def peak_memory_mib(device: str) -> float:
    """Return peak memory in MiB: of torch's allocator on a CUDA device, else the largest resident set of the process.

    Counted since ``reset_peak_memory``; on macOS and Windows since the start of the process.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform.startswith("linux"):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_state(device: torch.device) -> dict[str, float]:
    """Return memory in use (MiB) and, with nvidia-ml-py, utilisation (percent); nothing without a CUDA device."""
    if device.type != "cuda":
        return {}
    state = {"gpu_memory_mib": torch.cuda.memory_allocated(device) / 2**20}
    if find_spec("pynvml") is not None:
        state["gpu_utilisation"] = float(torch.cuda.utilization(device))
    return state
