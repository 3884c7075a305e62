"""Beam search against brute force over the catalogue, and against a beam of Python dictionaries."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding import oracles
from tests.decoding.oracles import USERS, Model, cases, lists, model, random_case

from recpipe.decoding import ahead, beam_search, few
from recpipe.semantic_ids import tree_tensors
from recpipe.semantic_ids.prefix_tree import PrefixTree

WAYS = {"tables": (0, 1 << 40), "windows": (16, 1 << 40), "few": (16, 0), "ahead": (16, 0)}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """All ways to read the children of small trees, and all of their descendants at once."""
    narrow, share = WAYS[request.param]
    monkeypatch.setattr(tree_tensors, "NARROW", narrow)
    monkeypatch.setattr(few, "SHARE", share)
    monkeypatch.setattr(few, "BEAMS", 0)
    if request.param == "ahead":
        monkeypatch.setattr(oracles, "kind", oracles.ModelAhead)
        monkeypatch.setattr(ahead, "SURPLUS", 1 << 40)
        monkeypatch.setattr(ahead, "LARGE", 1 << 40)


@given(cases())
@settings(deadline=None, max_examples=150)
def check_wide_beam(case):
    made = model(case.sizes, case.seed)
    beams = beam_search(made, case.tree, beam=len(case.codes) + 3, k=len(case.codes), **case.limits)
    scores = made.of(case.codes)
    for user, found in enumerate(lists(beams)):
        expected = {int(row): float(scores[user, row]) for row in np.flatnonzero(case.free[user])}
        assert found.keys() == expected.keys()
        for item, score in found.items():
            assert score == pytest.approx(expected[item], abs=1e-5)
    at = beams.items >= 0
    assert (torch.from_numpy(case.codes)[beams.items[at]] == beams.codes[at]).all()


def test_a_beam_as_wide_as_the_catalogue_is_brute_force(way):
    check_wide_beam()


def by_dictionaries(case, made, user, beam, renormalise=False) -> dict[int, float]:
    """Beam search one prefix at a time; the oracle for narrow beams."""
    live = {tuple(row): index for index, row in enumerate(case.codes.tolist()) if case.free[user, index]}
    beams = {(): 0.0}
    for level in range(len(case.sizes)):
        reached = {}
        for prefix, score in beams.items():
            codes = sorted({row[level] for row in live if row[:level] == prefix})
            logs = {code: float(made.logs[level][(user, *prefix, code)]) for code in codes}
            total = math.log(sum(map(math.exp, logs.values()))) if renormalise and codes else 0.0
            reached |= {(*prefix, code): score + log - total for code, log in logs.items()}
        beams = dict(sorted(reached.items(), key=lambda pair: -pair[1])[:beam])
    return {live[row]: score for row, score in beams.items()}


@given(cases(), st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=150)
def check_narrow_beam(case, beam, renormalise):
    made = model(case.sizes, case.seed)
    beams = beam_search(made, case.tree, beam=beam, renormalise=renormalise, **case.limits)
    assert beams.items.shape == (USERS, min(beam, len(case.codes)))
    for user, found in enumerate(lists(beams)):
        expected = by_dictionaries(case, made, user, beam, renormalise)
        assert [*found] == [*expected]
        np.testing.assert_allclose([*found.values()], [*expected.values()], atol=1e-5)


def test_narrow_beams_are_those_of_dictionaries(way):
    check_narrow_beam()


@pytest.mark.parametrize("renormalise", [False, True])
def test_few_children_of_many_beams_are_those_of_tables(renormalise, monkeypatch):
    """Without being told to: a catalogue whose deeper levels are sparse, with what users have seen and may get."""
    case, users = random_case(2000, (64, 64, 64)), 100
    generator = torch.Generator().manual_seed(0)
    seen = (torch.arange(users + 1) * 40, torch.randint(0, 2000, (users * 40,), generator=generator))
    asked = []

    def counted(*args, **kwargs):
        asked.append(best(*args, **kwargs))
        return asked[-1]

    best = few.best_of_few
    monkeypatch.setattr("recpipe.decoding.beam.best_of_few", counted)
    for allowed in (None, torch.rand(users, 2000, generator=generator) < 0.7):
        found = []
        for share in (few.SHARE, 1 << 40):
            asked.clear()
            with monkeypatch.context() as patch:
                patch.setattr(few, "SHARE", share)
                made = model(case.sizes, seed=1, users=users)
                limits = {"seen": seen, "allowed": allowed, "renormalise": renormalise}
                found.append(beam_search(made, case.tree, beam=20, **limits))
            assert [each is not None for each in asked] == [False, False, share < 1 << 40]
        assert torch.equal(found[0].items, found[1].items) and torch.equal(found[0].codes, found[1].codes)
        torch.testing.assert_close(found[0].scores, found[1].scores)


@pytest.mark.parametrize("sizes", [(40, 30, 20), (600,), (3, 5, 4, 6, 5)], ids=str)
def test_large_levels_equal_brute_force(sizes, way):
    """Levels wide enough for tables, blocks of maxima and beams beyond the first level's codes."""
    case = random_case(500, sizes)
    made, N = model(sizes, seed=1), 500
    scores, order = made.of(case.codes).sort(descending=True)
    for beam in (N, 2 * N):
        beams = beam_search(made, case.tree, beam=beam, k=N)
        assert (beams.items == order).all()
        torch.testing.assert_close(beams.scores, scores)


