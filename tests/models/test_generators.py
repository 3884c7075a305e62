"""TIGER, Parallel TIGER and MQL4GRec, and what they share: against scores of single items, and bad input."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences, sequences, train_until

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.code_tokens import (
    ItemCodes,
    attended_by_target,
    causal,
    targets_of,
    user_tokens,
    within_target,
)
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.generator import BEAMS_GPU, EVENTS_CPU, EVENTS_GPU, Generator, search_buckets
from recpipe.models.recommender import Recommender, Scorer
from recpipe.models.registry import build
from recpipe.semantic_ids import tree_tensors
from recpipe.semantic_ids.ids import CatalogueIds, SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS, WINDOW = 25, 6
DATA = random_sequences(40, ITEMS, longest=12, seed=3)
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
BOTH = {"text": catalogue_ids(ITEMS), "image": catalogue_ids(ITEMS, seed=1)}
GENERATIVE = ("tiger", "mql4grec", "parallel_tiger")
BY_BEAM = ("tiger", "mql4grec")


def create(
    name: str, ids: dict[str, CatalogueIds] | None = None, *, accelerate=True, **config
) -> Recommender:
    torch.manual_seed(0)
    ids = {"text": BOTH["text"]} if ids is None else ids
    settings = {**TINY, **config}
    model = build(name, settings, n_items=ITEMS, max_length=WINDOW, ids=ids, accelerate=accelerate)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def without(ids: CatalogueIds, items: list[int]) -> CatalogueIds:
    codes = ids.codes.copy()
    codes[items] = -1
    return replace(ids, codes=codes)


@torch.inference_mode()
def tiger_scores(model, history: list[int]) -> np.ndarray:
    """(I,) log-probabilities, each item alone, by the teacher-forced pass that trains."""
    data = sequences([history])
    batch = model.on_device(data, window=WINDOW).batch(np.zeros(1, int))
    transformer, tokens = model.transformer, model.codes.tokens
    scores = []
    for item in range(1, ITEMS + 1):
        target = tokens[item][None, None]
        hidden = transformer.decode(transformer.encode(batch, tokens), target, by_target=False)[0, 0]
        logs = (hidden @ transformer.input.head[1:].T).log_softmax(-1)
        scores.append(float(logs.gather(1, target[0, 0][:, None] - 1).sum()))
    return np.array(scores)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("recency", [True, False])
def test_tigers_list_is_that_of_every_item_scored_alone(one_pass, recency):
    model = create("tiger", beam=ITEMS, one_pass=one_pass, recency=recency)
    for history in ([3, 7, 9], [1], [5, 5, 2, 8, 11, 4]):
        expected = tiger_scores(model, history)
        items, scores = model.recommend(sequences([history]), 8, exclude_seen=True)
        allowed = [item for item in range(1, ITEMS + 1) if item not in history]
        best = sorted(allowed, key=lambda item: -expected[item - 1])[:8]
        assert items[0].tolist() == best
        np.testing.assert_allclose(scores[0], expected[np.array(best) - 1], atol=1e-4)


@pytest.mark.parametrize("name", BY_BEAM)
def test_fast_versions_and_a_cache_until_weights_change_give_the_same_lists(name):
    """``accelerate`` on and off; the fast one again after a change that leaves no trace, and in a copy."""
    model, clear = create(name, beam=ITEMS), create(name, beam=ITEMS, accelerate=False)
    assert model.state_dict().keys() == clear.state_dict().keys()
    cache, histories = model.transformer.accelerator.cache, sequences([[3, 7, 9], [1, 4]])
    before = None
    for _ in range(2):
        items, scores = model.recommend(histories, 8)
        np.testing.assert_array_equal(items, clear.recommend(histories, 8)[0])
        np.testing.assert_allclose(scores, clear.recommend(histories, 8)[1], rtol=1e-5, atol=1e-5)
        entry = cache.entry
        np.testing.assert_array_equal(model.recommend(histories, 8), (items, scores))
        assert cache.entry is entry and entry is not before
        np.testing.assert_array_equal(copy.deepcopy(model).recommend(histories, 8), (items, scores))
        before = entry
        for each in (model, clear):
            each.transformer.decoder.layers[0].feed.up.weight.data *= -1
    assert clear.transformer.accelerator is None and clear.transformer.cache is None


@pytest.mark.parametrize(("recency", "tables"), [(True, True), (False, True), (False, False)])
def test_the_loss_among_children_is_that_of_the_lists_scores(recency, tables, monkeypatch):
    """What a search that renormalises says of an item is what training asks for; it sums to 1 over the catalogue."""
    if not tables:  # as for a catalogue whose tables would be too large
        monkeypatch.setattr(tree_tensors, "MASK_SIZE", 0)
    model = create("tiger", softmax="children", renormalise=True, beam=ITEMS, dropout=0.0, recency=recency)
    histories = [[3, 7, 9], [1, 4]]
    items, scores = model.recommend(sequences(histories), ITEMS, exclude_seen=False)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)
    for history, row, values in zip(histories, items, scores, strict=True):
        for item, value in list(zip(row, values, strict=True))[::5]:
            data = model.on_device(sequences([[*history, item]]), window=WINDOW + 1)
            batch = replace(data.batch(np.zeros(1, int)), context=torch.tensor([len(history)]))
            loss = model.loss(batch, FullSoftmax())
            assert loss.item() * model.codes.levels == pytest.approx(-value, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [("tiger", {"softmax": "children", "renormalise": True}), ("parallel_tiger", {"softmax": "items"})],
)
def test_a_loss_among_trained_items_is_a_distribution_over_these(name, config):
    """Asked for one item after another it sums to 1 over them; among all items it does so over the catalogue."""
    model = create(name, dropout=0.0, **config)
    trained = torch.arange(ITEMS + 1) % 3 == 1
    data = model.on_device(sequences([[4, 7, 10, item] for item in range(1, ITEMS + 1)]), window=WINDOW + 1)
    rows = [replace(data.batch(np.array([item])), context=torch.tensor([3])) for item in range(ITEMS)]
    times = model.codes.levels if name == "tiger" else 1

    def probabilities(criterion: FullSoftmax, among: torch.Tensor) -> torch.Tensor:
        losses = [model.loss(rows[item - 1], criterion) for item in among.nonzero()[:, 0].tolist()]
        return torch.exp(-times * torch.stack(losses))

    everything = torch.arange(ITEMS + 1) > 0
    some = probabilities(FullSoftmax(items="trained", trained_items=trained), trained)
    every = probabilities(FullSoftmax(), everything)
    torch.testing.assert_close(some.sum(), torch.tensor(1.0))
    torch.testing.assert_close(every.sum(), torch.tensor(1.0))
    assert (some > every[trained[1:]]).all()
    if name == "parallel_tiger":  # whose scores are of whole items, so that the rest is as it was
        torch.testing.assert_close(some, every[trained[1:]] / every[trained[1:]].sum())


def test_what_both_modalities_teach_is_all_learned_among_children():
    """Next items, fused tasks and alignment: fewer logits than over all tokens, so a lower loss."""
    losses = {}
    for among in ("all", "children"):
        config = {"softmax": among, "renormalise": among == "children", "dropout": 0.0}
        model = create("mql4grec", ids=BOTH, **config)
        batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(len(DATA)))
        losses[among] = model.loss(batch, FullSoftmax())
        losses[among].backward()
        assert all(each.grad is not None for each in model.transformer.parameters())
    assert 0 < losses["children"] < losses["all"]


def test_a_loss_among_children_needs_a_search_among_them():
    with pytest.raises(ValueError, match="set renormalise: true"):
        create("tiger", softmax="children")
    with pytest.raises(ValueError, match="softmax is 'level'; allowed: all, children"):
        create("tiger", softmax="level")


@pytest.mark.parametrize(
    ("name", "among"),
    [
        ("tiger", "all"),
        ("tiger", "children"),
        ("mql4grec", "all"),
        ("mql4grec", "children"),
        ("parallel_tiger", "level"),
        ("parallel_tiger", "items"),
    ],
)
@pytest.mark.parametrize("recency", [True, False])
def test_one_pass_trains_on_what_every_prefix_alone_would_give(name, among, recency):
    """Causal encoders see the same in one pass as in rows of one target each: equal losses."""
    model = create(
        name,
        dropout=0.0,
        recency=recency,
        ids=BOTH if name == "mql4grec" else None,
        softmax=among,
        renormalise=among == "children",
        **({"alignment": 0.0} if name == "mql4grec" else {}),
    )
    rows = [DATA.row(u).tolist()[:WINDOW] for u in range(6)]
    whole = model.on_device(sequences(rows), window=WINDOW + 1)
    prefixes = [row[:end] for row in rows for end in range(2, len(row) + 1)]
    each = model.on_device(sequences(prefixes), window=WINDOW + 1)
    context = np.array([len(row) - 1 for row in prefixes])
    single = replace(each.batch(np.arange(len(prefixes))), context=torch.from_numpy(context))
    together = model.loss(whole.batch(np.arange(len(rows))), FullSoftmax())
    torch.testing.assert_close(model.loss(single, FullSoftmax()), together)


@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize("one_pass", [True, False])
def test_no_target_reaches_what_predicts_it(name, one_pass):
    model = create(
        name, dropout=0.0, one_pass=one_pass, recency=one_pass, ids=BOTH if name == "mql4grec" else None
    )
    outputs = []
    encoder = model.encoder if name == "parallel_tiger" else model.transformer.encoder
    handle = encoder.register_forward_hook(lambda *args: outputs.append(args[2]))
    losses = []
    for last in (4, 9):
        batch = model.on_device(sequences([[1, 2, 3, last], [7, last]]), window=WINDOW + 1).batch(
            np.arange(2)
        )
        _, targets, real = targets_of(batch, torch.ones(ITEMS + 1, dtype=torch.bool), one_pass=one_pass)
        losses.append(targets[real].tolist())
        model.loss(batch, FullSoftmax())
    handle.remove()
    half = len(outputs) // 2
    pairs = zip(outputs[:half], outputs[half:], strict=True)
    histories = [pair for pair in pairs if len(pair[0]) == 2]  # the others are single items that are aligned
    assert len(histories) == (2 if name == "mql4grec" else 1) and losses[0] != losses[1]
    places = 1 + (
        1 if name == "parallel_tiger" else model.codes.levels
    )  # of the shorter row: all before its target
    for one, other in histories:
        torch.testing.assert_close(one[1, :places], other[1, :places])


def test_the_shorter_of_two_rows_has_its_own_last_event_as_target():
    batch = Batch(torch.tensor([[1, 2, 3, 4], [7, 9, 0, 0], [5, 0, 0, 0]]), torch.tensor([4, 2, 1]), None)
    has_id = torch.arange(ITEMS + 1) > 0
    inputs, targets, real = targets_of(batch, has_id, one_pass=False)
    assert targets.tolist() == [[4], [9], [0]] and real.tolist() == [[True], [True], [False]]
    assert inputs.lengths[:2].tolist() == [3, 1]
    _, targets, real = targets_of(batch, has_id, one_pass=True)
    assert targets.tolist() == [[2, 3, 4], [9, 0, 0], [0, 0, 0]] and (real == (targets > 0)).all()


def test_masks_say_what_sees_what():
    event = torch.tensor([-1, 0, 0, 1, 1])
    assert causal(event).int().tolist() == [[1, 0, 0, 0, 0], *[[1, 1, 1, 0, 0]] * 2, *[[1, 1, 1, 1, 1]] * 2]
    assert attended_by_target(event, 2, 2).int().tolist() == [*[[1, 1, 1, 0, 0]] * 2, *[[1, 1, 1, 1, 1]] * 2]
    assert within_target(2, 2, event.device).int().tolist() == [*[[1, 1, 0, 0]] * 2, *[[0, 0, 1, 1]] * 2]


@pytest.mark.parametrize("name", BY_BEAM)
@pytest.mark.parametrize("rule", ["mixture", "reciprocal", "paper"])
def test_ranks_come_from_the_lists(name, rule):
    ids = BOTH if name == "mql4grec" else None
    model = create(name, ids, beam=12, **({"ensemble": rule} if ids else {}))
    cut = DATA.lengths - 1
    rows, none = np.arange(len(DATA)), np.zeros(len(DATA), np.int64)
    fold = Fold(DATA.select(rows, none, cut), DATA.select(rows, cut, DATA.lengths))
    ranking = rank_fold(model, fold, exclude_seen=True, k=5)
    items, _ = model.recommend(fold.histories, 12, exclude_seen=True)
    for u in range(len(DATA)):
        target, ranked = int(fold.targets.row(u)[0]), items[u].tolist()
        assert ranking.rank[u] == (ranked.index(target) + 1 if target in ranked else 0)
        assert ranking.candidates[u] == ITEMS - len(set(fold.histories.row(u).tolist()))
        assert len(set(ranked) - {0}) == sum(item > 0 for item in ranked)
    assert ranking.items.shape == (len(DATA), 5)
    assert (ranking.log_normalizer is None) == (name == "mql4grec" and rule != "mixture")
    assert 0 < (ranking.rank > 0).sum() < len(DATA)


@pytest.mark.parametrize("name", BY_BEAM)
def test_probabilities_of_the_whole_catalogue_are_at_most_one(name):
    model = create(name, BOTH if name == "mql4grec" else None, beam=ITEMS)
    _, scores = model.recommend(DATA, ITEMS, exclude_seen=False)
    total = np.exp(scores.astype(np.float64)).sum(1)
    assert (total < 1).all() and (total > 0).all()  # the rest is ids of no item


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
            h = (
                model.mlp[level](hidden[:, level]).relu()
                if head == "mlp"
                else hidden[:, level] / TINY["dim"] ** 0.5
            )
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
    (_, full), (_, few) = (
        next(iter(model.score_batches(DATA, exclude_seen=False))) for model in (wide, narrow)
    )
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
            patch.setattr("recpipe.models.parallel_tiger.MIN_BRANCH_AND_BOUND", 3)
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
    histories = sequences(
        [row for row in rows if 2 not in row]
    )  # the second of the two, which one model cannot read
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
        {"masked": 1.0, "weights": [1.0, 0.5, 0.25]},
        {"users": 7},
    ],
    ids=lambda config: "-".join(map(str, next(iter(config.items())))),
)
def test_options_of_parallel_tiger_are_trained(config):
    torch.manual_seed(0)
    ids = {"text": BOTH["text"]}
    model = build(
        "parallel_tiger", {**TINY, "dropout": 0.0, **config}, n_items=ITEMS, max_length=WINDOW, ids=ids
    )
    batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(12))
    losses = train_until(model, batch, lambda loss: loss < 1, rate=1e-2, at_most=300)
    assert losses[0] > 1.5 and losses[-1] < 1
    model.eval()
    items, _ = model.recommend(DATA, 5)
    assert (items > 0).all()


@pytest.mark.parametrize("name", GENERATIVE)
def test_items_without_an_id_are_read_and_never_recommended(name):
    missing = {mod: without(ids, [2, 3]) for mod, ids in BOTH.items()}
    ids = missing if name == "mql4grec" else {"text": missing["text"]}
    model = create(name, ids, beam=ITEMS)
    items, scores = model.recommend(sequences([[2, 3, 2], [1, 4], [2]]), 10)
    assert not np.isin(items, [2, 3]).any() and np.isfinite(scores).all()
    batch = model.on_device(sequences([[1, 2, 3, 2], [3, 2]]), window=WINDOW + 1).batch(np.arange(2))
    assert torch.isfinite(model.loss(batch, FullSoftmax()))


def test_an_item_with_a_text_id_alone_is_recommended_by_text():
    ids = {"text": BOTH["text"], "image": without(BOTH["image"], [4])}
    model = create("mql4grec", ids, beam=ITEMS)
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[4] = True
    items, scores = model.recommend(DATA, 3, candidates=candidates, exclude_seen=False)
    assert (items[:, 0] == 4).all() and (items[:, 1:] == 0).all() and np.isneginf(scores[:, 1:]).all()


def test_the_weight_of_modalities_is_chosen_by_validation():
    model = create("mql4grec", BOTH, beam=5)
    assert model.tune(lambda: float(model.weights[0] == 0.75)) == {"text": 0.75}
    assert model.weights.tolist() == [0.75, 0.25]


def test_users_are_hashed_alike_everywhere():
    assert user_tokens(np.array(["u1", "u2"], object), 2000)[:, 0].tolist() == [
        int.from_bytes(hashlib.md5(user).digest()[:8], "big") % 2000 for user in (b"u1", b"u2")
    ]
    model = create("tiger", users=50)
    one, other = (replace(sequences([[1, 2]]), users=np.array([user], object)) for user in ("a", "b"))
    assert model.recommend(one, 3)[1].tolist() != model.recommend(other, 3)[1].tolist()


@pytest.mark.parametrize("at_once", [1 << 25, ITEMS + 1])
def test_cold_users_get_the_list_of_their_fallback(at_once, monkeypatch):
    monkeypatch.setattr("recpipe.models.generator.SCORES_AT_ONCE", at_once)
    model = create("tiger", beam=10)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(DATA, seed=0)
    both, _ = model.recommend(sequences([[], [], []]), 5)
    assert (both == both[0]).all()
    items, scores = model.recommend(sequences([[], [1, 2]]), 5)
    counts = np.bincount(DATA.items, minlength=ITEMS + 1)
    assert counts[items[0]].tolist() == sorted(counts[1:], reverse=True)[:5]
    assert items[1].tolist() == create("tiger", beam=10).recommend(sequences([[1, 2]]), 5)[0][0].tolist()
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("beams", [1, 20, 10**6])
def test_batches_of_a_gpu_are_larger_and_hold_no_more_beams_than_it_has_room_for(beams):
    generator = np.random.default_rng(0)
    lengths, rows = generator.integers(0, 40, 30_000), generator.permutation(30_000)[:20_000]
    sizes = {}
    for name, events in (("cpu", EVENTS_CPU), ("cuda", EVENTS_GPU)):
        batches = search_buckets(lengths, rows, torch.device(name), beams=beams)
        assert np.sort(np.concatenate(batches)).tolist() == np.sort(rows).tolist()
        assert all(len(each) and len(each) * (1 + lengths[each].max()) <= events for each in batches)
        sizes[name] = np.array([len(each) for each in batches])
    assert sizes["cuda"].max() <= max(BEAMS_GPU // beams, 1)
    if beams <= 20:
        assert np.median(sizes["cuda"]) > 4 * np.median(sizes["cpu"])
    assert sizes["cpu"].tolist() == [len(each) for each in length_buckets(lengths + 1, rows, 1 << 12)]


def test_more_than_the_beam_is_refused_and_candidates_leave_fewer():
    model = create("tiger", beam=6)
    with pytest.raises(ValueError, match=r"k is 7 and the beam 6; set .*beam to 7"):
        model.recommend(DATA, 7)
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[[2, 9]] = True
    items, scores = model.recommend(sequences([[2], [5]]), 4, candidates=candidates)
    assert items[0].tolist() == [9, 0, 0, 0] and np.isneginf(scores[0, 1:]).all()
    assert set(items[1].tolist()) == {2, 9, 0}


def test_ids_that_collide_are_refused_where_they_must_differ():
    codes = BOTH["text"].codes.copy()
    codes[5] = codes[4]
    shared = {"text": replace(BOTH["text"], codes=codes)}
    with pytest.raises(ValueError, match="share their codes"):
        create("tiger", shared).recommend(DATA, 3)
    items, _ = create("parallel_tiger", shared).recommend(DATA, ITEMS, exclude_seen=False)
    assert (np.sort(items, 1) == np.arange(1, ITEMS + 1)).all()


def test_ids_and_tree_of_different_origin_are_refused():
    items = np.array([f"i{i}" for i in range(ITEMS)], object)
    codes = BOTH["text"].codes[1:].astype(np.int32)
    ids = SemanticIds(items, codes, codes, np.zeros(ITEMS, bool), (4, 4, 4), {"quantizer": "q"})
    tree = PrefixTree.build(codes, (4, 4, 4), source=ids.hash)
    catalogue = CatalogueIds.of(ids, items[::-1].copy(), tree)
    assert (catalogue.codes[1:] == codes[::-1]).all() and catalogue.quantizer == "q"
    with pytest.raises(ValueError, match="the prefix tree was built from the ids"):
        CatalogueIds.of(ids, items, PrefixTree.build(codes, (4, 4, 4), source="other"))
    with pytest.raises(ValueError, match="none of 2 items has a semantic id"):
        CatalogueIds.of(ids, np.array(["x", "y"], object), tree)


def test_codes_that_are_not_those_saved_are_refused():
    codes = ItemCodes(BOTH["text"])
    digest = codes.description()["digest"]
    codes.check(digest)
    codes.codes[3, 0] = (codes.codes[3, 0] + 1) % 4
    with pytest.raises(ValueError, match="do not belong together"):
        codes.check(digest)


def test_tokens_of_modalities_do_not_meet():
    model = create("mql4grec", {"text": BOTH["text"], "image": without(BOTH["image"], [6])})
    text, image = (set(model.tokens(m)[1:].flatten().tolist()) for m in range(2))
    assert not text & image
    assert max(text) <= 12 and image <= {*range(13, 25), *range(28, 31)}
    assert model.tokens(1)[6].tolist() == [28, 29, 30]  # unknown, behind all codes and the unknown of text


def test_a_sample_has_no_item_twice_and_changes_with_the_seed():
    model = create("tiger", beam=10)
    assert isinstance(model, Generator)
    lists = []
    for seed in (0, 1, 0):
        drawn = torch.Generator().manual_seed(seed)
        ((_, items, _),) = model.top_k_batches(Sequences.last(DATA, WINDOW), 8, stochastic=drawn)
        assert all(len(set(row)) == 8 for row in items.tolist())
        lists.append(items.tolist())
    assert lists[0] == lists[2] != lists[1]
