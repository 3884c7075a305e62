"""Users side by side: one thread for each part of a batch instead of all threads for every operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(run: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[run(part) for part in parts]`` on as many threads as torch has, each with one for its operations.

    A step of a decoder is hundreds of operations, most of them too small to be shared: the other cores would wait for
    half of the time. For work on a CPU; a single part, or one core, is run as it would be anyway. Gradients are
    recorded, or not, as by the caller.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2:
        return [run(part) for part in parts]
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def alone(part: Part) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
            return run(part)

    try:
        with ThreadPoolExecutor(
            min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # what threads that come later begin with
