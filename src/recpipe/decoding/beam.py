"""Beam search over the prefix tree of a catalogue: L steps, every result an item, none twice, none excluded.

Excluded items are constraints: nodes of the tree that no beam of a user may enter.

B users, K beams, N items, L levels, V codes of a level, W places for children of a beam, P nodes of a depth, n pairs.

With a random generator it is a stochastic beam search, which samples items without replacement: Kool, van Hoof &
Welling, Stochastic Beams and Where to Find Them, ICML 2019. The perturbed log-probability of a leaf is its
log-probability plus Gumbel noise; the K greatest are a sample without replacement. Drawn from the root down, a node's
is the greatest of its children's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.semantic_ids.prefix_tree import PrefixTree, TreeTensors, any_child

MAX_COUNTS = 1 << 24  # entries that are counted at once


class LevelDecoder(Protocol):
    """Interface of models that a beam search decodes, level by level."""

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Return log-probabilities (B, K, V_level) of all codes of ``level``, 0-based, not masked.

        Level 0 has one beam and neither codes nor parents. After it, beam k continues the previous step's beam
        ``parents_BK`` with ``codes_BK`` of the level before. Beams without items left are included.
        """
        ...


class Beams(NamedTuple):
    """Results of a search, best first; missing ones have the item -1, the score -inf and codes of -1."""

    items: Tensor  # (B, K) int64 rows of the catalogue
    scores: Tensor  # (B, K) log-probabilities
    codes: Tensor  # (B, K, L) int64


@torch.no_grad()
def beam_search(
    decoder: LevelDecoder,
    tree: PrefixTree | TreeTensors,
    *,
    beam: int,
    k: int | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    temperatures: Sequence[float] | None = None,
    renormalise: bool = False,
    whole_catalogue: bool = False,
    stochastic: torch.Generator | None = None,
) -> Beams:
    """Return the ``k`` best of the ``beam`` items that a beam search reaches for every user, k = beam by default.

    ``seen``: items excluded per user, as offsets (B + 1,) and rows of the catalogue (n,), in any order, also repeated;
    negative rows are ignored. ``allowed`` bool, (N,) or (B, N): the candidates; a mask that many searches share is
    cheaper as ``tree.tensors().restrict(allowed)`` in place of the tree.

    A score is the model's log-probability of the item; with ``renormalise`` that among the remaining children of each
    prefix, which favours prefixes with few of them; with ``whole_catalogue`` too, among all children of each prefix, so
    that the score of an item does not depend on what is excluded. ``temperatures`` (L,) divide log-probabilities, which
    are then normalised over the whole level. ``stochastic``: a sample without replacement, in the order of the draw,
    from the distribution of ``renormalise``, which it implies.

    Raises ValueError for k > beam, items that share ids, log-probabilities of another shape, and NaN among them.

    Examples:
        Three items with ids of two codes, and a decoder whose levels do not depend on each other:

        >>> import numpy as np
        >>> from recpipe.decoding.exact import IndependentLevels
        >>> tree = PrefixTree.build(np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
        >>> levels = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.4, 0.6]])]
        >>> beams = beam_search(IndependentLevels([level.log() for level in levels]), tree, beam=3)
        >>> beams.items
        tensor([[1, 0, 2]])
        >>> beams.scores.exp().round(decimals=2)
        tensor([[0.5400, 0.3600, 0.0400]])
    """
    _check(tree, beam, k, temperatures)
    log_probs = decoder.step(0, None, None)
    B, device = len(log_probs), log_probs.device
    catalogue_tree = tree.tensors(device) if isinstance(tree, PrefixTree) else tree
    if whole_catalogue and allowed is not None:
        allowed = allowed.expand(B, -1)  # masks, where a restricted tree would lack the other children
    constraints = Constraints.of(catalogue_tree, B, seen, allowed)
    among = Constraints(constraints.tree) if whole_catalogue else constraints
    tree = constraints.tree
    nodes, scores = torch.zeros(B, 1, dtype=torch.int64, device=device), torch.zeros(B, 1, device=device)
    priority = scores if stochastic is None else gumbel(scores.shape, stochastic).to(device)
    state, is_nan = BeamState(nodes, nodes, scores, priority), []
    for level in range(tree.depth if len(tree.leaves) else 0):
        if level:
            log_probs = decoder.step(level, tree.children[level - 1][state.nodes], state.parents)
        _check_shape(log_probs, level, state, tree.sizes)
        log_probs = log_probs.float()
        if temperatures is not None and temperatures[level] != 1:
            log_probs = (log_probs / temperatures[level]).log_softmax(-1)
        state = _expand(state, constraints, level, log_probs, beam, among if renormalise else None, stochastic)
        is_nan.append(state.priority.isnan().any())
    # checked once at the end, since a GPU waits for each check
    if is_nan and (levels := torch.stack(is_nan).nonzero().flatten().tolist()):
        raise ValueError(f"log-probabilities of level {levels[0] + 1} are NaN; the model's weights are not usable")
    return _result(tree, state, min(k or beam, tree.n_items))


