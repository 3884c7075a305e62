"""The greatest values of long rows. B rows, N values, K results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 8
SHORT = 16  # times K: rows up to that length are sorted through
SORTED = 256  # values of a row: up to so many are faster sorted than chosen from,
ROWS = 64  # from so many rows on
LEAST = -0x7F80_0001  # what the bits of -inf become


class Top(NamedTuple):
    """Greatest first, as of ``torch.topk``."""

    values: Tensor  # (B, K)
    places: Tensor  # (B, K)


def top(x_BN: Tensor, k: int, *, in_order: bool = True) -> Top:
    """``topk`` that on a CPU looks at whole blocks first: the K greatest values are in the K blocks of greatest maxima.

    Finding maxima of blocks is vectorised, and so is sorting a few integers; choosing among values is not, and costs a
    hundred times as much for each.
    """
    n = x_BN.shape[1]
    if k > n:
        raise ValueError(f"the {k} greatest of rows of {n} are asked for")
    if x_BN.device.type != "cpu" or n <= SHORT * k:
        return _chosen(x_BN, k, in_order)
    many = n // BLOCK  # a block is every many-th value
    best = top(x_BN[:, : BLOCK * many].unflatten(1, (BLOCK, many)).amax(1), k, in_order=False).places
    places = (best[:, None] + many * torch.arange(BLOCK)[:, None]).flatten(1)
    if BLOCK * many < n:
        rest = torch.arange(BLOCK * many, n).expand(len(x_BN), -1)
        places = torch.cat([places, rest], 1)
    values, chosen = _chosen(x_BN.gather(1, places), k, in_order)
    return Top(values, places.gather(1, chosen))


def _chosen(x_BN: Tensor, k: int, in_order: bool) -> Top:
    """Of short rows."""
    cpu = x_BN.device.type == "cpu" and x_BN.dtype == torch.float32
    if not cpu or len(x_BN) < ROWS or x_BN.shape[1] > SORTED:
        return Top(*x_BN.topk(k, sorted=in_order))
    places = _by_sorting(x_BN.detach().contiguous().numpy(), k)
    return Top(x_BN.gather(1, places), places)


def _by_sorting(x_BN: np.ndarray, k: int) -> Tensor:
    """(B, K) places by one sort of integers, which NumPy does without branches: a value's bits, made to ascend with it,
    above its place, counted from the end so that the first of equal values comes first.
    """
    n = x_BN.shape[1]
    ascending = ascend(x_BN)
    keys = ascending.astype(np.int64)
    keys <<= 31
    keys |= np.arange(n - 1, -1, -1)
    keys.sort(axis=1)
    best = keys[:, : -k - 1 : -1] & ((1 << 31) - 1)
    return torch.from_numpy(n - 1 - best)


def ascend(x: np.ndarray) -> np.ndarray:
    """uint32 that ascend with float32, from 0 for -inf to the greatest for any NaN."""
    bits = x.view(np.int32)
    ascending = bits >> 31
    ascending &= 0x7FFF_FFFF
    ascending ^= bits  # as signed integers, but for negative NaN, which is below -inf
    ascending -= LEAST  # and so wraps to the end
    return ascending.view(np.uint32)
