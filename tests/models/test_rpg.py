"""RPG: pooling, heads and losses against loops, packed rows, graph search, several kinds of ids."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.generative import BOTH, DATA, ITEMS, WINDOW, without
from tests.synthetic import SIZES, sequences, train_until

from recpipe.data.batch_samplers import PackedBatches
from recpipe.data.batches import DeviceSequences
from recpipe.models.registry import build
from recpipe.models.rpg import RPG
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.losses.full_softmax import FullSoftmax

TEXT = {"text": without(BOTH["text"], [4, 9])}
KINDS = {"text": without(BOTH["text"], [4, 9]), "image": without(BOTH["image"], [9, 12])}  # item 9 has no id
HISTORIES = [[3, 7, 9], [1, 4], [5, 5, 2, 8]]


def create(ids: dict[str, CatalogueIds] | None = None, **config) -> RPG:
    torch.manual_seed(0)
    settings = {**SIZES["rpg"], **config}
    model = build("rpg", settings, n_items=ITEMS, max_length=WINDOW, ids=ids or TEXT)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def hidden_states(model: RPG, histories: list[list[int]]) -> torch.Tensor:
    """(B, D) after the last event."""
    batch = model.on_device(sequences(histories), window=WINDOW).batch(np.arange(len(histories)))
    return model.encode(batch)[torch.arange(len(histories)), batch.lengths - 1]


def level_probabilities(model: RPG, hidden: torch.Tensor, kind: str, first_level: int, first_code: int):
    """(levels) of (B, V): softmax of cosine / temperature, by a loop over users, levels and codes."""
    tables = []
    for level, size in enumerate(model.item_codes()[kind].sizes):
        weight, bias = model.code_heads.weight[first_level + level], model.code_heads.bias[first_level + level]
        logits = torch.empty(len(hidden), size)
        for user, h in enumerate(hidden):
            head = h + torch.nn.functional.silu(h @ weight + bias)
            for code in range(size):
                e = model.embedding.weight[1 + first_code + code]
                logits[user, code] = torch.cosine_similarity(head, e, 0) / model.config.temperature
        tables.append(logits)
        first_code += size
    return tables


@pytest.mark.parametrize("scale", [False, True])
def test_an_item_is_read_as_the_mean_of_its_code_embeddings(scale):
    model, pooled = create(scale_embeddings=scale), []
    model.dropout.register_forward_hook(lambda *args: pooled.append(args[2]))
    hidden_states(model, [[3, 4]])
    for place, item in enumerate([3, 4]):
        codes = TEXT["text"].codes[item]
        rows = [1 + 4 * level + code if code >= 0 else 13 + level for level, code in enumerate(codes)]
        mean = sum(model.embedding.weight[row] for row in rows) / 3
        expected = mean * (32**0.5 if scale else 1) + model.positions.weight[place]
        torch.testing.assert_close(pooled[0][0, place], expected)


@pytest.mark.parametrize("softmax", ["level", "items"])
def test_scores_are_sums_of_the_log_probabilities_of_an_item_s_codes(softmax):
    model = create(softmax=softmax, temperature=0.3)
    logits = level_probabilities(model, hidden_states(model, HISTORIES), "text", 0, 0)
    items = [item for item in range(1, ITEMS + 1) if item not in (4, 9)]
    levels = [x.log_softmax(1) if softmax == "level" else x for x in logits]
    codes = TEXT["text"].codes
    expected = torch.stack([sum(x[:, codes[i, n]] for n, x in enumerate(levels)) for i in items], 1)
    expected = expected.log_softmax(1) if softmax == "items" else expected
    for rows, scores in model.score_batches(sequences(HISTORIES), exclude_seen=False):
        torch.testing.assert_close(scores[:, items], expected[rows], rtol=1e-4, atol=1e-4)
        assert torch.isneginf(scores[:, [4, 9]]).all()


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("softmax", ["level", "items"])
def test_the_loss_is_what_the_lists_say_of_every_next_item_of_a_row(softmax, accelerate):
    """Mean over targets with an id, in one pass; of levels the mean over these."""
    model = create(softmax=softmax, temperature=0.5)
    model.code_heads.fast_loss = model.code_heads.fast_loss if accelerate else None
    rows = [[3, 7, 9, 2], [1, 5], [6, 4, 8]]
    terms = []
    for row in rows:
        for end in range(1, len(row)):
            if row[end] not in (4, 9):
                (_, scores), *_ = model.score_batches(sequences([row[:end]]), exclude_seen=False)
                terms.append(-scores[0, row[end]] / (3 if softmax == "level" else 1))
    batch = model.on_device(sequences(rows), window=WINDOW + 1).batch(np.arange(3))
    torch.testing.assert_close(model.loss(batch, FullSoftmax()), torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    nothing = model.on_device(sequences([[3, 9], [1, 4]]), window=WINDOW + 1).batch(np.arange(2))
    assert model.loss(nothing, FullSoftmax()) == 0


def test_a_loss_among_trained_items_needs_a_softmax_over_items():
    trained = torch.arange(ITEMS + 1) % 3 == 1
    criterion = FullSoftmax(items="trained", trained_items=trained)
    batch = create().on_device(sequences([[3, 7, 10]]), window=WINDOW + 1).batch(np.arange(1))
    with pytest.raises(ValueError, match="set softmax: items"):
        create().loss(batch, criterion)
    assert torch.isfinite(create(softmax="items").loss(batch, criterion))


def test_packed_rows_have_the_loss_of_padded_ones():
    model, data = create(), DATA.last(WINDOW + 1)
    held = DeviceSequences(data, window=WINDOW + 1, device="cpu")
    packed = PackedBatches(held.lengths, size=2 * WINDOW, tokens=10_000, seed=0)
    ((part,),) = packed
    padded = held.batch(np.flatnonzero(held.lengths >= 2))
    torch.testing.assert_close(model.loss(packed.gather(held, part), FullSoftmax()), model.loss(padded, FullSoftmax()))


@pytest.mark.parametrize("softmax", ["level", "items"])
def test_a_graph_that_connects_everything_gives_the_exact_lists(softmax):
    exact, graph = create(softmax=softmax), create(softmax=softmax, search="graph", edges=ITEMS, beam=ITEMS)
    (items, scores), (graph_items, graph_scores) = exact.recommend(DATA, 8), graph.recommend(DATA, 8)
    np.testing.assert_array_equal(items, graph_items)
    shift = scores[:, :1] - graph_scores[:, :1]  # the softmax over items needs all of them
    assert softmax == "items" or np.abs(shift).max() < 1e-4
    np.testing.assert_allclose(graph_scores + shift, scores, rtol=1e-4)
    assert graph.beam_error(DATA, 8).missed == 0 and graph.searches and not exact.searches


def test_the_error_of_a_narrow_search_is_the_share_of_the_exact_lists_that_it_lacks():
    settings = {"edges": 2, "beam": 2, "steps": 1}
    exact, graph = create(**settings), create(search="graph", **settings)
    best, _ = exact.recommend(DATA, 4, exclude_seen=False)
    items, _ = graph.recommend(DATA, 4, exclude_seen=False)
    missed = [len(set(a) - set(b)) for a, b in zip(best, items, strict=True)]
    for model in (exact, graph):
        error = model.beam_error(DATA, 4)
        assert error.missed == pytest.approx(np.sum(missed) / (4 * len(DATA))) and error.missed > 0
        assert error.users == pytest.approx(np.mean(np.array(missed) > 0))


def test_items_that_share_an_id_are_one_in_the_error_of_a_search():
    codes = BOTH["text"].codes.copy()
    codes[1:] = codes[1]
    model = create({"text": replace(BOTH["text"], codes=codes)}, edges=2, beam=1, steps=1)
    assert model.beam_error(DATA, 5).missed == 0


def test_the_error_is_not_measured_on_a_large_catalogue(monkeypatch):
    monkeypatch.setattr("recpipe.models.rpg.MEASURED_ITEMS", 10)
    assert create().beam_error(DATA, 4) is None


def test_the_graph_follows_the_weights():
    model = create(search="graph", edges=4, beam=2)
    before = model.neighbours()
    assert model.neighbours() is before
    with torch.no_grad():
        model.embedding.weight.add_(torch.randn_like(model.embedding.weight))
    assert not torch.equal(model.neighbours(), before)


def test_a_copy_with_another_number_of_edges_has_a_graph_of_its_own():
    """As serving makes one for `--search edges=7`."""
    model = create(search="graph", edges=4)
    assert model.neighbours().shape == (ITEMS - 2, 4)
    other = copy.copy(model)
    other.config = replace(model.config, edges=7)
    assert other.neighbours().shape == (ITEMS - 2, 7)
    assert model.neighbours().shape == (ITEMS - 2, 4)


@pytest.mark.parametrize("softmax", ["level", "items"])
def test_scores_of_several_kinds_are_the_mixture_of_the_probabilities_by_each(softmax):
    weights = {"text": 0.3, "image": 0.7}
    model = create(KINDS, softmax=softmax, temperature=0.3, modality_weights=[3.0, 7.0])
    hidden, expected, first = hidden_states(model, HISTORIES), torch.zeros(3, ITEMS + 1), 0
    for n, (kind, ids) in enumerate(KINDS.items()):
        logits = level_probabilities(model, hidden, kind, 3 * n, 12 * n)
        items = [item for item in range(1, ITEMS + 1) if ids.codes[item, 0] >= 0]
        levels = [x.log_softmax(1) if softmax == "level" else x for x in logits]
        log_p = torch.stack([sum(x[:, ids.codes[i, m]] for m, x in enumerate(levels)) for i in items], 1)
        expected[:, items] += weights[kind] * (log_p.softmax(1) if softmax == "items" else log_p.exp())
        first += sum(ids.sizes)
    for rows, scores in model.score_batches(sequences(HISTORIES), exclude_seen=False):
        torch.testing.assert_close(scores[:, 1:].exp(), expected[rows][:, 1:], rtol=1e-3, atol=1e-6)
        assert torch.isneginf(scores[:, 9]).all()


def test_several_kinds_are_trained_and_not_searched_along_a_graph():
    torch.manual_seed(0)
    settings = {**SIZES["rpg"], "dropout": 0.0}
    model = build("rpg", settings, n_items=ITEMS, max_length=WINDOW, ids=KINDS)
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(12))
    losses = train_until(model, batch, lambda loss: loss < 0.5, rate=1e-2, at_most=300)
    assert losses[-1] < 0.5
    model.config = replace(model.config, search="graph")  # a setting of the search alone
    with pytest.raises(ValueError, match="search is graph, over ids of one kind"):
        model.recommend(DATA, 3)
    with pytest.raises(ValueError, match="search is graph, over ids of one kind"):  # before a training, not after
        create(KINDS, search="graph")


def test_codebooks_may_differ_in_size():
    codes = BOTH["text"].codes.copy()
    codes[1:, 2] = np.arange(ITEMS) % 2
    model = create({"text": replace(BOTH["text"], codes=codes, sizes=(4, 4, 2))})
    assert [each.shape[1] for each in model.log_probabilities(model.on_device(DATA, window=WINDOW).batch(np.arange(3)))]
    items, scores = model.recommend(DATA, ITEMS, exclude_seen=False)
    assert (np.sort(items, 1) == np.arange(1, ITEMS + 1)).all() and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"search": "beam"}, "search is 'beam'; allowed: exact, graph"),
        ({"temperature": 0.0}, "temperature is 0.0; set it above 0"),
        ({"dim": 30, "heads": 4}, "dim 30 is not a multiple of heads 4"),
        ({"edges": 0}, "edges is 0"),
        ({"modality_weights": [1.0, 1.0]}, "modality_weights are .* the model reads text"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        create(**config)
