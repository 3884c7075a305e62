"""Beam search against brute force and a beam of Python dictionaries; sampling against probabilities by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.oracles import USERS, Model, cases, lists, model, random_case

from recpipe.decoding import beam_search
from recpipe.decoding.beam import gumbel, perturbed
from recpipe.semantic_ids import prefix_tree
from recpipe.semantic_ids.prefix_tree import PrefixTree


@pytest.fixture(params=[0, 16], ids=["masks", "windows"])
def way(request, monkeypatch):
    """Both ways to read the children of small trees."""
    monkeypatch.setattr(prefix_tree, "NARROW", request.param)


@given(cases())
@settings(deadline=None, max_examples=150)
def check_wide_beam(case):
    decoder = model(case.sizes, case.seed)
    beams = beam_search(decoder, case.tree, beam=len(case.codes) + 3, k=len(case.codes), **case.constraints)
    scores = decoder.of(case.codes)
    for user, result in enumerate(lists(beams)):
        expected = {int(row): float(scores[user, row]) for row in np.flatnonzero(case.free[user])}
        assert result.keys() == expected.keys()
        for item, score in result.items():
            assert score == pytest.approx(expected[item], abs=1e-5)
    at = beams.items >= 0
    assert (torch.from_numpy(case.codes)[beams.items[at]] == beams.codes[at]).all()


def test_a_beam_as_wide_as_the_catalogue_is_brute_force(way):
    check_wide_beam()


def by_dictionaries(case, decoder, user, beam, renormalise=False) -> dict[int, float]:
    """Beam search one prefix at a time; the oracle for narrow beams."""
    live = {tuple(row): index for index, row in enumerate(case.codes.tolist()) if case.free[user, index]}
    beams = {(): 0.0}
    for level in range(len(case.sizes)):
        reached = {}
        for prefix, score in beams.items():
            codes = sorted({row[level] for row in live if row[:level] == prefix})
            logs = {code: float(decoder.logs[level][(user, *prefix, code)]) for code in codes}
            total = math.log(sum(map(math.exp, logs.values()))) if renormalise and codes else 0.0
            reached |= {(*prefix, code): score + log - total for code, log in logs.items()}
        beams = dict(sorted(reached.items(), key=lambda pair: -pair[1])[:beam])
    return {live[row]: score for row, score in beams.items()}


@given(cases(), st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=150)
def check_narrow_beam(case, beam, renormalise):
    decoder = model(case.sizes, case.seed)
    beams = beam_search(decoder, case.tree, beam=beam, renormalise=renormalise, **case.constraints)
    assert beams.items.shape == (USERS, min(beam, len(case.codes)))
    for user, result in enumerate(lists(beams)):
        expected = by_dictionaries(case, decoder, user, beam, renormalise)
        assert [*result] == [*expected]
        np.testing.assert_allclose([*result.values()], [*expected.values()], atol=1e-5)


def test_narrow_beams_are_those_of_dictionaries(way):
    check_narrow_beam()


@pytest.mark.parametrize("sizes", [(40, 30, 20), (600,), (3, 5, 4, 6, 5)], ids=str)
def test_large_levels_equal_brute_force(sizes, way):
    """Levels wide enough for tables, blocks of maxima and beams beyond the first level's codes."""
    case = random_case(500, sizes)
    decoder, N = model(sizes, seed=1), 500
    scores, order = decoder.of(case.codes).sort(descending=True)
    for beam in (N, 2 * N):
        beams = beam_search(decoder, case.tree, beam=beam, k=N)
        assert (beams.items == order).all()
        torch.testing.assert_close(beams.scores, scores)


def test_a_wider_beam_finds_no_worse_a_best_item():
    for seed in range(20):
        case = random_case(60, (5, 4, 6), seed)
        best = [
            beam_search(model(case.sizes, seed), case.tree, beam=beam).scores[:, 0] for beam in (1, 2, 4, 8, 16, 60)
        ]
        for narrow, wide in itertools.pairwise(best):
            assert (wide >= narrow - 1e-6).all()


