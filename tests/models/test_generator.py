"""Models that generate semantic ids: losses, lists, candidates, cold users and samples."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.generative import BOTH, BY_BEAM, DATA, GENERATIVE, ITEMS, WINDOW, create, without
from tests.synthetic import sequences

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.batch_samplers import length_buckets
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.code_tokens import targets_of
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.generator import BEAMS_GPU, EVENTS_CPU, EVENTS_GPU, Generator, search_buckets
from recpipe.semantic_ids import prefix_tree
from recpipe.training.losses.full_softmax import FullSoftmax


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
        monkeypatch.setattr(prefix_tree, "MASK_SIZE", 0)
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
    model = create(name, dropout=0.0, one_pass=one_pass, recency=one_pass, ids=BOTH if name == "mql4grec" else None)
    outputs = []
    encoder = model.encoder if name in ("parallel_tiger", "maskgr") else model.transformer.encoder
    handle = encoder.register_forward_hook(lambda *args: outputs.append(args[2]))
    losses = []
    for last in (4, 9):
        batch = model.on_device(sequences([[1, 2, 3, last], [7, last]]), window=WINDOW + 1).batch(np.arange(2))
        _, targets, real = targets_of(batch, torch.ones(ITEMS + 1, dtype=torch.bool), one_pass=one_pass)
        losses.append(targets[real].tolist())
        model.loss(batch, FullSoftmax())
    handle.remove()
    half = len(outputs) // 2
    pairs = zip(outputs[:half], outputs[half:], strict=True)
    histories = [pair for pair in pairs if len(pair[0]) == 2]  # the others are single items that are aligned
    assert len(histories) == (2 if name == "mql4grec" else 1) and losses[0] != losses[1]
    places = 1 + (1 if name == "parallel_tiger" else model.codes.levels)  # of the shorter row: all before its target
    for one, other in histories:
        torch.testing.assert_close(one[1, :places], other[1, :places])


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


@pytest.mark.parametrize("name", (*BY_BEAM, "maskgr"))
def test_probabilities_of_the_whole_catalogue_are_at_most_one(name):
    model = create(name, BOTH if name == "mql4grec" else None, beam=ITEMS)
    _, scores = model.recommend(DATA, ITEMS, exclude_seen=False)
    total = np.exp(scores.astype(np.float64)).sum(1)
    assert (total < 1).all() and (total > 0).all()  # the rest is ids of no item


@pytest.mark.parametrize("name", GENERATIVE)
def test_items_without_an_id_are_read_and_never_recommended(name):
    missing = {mod: without(ids, [2, 3]) for mod, ids in BOTH.items()}
    ids = missing if name == "mql4grec" else {"text": missing["text"]}
    model = create(name, ids, beam=ITEMS)
    items, scores = model.recommend(sequences([[2, 3, 2], [1, 4], [2]]), 10)
    assert not np.isin(items, [2, 3]).any() and np.isfinite(scores).all()
    batch = model.on_device(sequences([[1, 2, 3, 2], [3, 2]]), window=WINDOW + 1).batch(np.arange(2))
    assert torch.isfinite(model.loss(batch, FullSoftmax()))


@pytest.mark.parametrize("at_once", [1 << 25, ITEMS + 1])
def test_cold_users_get_the_list_of_their_fallback(at_once, monkeypatch):
    monkeypatch.setattr("recpipe.models.recommender.SCORES_AT_ONCE", at_once)
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


def test_a_sample_has_no_item_twice_and_changes_with_the_seed():
    model = create("tiger", beam=10)
    assert isinstance(model, Generator)
    lists = []
    for seed in (0, 1, 0):
        drawn = torch.Generator().manual_seed(seed)
        ((users, items, _),) = model.top_k_batches(Sequences.last(DATA, WINDOW), 8, stochastic=drawn)
        assert all(len(set(row)) == 8 for row in items.tolist())
        lists.append(items[np.argsort(users)].tolist())
    assert lists[0] == lists[2] != lists[1]
    by_settings = create("tiger", beam=10, stochastic=True, sample_seed=1)
    assert by_settings.recommend(Sequences.last(DATA, WINDOW), 8)[0].tolist() == lists[1]


@pytest.mark.parametrize("name", ("tiger", "mql4grec", "parallel_tiger"))
def test_temperatures_and_samples_are_settings_of_a_search(name):
    options = {"search": "beam"} if name == "parallel_tiger" else {}
    cold, warm = create(name, beam=12, **options), create(name, beam=12, **options)
    levels = next(iter(cold.item_codes().values())).levels
    config = replace(cold.config, temperatures=(1.0,) * levels)
    cold.config, before = config, warm.recommend(DATA, 6)
    np.testing.assert_array_equal(cold.recommend(DATA, 6)[0], before[0])
    cold.config = replace(config, temperatures=(0.2,) * levels)
    assert not np.allclose(cold.recommend(DATA, 6)[1], before[1])
    cold.config = replace(config, stochastic=True)
    sample = cold.recommend(DATA, 6)[0]
    assert (sample != before[0]).any() and (sample == cold.recommend(DATA, 6)[0]).all()
    cold.config = replace(config, temperatures=(1.0,) * (levels + 1))
    with pytest.raises(ValueError, match=f"set {levels} of them"):
        cold.recommend(DATA, 6)


def test_an_exact_search_refuses_settings_of_a_beam_search():
    with pytest.raises(ValueError, match="search is exact.*set search: beam"):
        create("parallel_tiger", stochastic=True)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("name", GENERATIVE)
def test_targets_that_a_beam_missed_are_told_from_those_outside_the_candidates(name, exclude_seen):
    """A candidate has an id and is not in the history; the beam misses it where it is in no list."""
    options = {"search": "beam"} if name == "parallel_tiger" else {}
    model = create(name, {"text": without(BOTH["text"], [1, 2])}, beam=4, **options)
    targets = sequences([[1 + (7 * u) % ITEMS, 1 + (3 * u + 1) % ITEMS] for u in range(len(DATA))])
    ranking = rank_fold(model, Fold(DATA, targets), exclude_seen=exclude_seen, k=4)
    vocabulary = Vocabulary(np.array([f"i{i}" for i in range(ITEMS)], dtype=object))
    values = metrics_from_ranks(ranking.table(Fold(DATA, targets), vocabulary), cutoffs=[4])
    outside = missed = 0
    for user, (target, rank) in zip(ranking.user, zip(targets.items, ranking.rank, strict=True), strict=True):
        is_candidate = target > 2 and not (exclude_seen and target in DATA.row(user))
        outside += not is_candidate
        missed += is_candidate and rank == 0
    assert missed > 0 and outside > 0
    assert (values["outside_candidates"], values["missed_by_beam"]) == (outside, missed)
    assert values["unrankable"] == outside + missed


@pytest.mark.parametrize("chunk", [5, 1 << 22])
def test_the_number_of_candidates_is_that_of_items_with_ids_outside_the_history(monkeypatch, chunk):
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", chunk)
    model = create("tiger", {"text": without(BOTH["text"], [3, 4])})
    free = set(range(1, ITEMS + 1)) - {3, 4}
    expected = [len(free - set(DATA.row(u).tolist())) for u in range(len(DATA))]
    assert model.allowed_count(DATA, exclude_seen=True).tolist() == expected
    assert model.allowed_count(DATA, exclude_seen=False).tolist() == [len(free)] * len(DATA)
