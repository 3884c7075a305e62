"""The greatest values of long rows. B rows, N values, K results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 8
SHORT = 16  # times K: rows up to that length are sorted through


class Top(NamedTuple):
    """Greatest first, as of ``torch.topk``."""

    values: Tensor  # (B, K)
    places: Tensor  # (B, K)


def top(x_BN: Tensor, k: int, *, in_order: bool = True) -> Top:
    """``topk`` that on a CPU looks at whole blocks first: the K greatest values are in the K blocks of greatest maxima.

    Finding maxima of blocks is vectorised; choosing among values is not, and costs a hundred times as much for each.
    """
    n = x_BN.shape[1]
    if x_BN.device.type != "cpu" or n <= SHORT * k:
        return Top(*x_BN.topk(k, sorted=in_order))
    many = n // BLOCK  # a block is every many-th value
    best = top(x_BN[:, : BLOCK * many].unflatten(1, (BLOCK, many)).amax(1), k, in_order=False).places
    places = (best[:, None] + many * torch.arange(BLOCK)[:, None]).flatten(1)
    if BLOCK * many < n:
        rest = torch.arange(BLOCK * many, n).expand(len(x_BN), -1)
        places = torch.cat([places, rest], 1)
    values, chosen = x_BN.gather(1, places).topk(k, sorted=in_order)
    return Top(values, places.gather(1, chosen))
