"""Small random models and catalogues, and brute force over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from recpipe.semantic_ids.prefix_tree import PrefixTree

USERS = 3


@dataclass
class Model:
    """Log-probabilities that depend on the whole prefix; follows its beams by codes and parents, as a decoder does."""

    logs: list[Tensor]  # (L) of (B, V_1, ..., V_l)
    beams: list[Tensor] = field(default_factory=list)  # codes of the beams so far, each (B, K)

    def step(self, level, codes_BK, parents_BK):
        if codes_BK is None:
            self.beams = []
            return self.logs[0][:, None]
        self.beams = [codes.gather(1, parents_BK) for codes in self.beams] + [codes_BK]
        return self.logs[level][(torch.arange(len(codes_BK))[:, None], *self.beams)]

    def of(self, codes_NL) -> Tensor:
        """(B, N) log-probability of every id, by itself."""
        columns = torch.from_numpy(np.asarray(codes_NL)).long().T
        return sum(each[(slice(None), *columns[: level + 1])] for level, each in enumerate(self.logs))


def model(sizes, seed=0, users=USERS) -> Model:
    g = torch.Generator().manual_seed(seed)
    shapes = [(users, *sizes[: level + 1]) for level in range(len(sizes))]
    return Model([(2 * torch.randn(shape, generator=g)).log_softmax(-1) for shape in shapes])


@dataclass
class Case:
    codes: np.ndarray
    sizes: tuple[int, ...]
    seed: int
    seen: list[list[int]]
    allowed: np.ndarray | None  # (N,) or (B, N)

    @property
    def tree(self):
        return PrefixTree.build(self.codes, self.sizes)

    @property
    def constraints(self):
        offsets = np.cumsum([0, *map(len, self.seen)])
        rows = np.array([row for each in self.seen for row in each], np.int64)
        seen = (torch.from_numpy(offsets), torch.from_numpy(rows)) if len(rows) else None
        return {"seen": seen, "allowed": None if self.allowed is None else torch.from_numpy(self.allowed)}

    @property
    def free(self):
        """(B, N) bool."""
        free = np.ones((USERS, len(self.codes)), bool)
        if self.allowed is not None:
            free &= self.allowed
        for user, rows in enumerate(self.seen):
            free[user, [row for row in rows if row >= 0]] = False
        return free


@st.composite
def cases(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    rows = draw(st.lists(row, min_size=1, max_size=40, unique=True))
    N = len(rows)
    histories = [draw(st.lists(st.integers(-1, N - 1), max_size=12)) for _ in range(USERS)]
    seen = draw(st.sampled_from([histories, [[]] * USERS]))
    shape = draw(st.sampled_from([None, (N,), (USERS, N)]))
    seed = draw(st.integers(0, 2**31))
    allowed = None if shape is None else np.random.default_rng(seed).random(shape) < draw(st.floats(0, 1))
    return Case(
        np.array(rows, np.int64).reshape(N, -1), sizes, seed, draw(st.sampled_from([seen, [[]] * USERS])), allowed
    )


def random_case(N, sizes, seed=0):
    keys = np.random.default_rng(seed).choice(math.prod(sizes), N, replace=False)
    codes = np.stack(np.unravel_index(keys, sizes), 1)
    return Case(codes, sizes, seed, [[]] * USERS, None)


def lists(beams) -> list[dict[int, float]]:
    """Item to score, best first, of every user; checks that missing results stand last, with -1 and -inf."""
    results = []
    for items, scores, codes in zip(*beams, strict=True):
        count = int((items >= 0).sum())
        assert (items[count:] == -1).all()
        assert (scores[count:] == -math.inf).all()
        assert (codes[count:] == -1).all()
        assert (scores[:count].diff() <= 0).all()
        assert len(set(items[:count].tolist())) == count
        results.append(dict(zip(items[:count].tolist(), scores[:count].tolist(), strict=True)))
    return results
