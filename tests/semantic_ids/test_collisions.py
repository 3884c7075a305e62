"""Collision policies against plain Python loops that follow the written rules, on integers so that ties are exact."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from recpipe.semantic_ids import collisions
from recpipe.semantic_ids.collisions import POLICIES, resolve, row_groups, transport

NONE = np.zeros((0, 3), np.int32)


class Toy:
    """A residual quantizer on small integers: distances are exact, equal ones are frequent."""

    def __init__(self, sizes: tuple[int, ...], n: int, seed: int, *, width: int = 2, spread: int = 3):
        rng = np.random.default_rng(seed)
        self.sizes, self.calls = sizes, 0
        self.books = [rng.integers(-spread, spread + 1, (v, width)).astype(np.float32) for v in sizes]
        self.x = rng.integers(-2 * spread, 2 * spread + 1, (n, width)).astype(np.float32)
        self.codes = self.encode()

    def distances(self, rows, codes, level):
        self.calls += 1
        rest = self.x[rows] - sum((self.books[i][codes[:, i]] for i in range(level)), np.float32(0))
        return ((rest[:, None] - self.books[level]) ** 2).sum(-1)

    def encode(self):
        codes = np.zeros((len(self.x), len(self.sizes)), np.int32)
        for level in range(len(self.sizes)):
            codes[:, level] = self.distances(np.arange(len(self.x)), codes, level).argmin(1)
        return codes

    def one(self, row, prefix):
        """Distances of one item to the codes below a prefix."""
        codes = np.array([[*prefix, *[0] * (len(self.sizes) - len(prefix))]], np.int32)
        return self.distances(np.array([row]), codes, len(prefix))[0].tolist()


def brute_reallocate(toy: Toy, taken: np.ndarray) -> list[tuple[int, ...]]:
    sizes, codes = toy.sizes, [tuple(c) for c in toy.codes.tolist()]
    used = {tuple(c) for c in taken.tolist()}
    nearness = [toy.one(row, code[:-1])[code[-1]] for row, code in enumerate(codes)]
    movers, keepers = [], set()
    for row in sorted(range(len(codes)), key=lambda r: (nearness[r], r)):
        if codes[row] in used | keepers:
            movers.append(row)
        else:
            keepers.add(codes[row])
    used |= keepers
    while movers:
        left = []
        for row in movers:
            prefix = codes[row][:-1]
            free = [v for v in range(sizes[-1]) if (*prefix, v) not in used]
            if free:
                costs = toy.one(row, prefix)
                codes[row] = (*prefix, min(free, key=lambda v: (costs[v], v)))
                used.add(codes[row])
            else:
                left.append(row)
        for row in left:
            codes[row] = brute_rehome(toy, row, codes[row], used)
        movers = left
    return codes


def brute_rehome(toy: Toy, row: int, code: tuple[int, ...], used: set) -> tuple[int, ...]:
    def full(prefix):
        room = math.prod(toy.sizes[len(prefix) :])
        return sum(h[: len(prefix)] == prefix for h in used) >= room

    last = len(toy.sizes) - 1
    top = max(d for d in range(last) if not full(code[:d]))
    prefix = code[:top]
    while len(prefix) < last:
        costs = toy.one(row, prefix)
        opened = [v for v in range(toy.sizes[len(prefix)]) if not full((*prefix, v))]
        prefix = (*prefix, min(opened, key=lambda v: (costs[v], v)))
    return (*prefix, code[-1])


@st.composite
def cases(draw):
    """A toy that fits into its ids, and some distinct codes that were given earlier."""
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    room = math.prod(sizes)
    earlier = draw(st.integers(0, room // 2))
    toy = Toy(
        sizes, draw(st.integers(0, room - earlier)), draw(st.integers(0, 9999)), spread=draw(st.sampled_from([1, 4]))
    )
    every = np.array(list(itertools.product(*map(range, sizes))), np.int32)
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    if draw(st.booleans()):  # codes that are not the nearest, as a beam search gives
        toy.codes = every[rng.integers(room, size=len(toy.x))]
    return toy, every[rng.permutation(room)[:earlier]]


@given(cases())
@settings(max_examples=250, deadline=None)
def test_reallocate_equals_the_written_rule_in_plain_python(case):
    toy, taken = case
    codes = resolve("reallocate", toy.codes, toy.sizes, toy.distances, taken=taken).codes
    assert [tuple(c) for c in codes.tolist()] == brute_reallocate(toy, taken)


@given(cases(), st.integers(0, 9999))
@settings(max_examples=100, deadline=None)
def test_extra_digit_counts_outwards_from_the_code_and_after_earlier_digits(case, seed):
    toy, earlier = case
    rng = np.random.default_rng(seed)
    groups = [[*c, d] for c in earlier.tolist() for d in range(rng.integers(1, 4))]
    taken = np.array(groups, np.int32).reshape(-1, len(toy.sizes) + 1)
    result = resolve("extra_digit", toy.codes, toy.sizes, toy.distances, extra_codes=99, taken=taken)
    assert result.sizes == (*toy.sizes, 99)
    digits = [0] * len(toy.codes)
    for code in {tuple(c) for c in toy.codes.tolist()}:
        members = [row for row in range(len(toy.codes)) if tuple(toy.codes[row].tolist()) == code]
        members.sort(key=lambda row: (toy.one(row, code[:-1])[code[-1]], row))
        first = sum(tuple(t[:-1]) == code for t in groups)
        for place, row in enumerate(members):
            digits[row] = first + place
    assert (result.codes == np.column_stack([toy.codes, digits])).all()


@given(cases())
@settings(max_examples=150, deadline=None)
def test_sinkhorn_never_makes_more_items_collide_and_touches_no_other(case):
    toy, taken = case
    before = colliding(toy.codes, taken)
    result = resolve("sinkhorn", toy.codes, toy.sizes, toy.distances, taken=taken)
    after = colliding(result.codes, taken)
    assert after <= before  # as sets of rows: fewer, and no new ones
    assert result.counts["rounds"] <= 20
    assert result.counts == {**result.counts, "colliding": len(before), "left": len(after)}
    alone = [row for row in range(len(toy.codes)) if row not in before]
    assert (result.codes[alone] == toy.codes[alone]).all()
    assert (result.codes[:, :-1] == toy.codes[:, :-1]).all()


def colliding(codes: np.ndarray, taken: np.ndarray) -> set[int]:
    rows = [tuple(c) for c in np.concatenate([codes, taken]).tolist()]
    return {row for row in range(len(codes)) if rows.count(rows[row]) > 1}


def test_sinkhorn_separates_different_vectors_and_leaves_equal_ones_together():
    toy = Toy((1, 16), 12, 5, width=6, spread=9)
    toy.x[10] = toy.x[11]
    toy.codes[:] = 0
    result = resolve("sinkhorn", toy.codes, toy.sizes, toy.distances)
    assert colliding(result.codes, NONE[:, :2]) <= {10, 11}
    assert (result.codes[10] == result.codes[11]).all()
    assert result.counts["left"] == 2


def test_transport_comes_near_the_best_assignment():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = rng.random((6, 9)).astype(np.float32)
        shares = transport(costs, np.ones_like(costs, bool), np.zeros(6, np.int64), sweeps=1000)
        assert np.allclose(shares.sum(1), 1)
        assert shares.sum(0).max() < 1.05
        best = costs[linear_sum_assignment(costs)].sum()
        assert (shares * costs).sum() == pytest.approx(best, abs=0.05)


def test_transport_treats_groups_apart():
    costs = np.random.default_rng(1).random((9, 4)).astype(np.float32)
    free = np.random.default_rng(2).random((9, 4)) < 0.8
    free[:, 0] = True
    together = transport(costs, free, np.repeat([0, 2, 7], [4, 3, 2]))
    for part in (slice(0, 4), slice(4, 7), slice(7, 9)):
        alone = transport(costs[part], free[part], np.zeros(len(costs[part]), np.int64))
        assert np.allclose(together[part], alone)
    assert (together[~free] == 0).all()


def test_keep_leaves_codes_and_counts_what_collides():
    toy = Toy((2, 2), 9, 0)
    result = resolve("keep", toy.codes, toy.sizes, toy.distances)
    assert (result.codes == toy.codes).all()
    assert result.counts["colliding"] == result.counts["left"] == len(colliding(toy.codes, NONE[:, :2])) > 0


@pytest.mark.parametrize("policy", ["extra_digit", "reallocate"])
def test_a_thousand_equal_items_get_ids_of_their_own(policy):
    toy = Toy((4, 16, 32), 1000, 0)
    toy.x[:] = toy.x[0]
    toy.codes = toy.encode()
    result = resolve(policy, toy.codes, toy.sizes, toy.distances, extra_codes=1000)
    assert len(np.unique(result.codes, axis=0)) == 1000
    assert result.counts["colliding"] == 1000


@pytest.mark.parametrize("policy", POLICIES)
def test_no_items_and_one_item(policy):
    for n in (0, 1):
        toy = Toy((3, 3), n, 0)
        result = resolve(policy, toy.codes, toy.sizes, toy.distances, extra_codes=4)
        assert (result.codes[:, :2] == toy.codes).all()
        assert result.counts["left"] == 0


def test_ids_that_cannot_hold_the_items_are_refused_with_numbers():
    toy = Toy((2, 3), 7, 0)
    with pytest.raises(ValueError, match=r"7 items do not fit into 6 ids \(2x3\)"):
        resolve("reallocate", toy.codes, toy.sizes, toy.distances)
    toy.codes[:] = 1
    with pytest.raises(ValueError, match=r"7 items share the codes \(1, 1\), but the extra digit has 5 values"):
        resolve("extra_digit", toy.codes, toy.sizes, toy.distances, extra_codes=5)


def test_unknown_policy_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match="did you mean 'reallocate'"):
        resolve("realocate", NONE, (1, 1, 1), lambda *_: np.zeros((0, 1), np.float32))


def test_blocks_change_nothing(monkeypatch):
    toy = Toy((3, 4, 16), 150, 3, spread=6)
    whole = {p: resolve(p, toy.codes, toy.sizes, toy.distances).codes for p in POLICIES}
    monkeypatch.setattr(collisions, "BLOCK_SIZE", 64)
    for policy, codes in whole.items():
        assert (resolve(policy, toy.codes, toy.sizes, toy.distances).codes == codes).all()


@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 2**31 - 1), st.integers(0, 9999))
@settings(max_examples=80, deadline=None)
def test_row_groups_number_distinct_rows_in_order_for_any_depth(n, levels, largest, seed):
    codes = np.random.default_rng(seed).choice([0, largest // 2, largest], (n, levels)).astype(np.int32)
    codes[: n // 2] = codes[n - n // 2 :]
    expected = sorted({tuple(c) for c in codes.tolist()})
    assert row_groups(codes).tolist() == [expected.index(tuple(c)) for c in codes.tolist()]


def test_a_hundred_thousand_items_with_five_percent_collisions_take_seconds():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (100_000, 3)).astype(np.int32)
    codes[97_500:] = codes[:2_500]
    costs = rng.random((5_100, 256)).astype(np.float32)
    begin = time.perf_counter()
    for policy in POLICIES:
        resolve(policy, codes, (256,) * 3, lambda rows, _, level: costs[rows % 5_100])
    assert time.perf_counter() - begin < 15