class BeamState(NamedTuple):
    """The beams after some levels, all (B, K): their nodes, and the beams of the previous level that they continue."""

    nodes: Tensor
    parents: Tensor
    scores: Tensor  # log-probabilities
    priority: Tensor  # what they are ranked by: scores, or perturbed ones


def _expand(
    state: BeamState,
    constraints: Constraints,
    level: int,
    log_probs_BKV: Tensor,
    beam: int,
    among: Constraints | None,
    stochastic: torch.Generator | None,
) -> BeamState:
    """The best children of all beams of a user, one level deeper; ``among``: children to renormalise over."""
    log_probs, node_of = children(constraints, level, state.nodes, log_probs_BKV)
    if among is not None or stochastic is not None:
        free = log_probs
        if among is not None and among is not constraints:
            free = children(among, level, state.nodes, log_probs_BKV).log_probs
        total = free.logsumexp(-1, keepdim=True)
        log_probs = log_probs - total.clamp_(min=torch.finfo(total.dtype).min)
    scores = log_probs.add_(state.scores[..., None])
    ranked = scores if stochastic is None else perturbed(state.priority, scores, stochastic)
    width = min(beam, ranked[0].numel(), len(constraints.tree.children[level]))
    priority, places = ranked.flatten(1).topk(width)
    best = priority if stochastic is None else scores.flatten(1).gather(1, places)
    parents, places = places // ranked.shape[2], places % ranked.shape[2]
    return BeamState(node_of(parents, places), parents, best, priority)


class Children(NamedTuple):
    """Children of beams with W places for them: all codes of the level, or a window of edges."""

    log_probs: Tensor  # (B, K, W), -inf where there is no child
    node_of: Callable[[Tensor, Tensor], Tensor]  # beams and places, both (B, K'), to nodes, any where there is none


def children(constraints: Constraints, level: int, nodes_BK: Tensor, log_probs_BKV: Tensor) -> Children:
    """Return the children of beams at nodes (B, K) of depth ``level``, from log-probabilities (B, K, V) of codes.

    Where nodes have many, a place is a code, and a table masks codes that do not follow; else only children are read.
    """
    tree = constraints.tree
    table = tree.child_mask(level, wide_only=True) if constraints.live is None else None
    if table is None:
        result = _window(constraints, level, nodes_BK, log_probs_BKV)
    else:
        log_probs = table.index_select(0, nodes_BK.flatten()).view(log_probs_BKV.shape).add_(log_probs_BKV)
        result = Children(log_probs, lambda beams, places: tree.follow(level, nodes_BK.gather(1, beams), places))
    if constraints.full is not None:
        _mask_full(result.log_probs, constraints, level, nodes_BK, by_code=table is not None)
    return result


def _window(constraints: Constraints, level: int, nodes_BK: Tensor, log_probs_BKV: Tensor) -> Children:
    """Children by a window of edges, as wide as the most children of any beam."""
    offsets, codes = constraints.tree.offsets[level], constraints.tree.children[level]
    first, end = offsets[nodes_BK], offsets[nodes_BK + 1]
    width = max(int((end - first).max()), 1)
    edges = first[..., None] + torch.arange(width, device=first.device)
    masked = edges >= end[..., None]
    edges = edges.clamp_(max=len(codes) - 1).flatten(1)
    if constraints.live is not None:
        masked |= ~constraints.live[level].gather(1, edges).view(masked.shape)
    log_probs = log_probs_BKV.gather(-1, codes[edges].view(masked.shape)).masked_fill_(masked, -torch.inf)
    return Children(log_probs, lambda beams, places: (first.gather(1, beams) + places).clamp_(max=len(codes) - 1))