@pytest.mark.parametrize(
    ("sizes", "items", "beam", "passes"),
    [
        ((30, 30, 30, 30), 300, 10, [2]),  # prefixes of one code lead to ten items each, of two to one
        ((30, 30, 30, 30), 300, 300, [3]),  # all prefixes of one code are beams
        ((6, 6, 6, 6), 1296, 40, []),  # all ids
        ((4, 5), 12, 6, []),  # the last level has nothing after it
        ((300, 300, 2), 4000, 5, []),  # five prefixes of one code lead to 65
    ],
    ids=str,
)
def test_levels_are_read_at_once_where_few_ids_are_left(sizes, items, beam, passes, monkeypatch):
    monkeypatch.setattr(ahead, "SMALL", 0)
    monkeypatch.setattr(ahead, "LARGE", 1 << 40)
    case = random_case(items, sizes)
    by_level = beam_search(model(sizes), case.tree, beam=beam)
    monkeypatch.setattr(oracles, "kind", oracles.ModelAhead)
    made = model(sizes)
    found = beam_search(made, case.tree, beam=beam)
    assert made.passes == passes
    monkeypatch.setattr(ahead, "LARGE", 20)
    assert beam_search(made, case.tree, beam=beam).items.equal(found.items)
    assert made.passes == passes
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, by_level, strict=True))


def test_a_wider_beam_finds_no_worse_a_best_item():
    for seed in range(20):
        case = random_case(60, (5, 4, 6), seed)
        best = [
            beam_search(model(case.sizes, seed), case.tree, beam=beam).scores[:, 0]
            for beam in (1, 2, 4, 8, 16, 60)
        ]
        for narrow, wide in pairwise(best):
            assert (wide >= narrow - 1e-6).all()


def test_fewer_are_returned_where_fewer_can_be_had(way):
    case = random_case(9, (3, 4))
    seen = (torch.tensor([0, 0, 9, 16]), torch.cat([torch.arange(9), torch.arange(1, 8)]))
    beams = beam_search(model((3, 4)), case.tree, beam=20, seen=seen)
    assert beams.items.shape == (USERS, 9)
    assert [len(found) for found in lists(beams)] == [9, 0, 2]
    nothing = beam_search(model((3, 4)), case.tree, beam=20, k=5, allowed=torch.zeros(9, dtype=torch.bool))
    assert (nothing.items == -1).all()
    assert nothing.codes.shape == (USERS, 5, 2)


