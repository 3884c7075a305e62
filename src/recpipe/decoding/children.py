"""What may follow each beam: one step's log-probabilities, of children in the prefix tree only.

B users, K beams, W places for children, V codes of a level, P nodes of a depth, n pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recpipe.decoding.limits import Full, Limits


class Children(NamedTuple):
    """Of beams that have W places for them."""

    logs: Tensor  # (B, K, W), -inf where there is no child
    nodes: Callable[
        [Tensor, Tensor], Tensor
    ]  # (beams, places), both (B, K'), to nodes, any where there is no child


def children(limits: Limits, level: int, nodes_BK: Tensor, logs_BKV: Tensor) -> Children:
    """Of beams at ``nodes`` of depth ``level``, with their log-probabilities of all codes.

    Where many codes follow a node, a place is a code, and what does not follow is closed by a row of a table; where
    few do, only theirs are read.
    """
    table = limits.tree.table(level) if limits.live is None else None
    if table is None:
        found = _window(limits, level, nodes_BK, logs_BKV)
    else:
        logs = table.index_select(0, nodes_BK.flatten()).view(logs_BKV.shape).add_(logs_BKV)
        found = Children(
            logs, lambda beams, places: limits.tree.follow(level, nodes_BK.gather(1, beams), places)
        )
    if limits.full is not None:
        _close(found.logs, limits, level, nodes_BK, by_code=table is not None)
    return found


def _window(limits: Limits, level: int, nodes_BK: Tensor, logs_BKV: Tensor) -> Children:
    offsets, codes = limits.tree.offsets[level], limits.tree.children[level]
    start, end = offsets[nodes_BK], offsets[nodes_BK + 1]
    width = max(int((end - start).max()), 1)
    edges = start[..., None] + torch.arange(width, device=start.device)
    closed = edges >= end[..., None]
    edges = edges.clamp_(max=len(codes) - 1).flatten(1)
    if limits.live is not None:
        closed |= ~limits.live[level].gather(1, edges).view(closed.shape)
    logs = logs_BKV.gather(-1, codes[edges].view(closed.shape)).masked_fill_(closed, -torch.inf)
    return Children(logs, lambda beams, places: (start.gather(1, beams) + places).clamp_(max=len(codes) - 1))


def _close(logs: Tensor, limits: Limits, level: int, nodes_BK: Tensor, *, by_code: bool) -> None:
    """Takes out what users have nothing left to get from: full nodes whose parent one of their beams is at."""
    assert limits.full is not None
    full: Full = limits.full[level]
    parents = limits.tree.parents[level][full.nodes]
    pair, beam = (nodes_BK[full.users] == parents[:, None]).nonzero(as_tuple=True)
    node = full.nodes[pair]
    codes, offsets = limits.tree.children[level], limits.tree.offsets[level]
    place = codes[node] if by_code else node - offsets[parents[pair]]
    logs[full.users[pair], beam, place] = -torch.inf
