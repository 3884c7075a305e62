"""MaskGR against chains of single codes, and its loss against cross-entropies in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.generative import BOTH, DATA, ITEMS, WINDOW, create, without
from tests.synthetic import catalogue_ids, sequences

from recpipe.data.user_items import UserItems
from recpipe.decoding.masked import MASKED
from recpipe.models.maskgr import MaskedSteps, MaskGR
from recpipe.training.losses.full_softmax import FullSoftmax

HISTORIES = [[3, 7, 9], [1], [5, 5, 2, 8, 11, 4]]


@torch.no_grad()
def logs(model: MaskGR, history: list[int], partial: list[int]) -> list[np.ndarray]:
    """(L) of (V_l,) log-probabilities of the codes of one partial id, alone, as the network that trains gives them."""
    batch = model.on_device(sequences([history]), window=WINDOW).batch(np.zeros(1, int))
    hidden = model.decode(*model.encode(batch), torch.tensor([[partial]]), by_target=False)[0, 0]
    return [(hidden[n] @ model.table(n).T).log_softmax(-1).numpy() for n in range(model.codes.levels)]


def chain(model: MaskGR, history: list[int], item: int) -> float:
    """Log-probability of an item, its codes revealed one by one in the order that the model is set to."""
    codes, partial, score = model.codes.codes[item].tolist(), [MASKED] * model.codes.levels, 0.0
    while MASKED in partial:
        table = logs(model, history, partial)
        masked = [level for level, code in enumerate(partial) if code == MASKED]
        level = masked[0] if model.config.order == "left_to_right" else max(masked, key=lambda n: table[n].max())
        score += table[level][codes[level]]
        partial[level] = codes[level]
    return score


@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
@pytest.mark.parametrize("one_pass", [True, False])
def test_a_list_is_that_of_the_chain_probabilities_of_all_items(order, one_pass):
    model = create("maskgr", beam=ITEMS, order=order, one_pass=one_pass, recency=one_pass)
    candidates = torch.arange(ITEMS + 1) % 4 != 0
    excluded = UserItems.of_pairs(np.array([0, 2, 2]), np.array([1, 6, 10]), 3)
    items, scores = model.recommend(sequences(HISTORIES), 6, candidates=candidates, excluded=excluded)
    for user, history in enumerate(HISTORIES):
        gone = {*history, *excluded.items[excluded.offsets[user] : excluded.offsets[user + 1]].tolist()}
        expected = {i: chain(model, history, i) for i in range(1, ITEMS + 1) if i % 4 and i not in gone}
        best = sorted(expected, key=lambda item: -expected[item])[:6]
        assert items[user].tolist() == best
        np.testing.assert_allclose(scores[user], [expected[item] for item in best], atol=1e-4)


def test_parts_of_the_users_are_decoded_as_all_at_once(monkeypatch):
    model = create("maskgr", beam=8)
    whole = model.recommend(DATA, 8)
    monkeypatch.setattr("recpipe.models.maskgr.MAX_ATTENTION", 1)
    parts = model.recommend(DATA, 8)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_list_has_an_item_twice_or_one_that_its_user_must_not_get(data):
    items = st.integers(1, ITEMS)
    rows = data.draw(st.lists(st.lists(items, min_size=1, max_size=9), min_size=1, max_size=4))
    gone = data.draw(st.lists(items, max_size=5, unique=True))
    order = data.draw(st.sampled_from(["confidence", "left_to_right"]))
    model = create("maskgr", {"text": without(BOTH["text"], gone)}, beam=data.draw(st.integers(5, 9)), order=order)
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[data.draw(st.lists(items))] = True
    lists, scores = model.recommend(sequences(rows), 5, candidates=candidates)
    for history, row, values in zip(rows, lists.tolist(), scores, strict=True):
        real = [item for item in row if item]
        assert row[len(real) :] == [0] * (5 - len(real)) and len(set(real)) == len(real)
        free = {i for i in candidates.nonzero()[:, 0].tolist() if i and i not in history and i not in gone}
        assert {*real} <= free and len(real) == min(len(free), 5)
        assert np.isfinite(values[: len(real)]).all() and (np.diff(values[: len(real)]) <= 0).all()


@pytest.mark.parametrize("masked", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_the_loss_is_the_mean_cross_entropy_of_the_masked_codes(masked, monkeypatch):
    """That is 1 / t of the sum over the masked ones, per code of the id, with t = n / L."""
    model = create("maskgr", dropout=0.0)
    history, target = [3, 7, 9], 4
    is_masked = torch.zeros(1, 3, 3, dtype=torch.bool)
    is_masked[..., masked] = True
    share = torch.full((1, 3), len(masked) / 3)
    monkeypatch.setattr(MaskGR, "draw_masks", lambda self, codes: (is_masked, share))
    data = model.on_device(sequences([[*history, target]]), window=WINDOW + 1)
    batch = replace(data.batch(np.zeros(1, int)), context=torch.tensor([3]))
    codes = model.codes.codes[target].tolist()
    table = logs(model, history, [MASKED if n in masked else code for n, code in enumerate(codes)])
    expected = -np.mean([table[n][codes[n]] for n in masked])
    assert model.loss(batch, FullSoftmax()).item() == pytest.approx(expected, abs=1e-5)


def test_numbers_of_masked_codes_are_uniform_and_all_codes_are_masked_alike():
    torch.manual_seed(0)
    model = create("maskgr")
    is_masked, share = model.draw_masks(torch.zeros(300, 100, 3, dtype=torch.int64))
    counts = is_masked.sum(-1)
    torch.testing.assert_close(share, counts / 3)
    assert np.bincount(counts.flatten().numpy()) / 30_000 == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.01)
    assert is_masked.float().mean((0, 1)).tolist() == pytest.approx([2 / 3] * 3, abs=0.01)
    whole, share = create("maskgr", least_masked=3).draw_masks(torch.zeros(5, 4, 3, dtype=torch.int64))
    assert whole.all() and (share == 1).all()


def test_one_pass_trains_on_what_every_prefix_alone_would_give():
    model = create("maskgr", dropout=0.0, recency=True, least_masked=3)
    rows = [DATA.row(u).tolist()[:WINDOW] for u in range(6)]
    prefixes = [row[:end] for row in rows for end in range(2, len(row) + 1)]
    whole, each = (model.on_device(sequences(part), window=WINDOW + 1) for part in (rows, prefixes))
    context = torch.tensor([len(row) - 1 for row in prefixes])
    single = replace(each.batch(np.arange(len(prefixes))), context=context)
    together = model.loss(whole.batch(np.arange(len(rows))), FullSoftmax())
    torch.testing.assert_close(model.loss(single, FullSoftmax()), together)


def test_a_masked_code_does_not_reach_the_others_and_a_revealed_one_does():
    model, history = create("maskgr"), [3, 7]
    before, after = logs(model, history, [MASKED, 1, 2]), logs(model, history, [MASKED, 3, 2])
    assert not np.allclose(before[0], after[0], atol=1e-3)
    batch = model.on_device(sequences([history]), window=WINDOW).batch(np.zeros(1, int))
    steps = MaskedSteps(model, *model.encode(batch))
    both = steps.log_probs(torch.tensor([[[MASKED, 1, 2], [MASKED, 3, 2]]]))  # beams do not see each other
    np.testing.assert_allclose(both[0, 0].detach(), before, atol=1e-5)
    np.testing.assert_allclose(both[0, 1].detach(), after, atol=1e-5)


def test_levels_of_different_sizes_are_searched():
    ids = catalogue_ids(ITEMS, sizes=(2, 30, 3))
    for order in ("confidence", "left_to_right"):
        model = create("maskgr", {"text": ids}, beam=ITEMS, order=order)
        items, scores = model.recommend(sequences([[2, 3]]), ITEMS, exclude_seen=False)
        assert sorted(items[0].tolist()) == list(range(1, ITEMS + 1))
        assert scores[0, 0] == pytest.approx(chain(model, [2, 3], int(items[0, 0])), abs=1e-4)
        few = torch.arange(ITEMS + 1) == 4  # beams without an item reveal codes that exist
        assert model.recommend(sequences([[2, 3]]), 2, candidates=few)[0].tolist() == [[4, 0]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"order": "random"}, "order is 'random'; allowed: confidence, left_to_right"),
        ({"least_masked": 0}, "least_masked is 0; it must be at least 1"),
        ({"least_masked": 4}, "least_masked is 4; ids of this catalogue have 3 codes"),
        ({"beam": 0}, "beam is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(config, message):
    with pytest.raises(ValueError, match=message):
        create("maskgr", **config)


def test_a_softmax_among_trained_items_and_shared_ids_are_refused():
    model = create("maskgr")
    batch = model.on_device(sequences([[1, 2]]), window=WINDOW + 1).batch(np.zeros(1, int))
    trained = torch.arange(ITEMS + 1) > 3
    with pytest.raises(ValueError, match="set train.loss.items: all"):
        model.loss(batch, FullSoftmax(items="trained", trained_items=trained))
    codes = BOTH["text"].codes.copy()
    codes[2] = codes[1]
    shared = create("maskgr", {"text": replace(BOTH["text"], codes=codes)})
    with pytest.raises(ValueError, match="share"):
        shared.loss(batch, FullSoftmax())
    with pytest.raises(ValueError, match="share"):
        shared.recommend(sequences([[3]]), 2)
