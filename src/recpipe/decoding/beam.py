"""What may follow each beam: one step's log-probabilities, of children in the prefix tree only.

B users, K beams, W places for children, V codes of a level, P nodes of a depth, n pairs.

Sampling without replacement by a beam search: Kool, van Hoof & Welling, Stochastic Beams and Where to Find Them,
ICML 2019. B users, K beams, W children of a beam.

A leaf's perturbed log-probability is that plus Gumbel noise; the K greatest are a sample without replacement. Drawn
from the root down, a node's is the greatest of its children's, so that a beam of the greatest ones finds them.

Beam search over the prefix tree of a catalogue: L steps, every result an item, none twice, none seen.

B users, K beams, N items, L levels, V codes of a level, W places for children of a beam, P nodes of a depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.decoding.ahead import Passes, Reached, Steps
from recpipe.decoding.constraints import Full, Limits
from recpipe.decoding.few import best_of_few
from recpipe.decoding.top import top
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.tree_tensors import TreeTensors


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
    table = limits.tree.child_mask(level, wide_only=True) if limits.live is None else None
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


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, float64, where the generator is."""
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 2**-53)))


def perturbed(parents_BK: Tensor, logs_BKW: Tensor, generator: torch.Generator) -> Tensor:
    """(B, K, W) float64 of children with log-probabilities ``logs``, given that their greatest is ``parents``.

    -inf where ``logs`` is. ``logs`` are those of whole prefixes, whose children's make up theirs (App. B.3).
    """
    free = logs_BKW.double() + gumbel(logs_BKW.shape, generator).to(logs_BKW.device)
    less = free - free.amax(-1, keepdim=True)
    parents = parents_BK[..., None]
    v = parents - free + _log1mexp(less)
    drawn = parents - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return drawn.masked_fill_(logs_BKW == -torch.inf, -torch.inf)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact at both ends."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


class Beams(NamedTuple):
    """Best first. ``items`` are rows of the catalogue; where a user has fewer, -1 with score -inf and codes -1."""

    items: Tensor  # (B, K) int64
    scores: Tensor  # (B, K) log-probabilities
    codes: Tensor  # (B, K, L) int64


