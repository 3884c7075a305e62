"""Beam search over the prefix tree of a catalogue: L steps, every result an item, none twice, none seen.

B users, K beams, N items, L levels, V codes of a level, W window of children, P nodes of a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recpipe.semantic_ids.prefix_tree import PrefixTree, TreeTensors


class Steps(Protocol):
    """What a model offers to be searched."""

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Log-probabilities (B, K, V_level) of the codes of ``level``, 0-based, of the whole level, not masked.

        Level 0 has one beam and neither codes nor parents. After it, beam k has just taken ``codes_BK`` of the level
        before, coming from what was beam ``parents_BK`` then.
        """
        ...


class Beams(NamedTuple):
    """Best first. ``items`` are rows of the catalogue; where a user has fewer, -1 with score -inf and codes -1."""

    items: Tensor  # (B, K) int64
    scores: Tensor  # (B, K) log-probabilities
    codes: Tensor  # (B, K, L) int64


@torch.no_grad()
def beam_search(
    decoder: Steps,
    tree: PrefixTree,
    *,
    beam: int,
    k: int | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    temperatures: Sequence[float] | None = None,
    renormalise: bool = False,
    stochastic: torch.Generator | None = None,
) -> Beams:
    """The ``k`` best of the ``beam`` items that a beam search finds for every user, k = beam by default.

    ``seen``: what users may not get again, as offsets (B + 1,) and rows of the catalogue (n,), in any order, also
    repeated; negative rows are ignored. ``allowed`` bool, (N,) or (B, N): what may be returned at all. A score is
    the model's own log-probability of the item; with ``renormalise`` that among the children that are left,
    which favours prefixes with few of them. ``temperatures`` (L,) divide log-probabilities, which are then
    normalised over the whole level. ``stochastic``: a sample without replacement, in the order of the draw (Kool et
    al., Stochastic Beams and Where to Find Them, ICML 2019), of the distribution that ``renormalise`` gives, which it
    implies.

    Raises ValueError for k > beam, for a tree in which items share ids, for log-probabilities of another width than
    the level's codes and for NaN among them.
    """
    k = _checked(tree, beam, k, temperatures)
    tensors: TreeTensors | None = None
    scores = nodes = parents = codes = alive = perturbed = torch.empty(0)
    for level in range(tree.depth):
        logs = decoder.step(level, codes if level else None, parents if level else None)
        if tensors is None:
            tensors = tree.tensors(logs.device)
            nodes = torch.zeros(len(logs), 1, dtype=torch.int64, device=logs.device)
            scores = perturbed = logs.new_zeros(len(logs), 1)
            live = _live(tensors, len(logs), seen, allowed)
        _check_logs(logs, level, nodes, tree.sizes[level])
        if temperatures is not None and temperatures[level] != 1:
            logs = (logs / temperatures[level]).log_softmax(-1)
        start, end = tensors.offsets[level][nodes], tensors.offsets[level][nodes + 1]
        edges = start[..., None] + torch.arange(tensors.widest[level], device=logs.device)  # (B, K, W)
        alive = edges < end[..., None]
        edges.clamp_(max=len(tensors.children[level]) - 1)
        if live is not None:
            alive &= live[level].gather(1, edges.flatten(1)).view_as(edges)
        below = logs.gather(-1, tensors.children[level][edges]).masked_fill_(~alive, -torch.inf)
        if renormalise or stochastic is not None:
            below = below - below.logsumexp(-1, keepdim=True).clamp(min=torch.finfo(below.dtype).min)
        reached = (scores[..., None] + below).flatten(1)
        order = reached
        if stochastic is not None:
            order = _perturbed(perturbed, reached.view_as(below), stochastic).flatten(1)
        kept = min(beam, order.shape[1], tree.prefixes(level + 1))
        ranks, places = order.topk(kept)
        if ranks.isnan().any():
            raise ValueError(
                f"log-probabilities of level {level + 1} are NaN; the model's weights are not usable"
            )
        scores, perturbed = reached.gather(1, places), ranks
        nodes = edges.flatten(1).gather(1, places)
        parents = places // tensors.widest[level]
        codes = tensors.children[level][nodes]
    assert tensors is not None
    return _result(tree, tensors, nodes, scores, k)


