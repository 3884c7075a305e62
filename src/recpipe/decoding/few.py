"""The best children on a CPU where few follow a beam: of those that there are, by one sort of integers.

B users, K beams, V codes of a level, P nodes of a depth, n children of all beams of all users, one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recpipe.decoding.constraints import Limits
from recpipe.decoding.top import ascend

SHARE = 32  # reading one child by itself costs about as much as so many codes in rows
BEAMS = 1 << 10  # of fewer there is nothing to gain
BITS = 31  # of a key, beside the 32 of a value and its sign


class Found(NamedTuple):
    """The best children of each user, best first, as many as any user has but no more than asked for."""

    nodes: Tensor  # (B, K'), any where the score is -inf
    parents: Tensor  # (B, K') the beams that they follow
    scores: Tensor  # (B, K')


class Flat(NamedTuple):
    """All children."""

    beams: np.ndarray  # (n,) of B * K
    nodes: np.ndarray  # (n,) of the next depth
    first: np.ndarray  # (B * K,) where those of a beam begin
    offsets: np.ndarray  # (B + 1,) where those of a user begin


def best_of_few(
    limits: Limits,
    level: int,
    nodes_BK: Tensor,
    logs_BKV: Tensor,
    scores_BK: Tensor,
    *,
    beam: int,
    renormalise: bool,
) -> Found | None:
    """The ``beam`` best children of ``nodes`` of depth ``level``: as from all codes, of which most would be closed.

    ``logs`` are log-probabilities of all codes, ``scores`` those of the beams. None where the children are not few, or
    their numbers too large for a key, and on a GPU, which would rather read all than wait for a count.
    """
    nodes_P, edges = len(limits.tree.offsets[level]) - 1, len(limits.tree.children[level])
    if (
        logs_BKV.device.type != "cpu"
        or nodes_BK.numel() < BEAMS
        or edges * SHARE > nodes_P * logs_BKV.shape[2]
    ):
        return None
    offsets, nodes = limits.tree.offsets[level].numpy(), nodes_BK.numpy()
    start = offsets[nodes]
    many = offsets[nodes + 1] - start
    total = many.sum(1)
    bits = int(total.max()).bit_length()
    if total.sum() * SHARE > logs_BKV.numel() or len(nodes).bit_length() + bits > BITS:
        return None
    flat = _flat(start, many, total)
    users, places = np.divmod(flat.beams, nodes.shape[1])
    values = logs_BKV.detach().numpy()[users, places, limits.tree.children[level].numpy()[flat.nodes]]
    _close(values, flat, limits, level, nodes_BK, users)
    if renormalise:
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which whoever searches refuses
            values -= _totals(values, flat)[flat.beams]
    values += scores_BK.numpy().ravel()[flat.beams]
    best, there = _best(values, users, flat.offsets, bits, min(beam, int(total.max())))
    return Found(
        torch.from_numpy(flat.nodes[best]),
        torch.from_numpy(places[best]),
        torch.from_numpy(np.where(there, values[best], np.float32(-np.inf))),
    )


def _flat(start_BK: np.ndarray, many_BK: np.ndarray, total_B: np.ndarray) -> Flat:
    many = many_BK.ravel()
    first = many.cumsum() - many
    beams = np.repeat(np.arange(len(many)), many)
    nodes = np.arange(len(beams)) + (start_BK.ravel() - first)[beams]
    return Flat(beams, nodes, first, np.concatenate([[0], total_B.cumsum()]))


def _close(
    values: np.ndarray, flat: Flat, limits: Limits, level: int, nodes_BK: Tensor, users: np.ndarray
) -> None:
    """What not everybody may get, as ``children`` does."""
    if limits.live is not None:
        values[~limits.live[level].numpy()[users, flat.nodes]] = -np.inf
    if limits.full is not None:
        owner, node = (each.numpy() for each in limits.full[level])
        nodes, parents = nodes_BK.numpy(), limits.tree.parents[level].numpy()[node]
        pair, beam = (nodes[owner] == parents[:, None]).nonzero()
        place = node - limits.tree.offsets[level].numpy()[parents]
        values[flat.first[owner[pair] * nodes.shape[1] + beam] + place[pair]] = -np.inf


def _totals(values: np.ndarray, flat: Flat) -> np.ndarray:
    """(B * K,) the logarithm of the sum of probabilities; every node has a child."""
    lowest = np.finfo(np.float32).min
    most = np.maximum.reduceat(values, flat.first).clip(min=lowest)
    return np.log(np.add.reduceat(np.exp(values - most[flat.beams]), flat.first).clip(min=1e-38)) + most


def _best(
    values: np.ndarray, users: np.ndarray, offsets: np.ndarray, bits: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B, k) where each user's greatest values are, the first of equal ones first, and which of these there are."""
    first, total = offsets[:-1, None], np.diff(offsets)[:, None]
    keys = (users << 32) + (0xFFFF_FFFF - ascend(values).astype(np.int64))
    keys <<= bits
    keys += np.arange(len(values)) - offsets[users]
    keys.sort()
    rank = np.arange(k)
    there = rank < total
    best = keys[np.where(there, first + rank, first)] & ((1 << bits) - 1)
    return best + first, there
