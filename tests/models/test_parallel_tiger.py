"""Parallel TIGER: exact scores, softmax over items, its beam's error, and the bias by code levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.generative import BOTH, DATA, ITEMS, TINY, WINDOW, create, without
from tests.synthetic import random_sequences, sequences, train_until

from recpipe.layers.code_tokens import LevelRelativeBias
from recpipe.models.recommender import Recommender, Scorer
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.losses.full_softmax import FullSoftmax

SHORT = random_sequences(20, ITEMS, longest=WINDOW, seed=3)


def test_parallel_scores_are_sums_over_the_levels_and_a_wide_beam_finds_the_same():
    exact, beam = create("parallel_tiger"), create("parallel_tiger", search="beam", beam=ITEMS)
    for model in (exact, beam):
        for rows, scores in model.score_batches(DATA, exclude_seen=False):
            logs = model.log_probabilities(model.on_device(DATA, window=WINDOW).batch(rows))
            for item in range(1, ITEMS + 1):
                codes = BOTH["text"].codes[item]
                expected = sum(logs[level][:, code] for level, code in enumerate(codes))
                torch.testing.assert_close(scores[:, item], expected)
            assert all(torch.allclose(level.exp().sum(1), torch.ones(len(rows))) for level in logs)


@pytest.mark.parametrize("head", ["tokens", "mlp"])
def test_a_softmax_over_items_trains_what_the_lists_say_and_sums_to_one(head, monkeypatch):
    """Against a softmax, over the items that have an id, of sums of dot products; user by user as all at once."""
    ids = {"text": without(BOTH["text"], [4, 9])}
    model = create("parallel_tiger", ids, softmax="items", head=head, dropout=0.0)
    histories, items = [[3, 7, 9], [1, 4], [5, 5, 2, 8]], [i for i in range(1, ITEMS + 1) if i not in (4, 9)]
    batch = model.on_device(sequences(histories), window=WINDOW).batch(np.arange(3))
    hidden = model._decode(batch, None)[0][:, 0]
    sums = torch.zeros(3, len(items))
    for place, item in enumerate(items):
        for level, code in enumerate(ids["text"].codes[item]):
            h = model.mlp[level](hidden[:, level]).relu() if head == "mlp" else hidden[:, level] / TINY["dim"] ** 0.5
            sums[:, place] += h @ model.input.weight[model.codes.first[level] + code]
    expected = sums.log_softmax(-1)
    for max_nodes in (1 << 22, 1):
        monkeypatch.setattr("recpipe.decoding.exact.MAX_NODES", max_nodes)
        logs = model.log_probabilities(batch)
        sums = sum(each[:, ids["text"].codes[items, level]] for level, each in enumerate(logs))
        torch.testing.assert_close(sums, expected)
        for rows, scores in model.score_batches(sequences(histories), exclude_seen=False):
            torch.testing.assert_close(scores[:, items], expected[rows])
            assert torch.isneginf(scores[:, [4, 9]]).all()
    targets = [2, 9, 11]  # the second has no id and teaches nothing
    rows = [[*history, item] for history, item in zip(histories, targets, strict=True)]
    batch = model.on_device(sequences(rows), window=WINDOW + 1).batch(np.arange(3))
    single = replace(batch, context=torch.tensor([len(row) - 1 for row in rows]))
    loss = -(expected[0, items.index(2)] + expected[2, items.index(11)]) / 2
    torch.testing.assert_close(model.loss(single, FullSoftmax()), loss)
    nothing = model.on_device(sequences([[3, 9], [1, 2, 4]]), window=WINDOW + 1).batch(np.arange(2))
    assert model.loss(replace(nothing, context=torch.tensor([1, 2])), FullSoftmax()) == 0


def test_a_softmax_over_items_knows_no_levels():
    for config in ({"masked": 0.5}, {"weights": [1.0, 0.5, 0.25]}):
        with pytest.raises(ValueError, match="softmax is items"):
            create("parallel_tiger", softmax="items", **config)


def test_a_narrow_beam_has_scores_for_its_results_alone():
    wide, narrow = create("parallel_tiger"), create("parallel_tiger", search="beam", beam=4)
    (_, full), (_, few) = (next(iter(model.score_batches(DATA, exclude_seen=False))) for model in (wide, narrow))
    finite = few > -torch.inf
    assert (finite.sum(1) == 4).all()
    torch.testing.assert_close(few[finite], full[finite])


@pytest.mark.parametrize("beam", [2, 3, ITEMS])
def test_what_a_beam_would_miss_is_counted_against_the_exact_lists(beam):
    model, narrow = (create("parallel_tiger", search=way, beam=beam) for way in ("exact", "beam"))
    for each in (model, narrow):
        each.input.weight.data[each.codes.first[1] :] *= 4  # later levels decide: a beam goes wrong early
    error, k = model.beam_error(DATA, 3), min(3, beam)
    best, exact = model.recommend(DATA, k, exclude_seen=False)
    items, scores = narrow.recommend(DATA, k, exclude_seen=False)
    missed = [len(set(a) - set(b)) for a, b in zip(best, items, strict=True)]
    assert error.missed == pytest.approx(sum(missed) / (k * len(DATA)))
    assert error.users == pytest.approx(np.mean(np.array(missed) > 0))
    assert error.lost == pytest.approx((exact - scores).mean(), abs=1e-5)
    assert (error.missed > 0) == (beam < ITEMS)


@pytest.mark.parametrize("softmax", ["level", "items"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_branch_and_bound_gives_the_lists_of_the_whole_catalogue(exclude_seen, softmax, monkeypatch):
    model = create("parallel_tiger", softmax=softmax)
    some = torch.ones(ITEMS + 1, dtype=torch.bool)
    some[::4] = False
    histories = sequences([*(DATA.row(user).tolist() for user in range(20)), []])
    for candidates in (None, some):
        options = {"exclude_seen": exclude_seen, "candidates": candidates}
        items, scores = model.recommend(histories, ITEMS, **options)
        with monkeypatch.context() as patch:
            patch.setattr("recpipe.models.parallel_codes.MIN_BRANCH_AND_BOUND", 3)
            patch.setattr(Scorer, "top_k_batches", None)  # not called
            exact_items, exact_scores = model.recommend(histories, ITEMS, **options)
        finite = scores > -np.inf
        np.testing.assert_array_equal(np.where(finite, items, 0), exact_items)
        np.testing.assert_allclose(exact_scores[finite], scores[finite], rtol=1e-5)


def test_items_that_share_an_id_count_once_in_what_a_beam_would_miss():
    ids = BOTH["text"]
    codes = ids.codes.copy()
    codes[2] = codes[1]
    shared = create("parallel_tiger", ids={"text": replace(ids, codes=codes)}, beam=3)
    alone = create("parallel_tiger", ids={"text": without(ids, [2])}, beam=3)
    alone.input.load_state_dict(shared.input.state_dict())
    rows = [DATA.row(user).tolist() for user in range(len(DATA))]
    histories = sequences([row for row in rows if 2 not in row])  # the second of the two, which one model cannot read
    for model in (shared, alone):
        model.input.weight.data[model.codes.first[1] :] *= 4
    assert shared.beam_error(histories, 3) == alone.beam_error(histories, 3)
    assert shared.beam_error(histories, 3).missed > 0


@pytest.mark.parametrize(
    "config",
    [
        {"softmax": "all"},
        {"softmax": "items"},
        {"head": "mlp"},
        {"aggregate": "flatten", "item_distance": True, "level_distance": True},
        {"cross_level_distance": True, "aggregate": "flatten"},
        {"masked": 1.0, "weights": [1.0, 0.5, 0.25]},
        {"users": 7},
    ],
    ids=lambda config: "-".join(map(str, next(iter(config.items())))),
)
def test_options_of_parallel_tiger_are_trained(config):
    torch.manual_seed(0)
    ids = {"text": BOTH["text"]}
    model = build("parallel_tiger", {**TINY, "dropout": 0.0, **config}, n_items=ITEMS, max_length=WINDOW, ids=ids)
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(12))
    losses = train_until(model, batch, lambda loss: loss < 1, rate=1e-2, at_most=300)
    assert losses[0] > 1.5 and losses[-1] < 1
    model.eval()
    items, _ = model.recommend(DATA, 5)
    assert (items > 0).all()


def with_bias(**config) -> Recommender:
    """With ``level_distance``."""
    settings = {"dropout": 0.0, "aggregate": "flatten", "level_distance": True, "layers": 2, **config}
    return create("parallel_tiger", **settings)


def scores(model: Recommender) -> np.ndarray:
    whole = np.empty((len(SHORT), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(SHORT, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


@pytest.mark.parametrize("levels", [1, 3])
def test_the_bias_is_a_row_of_the_table_for_each_difference_in_level(levels):
    bias = LevelRelativeBias(levels, TINY["heads"], std=1.0)
    event = [-1, *np.repeat(np.arange(4), levels).tolist()]
    level = [None, *np.tile(np.arange(levels), 4).tolist()]
    values = bias(torch.tensor(event)).detach()
    assert values.shape == (TINY["heads"], len(event), len(event))
    for q in range(len(event)):
        for k in range(len(event)):
            coded = level[q] is not None and level[k] is not None
            expected = bias.table[level[k] - level[q] + levels - 1] if coded else torch.zeros(TINY["heads"])
            assert values[:, q, k].tolist() == expected.tolist()


@pytest.mark.parametrize("item_distance", [True, False])
@pytest.mark.parametrize("one_pass", [True, False])
def test_attention_adds_both_biases_where_it_may_look(item_distance, one_pass):
    model, levels, seen = with_bias(item_distance=item_distance, one_pass=one_pass), 3, []
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


@pytest.mark.parametrize("recency", [True, False])
def test_cross_attention_adds_the_bias_of_a_query_s_level_and_a_code_s(recency):
    """For every query of every target; the first token has none."""
    model, levels, calls = with_bias(cross_level_distance=True, recency=recency, users=3), 3, []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[3].bias))
    targets = torch.tensor([[6, 7, 8]])
    batch = model.on_device(sequences([[5, 6, 7]]), window=WINDOW).batch(np.zeros(1, int))
    model._decode(batch, model.codes.tokens[targets])
    table, distances = model.across.table, model.decoder.recency
    for place in range(3 * levels):
        target, level = divmod(place, levels)
        for k in range(1 + 3 * levels):
            item_k, level_k = divmod(k - 1, levels)
            expected = table[level_k - level + levels - 1] if k else torch.zeros(TINY["heads"])
            if recency:
                expected = expected + distances.table(distances.bucket(torch.tensor(item_k - target)))
            if item_k > target:
                expected = torch.full_like(expected, -torch.inf)
            for bias in calls:
                torch.testing.assert_close(bias[0, :, place, k], expected)


@pytest.mark.parametrize(("setting", "table"), [("level_distance", "between"), ("cross_level_distance", "across")])
def test_a_table_of_zeros_is_the_model_without(setting, table):
    model = with_bias(item_distance=True, **{"level_distance": False, setting: True})
    without = with_bias(item_distance=True, level_distance=False)
    without.load_state_dict({n: w for n, w in model.state_dict().items() if n != f"{table}.table"})
    assert np.abs(scores(model) - scores(without)).max() > 1e-3
    with torch.no_grad():
        getattr(model, table).table.zero_()
    np.testing.assert_array_equal(scores(model), scores(without))


@pytest.mark.parametrize("recency", [True, False])
def test_one_pass_trains_on_what_every_prefix_alone_would_give(recency):
    model = with_bias(item_distance=True, recency=recency, cross_level_distance=True)
    rows = [SHORT.row(u).tolist() for u in range(6)]
    whole = model.on_device(sequences(rows), window=WINDOW + 1)
    prefixes = [row[:end] for row in rows for end in range(2, len(row) + 1)]
    each = model.on_device(sequences(prefixes), window=WINDOW + 1)
    context = torch.tensor([len(row) - 1 for row in prefixes])
    single = replace(each.batch(np.arange(len(prefixes))), context=context)
    together = model.loss(whole.batch(np.arange(len(rows))), FullSoftmax())
    torch.testing.assert_close(model.loss(single, FullSoftmax()), together)
    together.backward()
    assert (model.between.table.grad != 0).all() and (model.across.table.grad != 0).all()


def test_the_future_does_not_reach_the_past():
    model, encoded = with_bias(item_distance=True), []
    model.encoder.register_forward_hook(lambda *args: encoded.append(args[2]))
    for last in (9, 4):
        data = model.on_device(sequences([[1, 2, 3, last, 7, last]]), window=WINDOW + 1)
        model.loss(data.batch(np.zeros(1, int)), FullSoftmax())
    one, other = encoded
    torch.testing.assert_close(one[:, : 1 + 3 * 3], other[:, : 1 + 3 * 3])
    assert (one[:, 1 + 3 * 3 :] - other[:, 1 + 3 * 3 :]).abs().max() > 1e-3


@pytest.mark.parametrize("setting", ["level_distance", "cross_level_distance"])
def test_sums_of_codes_have_no_levels(setting):
    with pytest.raises(ValueError, match=rf"\b{setting} is between codes; set aggregate: flatten"):
        with_bias(aggregate="sum", **{"level_distance": False, setting: True})


KINDS = {"text": without(BOTH["text"], [4, 9]), "image": without(BOTH["image"], [9, 12])}  # item 9 has no id


@pytest.mark.parametrize("aggregate", ["sum", "flatten"])
@pytest.mark.parametrize("softmax", ["level", "items", "all"])
def test_scores_of_several_kinds_are_the_mixture_of_the_probabilities_by_each(softmax, aggregate):
    """By loops over items, kinds and levels, from the hidden states of the queries."""
    weights = {"text": 0.3, "image": 0.7}
    settings = {"softmax": softmax, "aggregate": aggregate, "modality_weights": [3.0, 7.0]}
    model = create("parallel_tiger", KINDS, dropout=0.0, **settings)
    histories = sequences([[3, 4, 9], [12, 1], [5, 5, 2, 8]])
    hidden = model._decode(model.on_device(histories, window=WINDOW).batch(np.arange(3)), None)[0][:, 0]
    assert hidden.shape[1] == 6
    expected, first, levels = torch.zeros(3, ITEMS + 1), 1, 0
    for kind, ids in KINDS.items():
        logits = []
        for size in ids.sizes:
            h = hidden[:, levels] / TINY["dim"] ** 0.5
            logits.append(h @ model.input.weight[first : first + size].T)
            if softmax == "all":
                logits[-1] = logits[-1] - (h @ model.input.weight[1:25].T).logsumexp(1, keepdim=True)
            elif softmax == "level":
                logits[-1] = logits[-1].log_softmax(1)
            first, levels = first + size, levels + 1
        items = [item for item in range(1, ITEMS + 1) if ids.codes[item, 0] >= 0]
        p = torch.stack([sum(x[:, code] for x, code in zip(logits, ids.codes[i], strict=True)) for i in items], 1)
        expected[:, items] += weights[kind] * (p.softmax(1) if softmax == "items" else p.exp())
    for rows, values in model.score_batches(histories, exclude_seen=False):
        torch.testing.assert_close(values[:, 1:].exp(), expected[rows][:, 1:], rtol=1e-4, atol=1e-9)
        assert torch.isneginf(values[:, 9]).all() and torch.isfinite(values[:, [4, 12]]).all()
        if softmax == "items":
            torch.testing.assert_close(values.exp().sum(1), torch.ones(len(rows)))


def test_an_item_without_a_kind_of_id_is_a_target_of_the_other_and_has_tokens_of_its_own():
    """The loss is the mean over kinds of the cross-entropies that the lists of each kind say."""
    model = create("parallel_tiger", KINDS, softmax="items", dropout=0.0)
    batch = model.on_device(sequences([[3, 7, 4], [1, 2, 12], [6, 5]]), window=WINDOW + 1).batch(np.arange(3))
    single = replace(batch, context=torch.tensor([2, 2, 1]))
    histories = model.on_device(sequences([[3, 7], [1, 2], [6]]), window=WINDOW).batch(np.arange(3))
    log_probs, losses = model.log_probabilities(histories), []
    for m, ids in enumerate(KINDS.values()):
        rows = [(row, item) for row, item in enumerate([4, 12, 5]) if ids.codes[item, 0] >= 0]
        levels = log_probs[3 * m : 3 * m + 3]
        log_p = [sum(x[row, c] for x, c in zip(levels, ids.codes[item], strict=True)) for row, item in rows]
        assert len(log_p) == 2
        losses.append(-sum(log_p) / len(log_p))
    torch.testing.assert_close(model.loss(single, FullSoftmax()), sum(losses) / 2)
    tokens = model.tokens
    assert tokens[4, :3].tolist() == [25, 26, 27] and tokens[12, 3:].tolist() == [28, 29, 30]
    assert not set(tokens[1:, :3].flatten().tolist()) & set(tokens[1:, 3:].flatten().tolist())


@pytest.mark.parametrize(
    "config",
    [{"softmax": "items"}, {"softmax": "level", "masked": 0.5}, {"aggregate": "flatten", "item_distance": True}],
    ids=str,
)
def test_several_kinds_are_trained_and_listed(config):
    torch.manual_seed(0)
    settings = {**TINY, "dropout": 0.0, **config}
    model = build("parallel_tiger", settings, n_items=ITEMS, max_length=WINDOW, ids=KINDS)
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(12))
    losses = train_until(model, batch, lambda loss: loss < 1, rate=1e-2, at_most=300)
    assert losses[0] > 1.5 and losses[-1] < 1
    assert (model.queries.grad != 0).any(1).all()
    items, _ = model.eval().recommend(DATA, 5)
    assert (items > 0).all() and not (items == 9).any()


def test_the_weight_of_two_kinds_is_chosen_by_validation_unless_it_is_set():
    model = create("parallel_tiger", KINDS)
    assert model.modality_weights.tolist() == [0.5, 0.5]
    assert model.tune(lambda: float(model.modality_weights[0] == 0.75)) == {"text": 0.75}
    assert model.modality_weights.tolist() == [0.75, 0.25]
    one, first = create("parallel_tiger", KINDS, modality_weights=[1.0, 0.0]), None
    assert one.tune(lambda: 1.0) == {} and create("parallel_tiger").tune(lambda: 1.0) == {}
    for _, values in one.score_batches(DATA, exclude_seen=False):
        first = values if first is None else first
    assert torch.isneginf(first[:, 4]).all() and torch.isfinite(first[:, 12]).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"search": "beam"}, "the model reads text, image: set search: exact"),
        ({"aggregate": "flatten", "level_distance": True}, "level_distance is between levels of one kind of ids"),
        ({"aggregate": "flatten", "cross_level_distance": True}, "cross_level_distance is between levels of one kind"),
        ({"modality_weights": [1.0]}, "the model reads text, image"),
        ({"modality_weights": [0.0, 0.0]}, "each is at least 0, and one is above"),
        ({"modality_weights": [-1.0, 2.0]}, "each is at least 0, and one is above"),
    ],
)
def test_settings_that_several_kinds_cannot_have_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        create("parallel_tiger", KINDS, **config)


def test_several_kinds_have_no_beam_to_measure():
    with pytest.raises(ValueError, match="over ids of one kind; the model reads text, image"):
        create("parallel_tiger", KINDS).beam_error(DATA, 3)


def test_a_model_of_several_kinds_is_loaded_with_its_codes_and_weights():
    model = create("parallel_tiger", KINDS, softmax="items", modality_weights=[3.0, 7.0])
    empty = {name: CatalogueIds.empty(codes.description(), ITEMS) for name, codes in model.item_codes().items()}
    other = create("parallel_tiger", empty, softmax="items")
    other.load_tensors(model.state_dict())
    for one, two in zip(model.recommend(DATA, 5), other.recommend(DATA, 5), strict=True):
        np.testing.assert_array_equal(one, two)
