"""Search in any order against brute force: every item along its own order, and beams of a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.oracles import USERS, Case, cases, lists, random_case

from recpipe.decoding.masked import MASKED, any_order_search


@dataclass
class Model:
    """Log-probabilities of every level that hang on the user and on all revealed codes."""

    sizes: tuple[int, ...]
    seed: int
    table: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def of(self, user: int, partial: tuple[int, ...]) -> torch.Tensor:
        """(L, V)"""
        key = (user, *partial)
        if key not in self.table:
            draw = np.random.default_rng([self.seed, *(code + 1 for code in key)])
            logs = torch.full((len(self.sizes), max(self.sizes)), -torch.inf)
            for level, size in enumerate(self.sizes):
                logs[level, :size] = torch.from_numpy(2 * draw.normal(size=size)).float().log_softmax(0)
            self.table[key] = logs
        return self.table[key]

    def log_probs(self, codes_BKL):
        rows = [[self.of(u, tuple(partial)) for partial in beams] for u, beams in enumerate(codes_BKL.tolist())]
        return torch.stack([torch.stack(row) for row in rows])

    def level(self, user: int, partial: tuple[int, ...]) -> int:
        """The masked level with the most probable code."""
        best = self.of(user, partial).amax(1)
        return max((level for level in range(len(partial)) if partial[level] == MASKED), key=lambda n: float(best[n]))


def revealed(partial: tuple[int, ...], level: int, code: int) -> tuple[int, ...]:
    return (*partial[:level], code, *partial[level + 1 :])


def chain(model: Model, user: int, codes: list[int]) -> float:
    """Log-probability of an item along the order in which the model reveals its codes."""
    partial, score = (MASKED,) * len(codes), 0.0
    while MASKED in partial:
        level = model.level(user, partial)
        score += float(model.of(user, partial)[level, codes[level]])
        partial = revealed(partial, level, codes[level])
    return score


def beams(model: Model, user: int, items: dict[int, list[int]], beam: int) -> dict[int, float]:
    """Item to score of a beam search over ``items`` by a dictionary of partial ids."""
    depth = len(model.sizes)
    states = {(MASKED,) * depth: 0.0}
    for _ in range(depth):
        extended = {}
        for partial, score in states.items():
            level = model.level(user, partial)
            fitting = [
                c for c in items.values() if all(p in (MASKED, code) for p, code in zip(partial, c, strict=True))
            ]
            for code in {codes[level] for codes in fitting}:
                extended[revealed(partial, level, code)] = score + float(model.of(user, partial)[level, code])
        states = dict(sorted(extended.items(), key=lambda pair: -pair[1])[:beam])
    item_of = {tuple(codes): item for item, codes in items.items()}
    return {item_of[partial]: score for partial, score in states.items()}


def search(case: Case, model: Model, **limits) -> list[dict[int, float]]:
    codes = torch.from_numpy(case.codes)
    return lists(any_order_search(model, codes, users=USERS, **case.constraints, **limits))


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_a_beam_as_wide_as_the_catalogue_gives_every_allowed_item_its_chain_probability(case):
    model = Model(case.sizes, case.seed)
    found = search(case, model, beam=len(case.codes))
    for user, result in enumerate(found):
        expected = {n: chain(model, user, case.codes[n].tolist()) for n in np.flatnonzero(case.free[user]).tolist()}
        assert result == pytest.approx(expected, abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(case=cases(), beam=st.integers(1, 7))
def test_a_narrow_beam_finds_what_a_dictionary_of_partial_ids_finds(case, beam):
    model = Model(case.sizes, case.seed)
    for user, result in enumerate(search(case, model, beam=beam)):
        free = {n: case.codes[n].tolist() for n in np.flatnonzero(case.free[user]).tolist()}
        assert result == pytest.approx(beams(model, user, free, beam), abs=1e-4)


def test_probabilities_of_all_items_sum_to_at_most_one_and_to_one_if_every_id_exists():
    full = random_case(24, (2, 3, 4))
    assert [sum(np.exp([*user.values()])) for user in search(full, Model(full.sizes, 1), beam=24)] == pytest.approx(
        [1.0] * USERS, abs=1e-5
    )
    part = random_case(10, (2, 3, 4))
    assert all(sum(np.exp([*user.values()])) < 1 for user in search(part, Model(part.sizes, 1), beam=10))


def test_users_and_beams_reveal_levels_in_different_orders():
    case, model = random_case(27, (3, 3, 3)), Model((3, 3, 3), 1)
    orders = set()
    for user in range(USERS):
        for codes in case.codes.tolist():
            partial, order = (MASKED,) * 3, []
            while MASKED in partial:
                order.append(model.level(user, partial))
                partial = revealed(partial, order[-1], codes[order[-1]])
            orders.add((user, *order))
    assert len(orders) > USERS


def test_k_and_nan_are_checked():
    case = random_case(10, (2, 3, 4))
    with pytest.raises(ValueError, match="k is 3 and beam 2"):
        search(case, Model(case.sizes, 0), beam=2, k=3)
    broken = Model(case.sizes, 0)
    broken.of(0, (MASKED,) * 3)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        search(case, broken, beam=2)
