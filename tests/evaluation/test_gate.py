"""Adaptive ensembles: features by brute force; better than every fixed weighting where features tell; else the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from tests.evaluation.test_ensembles import PROTOCOL, Listing, Table, named, scores_of
from tests.evaluation.test_ranking import ITEMS
from tests.synthetic import random_sequences, sequences

from recpipe.data.sequences import Fold
from recpipe.evaluation.ensemble_weights import adaptive_weights, weight_grid
from recpipe.evaluation.ensembles import Ensemble, ensemble_bundle
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.gate import PLACES, FeatureReader, Gate, ItemSets, fit_gate
from recpipe.evaluation.ranking import fold_metric, rank_fold
from recpipe.reporting.leaderboard import leaderboard

TRAIN = random_sequences(60, ITEMS, seed=9)
METRIC = "ndcg@10"


def planned_fold(users: int, seed: int) -> Fold:
    """Users with short histories, whose target is a function of the last item, and with long ones: of another."""
    rng = np.random.default_rng(seed)
    histories, targets = [], []
    for u in range(users):
        row = rng.integers(1, ITEMS + 1, 2 if u % 2 else 12).tolist()
        histories.append(row)
        targets.append([int(rng.choice(likely(row[-1], u % 2)))])
    return Fold(sequences(histories), sequences(targets))


def likely(last: int, is_short: int) -> list[int]:
    """Three items that may follow; others for short histories than for long ones."""
    step = 3 if is_short else 11
    return [(last + step + n) % ITEMS + 1 for n in range(3)]


def expert(is_short: int) -> Table:
    """A model that knows the likely items of half of the users."""
    table = torch.rand(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(is_short))
    for last in range(1, ITEMS + 1):
        table[last, likely(last, is_short)] += 4
    return Table(table)


def experts():
    return [replace(named("short", 1), model=expert(1)), replace(named("long", 2), model=expert(0))]


def values_on(test, bundles, method, weights):
    combined, about = ensemble_bundle(
        bundles, planned_fold(400, 1), NOT_SEEN, method=method, weights=weights, train=TRAIN
    )
    return fold_metric(combined.model, test, NOT_SEEN, METRIC), about


NOT_SEEN = replace(PROTOCOL, exclude_seen=False)


@pytest.mark.parametrize("method", ["rrf", "zscore", "softmax"])
def test_it_beats_every_fixed_weighting_where_a_feature_tells_which_member_is_right(method):
    test = planned_fold(400, 2)
    adaptive, about = values_on(test, experts(), method, "adaptive")
    fixed = [values_on(test, experts(), method, list(weights))[0] for weights in weight_grid(2)]
    assert adaptive > max(fixed) + 0.05
    gate = about["adaptive"]
    assert gate["uses_gate"] and next(iter(gate["coefficients"])) == "history length"
    assert gate["coefficients"]["history length"]["short"] < 0 < gate["coefficients"]["history length"]["long"]
    assert max(gate["valid_ndcg@10_cross_validated"].values()) > gate["valid_ndcg@10_of_fixed_weights"]
    assert sum(about["weights"]) == pytest.approx(1)


def test_it_is_deterministic_and_reads_nothing_of_the_target():
    test = planned_fold(100, 2)
    combined, _ = ensemble_bundle(experts(), planned_fold(200, 1), NOT_SEEN, weights="adaptive", train=TRAIN)
    again, _ = ensemble_bundle(experts(), planned_fold(200, 1), NOT_SEEN, weights="adaptive", train=TRAIN)
    first = rank_fold(combined.model, test, exclude_seen=False, k=5)
    assert np.array_equal(first.scores, rank_fold(again.model, test, exclude_seen=False, k=5).scores)
    other_targets = Fold(test.histories, sequences([[1]] * 100))
    assert np.array_equal(first.items, rank_fold(combined.model, other_targets, exclude_seen=False, k=5).items)


def test_equal_features_of_all_users_give_the_fixed_weights():
    constant = FeatureReader.of(TRAIN, ITEMS, ["a", "b"])
    features = torch.ones(20, len(constant.names), dtype=torch.float64) * torch.arange(1, 9)
    parts = torch.rand(20, 2, 7, generator=torch.Generator().manual_seed(0))
    gate = fit_gate(
        ItemSets(features, parts, torch.ones(20, 7, dtype=torch.bool)),
        torch.tensor([0.7, 0.3]),
        l2=0.0,
        is_probability=True,
    )
    torch.testing.assert_close(gate(features), torch.tensor([[0.7, 0.3]], dtype=torch.float64).expand(20, 2))
    assert (gate.coefficients == 0).all()


def test_members_that_are_right_at_random_keep_fixed_weights_and_the_description_says_so(caplog):
    rng = np.random.default_rng(5)
    histories = random_sequences(60, ITEMS, seed=3)
    fold = Fold(histories, sequences(rng.integers(1, ITEMS + 1, (60, 1)).tolist()))
    reader = FeatureReader.of(TRAIN, ITEMS, ["a", "b"])
    found = [
        adaptive_weights(
            Ensemble([named("a", n).model, named("b", n + 50).model], Ensemble.Config("zscore")),
            fold,
            reader,
            exclude_seen=False,
        )
        for n in range(4)
    ]
    fixed = [each for each in found if each.gate is None]
    assert fixed  # of noise, cross-validation rejects at least one gate
    for each in found:
        assert each.description["uses_gate"] == (each.gate is not None)
        best = max(each.description["valid_ndcg@10_cross_validated"].values())
        assert (each.gate is None) == (best <= max(each.tried.values()))
    assert list(fixed[0].weights) == fixed[0].description["fixed_weights"] and not fixed[0].description["coefficients"]
    assert "the weights of the ensemble stay fixed" in caplog.text


def test_features_are_those_of_a_loop_over_users():
    histories = sequences([[3, 4], [], [5, 6, 7, 6], [ITEMS]])
    scores = [torch.randn(4, ITEMS + 1, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    for each in scores:
        each[:, 0] = -torch.inf
    scores[1][2, 4:] = -torch.inf  # a list of three places
    scores[1][3] = -torch.inf  # an empty list
    reader = FeatureReader.of(TRAIN, ITEMS, ["a", "b"])
    features = dict(zip(reader.names, reader(histories, scores).T.numpy(), strict=True))
    pairs = {p for u in range(len(TRAIN)) for p in zip(TRAIN.row(u)[:-1], TRAIN.row(u)[1:], strict=True)}
    for u, row in enumerate([[3, 4], [], [5, 6, 7, 6], [ITEMS]]):
        last = row[-1] if row else 0
        lists = []
        for each in scores:
            order = np.argsort(-each[u].numpy(), kind="stable")
            lists.append([int(i) for i in order[:PLACES] if each[u, i] > -torch.inf])
        assert features["history length"][u] == pytest.approx(np.log1p(len(row)))
        assert features["popularity of the last item"][u] == pytest.approx(np.log1p((TRAIN.items == last).sum()))
        after = len({b for a, b in pairs if a == last})
        assert features["successors of the last item"][u] == pytest.approx(np.log1p(after))
        assert features["agreement of the lists"][u] == pytest.approx(len({*lists[0]} & {*lists[1]}) / PLACES)
        for name, items, each in zip("ab", lists, scores, strict=True):
            seen = sum((last, item) in pairs for item in items) / max(len(items), 1)
            assert features[f"seen transitions in the list of {name}"][u] == pytest.approx(seen)
            allowed = each[u][each[u] > -torch.inf].numpy()
            entropy = stats.entropy(special.softmax(each[u, items].numpy() / allowed.std())) if items else 0
            assert features[f"entropy in the list of {name}"][u] == pytest.approx(entropy, abs=1e-5)


def test_a_gate_without_coefficients_gives_its_base():
    gate = Gate(torch.tensor([0.25, 0.75]), torch.randn(30, 3, dtype=torch.float64))
    torch.testing.assert_close(gate(torch.randn(4, 3)), torch.tensor([[0.25, 0.75]] * 4, dtype=torch.float64))


def test_scores_are_the_members_by_the_weights_of_the_user():
    valid, test = planned_fold(200, 1), planned_fold(30, 4)
    combined, _ = ensemble_bundle(experts(), valid, NOT_SEEN, method="softmax", weights="adaptive", train=TRAIN)
    model = combined.model
    parts = [np.exp(scores_of(member, test.histories, False)) for member in model.members]
    parts = [part / part.sum(1, keepdims=True) for part in parts]
    scores = [torch.from_numpy(scores_of(member, test.histories, False)).float() for member in model.members]
    weights = model.gate(model.reader(test.histories, scores)).numpy()
    expected = weights[:, :1] * parts[0] + weights[:, 1:] * parts[1]
    np.testing.assert_allclose(np.exp(scores_of(model, test.histories, False)), expected, atol=1e-6)
    assert weights[::2, 1].mean() > 0.8
    assert weights[1::2, 1].mean() < 0.2


def test_lists_are_members_too_and_three_members_have_weights():
    members = [*experts(), replace(named("list", 3), model=Listing(expert(1), 4))]
    combined, about = ensemble_bundle(members, planned_fold(200, 1), NOT_SEEN, weights="adaptive", train=TRAIN)
    result = evaluate(combined, planned_fold(100, 1), planned_fold(100, 2), NOT_SEEN, train=TRAIN)
    assert len(about["weights"]) == 3 and result.metrics["test"]["users"] == 100
    assert result.metrics["settings"]["weights"] == "adaptive"
    board = leaderboard([{**result.metrics, "ensemble": about}])
    assert ("weights of every user" in board["members"][0]) == about["adaptive"]["uses_gate"]


def test_it_needs_the_training_set_and_users_with_a_target_in_reach():
    with pytest.raises(ValueError, match="adaptive weights read the transitions of the training set"):
        ensemble_bundle(experts(), planned_fold(40, 1), NOT_SEEN, weights="adaptive")
    with pytest.raises(ValueError, match="3 validation users have their target .* use ensemble.weights=valid"):
        ensemble_bundle(experts(), planned_fold(3, 1), NOT_SEEN, weights="adaptive", train=TRAIN)
    seen = replace(named("b", 2), training={"seed": 7, "settings": {"train": {"train_on_validation": True}}})
    with pytest.raises(ValueError, match="b was trained on the validation fold"):
        ensemble_bundle([named("a", 1), seen], planned_fold(40, 1), NOT_SEEN, weights="adaptive", train=TRAIN)


def test_a_training_set_without_transitions_and_users_of_any_batch(monkeypatch):
    alone = sequences([[n] for n in range(1, ITEMS + 1)])
    valid, test = planned_fold(200, 1), planned_fold(50, 2)
    whole, _ = ensemble_bundle(experts(), valid, NOT_SEEN, weights="adaptive", train=alone)
    expected = scores_of(whole.model, test.histories, False)
    monkeypatch.setattr("recpipe.evaluation.ensembles.SCORES_AT_ONCE", 7 * 2 * (ITEMS + 1))
    parts, _ = ensemble_bundle(experts(), valid, NOT_SEEN, weights="adaptive", train=alone)
    np.testing.assert_allclose(scores_of(parts.model, test.histories, False), expected, atol=1e-7)