@torch.no_grad()
def beam_search(
    decoder: Steps,
    tree: PrefixTree | TreeTensors,
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
    repeated; negative rows are ignored. ``allowed`` bool, (N,) or (B, N): what may be returned at all; one that many
    searches share is cheaper as ``tree.tensors().restrict(allowed)`` in place of the tree.

    A score is the model's own log-probability of the item; with ``renormalise`` that among the children that are
    left, which favours prefixes with few of them. ``temperatures`` (L,) divide log-probabilities, which are then
    normalised over the whole level. ``stochastic``: a sample without replacement, in the order of the draw (Kool et
    al., ICML 2019), from the distribution that ``renormalise`` gives, which it implies.

    Raises ValueError for k > beam, for a tree in which items share ids, for log-probabilities of another width than
    the level's codes and for NaN among them.
    """
    _check(tree, beam, k, temperatures)
    logs = decoder.step(0, None, None)
    B, device = len(logs), logs.device
    whole = tree.tensors(device) if isinstance(tree, PrefixTree) else tree
    limits = Limits.of(whole, B, seen, allowed)
    choice = Choice(beam, temperatures, renormalise, stochastic)
    front, broken = _root(B, device, stochastic), []
    passes = Passes(decoder, limits.tree, beam)
    for level in range(limits.tree.depth if len(limits.tree.leaves) else 0):
        if level:
            logs = passes.logs(level, Reached(front.nodes, front.parents, front.scores > -torch.inf))
        front = advanced(front, limits, level, _checked(logs, level, front, whole.sizes), choice)
        broken.append(front.order.isnan().any())
    _check_numbers(broken)
    return _result(limits.tree, front, min(k or beam, whole.n_items))


class Choice(NamedTuple):
    """How beams are chosen among children."""

    beam: int
    temperatures: Sequence[float] | None
    renormalise: bool
    stochastic: torch.Generator | None


class Front(NamedTuple):
    """The beams after some levels, all (B, K): where they are, and which of the beams before they come from."""

    nodes: Tensor
    parents: Tensor
    scores: Tensor  # log-probabilities
    order: Tensor  # what they are ranked by: scores, or perturbed ones


def _root(B: int, device: torch.device, stochastic: torch.Generator | None) -> Front:
    nodes = torch.zeros(B, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(B, 1, device=device)
    order = scores if stochastic is None else gumbel(scores.shape, stochastic).to(device)
    return Front(nodes, nodes, scores, order)


def advanced(front: Front, limits: Limits, level: int, logs: Tensor, choice: Choice) -> Front:
    """The best children of all beams of a user, one level deeper."""
    if choice.temperatures is not None and choice.temperatures[level] != 1:
        logs = (logs / choice.temperatures[level]).log_softmax(-1)
    stochastic = choice.stochastic
    if stochastic is None:
        few = best_of_few(
            limits,
            level,
            front.nodes,
            logs,
            front.scores,
            beam=choice.beam,
            renormalise=choice.renormalise,
        )
        if few is not None:
            return Front(*few, few.scores)
    following = children(limits, level, front.nodes, logs)
    reached = following.logs
    if choice.renormalise or stochastic is not None:
        total = reached.logsumexp(-1, keepdim=True)
        reached = reached - total.clamp_(min=torch.finfo(total.dtype).min)
    reached = reached.add_(front.scores[..., None])
    ranked = reached if stochastic is None else perturbed(front.order, reached, stochastic)
    most = min(choice.beam, ranked[0].numel(), len(limits.tree.children[level]))
    order, places = top(ranked.flatten(1), most)
    scores = order if stochastic is None else reached.flatten(1).gather(1, places)
    parents, places = places // ranked.shape[2], places % ranked.shape[2]
    return Front(following.nodes(parents, places), parents, scores, order)


def _check(
    tree: PrefixTree | TreeTensors, beam: int, k: int | None, temperatures: Sequence[float] | None
) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; ask for at least one item")
    if beam < 1:
        raise ValueError(f"beam is {beam}; it needs at least 1")
    if k is not None and k > beam:
        raise ValueError(f"k is {k} and beam {beam}; a search returns no more items than it has beams")
    if (ids := len(tree.children[-1])) < len(tree.leaves):
        raise ValueError(
            f"{len(tree.leaves)} items have {ids} ids; a beam cannot choose between items that share one: set "
            "semantic_ids.collisions to extra_digit or reallocate"
        )
    if temperatures is not None and (len(temperatures) != tree.depth or min(temperatures) <= 0):
        raise ValueError(f"temperatures are {tuple(temperatures)}; give {tree.depth} of them, each above 0")


def _checked(logs: Tensor, level: int, front: Front, sizes: Sequence[int]) -> Tensor:
    if logs.shape != (*front.nodes.shape, sizes[level]):
        users, beams = front.nodes.shape
        raise ValueError(
            f"log-probabilities of level {level + 1} are {tuple(logs.shape)}; for {beams} beams of {users} users "
            f"and {sizes[level]} codes they are {(users, beams, sizes[level])}"
        )
    return logs.float()


def _check_numbers(broken: list[Tensor]) -> None:
    """One look at the end: on a GPU every look is a wait."""
    if broken and (levels := torch.stack(broken).nonzero().flatten().tolist()):
        raise ValueError(
            f"log-probabilities of level {levels[0] + 1} are NaN; the model's weights are not usable"
        )


def _result(tree: TreeTensors, front: Front, k: int) -> Beams:
    most = k if len(tree.leaves) else 0
    nodes, scores = front.nodes[:, :most], front.scores[:, :most]
    found = scores > -torch.inf
    missing = k - nodes.shape[1]
    codes = tree.codes(nodes).masked_fill_(~found[..., None], -1)
    return Beams(
        F.pad(tree.leaves[nodes].masked_fill_(~found, -1), (0, missing), value=-1),
        F.pad(scores, (0, missing), value=-torch.inf),
        F.pad(codes, (0, 0, 0, missing), value=-1),
    )