def test_fewer_are_returned_where_fewer_can_be_had(way):
    case = random_case(9, (3, 4))
    seen = (torch.tensor([0, 0, 9, 16]), torch.cat([torch.arange(9), torch.arange(1, 8)]))
    beams = beam_search(model((3, 4)), case.tree, beam=20, seen=seen)
    assert beams.items.shape == (USERS, 9)
    assert [len(result) for result in lists(beams)] == [9, 0, 2]
    nothing = beam_search(model((3, 4)), case.tree, beam=20, k=5, allowed=torch.zeros(9, dtype=torch.bool))
    assert (nothing.items == -1).all()
    assert nothing.codes.shape == (USERS, 5, 2)


def test_a_restricted_tree_is_the_mask(way):
    case = random_case(50, (4, 5, 6))
    allowed, seen = torch.arange(50) % 3 > 0, (torch.tensor([0, 3, 3, 5]), torch.tensor([1, 2, 3, 4, 1]))
    restricted = case.tree.tensors().restrict(allowed)
    for beam in (2, 50):
        results = [
            beam_search(model(case.sizes), tree, beam=beam, seen=seen, allowed=mask)
            for tree, mask in ((restricted, None), (case.tree, allowed), (case.tree, allowed.expand(USERS, -1)))
        ]
        for other in results[1:]:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_temperatures_flatten_a_level_before_it_is_constrained(way):
    case, decoder = random_case(40, (4, 5, 6)), model((4, 5, 6))
    temperatures = (0.5, 1.0, 3.0)
    tempered = Model([(logs / t).log_softmax(-1) for logs, t in zip(decoder.logs, temperatures, strict=True)])
    beams = beam_search(decoder, case.tree, beam=40, temperatures=temperatures)
    expected, order = tempered.of(case.codes).sort(descending=True)
    assert (beams.items == order).all()
    torch.testing.assert_close(beams.scores, expected)


def test_scores_are_float32_whatever_the_model_computes_in():
    case, decoder = random_case(40, (4, 5, 6)), model((4, 5, 6))
    low = Model([logs.bfloat16() for logs in decoder.logs])
    assert beam_search(low, case.tree, beam=5).scores.dtype == torch.float32


class Fixed:
    def __init__(self, *logs):
        self.logs = logs

    def step(self, level, codes_BK, parents_BK):
        return self.logs[level]


