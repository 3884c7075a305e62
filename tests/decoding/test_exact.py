"""Exact scores against sums by hand, and branch and bound against sorting all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.oracles import USERS, cases, lists, random_case

from recpipe.decoding import beam_search, exact_scores, exact_top, search_error
from recpipe.decoding import exact as module
from recpipe.decoding.exact import IndependentLevels
from recpipe.semantic_ids.prefix_tree import PrefixTree


def log_probs(sizes, users=USERS, seed=0, step=0.0):
    """Of independent levels; rounded to multiples of ``step``, so that sums are equal and exact."""
    g = torch.Generator().manual_seed(seed)
    logs = [(3 * torch.randn(users, size, generator=g)).log_softmax(-1) for size in sizes]
    return [(each / step).round() * step for each in logs] if step else logs


@pytest.mark.parametrize("users", [1, 15, 16, 70])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_scores_are_sums_over_levels(users, kind, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1000)
    case = random_case(300, (7, 30, 5, 11))
    logs = log_probs(case.sizes, users)
    scores = exact_scores(logs, torch.from_numpy(case.codes).to(kind))
    for user in range(0, users, 7):
        for row in range(0, 300, 11):
            parts = [float(each[user, code]) for each, code in zip(logs, case.codes[row], strict=True)]
            assert float(scores[user, row]) == pytest.approx(sum(parts), abs=1e-5)


def test_scores_do_not_depend_on_the_number_of_users():
    case = random_case(300, (7, 30, 5, 11))
    logs, codes = log_probs(case.sizes, 40), torch.from_numpy(case.codes)
    parts = torch.cat([exact_scores([each[a : a + 5] for each in logs], codes) for a in range(0, 40, 5)])
    assert torch.equal(exact_scores(logs, codes), parts)


@given(cases(), st.integers(1, 12), st.sampled_from([0.0, 0.5]))
@settings(deadline=None, max_examples=200)
def test_branch_and_bound_equals_sorting_all_scores(case, k, step):
    logs = log_probs(case.sizes, seed=case.seed, step=step)
    beams = exact_top(logs, case.tree, k, **case.constraints)
    scores = exact_scores(logs, torch.from_numpy(case.codes))
    scores.masked_fill_(torch.from_numpy(~case.free), -torch.inf)
    values, order = scores.sort(descending=True, stable=True)  # of equal scores the lower row first
    k = min(k, len(case.codes))
    assert torch.equal(beams.scores, values[:, :k])
    assert torch.equal(beams.items, order[:, :k].masked_fill(values[:, :k] == -torch.inf, -1))
    at = beams.items >= 0
    assert (torch.from_numpy(case.codes)[beams.items[at]] == beams.codes[at]).all()


@pytest.mark.parametrize("max_nodes", [1, 1000, 1 << 22])
def test_a_larger_catalogue_also_for_fewer_users_at_a_time(max_nodes, monkeypatch):
    monkeypatch.setattr(module, "MAX_NODES", max_nodes)
    case = random_case(20_000, (64, 64, 64))
    logs = log_probs(case.sizes, 9)
    beams = exact_top(logs, case.tree, 50)
    values, order = exact_scores(logs, torch.from_numpy(case.codes)).sort(descending=True, stable=True)
    assert torch.equal(beams.items, order[:, :50])
    assert torch.equal(beams.scores, values[:, :50])


def test_a_beam_over_independent_levels_is_exact_when_wide():
    case = random_case(200, (6, 8, 9))
    logs = log_probs(case.sizes)
    wide = beam_search(IndependentLevels(logs), case.tree, beam=200)
    assert torch.equal(wide.items, exact_top(logs, case.tree, 200).items)


def test_search_error_counts_what_a_narrow_beam_misses():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    tree = PrefixTree.build(codes, (2, 2))
    first = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).log()
    second = torch.tensor([0.52, 0.48]).log()

    class Model:
        def step(self, level, codes_BK, parents_BK):  # little at any child of code 0, nearly all at one of code 1
            if level == 0:
                return first[:, None]
            return torch.where(codes_BK[..., None] == 0, second, torch.tensor([0.99, 0.01]).log())

    narrow, wide = (beam_search(Model(), tree, beam=beam, k=1) for beam in (1, 4))
    assert [*map(list, lists(wide))] == [[2], [0]]  # 0.4 * 0.99 is more than 0.6 * 0.52
    error = search_error(narrow, wide)
    assert error.missed == 0.5
    assert error.users == 0.5
    assert error.lost == pytest.approx(np.log(0.4 * 0.99 / (0.6 * 0.52)) / 2, abs=1e-5)
    assert search_error(wide, wide) == (0, 0, 0)
