"""LIGER against beams of dictionaries, cosines in numpy, and rules that no list may break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.generative import BOTH, DATA, ITEMS, TINY, WINDOW, without
from tests.synthetic import catalogue_ids, sequences, side_of

from recpipe.data.user_items import UserItems
from recpipe.models.liger import LIGER
from recpipe.models.registry import build
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.settings import TrainSettings
from recpipe.training.setup import TrainingSetup

HISTORIES = [[3, 7, 9], [1], [5, 5, 2, 8, 11, 4]]
COLD = [2, 6, 10, 14, 21]


def create(*, cold: list[int] | None = None, ids=None, vectors: str = "plot", **config) -> LIGER:
    """With weights that are not all tiny; items of ``cold`` have no training events."""
    torch.manual_seed(0)
    side = side_of(DATA, ITEMS, vectors=vectors)
    ids = BOTH["text"] if ids is None else ids
    model = build("liger", {**TINY, **config}, n_items=ITEMS, max_length=WINDOW, ids={"text": ids}, side=side)
    assert isinstance(model, LIGER)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    trained = torch.ones(ITEMS + 1, dtype=torch.bool)
    trained[[0, *(COLD if cold is None else cold)]] = False
    model.set_trained_items(trained)
    return model.eval()


@torch.no_grad()
def states(model: LIGER, history: list[int]) -> torch.Tensor:
    """(I, L, D): states that the codes of every item alone are predicted from, by the pass that trains."""
    batch = model.on_device(sequences([history]), window=WINDOW).batch(np.zeros(1, int))
    encoded = model.encode(batch, model.content())
    targets = model.codes.tokens[1:, None]
    hidden = [model.transformer.decode(encoded, target[None], by_target=False)[0, 0] for target in targets]
    return torch.stack(hidden)


@torch.no_grad()
def dense(model: LIGER, history: list[int]) -> np.ndarray:
    """(I,) log-probabilities of all items by their cosines, in float64."""
    state = states(model, history)[0, 0] * model.config.dim**0.5  # without T5's scale
    query = (model.query.weight @ state).double().numpy()
    table = model.content().double().numpy()
    query, table = query + (model.config.query == "state+last") * table[history[-1]], table[1:]
    cosines = table @ query / np.linalg.norm(table, axis=1) / np.linalg.norm(query)
    logits = cosines / model.config.dense_temperature
    return logits - np.log(np.exp(logits).sum())


@torch.no_grad()
def beam(model: LIGER, history: list[int], allowed: list[int]) -> list[int]:
    """The items of a beam search over ``allowed`` items, by a dictionary of prefixes."""
    hidden, codes, head = states(model, history), model.codes.codes.tolist(), model.transformer.input.head[1:]
    logs = (hidden @ head.T).log_softmax(-1).numpy()  # (I, L, tokens)
    tokens, beams = model.codes.tokens.numpy() - 1, {(): 0.0}
    for level in range(model.codes.levels):
        extended = {}
        for item in allowed:
            prefix = tuple(codes[item][:level])
            if prefix in beams:
                step = logs[item - 1, level, tokens[item, level]]
                extended[*prefix, codes[item][level]] = beams[prefix] + step
        beams = dict(sorted(extended.items(), key=lambda pair: -pair[1])[: model.config.beam])
    return [item for item in allowed if tuple(codes[item]) in beams]


@pytest.mark.parametrize("retrieve", ["beam+cold", "beam", "all"])
@pytest.mark.parametrize("width", [4, ITEMS])
@pytest.mark.parametrize(("one_pass", "query"), [(True, "state"), (True, "state+last"), (False, "state+last")])
def test_a_list_is_the_dense_order_of_beam_and_cold_items(retrieve, width, one_pass, query):
    model = create(beam=width, retrieve=retrieve, one_pass=one_pass, recency=one_pass, query=query)
    candidates = torch.arange(ITEMS + 1) % 3 != 0
    excluded = [[1, 10], [14], [2]]
    owner = np.array([0, 0, 1, 2])
    rules = {"candidates": candidates, "excluded": UserItems.of_pairs(owner, np.array([1, 10, 14, 2]), 3)}
    items, scores = model.recommend(sequences(HISTORIES), 4, **rules)
    for user, history in enumerate(HISTORIES):
        allowed = [i for i in range(1, ITEMS + 1) if i % 3 and i not in history and i not in excluded[user]]
        cold = [item for item in COLD if item in allowed]
        pools = {"beam": beam(model, history, allowed), "all": allowed}
        pools["beam+cold"] = list({*pools["beam"], *cold})
        expected = dense(model, history)
        best = sorted(pools[retrieve], key=lambda item: -expected[item - 1])[:4]
        assert items[user].tolist() == best
        np.testing.assert_allclose(scores[user], expected[np.array(best) - 1], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_list_has_an_item_twice_or_one_that_its_user_must_not_get(data):
    items = st.integers(1, ITEMS)
    rows = data.draw(st.lists(st.lists(items, min_size=1, max_size=9), min_size=1, max_size=4))
    cold, gone = data.draw(st.lists(items)), data.draw(st.lists(items, max_size=5, unique=True))
    model = create(cold=cold, beam=data.draw(st.integers(5, 9)), ids=without(BOTH["text"], gone))
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[data.draw(st.lists(items))] = True
    lists, scores = model.recommend(sequences(rows), 5, candidates=candidates)
    for history, row, values in zip(rows, lists.tolist(), scores, strict=True):
        real = [item for item in row if item]
        assert row[len(real) :] == [0] * (5 - len(real)) and len(set(real)) == len(real)
        assert all(bool(candidates[item]) and item not in history and item not in gone for item in real)
        free = [i for i in candidates.nonzero()[:, 0].tolist() if i not in history and i not in gone]
        assert len(real) >= min(len(free), 5)
        assert np.isfinite(values[: len(real)]).all() and (np.diff(values[: len(real)]) <= 0).all()


def test_without_a_match_nothing_takes_the_place_of_an_item():
    """In the authors' code an id of no item is the first item of the catalogue."""
    model = create(beam=ITEMS)
    only = torch.arange(ITEMS + 1) == 9
    items, scores = model.recommend(sequences([[3, 7], [9]]), 3, candidates=only)
    assert items.tolist() == [[9, 0, 0], [0, 0, 0]]
    assert np.isneginf(scores[0, 1:]).all() and np.isneginf(scores[1]).all()