def _mask_full(log_probs: Tensor, constraints: Constraints, level: int, nodes_BK: Tensor, *, by_code: bool) -> None:
    """Mask, in place, full prefixes that continue one of the user's beams."""
    assert constraints.full is not None
    full, tree = constraints.full[level], constraints.tree
    parents = tree.parents[level][full.nodes]
    pair, beam = (nodes_BK[full.users] == parents[:, None]).nonzero(as_tuple=True)
    node = full.nodes[pair]
    place = tree.children[level][node] if by_code else node - tree.offsets[level][parents[pair]]
    log_probs[full.users[pair], beam, place] = -torch.inf


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise of this ``shape`` (...), float64, on the generator's device."""
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 2**-53)))


def perturbed(parents_BK: Tensor, log_probs_BKW: Tensor, generator: torch.Generator) -> Tensor:
    """Return perturbed log-probabilities (B, K, W) float64 of children, the greatest of each beam's being ``parents``.

    -inf where ``log_probs`` is. These are of whole prefixes and sum to that of the parent (the paper's appendix B.3).
    """
    free = log_probs_BKW.double() + gumbel(log_probs_BKW.shape, generator).to(log_probs_BKW.device)
    x = free - free.amax(-1, keepdim=True)
    log1mexp = torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))  # log(1 - exp(x))
    parents = parents_BK[..., None]
    v = parents - free + log1mexp
    shifted = parents - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return shifted.masked_fill_(log_probs_BKW == -torch.inf, -torch.inf)


def _check(tree: PrefixTree | TreeTensors, beam: int, k: int | None, temperatures: Sequence[float] | None) -> None:
    for name, value in (("k", k), ("beam", beam)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if k is not None and k > beam:
        raise ValueError(f"k is {k} and beam {beam}; a search returns no more items than it has beams")
    if (ids := len(tree.children[-1])) < len(tree.leaves):
        raise ValueError(
            f"{len(tree.leaves)} items have {ids} ids; a beam cannot choose between items that share one: set "
            "semantic_ids.collisions to extra_digit or reallocate"
        )
    if temperatures is not None and (len(temperatures) != tree.depth or min(temperatures) <= 0):
        raise ValueError(f"temperatures are {tuple(temperatures)}; set {tree.depth} of them, each above 0")


def _check_shape(log_probs: Tensor, level: int, state: BeamState, sizes: Sequence[int]) -> None:
    if log_probs.shape != (*state.nodes.shape, sizes[level]):
        users, beams = state.nodes.shape
        raise ValueError(
            f"log-probabilities of level {level + 1} are {tuple(log_probs.shape)}; for {beams} beams of {users} users "
            f"and {sizes[level]} codes they are {(users, beams, sizes[level])}"
        )


def _result(tree: TreeTensors, state: BeamState, k: int) -> Beams:
    width = k if len(tree.leaves) else 0
    nodes, scores = state.nodes[:, :width], state.scores[:, :width]
    alive = scores > -torch.inf
    missing = k - nodes.shape[1]
    codes = tree.codes(nodes).masked_fill_(~alive[..., None], -1)
    return Beams(
        F.pad(tree.leaves[nodes].masked_fill_(~alive, -1), (0, missing), value=-1),
        F.pad(scores, (0, missing), value=-torch.inf),
        F.pad(codes, (0, 0, 0, missing), value=-1),
    )


class FullPrefixes(NamedTuple):
    """Nodes of one depth below which a user has no candidate left, as pairs."""

    users: Tensor  # (n,)
    nodes: Tensor  # (n,)


@dataclass(frozen=True)
class Constraints:
    """The tree of the items that any user may get, and per level the nodes that some users may not enter."""

    tree: TreeTensors
    full: list[FullPrefixes] | None = None  # (L), of depth 1 to L
    live: list[Tensor] | None = None  # (L) of (B, P_{l+1}) bool, instead of ``full``

    @classmethod
    def of(
        cls, tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor] | None, allowed: Tensor | None
    ) -> Constraints:
        """Build the constraints of B ``users``; ``seen`` and ``allowed``, (N,) or (B, N), as in ``beam_search``.

        Raises ValueError where they do not fit the tree.
        """
        if allowed is not None and allowed.ndim == 2:
            return cls(tree, live=live_nodes(tree, users, allowed, seen))
        if allowed is not None:
            tree = tree.restrict(allowed)
        return cls(tree, full=None if seen is None else full_prefixes(tree, users, seen))

    def is_free(self, level: int, users: Tensor, nodes: Tensor) -> Tensor:
        """Return whether each of ``users`` (n,) may enter its node (n,) of depth ``level`` + 1, bool (n,)."""
        if self.live is not None:
            return self.live[level][users, nodes]
        if self.full is None:
            return torch.ones_like(users, dtype=torch.bool)
        full, size = self.full[level], len(self.tree.children[level])
        return ~torch.isin(users * size + nodes, full.users * size + full.nodes)


