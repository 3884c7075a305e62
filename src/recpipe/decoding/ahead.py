"""The rest of the ids in one pass over the model: where so few are left below the beams that all can be read at once.

Codes cluster, so that a prefix of two of them often has one or two continuations. Level by level a model would read
K beams at each of the levels left; at once it reads all prefixes that may still be reached, hardly more of them, and
beams are chosen afterwards, level by level as ever.

B users, K beams, N prefixes of a depth, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from recpipe.semantic_ids.tree_tensors import TreeTensors

SURPLUS = 1.25  # prefixes read at once for each that is read level by level: more cost more than passes do
SMALL = 64  # prefixes of all users at once that cost what a pass costs,
LARGE = 512  # and so many that passes cost nothing beside them


class Steps(Protocol):
    """What a model offers to be searched."""

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Log-probabilities (B, K, V_level) of the codes of ``level``, 0-based, of the whole level, not masked.

        Level 0 has one beam and neither codes nor parents. After it, beam k has just taken ``codes_BK`` of the level
        before, coming from what was beam ``parents_BK`` then. Beams that are dead, for want of items, are asked for
        like the others.
        """
        ...


class Prefixes(NamedTuple):
    """All of one depth that a user may still come to, and some repeated to fill the row."""

    codes: Tensor  # (B, N) their last ones
    parents: Tensor  # (B, N) places among the prefixes one code shorter, or among the beams of the last step


@runtime_checkable
class StepsAhead(Steps, Protocol):
    """What a model offers that can read prefixes of several depths at once."""

    def ahead(self, level: int, prefixes: Sequence[Prefixes]) -> list[Tensor]:
        """Log-probabilities (B, N, V) of the codes of ``level``, of the one after it and so on, one for each of
        ``prefixes``: as of ``step`` for each of these in turn. Nothing is asked for afterwards.
        """
        ...


class Reached(NamedTuple):
    """Of a search so far, all (B, K): where beams are, which they come from, and which of them are alive."""

    nodes: Tensor
    parents: Tensor
    alive: Tensor


class Passes:
    """The log-probabilities of every level after the first, by as few passes over the model as pay."""

    def __init__(self, steps: Steps, tree: TreeTensors, beam: int) -> None:
        self.steps, self.tree, self.beam = steps, tree, beam
        self.rest: _Rest | None = None

    def logs(self, level: int, beams: Reached) -> Tensor:
        """(B, K, V_level), as of ``Steps.step``."""
        if self.rest is None and isinstance(self.steps, StepsAhead):
            self.rest = self._rest(self.steps, level, beams)
        if self.rest is not None:
            return self.rest.logs(level, beams)
        return self.steps.step(level, self.tree.children[level - 1][beams.nodes], beams.parents)

    def _rest(self, steps: StepsAhead, level: int, beams: Reached) -> _Rest | None:
        """What one pass from here gives; None where it would read too many prefixes, and at the last level."""
        B, K = beams.nodes.shape
        if B * K > LARGE:
            return None
        codes = self.tree.children[level - 1]
        nodes, alive = beams.nodes, beams.alive
        prefixes, shifts = [Prefixes(codes[nodes], beams.parents)], []
        one_by_one = at_once = K
        for depth in range(level, self.tree.depth - 1):
            below = _Below.of(self.tree.offsets[depth], nodes, alive)
            one_by_one, at_once = one_by_one + min(self.beam, below.width), at_once + below.width
            if not below.width or B * at_once > min(LARGE, max(SMALL, SURPLUS * B * one_by_one)):
                return None
            nodes, parents, alive = below.nodes(len(self.tree.children[depth]))
            prefixes.append(Prefixes(self.tree.children[depth][nodes], parents))
            shifts.append(below.shift)
        return _Rest(level, steps.ahead(level, prefixes), shifts) if shifts else None


class _Rest:
    """Log-probabilities of all prefixes that were left, and which of them beams are."""

    def __init__(self, level: int, logs: list[Tensor], shifts: list[Tensor]) -> None:
        self.level, self.of, self.shifts = level, logs, shifts
        self.places = torch.arange(logs[0].shape[1]).expand(len(logs[0]), -1)

    def logs(self, level: int, beams: Reached) -> Tensor:
        of = self.of[level - self.level]
        if level == self.level:
            return of
        shift = self.shifts[level - self.level - 1]
        places = shift.gather(1, self.places.gather(1, beams.parents)) + beams.nodes
        self.places = places.clamp_(0, of.shape[1] - 1)  # dead beams are anywhere
        return of[torch.arange(len(of))[:, None], self.places]


class _Below(NamedTuple):
    """All children of some nodes (B, N), one parent after the other, of each user up to ``width``."""

    width: int
    last: Tensor  # (B, N) the place after the last child of each
    shift: Tensor  # (B, N) what added to a child of each gives its place

    @classmethod
    def of(cls, offsets: Tensor, nodes_BN: Tensor, alive_BN: Tensor) -> _Below:
        start = offsets[nodes_BN]
        many = (offsets[nodes_BN + 1] - start).mul_(alive_BN)
        last = many.cumsum(1)
        return cls(int(last[:, -1].max()), last, last - many - start)

    def nodes(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, width) each: the children, of ``count`` of their depth; places of their parents; which are no filling."""
        places = torch.arange(self.width).repeat(len(self.last), 1)
        parents = torch.searchsorted(self.last, places, right=True)
        real = parents < self.last.shape[1]
        parents = parents.clamp_(max=self.last.shape[1] - 1)
        return (places - self.shift.gather(1, parents)).clamp_(0, count - 1), parents, real