def test_a_cold_item_is_found_by_no_beam_and_by_its_content():
    """A cold item with the vector of a warm one has its dense score, wherever its id lies."""
    model = create(beam=4, cold=[8])
    model.content.vectors[8] = model.content.vectors[5]
    history = [3, 7, 9]
    assert 8 not in beam(model, history, list(range(1, ITEMS + 1)))
    expected = dense(model, history)
    assert expected[7] == pytest.approx(expected[4])
    items, scores = model.recommend(sequences([history]), 4)
    pool = {*beam(model, history, [i for i in range(1, ITEMS + 1) if i not in history]), 8}
    assert 8 in items[0] and {*items[0].tolist()} <= pool
    np.testing.assert_allclose(scores[0], np.sort(expected[np.array([*pool]) - 1])[::-1][:4], atol=1e-4)


def test_the_loss_is_that_of_the_codes_plus_the_dense_cross_entropy_among_trained_items():
    model = create(dropout=0.0, dense_weight=0.7, softmax="children", renormalise=True)
    history, target = [3, 7, 9], 4
    data = model.on_device(sequences([[*history, target]]), window=WINDOW + 1)
    batch = replace(data.batch(np.zeros(1, int)), context=torch.tensor([3]))
    criterion = FullSoftmax(items="trained", trained_items=model.is_trained)
    both = model.loss(batch, criterion).item()
    trained = np.array([item for item in range(1, ITEMS + 1) if item not in COLD])
    scores = dense(model, history)[trained - 1]
    expected = np.log(np.exp(scores).sum()) - scores[trained.tolist().index(target)]
    codes_alone = create(dropout=0.0, dense_weight=0.0, softmax="children", renormalise=True)
    codes_alone.load_tensors(model.state_dict())
    assert both - codes_alone.loss(batch, criterion).item() == pytest.approx(0.7 * expected, abs=1e-4)


def test_one_pass_trains_on_what_every_prefix_alone_would_give():
    model = create(dropout=0.0, recency=True)
    rows = [DATA.row(u).tolist()[:WINDOW] for u in range(6)]
    prefixes = [row[:end] for row in rows for end in range(2, len(row) + 1)]
    whole, each = (model.on_device(sequences(part), window=WINDOW + 1) for part in (rows, prefixes))
    context = torch.tensor([len(row) - 1 for row in prefixes])
    single = replace(each.batch(np.arange(len(prefixes))), context=context)
    together = model.loss(whole.batch(np.arange(len(rows))), FullSoftmax())
    torch.testing.assert_close(model.loss(single, FullSoftmax()), together)


def test_training_tells_the_model_which_items_it_saw(tmp_path):
    model = create(cold=[])
    few = sequences([[1, 2, 3], [2, 4]])
    settings = TrainSettings(max_epochs=1, patience=1)
    TrainingSetup(model=model, data=few, validate=None, settings=settings, seed=0).module()
    assert model.is_trained.nonzero()[:, 0].tolist() == [1, 2, 3, 4]


def test_the_table_is_the_same_with_and_without_its_cache_and_follows_the_weights():
    model, clear = create(), create()
    clear.content.cache = None
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(model.content(), clear.content())
        for each in (model, clear):
            each.content.project[0].weight.data *= -2
    assert not model.content()[0].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"retrieve": "dense"}, "retrieve is 'dense'; allowed: beam\\+cold, beam, all"),
        ({"dense_temperature": 0.0}, "dense_temperature is 0.0; it must be above 0"),
        ({"dense_weight": -1.0}, "dense_weight is -1.0; it must be at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(changed, message):
    with pytest.raises(ValueError, match=message):
        create(**changed)


def test_other_inputs_than_ids_and_vectors_are_refused():
    ids, size = {"text": catalogue_ids(ITEMS)}, {"n_items": ITEMS, "max_length": WINDOW}
    with pytest.raises(ValueError, match="needs side.vectors"):
        build("liger", TINY, ids=ids, **size)
    with pytest.raises(ValueError, match="set side.items=none"):
        build("liger", TINY, ids=ids, side=side_of(DATA, ITEMS, vectors="plot", items="price"), **size)
    with pytest.raises(ValueError, match="set side.train_vectors=false"):
        build("liger", TINY, ids=ids, side=side_of(DATA, ITEMS, vectors="plot", train_vectors=True), **size)
    with pytest.raises(ValueError, match="one modality"):
        build("liger", TINY, ids=BOTH, side=side_of(DATA, ITEMS, vectors="plot"), **size)
