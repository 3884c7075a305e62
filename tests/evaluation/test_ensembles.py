"""Ensembles against scipy and brute force, with ties and lists; weights chosen on validation only; errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from tests.evaluation import test_ranking
from tests.evaluation.test_evaluate import bundle
from tests.evaluation.test_ranking import ITEMS, fold
from tests.synthetic import random_sequences, sequences, untrained

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.evaluation.ensemble_weights import choose_weights, weight_grid
from recpipe.evaluation.ensembles import Ensemble, ensemble_bundle
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.top_k import tie_order
from recpipe.models.recommender import Recommender
from recpipe.reporting.runs import read_runs

PROTOCOL = Protocol(dataset="x")


class Table(test_ranking.Table):
    """Also asked about users without history, for whom it reads the row of padding."""

    def score(self, batch):
        return super().score(batch if batch.items.shape[1] else batch.pad(1))


def table(seed, levels=4):
    """A model whose scores have only few values, so that most items are tied."""
    scores = torch.randint(0, levels, (ITEMS + 1, ITEMS + 1), generator=torch.Generator().manual_seed(seed))
    return Table(scores.float())


class Listing(Recommender):
    """Gives the best few items of a table, and no score of any other."""

    def __init__(self, table, length):
        super().__init__(self.Config(), n_items=ITEMS, max_length=5)
        self.table, self.length = table, length

    def top_k_batches(self, histories, k, *, exclude_seen=True, candidates=None, excluded=None):
        yield np.arange(len(histories)), *self.recommend(histories, k, exclude_seen=exclude_seen)

    def recommend(self, histories, k, *, exclude_seen=True, candidates=None, excluded=None):
        return self.table.recommend(histories, self.length, exclude_seen=exclude_seen)


def scores_of(model, histories, exclude_seen=True):
    result = np.full((len(histories), ITEMS + 1), -np.inf)
    for rows, scores in model.score_batches(histories, exclude_seen=exclude_seen):
        result[rows] = scores.numpy()
    return result


def fused(members, method, weights, data, constant=60.0):
    return scores_of(Ensemble(members, Ensemble.Config(method, weights, constant)), data.histories)


def places(row):
    """Brute force: rank of every item that may be recommended, equal scores in the fixed order."""
    order = tie_order(ITEMS + 1).numpy()
    ranked = sorted(np.flatnonzero(row > -np.inf), key=lambda i: (-row[i], order[i]))
    return {int(item): place for place, item in enumerate(ranked, 1)}


def test_reciprocal_ranks_by_brute_force():
    data, members = fold(1), [table(1), table(2), table(3)]
    got = fused(members, "rrf", (0.5, 0.3, 0.2), data, constant=7.0)
    singles = [scores_of(member, data.histories) for member in members]
    for user in range(len(data)):
        each = [places(single[user]) for single in singles]
        for item in range(1, ITEMS + 1):
            if item in data.histories.row(user):
                assert got[user, item] == -np.inf
            else:
                expected = sum(w / (7 + place[item]) for w, place in zip((0.5, 0.3, 0.2), each, strict=True))
                assert got[user, item] == pytest.approx(expected, abs=1e-7)


def test_z_scores_and_probabilities_are_those_of_scipy():
    data, members = fold(1), [table(1, 9), table(2, 9)]
    singles = [scores_of(member, data.histories) for member in members]
    by_z, by_chance = (fused(members, method, (0.25, 0.75), data) for method in ("zscore", "softmax"))
    for user in range(len(data)):
        allowed = singles[0][user] > -np.inf
        z = [stats.zscore(single[user][allowed]) for single in singles]
        np.testing.assert_allclose(by_z[user][allowed], 0.25 * z[0] + 0.75 * z[1], atol=1e-5)
        chance = [special.softmax(single[user][allowed]) for single in singles]
        np.testing.assert_allclose(np.exp(by_chance[user][allowed]), 0.25 * chance[0] + 0.75 * chance[1], atol=1e-6)
        assert np.exp(by_chance[user]).sum() == pytest.approx(1, abs=1e-5)
        assert (by_z[user][~allowed] == -np.inf).all()


def test_a_member_with_constant_scores_has_no_influence():
    data, flat = fold(1), Table(torch.ones(ITEMS + 1, ITEMS + 1))
    for method in ("zscore", "softmax"):
        both = rank_fold(
            Ensemble([table(1, 9), flat], Ensemble.Config(method, (0.5, 0.5))), data, exclude_seen=True, k=3
        )
        single = rank_fold(table(1, 9), data, exclude_seen=True, k=3)
        assert (both.rank == single.rank).all()


@pytest.mark.parametrize("method", ["rrf", "zscore", "softmax"])
def test_all_weight_on_one_member_is_that_member(method):
    data, members = fold(3), [table(1), table(2)]
    got = rank_fold(Ensemble(members, Ensemble.Config(method, (0.0, 1.0))), data, exclude_seen=True, k=6)
    single = rank_fold(members[1], data, exclude_seen=True, k=6)
    assert (got.rank == single.rank).all() and (got.items == single.items).all()
    assert (got.candidates == single.candidates).all()


def test_lists_are_fused_with_scores_and_with_lists():
    data, scorer, lister = fold(1), table(1), Listing(table(2), 4)
    got = fused([scorer, lister], "rrf", (0.5, 0.5), data)
    only_lists = fused([lister, Listing(table(3), 2)], "rrf", (0.5, 0.5), data)
    full = scores_of(scorer, data.histories)
    lists, shorter = (table(n).recommend(data.histories, k)[0] for n, k in ((2, 4), (3, 2)))
    for user in range(len(data)):
        place = places(full[user])
        in_list = {int(item): at for at, item in enumerate(lists[user], 1) if item}
        for item, at in place.items():
            expected = 0.5 / (60 + at) + (0.5 / (60 + in_list[item]) if item in in_list else 0)
            assert got[user, item] == pytest.approx(expected, abs=1e-8)
        assert set(np.flatnonzero(only_lists[user] > -np.inf)) == {*in_list, *map(int, shorter[user])} - {0}
    with pytest.raises(ValueError, match="Listing gives lists.*use ensemble.method=rrf"):
        Ensemble([scorer, lister], Ensemble.Config("softmax"))


def test_a_model_with_beam_search_may_be_a_member():
    data = random_sequences(12, ITEMS, seed=0)
    sizes = {"n_items": ITEMS, "max_length": 8}
    tiger = untrained("tiger", {"dim": 16, "layers": 1, "beam": 5}, data, **sizes)
    popular = untrained("popular", {}, data, **sizes)
    popular.fit(data)
    one_target_each = Fold(data, sequences([[1 + n % ITEMS] for n in range(12)]))
    single = rank_fold(tiger, one_target_each, exclude_seen=True, k=5)
    got = rank_fold(
        Ensemble([tiger, popular], Ensemble.Config("rrf", (1.0, 0.0))), one_target_each, exclude_seen=True, k=5
    )
    assert (got.items == single.items).all()
    assert (got.rank[single.rank > 0] == single.rank[single.rank > 0]).all()
    assert (got.rank[single.rank == 0] != 1).all()


def test_chunks_of_users_do_not_change_scores(monkeypatch):
    data, members = fold(1), [table(1), table(2)]
    full = fused(members, "rrf", (0.4, 0.6), data)
    monkeypatch.setattr("recpipe.evaluation.ensembles.SCORES_AT_ONCE", 7 * 2 * (ITEMS + 1))
    np.testing.assert_allclose(fused(members, "rrf", (0.4, 0.6), data), full, rtol=1e-6)  # sums in another order


@pytest.mark.parametrize("targets_each", [1, 3])
@pytest.mark.parametrize("method", ["rrf", "zscore", "softmax"])
def test_weights_are_the_best_of_the_grid_on_the_validation_fold(method, targets_each):
    data, members = fold(targets_each), [table(5), table(6), table(7)]
    ensemble = Ensemble(members, Ensemble.Config(method, ()))
    chosen, values = choose_weights(ensemble, data, exclude_seen=True, metric="ndcg@5")
    assert set(values) == set(weight_grid(3))
    for weights, value in values.items():
        ranking = rank_fold(ensemble.weighted(weights), data, exclude_seen=True, k=1)
        ranks = ranking.table(data, Vocabulary(np.array([f"i{i}" for i in range(ITEMS)], dtype=object)))
        assert value == pytest.approx(metrics_from_ranks(ranks, cutoffs=[5])["ndcg@5"], abs=1e-9), weights
    assert values[chosen] == max(values.values())


@pytest.mark.parametrize("members", range(2, 9))
def test_the_grid_has_equal_weights_first_every_member_alone_and_shares_that_sum_to_one(members):
    grid = weight_grid(members)
    assert grid[0] == (1 / members,) * members
    assert {tuple(float(n == m) for n in range(members)) for m in range(members)} <= set(grid)
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in grid)
    assert len(set(grid)) == len(grid) <= 37


def named(name, seed, levels=9):
    return replace(
        bundle(),
        name=name,
        model=table(seed, levels),
        training={"seed": 7, "settings": {"type": name}, "cost": {"parameters": 3}},
    )


def test_an_ensemble_is_evaluated_like_a_model_with_weights_from_validation():
    valid, test = fold(1, seed=1), fold(1, seed=2)
    combined, about = ensemble_bundle([named("a", 1), named("b", 2)], valid, PROTOCOL, method="softmax")
    result = evaluate(combined, valid, test, PROTOCOL, k=5)
    best = max(about["tried"], key=lambda row: row["valid_ndcg@10"])
    assert about["weights"] == pytest.approx(best["weights"])
    assert result.metrics["valid"]["ndcg@10"] == pytest.approx(best["valid_ndcg@10"], abs=1e-9)
    single = [
        evaluate(each, valid, test, PROTOCOL).metrics["valid"]["ndcg@10"] for each in (named("a", 1), named("b", 2))
    ]
    assert result.metrics["valid"]["ndcg@10"] >= max(single)
    (run,), problems = read_runs([result.metrics])
    assert not problems and (run.model, run.seed, run.cost["parameters"]) == ("ensemble", 7, 6)
    assert result.metrics["settings"]["members"].keys() == {"a", "b"}
    chance = result.recommendations["probability"].to_numpy().reshape(-1, 5).sum(1)
    assert (chance > 0).all() and (chance <= 1 + 1e-5).all()
    other, _ = ensemble_bundle([named("a", 1), named("b", 2)], fold(1, seed=5), PROTOCOL, method="softmax")
    again = evaluate(other, valid, test, PROTOCOL).metrics
    assert again["settings_id"] == result.metrics["settings_id"]  # one row of the leaderboard, whatever was chosen


def test_explicit_weights_are_normalised_and_need_no_validation():
    combined, about = ensemble_bundle([named("a", 1), named("b", 2)], fold(1), PROTOCOL, weights=[3, 1])
    assert about == {"members": ["a", "b"], "weights": [0.75, 0.25], "tried": []}
    assert combined.training["settings"]["weights"] == [0.75, 0.25]
    equal, _ = ensemble_bundle([named("a", 1), named("b", 2)], fold(1), PROTOCOL, weights="equal")
    assert equal.model.config.weights == (0.5, 0.5)


def test_weights_cannot_be_chosen_on_a_fold_that_a_member_was_trained_on():
    seen = named("b", 2)
    seen.training["settings"]["train"] = {"train_on_validation": True}
    with pytest.raises(ValueError, match="b was trained on the validation fold"):
        ensemble_bundle([named("a", 1), seen], fold(1), PROTOCOL)
    combined, _ = ensemble_bundle([named("a", 1), seen], fold(1), PROTOCOL, weights="equal")
    assert "valid" not in evaluate(combined, fold(1), fold(1), PROTOCOL).metrics


def test_fallback_is_needed_where_all_members_need_it():
    data = fold(1)
    members = [bundle(0).model, bundle(1).model]
    ensemble = Ensemble(members, Ensemble.Config("rrf", (0.5, 0.5)))
    assert not ensemble.needs_fallback(data.histories).any()
    assert ensemble.requires_time == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: replace(b, name="a"), r"two or more different members, not a\+a"),
        (lambda b: replace(b, protocol=Protocol(dataset="y")), "protocols that differ in dataset"),
        (lambda b: replace(b, vocabulary=Vocabulary(b.vocabulary.ids[::-1])), "different catalogues"),
    ],
    ids=["one model twice", "other data", "other items"],
)
def test_members_of_other_data_or_catalogues_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        ensemble_bundle([named("a", 1), change(named("b", 2))], fold(1), PROTOCOL)


def test_invalid_settings_are_errors():
    members = [table(1), table(2)]
    with pytest.raises(ValueError, match="ensemble.method is 'sum'; allowed: rrf, zscore, softmax"):
        Ensemble(members, Ensemble.Config("sum"))
    unsure = table(3)
    unsure.probabilistic = False
    with pytest.raises(ValueError, match="the scores of Table are no probabilities: use ensemble.method=rrf or zscore"):
        Ensemble([*members, unsure], Ensemble.Config("softmax"))
    with pytest.raises(ValueError, match="at least two members, not 1"):
        Ensemble(members[:1], Ensemble.Config())
    for weights in ((1,), (0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="ensemble.weights are .* for 2 members"):
            Ensemble(members, Ensemble.Config()).weighted(weights)
    with pytest.raises(ValueError, match="an ensemble has two or more different members, not a"):
        ensemble_bundle([named("a", 1)], fold(1), PROTOCOL)
