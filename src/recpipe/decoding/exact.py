"""Exact scores and exact best items of models whose levels are independent given the user: no search, no error.

B users, N items, L levels, V codes of a level, K results, P nodes of a depth, M pairs of a user and a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.decoding.beam import Beams, beam_search
from recpipe.decoding.constraints import Limits
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.tree_tensors import TreeTensors

FEW = 16  # users for whom values are gathered one by one; for more it is done in rows of all users
CACHED = 1 << 18  # values of a chunk, which stay in cache until they are transposed
MARGIN = 1e-5  # of a bound, beyond what sums in another order differ by
FRONTIER = 1 << 22  # nodes that are looked at together
WIDER = 8  # times k: of a beam that finds nearly the best
FEWER = 8  # than items: nodes of a depth, all of which are looked at


def exact_scores(log_probs: Sequence[Tensor], codes_NL: Tensor) -> Tensor:
    """(B, N) sum over levels of ``log_probs`` [(B, V_l)] at each item's code: the log-probability of every item.

    Summed in the order of the levels, so that equal summands give equal sums.
    """
    B, N = len(log_probs[0]), len(codes_NL)
    if FEW > B or log_probs[0].device.type != "cpu":
        scores = log_probs[0].index_select(1, codes_NL[:, 0])
        for level in range(1, len(log_probs)):
            scores += log_probs[level].index_select(1, codes_NL[:, level])
        return scores
    table = torch.cat(list(log_probs), 1).T.contiguous()  # (sum V, B): a code is a row of all users
    sizes = [0, *(each.shape[1] for each in log_probs[:-1])]
    first = torch.tensor(sizes, dtype=codes_NL.dtype).cumsum(0, dtype=codes_NL.dtype)
    scores = table.new_empty(B, N)
    for start in range(0, N, size := max(CACHED // B, 1)):
        rows = codes_NL[start : start + size] + first
        scores[:, start : start + size] = F.embedding_bag(rows, table, mode="sum").T
    return scores


def among_items(log_probs: Sequence[Tensor], codes_NL: Tensor) -> list[Tensor]:
    """The same levels, the first less a constant of each user: over the N items the probabilities sum to 1.

    For models trained by a softmax over the items: what their levels say of codes that no item has is nothing.
    """
    size = max(FRONTIER // max(len(codes_NL), 1), 1)
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
    """The ``k`` best items of the whole catalogue, as by ``exact_scores``, from a part of the prefix tree.

    A beam search finds k items, the worst of which bounds what may matter: a prefix is followed only if it could
    still reach that with the best code of every level left. Of equal scores the lower row of the catalogue is first.
    For catalogues so large that gathering all scores is slower, from about a million items; flat distributions, with
    which nothing can be left out, cost more than gathering. ``seen`` and ``allowed`` as of ``beam_search``, which
    also says what is raised.
    """
    device = log_probs[0].device
    log_probs = [each.float() for each in log_probs]
    whole = tree.tensors(device) if isinstance(tree, PrefixTree) else tree
    wide = max(k, min(WIDER * k, whole.n_items))
    found = beam_search(Independent(log_probs), whole, beam=wide, k=k, seen=seen, allowed=allowed)
    limits = Limits.of(whole, len(found.items), seen, allowed)
    worst = found.scores[:, -1]
    walk = Walk(log_probs, limits, worst - MARGIN * (1 + worst.abs()), _rest(log_probs, limits.tree))
    return _best(walk.leaves(), limits.tree, found)


class Independent:
    """The steps of a beam search over levels that do not depend on each other."""

    def __init__(self, log_probs: Sequence[Tensor]) -> None:
        self.log_probs = log_probs

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """(B, K, V_level), the same for all beams."""
        beams = 1 if codes_BK is None else codes_BK.shape[1]
        return self.log_probs[level][:, None].expand(-1, beams, -1)


class Pairs(NamedTuple):
    """Users, nodes of one depth, and the scores these have for them; all (M,), sorted by users."""

    users: Tensor
    nodes: Tensor
    scores: Tensor

    def of(self, chosen: Tensor) -> Pairs:
        """Those of a mask or of places."""
        return Pairs(self.users[chosen], self.nodes[chosen], self.scores[chosen])


class Walk(NamedTuple):
    """Down the tree by whole levels, leaving out what cannot reach ``least`` (B,)."""

    log_probs: Sequence[Tensor]
    limits: Limits
    least: Tensor
    rest: list[Tensor]  # (L + 1) of (B,): the most that the levels from there on can add

    def leaves(self) -> Pairs:
        """All that reach ``least``. All nodes of a depth that has few are a table, from there on they are pairs."""
        tree = self.limits.tree
        nodes = [1, *map(len, tree.children)]
        depth = max(d for d, many in enumerate(nodes) if d == 0 or many <= max(nodes[-1] // FEWER, nodes[1]))
        users = torch.arange(len(self.least), device=self.least.device)
        each = users.split(max(FRONTIER // nodes[depth], 1)) if nodes[-1] else users[:0].split(1)
        pairs = Pairs(*map(torch.cat, zip(*(self._at(depth, some) for some in each), strict=True)))
        for level in range(depth, tree.depth):
            pairs = self._below(pairs, level)
        return pairs

    def _at(self, depth: int, users: Tensor) -> Pairs:
        """The nodes of a depth that reach ``least``, for some users."""
        needed = (self.least - self.rest[depth])[users, None]
        if depth:
            scores = exact_scores(
                [each[users] for each in self.log_probs[:depth]], self.limits.tree.prefixes(depth)
            )
        else:
            scores = torch.zeros_like(needed)
        user, node = ((scores >= needed) & (scores > -torch.inf)).nonzero(as_tuple=True)
        found = Pairs(users[user], node, scores[user, node])
        return found.of(self._free(found, depth - 1)) if depth else found

    def _below(self, pairs: Pairs, level: int) -> Pairs:
        """Of the children of ``pairs`` those that reach ``least``, in their order."""
        offsets = self.limits.tree.offsets[level]
        many = offsets[pairs.nodes + 1] - offsets[pairs.nodes]
        part = many.cumsum(0) // FRONTIER
        sizes = torch.unique_consecutive(part, return_counts=True)[1].tolist()
        each = zip(*(values.split(sizes) for values in (*pairs, many)), strict=True)
        found = [self._children(Pairs(*some), count, level) for *some, count in each]
        return Pairs(*map(torch.cat, zip(*found, strict=True))) if found else pairs

    def _children(self, pairs: Pairs, many: Tensor, level: int) -> Pairs:
        """The same for some at once; most children fail, so little is done before that is known."""
        tree, logs = self.limits.tree, self.log_probs[level]
        parent = torch.arange(len(many), device=many.device).repeat_interleave(many)
        first = tree.offsets[level][pairs.nodes] - (many.cumsum(0) - many)
        nodes = torch.arange(len(parent), device=many.device) + first.index_select(0, parent)
        place = tree.children[level].index_select(0, nodes)
        place += (pairs.users * logs.shape[1]).index_select(0, parent)
        added = logs.reshape(-1).index_select(0, place)
        needed = (self.least - self.rest[level + 1])[pairs.users] - pairs.scores
        reaches = ((added >= needed.index_select(0, parent)) & (added > -torch.inf)).nonzero().flatten()
        parent = parent[reaches]
        found = Pairs(pairs.users[parent], nodes[reaches], pairs.scores[parent] + added[reaches])
        return found.of(self._free(found, level))

    def _free(self, pairs: Pairs, level: int) -> Tensor:
        """(M,) bool: where the user may get something."""
        if self.limits.live is not None:
            return self.limits.live[level][pairs.users, pairs.nodes]
        if self.limits.full is None:
            return torch.ones_like(pairs.users, dtype=torch.bool)
        full, size = self.limits.full[level], len(self.limits.tree.children[level])
        return ~torch.isin(pairs.users * size + pairs.nodes, full.users * size + full.nodes)


def _rest(log_probs: Sequence[Tensor], tree: TreeTensors) -> list[Tensor]:
    most = [torch.zeros_like(log_probs[0][:, 0])]
    for logs, codes in zip(log_probs[::-1], tree.used_codes[::-1], strict=True):
        best = logs.index_select(1, codes).amax(1) if len(codes) else most[-1]
        most.append(most[-1] + best)
    return most[::-1]


def _best(pairs: Pairs, tree: TreeTensors, like: Beams) -> Beams:
    """Sorted by user, then by score, then by row of the catalogue."""
    rows = tree.leaves[pairs.nodes]
    order = rows.argsort()
    order = order[pairs.scores[order].argsort(descending=True, stable=True)]
    order = order[pairs.users[order].argsort(stable=True)]
    users, rows, nodes, scores = pairs.users[order], rows[order], pairs.nodes[order], pairs.scores[order]
    count = torch.bincount(users, minlength=len(like.items))
    rank = torch.arange(len(users), device=users.device) - (count.cumsum(0) - count)[users]
    kept = rank < like.items.shape[1]
    at = users[kept], rank[kept]
    found = Beams(
        *(torch.full_like(each, empty) for each, empty in zip(like, (-1, -torch.inf, -1), strict=True))
    )
    found.items[at], found.scores[at], found.codes[at] = rows[kept], scores[kept], tree.codes(nodes[kept])
    return found


class SearchError(NamedTuple):
    """What a search lost beside the exact best lists, of as many items."""

    missed: float  # share of the best items that it did not find
    users: float  # share of users for whom it missed any
    lost: float  # log-probability per item, by place


def search_error(found: Beams, exact: Beams) -> SearchError:
    """How far a beam search is from what it looks for: the error of the search, apart from that of the model."""
    there = exact.items >= 0
    missed = there & ~(exact.items[:, :, None] == found.items[:, None]).any(2)
    lost = (exact.scores - found.scores)[there & (found.items >= 0)]
    return SearchError(
        float(missed.sum() / there.sum().clamp(min=1)),
        float(missed.any(1).float().mean()),
        float(lost.mean()),
    )
