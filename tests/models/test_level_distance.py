"""Parallel TIGER's bias by the levels between two codes: against loops, and against the model without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences, sequences

from recpipe.layers.code_tokens import LevelRelativeBias
from recpipe.models.parallel_tiger import ParallelTIGER
from recpipe.models.registry import build
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS, WINDOW, HEADS = 25, 6, 2
IDS = {"text": catalogue_ids(ITEMS)}
DATA = random_sequences(20, ITEMS, longest=WINDOW, seed=3)
TINY = {"dim": 16, "heads": HEADS, "head_dim": 8, "feed_forward": 32, "layers": 2, "decoder_layers": 1}


def create(**config) -> ParallelTIGER:
    torch.manual_seed(0)
    settings = {**TINY, "dropout": 0.0, "aggregate": "flatten", "level_distance": True, **config}
    model = build("parallel_tiger", settings, n_items=ITEMS, max_length=WINDOW, ids=IDS)
    assert isinstance(model, ParallelTIGER)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def scores(model: ParallelTIGER) -> np.ndarray:
    whole = np.empty((len(DATA), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(DATA, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


@pytest.mark.parametrize("levels", [1, 3])
def test_the_bias_is_a_row_of_the_table_for_each_difference_in_level(levels):
    bias = LevelRelativeBias(levels, HEADS, std=1.0)
    event = [-1, *np.repeat(np.arange(4), levels).tolist()]
    level = [None, *np.tile(np.arange(levels), 4).tolist()]
    values = bias(torch.tensor(event)).detach()
    assert values.shape == (HEADS, len(event), len(event))
    for q in range(len(event)):
        for k in range(len(event)):
            coded = level[q] is not None and level[k] is not None
            expected = bias.table[level[k] - level[q] + levels - 1] if coded else torch.zeros(HEADS)
            assert values[:, q, k].tolist() == expected.tolist()


@pytest.mark.parametrize("item_distance", [True, False])
@pytest.mark.parametrize("one_pass", [True, False])
def test_attention_adds_both_biases_where_it_may_look(item_distance, one_pass):
    model, levels, seen = create(item_distance=item_distance, one_pass=one_pass), 3, []
    model.encoder.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].bias))
    model.log_probabilities(model.on_device(sequences([[5, 6, 7]]), window=WINDOW).batch(np.zeros(1, int)))
    distances, between = model.encoder.relative, model.between.table
    for q in range(1 + 3 * levels):
        for k in range(1 + 3 * levels):
            (item_q, level_q), (item_k, level_k) = (divmod(place - 1, levels) for place in (q, k))
            distance = item_k - item_q if item_distance else k - q
            expected = distances.table(distances.bucket(torch.tensor(distance)))
            expected = expected + (between[level_k - level_q + levels - 1] if q and k else 0)
            closed = one_pass and item_k > item_q
            torch.testing.assert_close(
                seen[0][0, :, q, k], torch.full_like(expected, -torch.inf) if closed else expected
            )


def test_a_table_of_zeros_is_the_model_without():
    model, without = create(item_distance=True), create(item_distance=True, level_distance=False)
    without.load_state_dict({n: w for n, w in model.state_dict().items() if n != "between.table"})
    assert np.abs(scores(model) - scores(without)).max() > 1e-3
    with torch.no_grad():
        model.between.table.zero_()
    np.testing.assert_array_equal(scores(model), scores(without))


@pytest.mark.parametrize("recency", [True, False])
def test_one_pass_trains_on_what_every_prefix_alone_would_give(recency):
    model = create(item_distance=True, recency=recency)
    rows = [DATA.row(u).tolist() for u in range(6)]
    whole = model.on_device(sequences(rows), window=WINDOW + 1)
    prefixes = [row[:end] for row in rows for end in range(2, len(row) + 1)]
    each = model.on_device(sequences(prefixes), window=WINDOW + 1)
    context = torch.tensor([len(row) - 1 for row in prefixes])
    single = replace(each.batch(np.arange(len(prefixes))), context=context)
    together = model.loss(whole.batch(np.arange(len(rows))), FullSoftmax())
    torch.testing.assert_close(model.loss(single, FullSoftmax()), together)
    together.backward()
    assert (model.between.table.grad != 0).all()


def test_the_future_does_not_reach_the_past():
    model, encoded = create(item_distance=True), []
    model.encoder.register_forward_hook(lambda *args: encoded.append(args[2]))
    for last in (9, 4):
        data = model.on_device(sequences([[1, 2, 3, last, 7, last]]), window=WINDOW + 1)
        model.loss(data.batch(np.zeros(1, int)), FullSoftmax())
    one, other = encoded
    torch.testing.assert_close(one[:, : 1 + 3 * 3], other[:, : 1 + 3 * 3])
    assert (one[:, 1 + 3 * 3 :] - other[:, 1 + 3 * 3 :]).abs().max() > 1e-3


def test_sums_of_codes_have_no_levels():
    with pytest.raises(ValueError, match="set aggregate: flatten"):
        create(aggregate="sum")