def test_a_mask_made_once_is_the_mask(way):
    case = random_case(50, (4, 5, 6))
    allowed, seen = torch.arange(50) % 3 > 0, (torch.tensor([0, 3, 3, 5]), torch.tensor([1, 2, 3, 4, 1]))
    restricted = case.tree.tensors().restrict(allowed)
    for beam in (2, 50):
        each = [
            beam_search(model(case.sizes), tree, beam=beam, seen=seen, allowed=mask)
            for tree, mask in (
                (restricted, None),
                (case.tree, allowed),
                (case.tree, allowed.expand(USERS, -1)),
            )
        ]
        for other in each[1:]:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(each[0], other, strict=True))


def test_temperatures_flatten_a_level_before_it_is_constrained(way):
    case, made = random_case(40, (4, 5, 6)), model((4, 5, 6))
    temperatures = (0.5, 1.0, 3.0)
    tempered = Model([(logs / t).log_softmax(-1) for logs, t in zip(made.logs, temperatures, strict=True)])
    beams = beam_search(made, case.tree, beam=40, temperatures=temperatures)
    expected, order = tempered.of(case.codes).sort(descending=True)
    assert (beams.items == order).all()
    torch.testing.assert_close(beams.scores, expected)


def test_scores_are_float32_whatever_the_model_computes_in():
    case, made = random_case(40, (4, 5, 6)), model((4, 5, 6))
    low = Model([logs.bfloat16() for logs in made.logs])
    assert beam_search(low, case.tree, beam=5).scores.dtype == torch.float32


class Fixed:
    def __init__(self, *logs):
        self.logs = logs

    def step(self, level, codes_BK, parents_BK):
        return self.logs[level]


def test_mistakes_are_named():
    case = random_case(20, (4, 5, 6))
    tree, made = case.tree, model((4, 5, 6))
    with pytest.raises(ValueError, match="k is 6 and beam 5"):
        beam_search(made, tree, beam=5, k=6)
    with pytest.raises(ValueError, match="k is 0"):
        beam_search(made, tree, beam=5, k=0)
    with pytest.raises(ValueError, match="beam is 0"):
        beam_search(made, tree, beam=0)
    with pytest.raises(ValueError, match=r"temperatures are \(1.0, 0.0, 1.0\)"):
        beam_search(made, tree, beam=5, temperatures=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"a mask is bool \(20,\)"):
        beam_search(made, tree, beam=5, allowed=torch.ones(19, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(3, 20\)"):
        beam_search(made, tree, beam=5, allowed=torch.ones(2, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 20; the catalogue has 20"):
        beam_search(made, tree, beam=5, seen=(torch.tensor([0, 0, 0, 1]), torch.tensor([20])))
    with pytest.raises(ValueError, match=r"\(4,\) offsets"):
        beam_search(made, tree, beam=5, seen=(torch.tensor([0, 1]), torch.tensor([3])))
    with pytest.raises(ValueError, match=r"level 1 are \(3, 1, 7\)"):
        beam_search(Fixed(torch.zeros(3, 1, 7)), tree, beam=5)
    twins = PrefixTree.build(np.array([[0, 1], [0, 1], [1, 0]]), (2, 2), shared=True)
    with pytest.raises(ValueError, match="3 items have 2 ids"):
        beam_search(model((2, 2)), twins, beam=2)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("stochastic", [False, True], ids=["best", "sampled"])
def test_nan_is_refused_by_its_level(level, stochastic, way):
    case, made = random_case(20, (4, 5, 6)), model((4, 5, 6))
    made.logs[level][1] = math.nan
    generator = torch.Generator().manual_seed(0) if stochastic else None
    with pytest.raises(ValueError, match=f"level {level + 1} are NaN"):
        beam_search(made, case.tree, beam=3, stochastic=generator)


def test_minus_infinity_is_never_an_item(way):
    case, made = random_case(20, (4, 5, 6)), model((4, 5, 6))
    made.logs[1][:, :, :3] = -math.inf
    found = lists(beam_search(made, case.tree, beam=20))
    possible = {row for row, codes in enumerate(case.codes.tolist()) if codes[1] >= 3}
    assert all(each.keys() == possible for each in found)
