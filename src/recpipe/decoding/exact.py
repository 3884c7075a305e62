"""Exact scores and exact top-k of models whose code levels are independent given the user.

B users, N items, L levels, V codes of a level, K results, P nodes of a depth, M pairs of a user and a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.decoding.beam import Beams, Constraints, beam_search
from recpipe.semantic_ids.prefix_tree import PrefixTree, TreeTensors

MIN_USERS = 16  # from which on values are gathered in rows of all users instead of one by one
CHUNK = 1 << 18  # values that stay in cache until they are transposed
MARGIN = 1e-5  # of the bound, for sums in another order
MAX_NODES = 1 << 22  # nodes that are visited together
BEAM_FACTOR = 8  # width of the beam search that gives the bound, times k
SHALLOW = 8  # a depth is visited as a whole where it has fewer nodes than items / SHALLOW


def exact_scores(log_probs: Sequence[Tensor], codes_NL: Tensor) -> Tensor:
    """Return the log-probability (B, N) of each item: the sum of ``log_probs``, L of (B, V_l), at its codes (N, L).

    Examples:
        >>> log_probs = [torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5, -3.0]])]
        >>> exact_scores(log_probs, torch.tensor([[0, 0], [0, 1], [1, 0]]))
        tensor([[-1.5000, -4.0000, -2.5000]])
    """
    # summed in the order of the levels, so that equal summands give equal sums
    B, N = len(log_probs[0]), len(codes_NL)
    if B < MIN_USERS or log_probs[0].device.type != "cpu":
        scores = log_probs[0].index_select(1, codes_NL[:, 0])
        for level in range(1, len(log_probs)):
            scores += log_probs[level].index_select(1, codes_NL[:, level])
        return scores
    table = torch.cat(list(log_probs), 1).T.contiguous()  # (sum V, B): a code is a row of all users
    first = torch.tensor([0, *(each.shape[1] for each in log_probs[:-1])]).cumsum(0).to(codes_NL.dtype)
    scores = table.new_empty(B, N)
    for start in range(0, N, size := max(CHUNK // B, 1)):
        rows = codes_NL[start : start + size] + first
        scores[:, start : start + size] = F.embedding_bag(rows, table, mode="sum").T
    return scores


def normalise_over_items(log_probs: Sequence[Tensor], codes_NL: Tensor) -> list[Tensor]:
    """Return ``log_probs``, L tensors (B, V_l), shifted per user so that the probabilities of the N items sum to 1.

    Only the first level is shifted. For models trained by a softmax over the items, which gives no probability to codes
    that no item has.
    """
    size = max(MAX_NODES // max(len(codes_NL), 1), 1)
    parts = zip(*(each.split(size) for each in log_probs), strict=True)
    total = torch.cat([exact_scores(part, codes_NL).logsumexp(1) for part in parts])
    return [log_probs[0] - total[:, None], *log_probs[1:]]


def exact_top(
    log_probs: Sequence[Tensor],
    tree: PrefixTree | TreeTensors,
    k: int,
    *,
    seen: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
) -> Beams:
    """Return the ``k`` items (B, k) with the highest ``exact_scores``, by branch and bound over the prefix tree.

    A beam search gives k items, the worst of which is the bound: a prefix is followed only if it can still reach that
    with the best code of every remaining level. Of equal scores the lower row of the catalogue is first. Faster than
    ``exact_scores`` from about a million items on, except for flat distributions. Otherwise as ``beam_search``.
    """
    device = log_probs[0].device
    log_probs = [each.float() for each in log_probs]
    catalogue_tree = tree.tensors(device) if isinstance(tree, PrefixTree) else tree
    beam = max(k, min(BEAM_FACTOR * k, catalogue_tree.n_items))
    beams = beam_search(IndependentLevels(log_probs), catalogue_tree, beam=beam, k=k, seen=seen, allowed=allowed)
    constraints = Constraints.of(catalogue_tree, len(beams.items), seen, allowed)
    worst = beams.scores[:, -1]
    bound = worst - MARGIN * (1 + worst.abs())
    branches = BranchAndBound(log_probs, constraints, bound, _best_remaining(log_probs, constraints.tree))
    return _sorted(branches.leaves(), constraints.tree, beams)


class IndependentLevels:
    """Decoder for a beam search over independent levels, with L log-probabilities (B, V_l)."""

    def __init__(self, log_probs: Sequence[Tensor]) -> None:
        self.log_probs = log_probs

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Return log-probabilities (B, K, V_level), the same for all beams."""
        beams = 1 if codes_BK is None else codes_BK.shape[1]
        return self.log_probs[level][:, None].expand(-1, beams, -1)


class Nodes(NamedTuple):
    """Pairs of a user and a node of one depth, with scores; all (M,), sorted by user."""

    users: Tensor
    nodes: Tensor
    scores: Tensor