def full_prefixes(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> list[FullPrefixes]:
    """Return the full prefixes of L depths, from 1 to L.

    ``seen``: offsets (B + 1,) and rows of the catalogue (n,), -1 for items outside it. Raises ValueError where they do
    not fit the catalogue.
    """
    owner, place = _seen_leaves(tree, users, seen)
    keys, size = torch.unique(owner * tree.n_items + place), tree.n_items
    owner, node, count = keys // size, keys % size, torch.ones_like(keys)
    by_depth = [FullPrefixes(owner, node)]
    for level in reversed(range(1, tree.depth)):
        node = tree.parents[level][node]
        keys, inverse = torch.unique_consecutive(owner * size + node, return_inverse=True)
        count = torch.zeros_like(keys).index_add_(0, inverse, count)
        owner, node = keys // size, keys % size
        spans = tree.spans[level]
        full = count == spans[node + 1] - spans[node]
        by_depth.append(FullPrefixes(owner[full], node[full]))
    return by_depth[::-1]


def live_nodes(tree: TreeTensors, users: int, allowed_BN: Tensor, seen: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Return L masks (B, P_{l+1}) bool, of depth 1 to L: the nodes below which users have a candidate.

    ``allowed_BN`` and ``seen`` as in ``beam_search``. Raises ValueError for a mask of another type or shape.
    """
    if allowed_BN.dtype != torch.bool or allowed_BN.shape != (users, tree.n_items):
        raise ValueError(
            f"allowed is {allowed_BN.dtype} {tuple(allowed_BN.shape)}; a mask is bool ({tree.n_items},) or "
            f"({users}, {tree.n_items})"
        )
    live = allowed_BN.to(tree.leaves.device)[:, tree.leaves]
    if seen is not None:
        live[_seen_leaves(tree, users, seen)] = False
    by_depth = [live]
    for level in reversed(range(1, tree.depth)):
        offsets = tree.offsets[level]
        chunks = by_depth[-1].split(max(MAX_COUNTS // by_depth[-1].shape[1], 1))
        by_depth.append(torch.cat([any_child(offsets, chunk) for chunk in chunks]))
    return by_depth[::-1]


def _seen_leaves(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """User and leaf of every seen item that is in the tree."""
    offsets, rows = (each.to(tree.leaves.device) for each in seen)
    if len(offsets) != users + 1 or int(offsets[-1]) != len(rows):
        raise ValueError(
            f"seen has offsets {tuple(offsets.shape)} up to {int(offsets[-1])} and {len(rows)} rows; for {users} "
            f"users it is ({users + 1},) offsets, the last of which is the number of rows"
        )
    if len(rows) and int(rows.max()) >= tree.n_items:
        raise ValueError(f"seen has row {int(rows.max())}; the catalogue has {tree.n_items}")
    owner = torch.arange(users, device=rows.device).repeat_interleave(offsets.diff())
    place = tree.leaf_positions[rows.clamp(min=0)]
    in_tree = (rows >= 0) & (place >= 0)
    return owner[in_tree], place[in_tree]