def _checked(tree: PrefixTree, beam: int, k: int | None, temperatures: Sequence[float] | None) -> int:
    k = beam if k is None else k
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one item")
    if k > beam:
        raise ValueError(f"k is {k} and beam {beam}; a search returns no more items than it has beams")
    if tree.prefixes(tree.depth) < tree.n_items:
        raise ValueError(
            f"{tree.n_items} items have {tree.prefixes(tree.depth)} ids; a beam cannot choose between items that "
            "share one: set semantic_ids.collisions to extra_digit or reallocate"
        )
    if temperatures is not None and (len(temperatures) != tree.depth or min(temperatures) <= 0):
        raise ValueError(f"temperatures are {tuple(temperatures)}; give {tree.depth} of them, each above 0")
    return min(k, tree.n_items)


def _check_logs(logs: Tensor, level: int, nodes: Tensor, size: int) -> None:
    if logs.shape != (*nodes.shape, size):
        raise ValueError(
            f"log-probabilities of level {level + 1} are {tuple(logs.shape)}; "
            f"for {nodes.shape[1]} beams of {len(nodes)} users and {size} codes they are {(*nodes.shape, size)}"
        )


def _live(
    tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor] | None, allowed: Tensor | None
) -> list[Tensor] | None:
    """(L) of (B, P_{l+1}): whether anything may be returned below a node; None if everything may."""
    if seen is None and allowed is None:
        return None
    free = torch.ones(users, len(tree.leaves), dtype=torch.bool, device=tree.leaves.device)
    if allowed is not None:
        free &= allowed
    if seen is not None:
        offsets, rows = seen
        owner = torch.repeat_interleave(torch.arange(users, device=rows.device), offsets.diff())
        free[owner[rows >= 0], rows[rows >= 0]] = False
    total = torch.nn.functional.pad(free[:, tree.leaves].cumsum(1), (1, 0))
    return [total[:, spans[1:]] > total[:, spans[:-1]] for spans in tree.spans[1:]]


def _perturbed(parents_BK: Tensor, below_BKW: Tensor, generator: torch.Generator) -> Tensor:
    """(B, K, W) perturbed log-probabilities of children, the greatest being their parent's (Kool et al., App. B)."""
    uniform = torch.rand(below_BKW.shape, generator=generator, device=below_BKW.device, dtype=torch.float64)
    free = below_BKW.double() - torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 1e-16)))
    most = free.amax(-1, keepdim=True)
    bound = parents_BK[..., None].double() if parents_BK.shape[1] > 1 or below_BKW.shape[1] > 1 else most
    v = bound - free + torch.log1p(-torch.exp(free - most))
    drawn = bound - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return drawn.masked_fill_(below_BKW == -torch.inf, -torch.inf)


def _result(tree: PrefixTree, tensors: TreeTensors, nodes: Tensor, scores: Tensor, k: int) -> Beams:
    nodes, scores = nodes[:, :k], scores[:, :k]
    found, places, codes = scores > -torch.inf, nodes, []
    for level in reversed(range(tree.depth)):
        codes.append(tensors.children[level][places])
        places = torch.searchsorted(tensors.offsets[level], places, right=True) - 1
    codes_BKL = torch.stack(codes[::-1], -1).masked_fill_(~found[..., None], -1)
    items = tensors.leaves[nodes].masked_fill_(~found, -1)
    missing = (0, k - nodes.shape[1])
    return Beams(
        torch.nn.functional.pad(items, missing, value=-1),
        torch.nn.functional.pad(scores, missing, value=-torch.inf),
        torch.nn.functional.pad(codes_BKL, (0, 0, *missing), value=-1),
    )
