"""Searches of the prefix tree on the card give what they give on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.decoding.oracles import USERS, Model, lists, model, random_case

from recpipe.decoding import Beams, beam_search, exact_scores, exact_top
from recpipe.decoding.exact import IndependentLevels
from recpipe.semantic_ids import prefix_tree

SIZES, MANY = (256, 256, 256), 12_101
NEAR = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=[0, 16], ids=["tables", "windows"])
def narrow(request, monkeypatch):
    """Both ways to read the children of small trees."""
    monkeypatch.setattr(prefix_tree, "NARROW", request.param)


def limits(seed: int, items: int) -> list[dict]:
    """Nothing, what users have seen, and masks of the catalogue and of each user."""
    g = np.random.default_rng(seed)
    rows = torch.from_numpy(g.integers(-1, items, 3 * USERS))
    seen = torch.arange(0, 3 * USERS + 1, 3), rows
    masks = torch.from_numpy(g.random((USERS, items)) < 0.7)
    return [{}, {"seen": seen}, {"seen": seen, "allowed": masks[0]}, {"seen": seen, "allowed": masks}]


def there(options: dict) -> dict:
    """The same on the card."""
    moved = {}
    for name, value in options.items():
        moved[name] = tuple(each.cuda() for each in value) if isinstance(value, tuple) else value.cuda()
    return moved


def same(expected: Beams, beams: Beams, codes: np.ndarray) -> None:
    """Equal scores; other items only where scores are so near that the order is rounding's, with their own ids."""
    assert beams.items.is_cuda and beams.scores.is_cuda
    beams = Beams(*(each.cpu() for each in beams))
    torch.testing.assert_close(beams.scores, expected.scores, **NEAR)
    assert (beams.items == expected.items).float().mean() > 0.99
    at = beams.items >= 0
    assert (at == (expected.items >= 0)).all()
    assert (torch.from_numpy(codes)[beams.items[at]] == beams.codes[at]).all()
    lists(beams)  # no item twice, best first


@pytest.mark.parametrize("renormalise", [False, True], ids=["plain", "renormalised"])
@pytest.mark.parametrize("seed", range(5))
def test_beams_of_small_trees(narrow, seed, renormalise):
    case, decoder = random_case(60, (5, 4, 6), seed), model((5, 4, 6), seed)
    card = Model([each.cuda() for each in decoder.logs])
    for beam in (1, 4, 60):
        for options in limits(seed, 60):
            more = {"beam": beam, "renormalise": renormalise, "temperatures": (1.0, 0.5, 2.0)}
            here = beam_search(decoder, case.tree, **more, **options)
            same(here, beam_search(card, case.tree, **more, **there(options)), case.codes)


class Network:
    """Log-probabilities by a state that follows its beams: a decoder of one matrix for each level."""

    def __init__(self, device: str, users: int = USERS, width: int = 32) -> None:
        g = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=g).to(device)  # noqa: E731
        self.start, self.mix = draw(users, 1, width), draw(width, width) / width**0.5
        self.codes, self.heads = [draw(n, width) for n in SIZES], [draw(width, n) / 4 for n in SIZES]

    def step(self, level, codes_BK, parents_BK):
        if codes_BK is None:
            self.state = self.start
        else:
            before = self.state.gather(1, parents_BK[..., None].expand(-1, -1, self.state.shape[2]))
            self.state = torch.tanh(before @ self.mix + self.codes[level - 1][codes_BK])
        return (self.state @ self.heads[level]).log_softmax(-1)


@pytest.mark.parametrize("beam", [20, 200])
def test_beams_of_a_catalogue(beam):
    case = random_case(MANY, SIZES)
    for options in limits(1, MANY):
        here = beam_search(Network("cpu"), case.tree, beam=beam, **options)
        same(here, beam_search(Network("cuda"), case.tree, beam=beam, **there(options)), case.codes)


def independent(users: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return [(3 * torch.randn(users, size, generator=g)).log_softmax(-1) for size in SIZES]


@pytest.mark.parametrize("users", [3, 70])
def test_exact_scores(users):
    codes, logs = torch.from_numpy(random_case(MANY, SIZES).codes), independent(users)
    scores = exact_scores([each.cuda() for each in logs], codes.cuda())
    torch.testing.assert_close(scores.cpu(), exact_scores(logs, codes), rtol=1e-6, atol=1e-5)


def test_exact_lists():
    case, logs = random_case(MANY, SIZES), independent(USERS)
    card = [each.cuda() for each in logs]
    for options in limits(3, MANY):
        here = exact_top(logs, case.tree, 50, **options)
        same(here, exact_top(card, case.tree, 50, **there(options)), case.codes)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_samples_are_drawn_with_a_generator_of_either_device(device):
    """With the CPU's the noise is the same on both devices, and so is the sample."""
    case, logs = random_case(MANY, SIZES), independent(USERS)
    card = IndependentLevels([each.cuda() for each in logs])
    beams = beam_search(card, case.tree, beam=30, stochastic=torch.Generator(device).manual_seed(5))
    items = beams.items.cpu()
    assert (items >= 0).all() and all(len(set(row)) == 30 for row in items.tolist())
    if device == "cpu":
        drawn = torch.Generator().manual_seed(5)
        here = beam_search(IndependentLevels(logs), case.tree, beam=30, stochastic=drawn)
        assert (items == here.items).float().mean() > 0.95
        torch.testing.assert_close(beams.scores.cpu().sum(1), here.scores.sum(1), rtol=0.05, atol=0.1)
