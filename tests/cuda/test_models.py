"""Every model on the card gives what it gives on the CPU with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cuda.small_models import CASES, HISTORIES, ITEMS, TRAIN, fresh, pair, scores

from recpipe.models.registry import model_class, types

EXACT = {"rtol": 2e-4, "atol": 2e-4}
SPARSE = ("ease", "hop_graph", "markov", "slim")
FITTED = [name for name in types() if name in ("popular", "item_knn", "user_knn", "svd", "nmf", *SPARSE)]


@pytest.mark.parametrize("exclude_seen", [False, True], ids=["all", "unseen"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_scores_and_lists_are_those_of_the_cpu(name, config, exclude_seen):
    """A list may differ where items tie: what it says of its items has to be what the CPU says of them."""
    here, there = pair(name, config)
    assert there.device.type == "cuda" or not list(there.state_dict())
    expected = scores(here, HISTORIES, exclude_seen=exclude_seen)
    np.testing.assert_allclose(scores(there, HISTORIES, exclude_seen=exclude_seen), expected, **EXACT)
    mine, values = here.recommend(HISTORIES, 6, exclude_seen=exclude_seen)
    items, other = there.recommend(HISTORIES, 6, exclude_seen=exclude_seen)
    np.testing.assert_allclose(other, values, **EXACT)
    np.testing.assert_allclose(np.take_along_axis(expected, items.astype(np.int64), 1), other, **EXACT)
    apart = np.diff(values, axis=1, prepend=np.inf, append=-np.inf) < -1e-4  # from the one before and the one after
    alone = apart[:, :-1] & apart[:, 1:]
    assert (items == mine)[alone].all()


@pytest.mark.parametrize("name", ["sasrec", "tiger", "parallel_tiger", "setrec", "item_knn"])
def test_candidates_of_either_device_restrict_the_catalogue(name):
    here, there = pair(name, {})
    allowed = torch.zeros(ITEMS + 1, dtype=torch.bool)
    allowed[[2, 3, 7, 20]] = True
    expected, _ = here.recommend(HISTORIES, 4, exclude_seen=True, candidates=allowed)
    for candidates in (allowed, allowed.cuda()):
        items, _ = there.recommend(HISTORIES, 4, exclude_seen=True, candidates=candidates)
        assert (np.sort(items) == np.sort(expected)).all()


@pytest.mark.parametrize("name", FITTED)
def test_a_closed_form_is_fitted_to_the_same(name):
    here, there = fresh(name, {}), fresh(name, {}).cuda()
    here.fit(TRAIN)
    there.fit(TRAIN)
    mine, other = (scores(model.eval(), HISTORIES, exclude_seen=False) for model in (here, there))
    np.testing.assert_allclose(other, mine, **EXACT)


@pytest.mark.parametrize(("name", "config"), [("lightgcn", {}), ("mf", {}), ("mf", {"loss": "bpr"})], ids=str)
def test_a_loop_of_its_own_learns_the_same(name, config):
    """Draws are the CPU's on either device; Adam makes much of small differences, so losses are compared."""
    curves = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = fresh(name, {**config, "epochs": 5, "batch": 64, "learning_rate": 0.02}).to(device)
        curves.append(list(model.epochs(TRAIN)))
        assert np.isfinite(scores(model.eval(), HISTORIES, exclude_seen=False)[:, 1:]).all()
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-2)
    assert curves[1][-1] < curves[1][0]


def test_no_type_is_left_out():
    assert {name for name, _ in CASES} == set(types())
    assert all(model_class(name).closed_form for name in FITTED)