class BranchAndBound(NamedTuple):
    """Branch and bound over the tree, level by level, without nodes that cannot reach ``bound`` (B,)."""

    log_probs: Sequence[Tensor]
    constraints: Constraints
    bound: Tensor
    best_remaining: list[Tensor]  # (L + 1) of (B,): the most that the levels from there on can add

    def leaves(self) -> Nodes:
        """Return all leaves that reach the bound."""
        tree = self.constraints.tree
        counts = [1, *map(len, tree.children)]
        depth = max(d for d, count in enumerate(counts) if d == 0 or count <= max(counts[-1] // SHALLOW, counts[1]))
        users = torch.arange(len(self.bound), device=self.bound.device)
        parts = users.split(max(MAX_NODES // counts[depth], 1)) if counts[-1] else users[:0].split(1)
        nodes = _concatenate([self._at(depth, part) for part in parts])
        for level in range(depth, tree.depth):
            nodes = self._below(nodes, level)
        return nodes

    def _at(self, depth: int, users: Tensor) -> Nodes:
        """The nodes of a depth that reach the bound, for some users."""
        needed = (self.bound - self.best_remaining[depth])[users, None]
        scores = torch.zeros_like(needed)
        if depth:
            prefixes = self.constraints.tree.prefixes(depth)
            scores = exact_scores([each[users] for each in self.log_probs[:depth]], prefixes)
        user, node = ((scores >= needed) & (scores > -torch.inf)).nonzero(as_tuple=True)
        reached = Nodes(users[user], node, scores[user, node])
        return self._free(reached, depth - 1) if depth else reached

    def _below(self, nodes: Nodes, level: int) -> Nodes:
        """The children of ``nodes`` that reach the bound, in the same order."""
        offsets = self.constraints.tree.offsets[level]
        counts = offsets[nodes.nodes + 1] - offsets[nodes.nodes]
        part = counts.cumsum(0) // MAX_NODES
        sizes = torch.unique_consecutive(part, return_counts=True)[1].tolist()
        parts = zip(*(values.split(sizes) for values in (*nodes, counts)), strict=True)
        reached = [self._children(Nodes(*some), count, level) for *some, count in parts]
        return _concatenate(reached) if reached else nodes

    def _children(self, nodes: Nodes, counts: Tensor, level: int) -> Nodes:
        """``_below`` for some nodes at once; most children fail, so little is computed before that is clear."""
        tree, log_probs = self.constraints.tree, self.log_probs[level]
        parent = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        first = tree.offsets[level][nodes.nodes] - (counts.cumsum(0) - counts)
        child = torch.arange(len(parent), device=counts.device) + first.index_select(0, parent)
        place = tree.children[level].index_select(0, child)
        place += (nodes.users * log_probs.shape[1]).index_select(0, parent)
        added = log_probs.reshape(-1).index_select(0, place)
        needed = (self.bound - self.best_remaining[level + 1])[nodes.users] - nodes.scores
        reaches = ((added >= needed.index_select(0, parent)) & (added > -torch.inf)).nonzero().flatten()
        parent = parent[reaches]
        reached = Nodes(nodes.users[parent], child[reaches], nodes.scores[parent] + added[reaches])
        return self._free(reached, level)

    def _free(self, nodes: Nodes, level: int) -> Nodes:
        is_free = self.constraints.is_free(level, nodes.users, nodes.nodes)
        return Nodes(*(values[is_free] for values in nodes))


def _concatenate(parts: Sequence[Nodes]) -> Nodes:
    return Nodes(*map(torch.cat, zip(*parts, strict=True)))


def _best_remaining(log_probs: Sequence[Tensor], tree: TreeTensors) -> list[Tensor]:
    totals = [torch.zeros_like(log_probs[0][:, 0])]
    for level_log_probs, codes in zip(log_probs[::-1], tree.used_codes[::-1], strict=True):
        best = level_log_probs.index_select(1, codes).amax(1) if len(codes) else totals[-1]
        totals.append(totals[-1] + best)
    return totals[::-1]


def _sorted(leaves: Nodes, tree: TreeTensors, like: Beams) -> Beams:
    """Results of the shape of ``like``: by user, then by score, then by row of the catalogue."""
    rows = tree.leaves[leaves.nodes]
    order = rows.argsort()
    order = order[leaves.scores[order].argsort(descending=True, stable=True)]
    order = order[leaves.users[order].argsort(stable=True)]
    users, rows, nodes, scores = leaves.users[order], rows[order], leaves.nodes[order], leaves.scores[order]
    count = torch.bincount(users, minlength=len(like.items))
    rank = torch.arange(len(users), device=users.device) - (count.cumsum(0) - count)[users]
    top = rank < like.items.shape[1]
    place = users[top], rank[top]
    result = Beams(*map(torch.full_like, like, (-1, -torch.inf, -1)))
    result.items[place], result.scores[place], result.codes[place] = rows[top], scores[top], tree.codes(nodes[top])
    return result


class SearchError(NamedTuple):
    """Loss of a search compared with the exact best lists of the same length."""

    missed: float  # share of the best items that it missed
    users: float  # share of users for whom it missed any
    lost: float  # log-probability per item, by place


def search_error(beams: Beams, exact: Beams) -> SearchError:
    """Compare a beam search with the exact results: the error of the search, apart from that of the model."""
    exists = exact.items >= 0
    missed = exists & ~(exact.items[:, :, None] == beams.items[:, None]).any(2)
    lost = (exact.scores - beams.scores)[exists & (beams.items >= 0)]
    return SearchError(
        float(missed.sum() / exists.sum().clamp(min=1)), float(missed.any(1).float().mean()), float(lost.mean())
    )