def test_mistakes_are_named():
    case = random_case(20, (4, 5, 6))
    tree, decoder = case.tree, model((4, 5, 6))
    with pytest.raises(ValueError, match="k is 6.*beam 5"):
        beam_search(decoder, tree, beam=5, k=6)
    with pytest.raises(ValueError, match="k is 0"):
        beam_search(decoder, tree, beam=5, k=0)
    with pytest.raises(ValueError, match="beam is 0"):
        beam_search(decoder, tree, beam=0)
    with pytest.raises(ValueError, match=r"temperatures are \(1.0, 0.0, 1.0\)"):
        beam_search(decoder, tree, beam=5, temperatures=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"a mask is bool \(20,\)"):
        beam_search(decoder, tree, beam=5, allowed=torch.ones(19, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(3, 20\)"):
        beam_search(decoder, tree, beam=5, allowed=torch.ones(2, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 20; the catalogue has 20"):
        beam_search(decoder, tree, beam=5, seen=(torch.tensor([0, 0, 0, 1]), torch.tensor([20])))
    with pytest.raises(ValueError, match=r"\(4,\) offsets"):
        beam_search(decoder, tree, beam=5, seen=(torch.tensor([0, 1]), torch.tensor([3])))
    with pytest.raises(ValueError, match=r"level 1 are \(3, 1, 7\)"):
        beam_search(Fixed(torch.zeros(3, 1, 7)), tree, beam=5)
    twins = PrefixTree.build(np.array([[0, 1], [0, 1], [1, 0]]), (2, 2), shared=True)
    with pytest.raises(ValueError, match="3 items have 2 ids"):
        beam_search(model((2, 2)), twins, beam=2)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("stochastic", [False, True], ids=["best", "sampled"])
def test_nan_is_refused_by_its_level(level, stochastic, way):
    case, decoder = random_case(20, (4, 5, 6)), model((4, 5, 6))
    decoder.logs[level][1] = math.nan
    generator = torch.Generator().manual_seed(0) if stochastic else None
    with pytest.raises(ValueError, match=f"level {level + 1} are NaN"):
        beam_search(decoder, case.tree, beam=3, stochastic=generator)


def test_minus_infinity_is_never_an_item(way):
    case, decoder = random_case(20, (4, 5, 6)), model((4, 5, 6))
    decoder.logs[1][:, :, :3] = -math.inf
    results = lists(beam_search(decoder, case.tree, beam=20))
    possible = {row for row, codes in enumerate(case.codes.tolist()) if codes[1] >= 3}
    assert all(each.keys() == possible for each in results)


CODES = np.array([[0, 0], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2]])
DRAWS = 40_000


def renormalised(decoder: Model) -> dict[int, float]:
    """Probability of every item, by hand: at every level among the codes that lead to an item."""
    first, second = decoder.logs[0][0].exp(), decoder.logs[1][0].exp()
    total = float(first[[0, 1, 2]].sum())
    probabilities = {}
    for row, (a, b) in enumerate(CODES.tolist()):
        below = [code for prefix, code in CODES.tolist() if prefix == a]
        probabilities[row] = float(first[a]) / total * float(second[a, b] / second[a, below].sum())
    return probabilities


@pytest.fixture(scope="module")
def decoder():
    g = torch.Generator().manual_seed(3)
    return Model([torch.randn(1, *sizes, generator=g).log_softmax(-1) for sizes in ((4,), (4, 3))])


def draws(decoder, beam, **options):
    many = Model([logs.expand(DRAWS, *logs.shape[1:]) for logs in decoder.logs])
    generator = torch.Generator().manual_seed(0)
    return beam_search(many, PrefixTree.build(CODES, (4, 3)), beam=beam, stochastic=generator, **options)


def close(count: int, probability: float) -> bool:
    return abs(count - DRAWS * probability) < 4 * math.sqrt(DRAWS * probability * (1 - probability)) + 1


@pytest.mark.parametrize("beam", [1, 2, 6])
def test_the_first_is_drawn_by_its_probability(decoder, beam):
    first = draws(decoder, beam).items[:, 0]
    for row, probability in renormalised(decoder).items():
        assert close(int((first == row).sum()), probability), row


def test_pairs_are_drawn_without_replacement(decoder):
    chance, items = renormalised(decoder), draws(decoder, 2).items
    for a, b in itertools.permutations(range(len(CODES)), 2):
        count = int(((items[:, 0] == a) & (items[:, 1] == b)).sum())
        assert close(count, chance[a] * chance[b] / (1 - chance[a])), (a, b)
    assert (items[:, 0] != items[:, 1]).all()


def test_a_whole_sample_is_every_item_once(decoder):
    items = draws(decoder, 6).items.sort(1).values
    assert (items == torch.arange(6)).all()


def test_scores_are_log_probabilities_of_what_was_sampled_from(decoder):
    beams = draws(decoder, 3)
    logs = torch.tensor([math.log(each) for each in renormalised(decoder).values()])
    torch.testing.assert_close(beams.scores, logs[beams.items], rtol=1e-5, atol=1e-5)


def test_temperature_and_limits_change_what_is_sampled_from(decoder):
    allowed = torch.tensor([True, True, False, True, True, False])
    cold = draws(decoder, 1, temperatures=(1e-3, 1e-3), allowed=allowed).items[:, 0]
    best = beam_search(
        decoder, PrefixTree.build(CODES, (4, 3)), beam=6, allowed=allowed, temperatures=(1e-3, 1e-3), renormalise=True
    )
    assert (cold == best.items[0, 0]).float().mean() > 0.999
    hot = draws(decoder, 1, temperatures=(1e3, 1e3), allowed=allowed).items[:, 0]
    for row, probability in ((0, 1 / 4), (1, 1 / 4), (3, 1 / 4), (4, 1 / 4)):
        assert abs(float((hot == row).float().mean()) - probability) < 0.02


def test_one_seed_is_one_sample(decoder):
    assert torch.equal(draws(decoder, 2).items, draws(decoder, 2).items)


def test_children_are_perturbed_below_their_parent():
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(50, 3, 7).log_softmax(-1)
    logs[:, 1, 2:] = -torch.inf
    parents = gumbel(torch.Size((50, 3)), generator)
    drawn = perturbed(parents, logs, generator)
    torch.testing.assert_close(drawn.amax(-1), parents)
    assert (drawn[:, 1, 2:] == -torch.inf).all()
    assert drawn[:, 0].isfinite().all()
