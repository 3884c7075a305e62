"""Sampling by a stochastic beam against the probabilities of what it samples from."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tests.decoding.oracles import Model

from recpipe.decoding import beam_search
from recpipe.decoding.beam import gumbel, perturbed
from recpipe.semantic_ids.prefix_tree import PrefixTree

CODES = np.array([[0, 0], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2]])
DRAWS = 40_000


def renormalised(made: Model) -> dict[int, float]:
    """Probability of every item, by hand: at every level among the codes that lead to an item."""
    first, second = made.logs[0][0].exp(), made.logs[1][0].exp()
    total = float(first[[0, 1, 2]].sum())
    found = {}
    for row, (a, b) in enumerate(CODES.tolist()):
        below = [code for prefix, code in CODES.tolist() if prefix == a]
        found[row] = float(first[a]) / total * float(second[a, b] / second[a, below].sum())
    return found


@pytest.fixture(scope="module")
def made():
    g = torch.Generator().manual_seed(3)
    return Model([torch.randn(1, *sizes, generator=g).log_softmax(-1) for sizes in ((4,), (4, 3))])


def draws(made, beam, **options):
    many = Model([logs.expand(DRAWS, *logs.shape[1:]) for logs in made.logs])
    generator = torch.Generator().manual_seed(0)
    return beam_search(many, PrefixTree.build(CODES, (4, 3)), beam=beam, stochastic=generator, **options)


def close(count: int, probability: float) -> bool:
    return abs(count - DRAWS * probability) < 4 * math.sqrt(DRAWS * probability * (1 - probability)) + 1


@pytest.mark.parametrize("beam", [1, 2, 6])
def test_the_first_is_drawn_by_its_probability(made, beam):
    first = draws(made, beam).items[:, 0]
    for row, probability in renormalised(made).items():
        assert close(int((first == row).sum()), probability), row


def test_pairs_are_drawn_without_replacement(made):
    chance, items = renormalised(made), draws(made, 2).items
    for a, b in itertools.permutations(range(len(CODES)), 2):
        count = int(((items[:, 0] == a) & (items[:, 1] == b)).sum())
        assert close(count, chance[a] * chance[b] / (1 - chance[a])), (a, b)
    assert (items[:, 0] != items[:, 1]).all()


def test_a_whole_sample_is_every_item_once(made):
    items = draws(made, 6).items.sort(1).values
    assert (items == torch.arange(6)).all()


def test_scores_are_log_probabilities_of_what_was_sampled_from(made):
    beams = draws(made, 3)
    logs = torch.tensor([math.log(each) for each in renormalised(made).values()])
    torch.testing.assert_close(beams.scores, logs[beams.items], rtol=1e-5, atol=1e-5)


def test_temperature_and_limits_change_what_is_sampled_from(made):
    allowed = torch.tensor([True, True, False, True, True, False])
    cold = draws(made, 1, temperatures=(1e-3, 1e-3), allowed=allowed).items[:, 0]
    best = beam_search(
        made,
        PrefixTree.build(CODES, (4, 3)),
        beam=6,
        allowed=allowed,
        temperatures=(1e-3, 1e-3),
        renormalise=True,
    )
    assert (cold == best.items[0, 0]).float().mean() > 0.999
    hot = draws(made, 1, temperatures=(1e3, 1e3), allowed=allowed).items[:, 0]
    for row, probability in ((0, 1 / 4), (1, 1 / 4), (3, 1 / 4), (4, 1 / 4)):
        assert abs(float((hot == row).float().mean()) - probability) < 0.02


def test_one_seed_is_one_sample(made):
    assert torch.equal(draws(made, 2).items, draws(made, 2).items)


def test_children_are_perturbed_below_their_parent():
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(50, 3, 7).log_softmax(-1)
    logs[:, 1, 2:] = -torch.inf
    parents = gumbel(torch.Size((50, 3)), generator)
    drawn = perturbed(parents, logs, generator)
    torch.testing.assert_close(drawn.amax(-1), parents)
    assert (drawn[:, 1, 2:] == -torch.inf).all()
    assert drawn[:, 0].isfinite().all()
