"""Where an encoder runs and with how many bits, as the conf's ``auto`` means it."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(device: str) -> torch.device:
    """``auto``: cuda, else mps, else cpu. Raises ValueError for a device that torch does not know or see."""
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:1, mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not there.get(chosen.type, False):
        raise ValueError(
            f"device is {device!r}, which torch does not see on this machine: use `device: auto`"
        )
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto``: bf16 where matrix units for it make it several times faster (CUDA, CPUs with AMX), else fp32."""
    if precision != "auto":
        if precision not in DTYPES:
            raise ValueError(f"precision is {precision!r}; allowed: auto, {', '.join(DTYPES)}")
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and amx() else "fp32"
