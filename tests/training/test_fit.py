"""Training: what is learned, selected and returned; resuming, refitting, fingerprints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.artefacts import flip_bit
from tests.synthetic import described, random_sequences, side_of
from tests.training.runs import (
    ADAM,
    DATA,
    ITEMS,
    METRIC,
    PROTOCOL,
    Series,
    StopAfter,
    column,
    flat,
    run,
    sasrec,
    settings,
    weights,
)

from recpipe.data.sequences import Sequences
from recpipe.data.splits import with_validation
from recpipe.models.registry import build
from recpipe.models.sasrec import SASRec
from recpipe.progress import Progress, progress
from recpipe.training import losses
from recpipe.training.checkpoint import BEST, LAST, load_tree
from recpipe.training.fit import run_fingerprint
from recpipe.training.settings import TrainSettings

INTERRUPTED = "run the same command again"


def test_sasrec_learns_a_learnable_log(tmp_path):
    result = run(tmp_path, max_epochs=40, optimiser=ADAM)
    assert result.cost[f"best_{METRIC}"] > 0.75
    assert column(result)[-1] < 0.5 * column(result)[0]
    assert result.cost["parameters"] == sum(weight.numel() for weight in result.model.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sampled_softmax", {"negatives": {"uniform": 10, "in_batch": 10}, "log_q": True}),
        ("bce", {"negatives": {"uniform": 2}, "shared": False}),
        ("gbce", {"negatives": {"uniform": 10}}),
        ("focal", {"negatives": {"uniform": 10}}),
        ("bpr", {"negatives": {"popularity": 10}}),
        ("infonce", {}),
        ("amince", {"tail": 0.5, "dropout": 0.1}),
    ],
)
def test_every_loss_learns_a_learnable_log(tmp_path, name, options):
    epochs = 60 if name == "gbce" else 30  # its positives count for half: it starts late
    result = run(tmp_path, max_epochs=epochs, loss={"name": name, **options}, optimiser=ADAM)
    assert result.cost[f"best_{METRIC}"] > 0.7


NEW_LOSS = """
from lightning.pytorch.callbacks import LambdaCallback
from torch.nn import functional as F
from recpipe.training.losses import Loss

class Weighted(Loss):
    needs = frozenset({"item_counts"})
    epochs = []

    def __init__(self, power: float, item_counts):
        super().__init__()
        self.register_buffer("weights", item_counts.clamp(min=1.0) ** power, persistent=False)

    def compute(self, hidden, table, targets, weights):
        return F.cross_entropy(hidden @ table[1:].T, targets - 1, self.weights[1:])

    def callbacks(self, metric, patience):
        return [LambdaCallback(on_train_epoch_end=lambda trainer, _: self.epochs.append(trainer.current_epoch))]
"""


def test_a_new_loss_is_one_file_with_its_needs_and_callbacks(tmp_path, monkeypatch):
    (tmp_path / "weighted.py").write_text(NEW_LOSS)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    loss = {"name": "weighted", "power": 0.1}
    result = run(tmp_path / "run", max_epochs=30, loss=loss, optimiser=ADAM)
    assert result.cost[f"best_{METRIC}"] > 0.7
    assert losses.loss_class("weighted").epochs == list(range(30))
    with pytest.raises(ValueError, match="did you mean 'power'"):
        losses.make_loss({"name": "weighted", "pover": 0.1})
    with pytest.raises(ValueError, match="'item_counts'"):
        losses.make_loss({"name": "weighted", "power": 0.1, "item_counts": 1})


def test_items_without_events_keep_their_vectors_with_a_softmax_over_trained_items(tmp_path):
    """Adam moves every weight that has a gradient; a softmax over all items gives one to those without events."""
    n_items = ITEMS + 1  # the last item has no event

    def moved_items(items: str) -> torch.Tensor:
        initial: list[torch.Tensor] = []

        def model():
            model = build("sasrec", {"dim": 16}, n_items=n_items, max_length=PROTOCOL.history)
            initial.append(model.items.weight.detach().clone())
            return model

        loss = {"name": "full_softmax", "items": items}
        result = run(tmp_path / items, model=model, max_epochs=2, loss=loss)
        return (result.model.items.weight != initial[0]).any(1)

    assert moved_items("all")[1:].all()
    moved = moved_items("trained")
    assert moved[1:n_items].all() and not moved[n_items]


def test_the_seed_decides_all_weights(tmp_path):
    first, second, other = (run(tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": {"name": "cosine", "warmup_steps": 3}}, {"layout": "packed", "max_epochs": 6}],
    ids=["default", "cosine", "packed"],
)
def test_a_resumed_training_equals_one_without_interruption(tmp_path, changes):
    full = run(tmp_path / "full", seed=3, **changes)
    with pytest.raises(KeyboardInterrupt, match=INTERRUPTED):
        run(tmp_path / "cut", seed=3, validate=StopAfter(3), **changes)
    assert (tmp_path / "cut" / LAST).is_file()
    resumed = run(tmp_path / "cut", seed=3, **changes)
    assert (column(resumed), column(resumed, "lr")) == (column(full), column(full, "lr"))
    assert torch.equal(weights(resumed), weights(full))
    assert not (tmp_path / "cut" / LAST).exists()
    if "schedule" in changes:
        assert column(full, "lr") == sorted(column(full, "lr"), reverse=True)
        assert column(full, "lr")[0] > 0.9e-3 and column(full, "lr")[-1] < 0.05e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"max_epochs": 4},
        {"max_epochs": 40, "patience": 2, "optimiser": ADAM},
        {"max_epochs": 40, "patience": 2, "optimiser": ADAM, "ema": 0.9, "schedule": {"name": "plateau"}},
        {"max_epochs": 3, "train_on_validation": True},
    ],
    ids=["epochs", "patience", "average", "on validation"],
)
def test_a_training_whose_bundle_was_not_stored_gives_the_same_again_without_an_epoch(tmp_path, changes):
    steps_from = DATA.train if "train_on_validation" in changes else None
    first, again = (
        run(tmp_path, seed=3, keep_checkpoints=is_first, steps_from=steps_from, **changes) for is_first in (True, False)
    )
    assert again.curve == first.curve and torch.equal(weights(again), weights(first))
    assert not (tmp_path / LAST).exists() and not (tmp_path / BEST).exists()
    if "patience" in changes:
        assert len(first.curve) < changes["max_epochs"]


def test_a_finished_training_goes_on_with_more_epochs(tmp_path):
    run(tmp_path / "more", seed=3, keep_checkpoints=True, max_epochs=3)
    more, whole = run(tmp_path / "more", seed=3, max_epochs=5), run(tmp_path / "whole", seed=3, max_epochs=5)
    assert column(more) == column(whole) and torch.equal(weights(more), weights(whole))


@pytest.mark.parametrize(("name", "message"), [(LAST, "last.safetensors"), ("run.json", "run.json")])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path, name, message):
    run(tmp_path, keep_checkpoints=True, max_epochs=2)
    flip_bit(tmp_path / name, 5)
    with pytest.raises(ValueError, match=f"{message} is damaged .*delete it to start training anew"):
        run(tmp_path, max_epochs=2)


def test_a_last_checkpoint_without_a_best_one_is_not_resumed(tmp_path):
    """As a kill leaves them while they are deleted; without the best one the end could not be returned."""
    first = run(tmp_path, keep_checkpoints=True, max_epochs=2)
    (tmp_path / BEST).unlink()
    assert torch.equal(weights(run(tmp_path, max_epochs=2)), weights(first))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "loss": {
                "name": "sampled_softmax",
                "negatives": {"uniform": 8, "in_batch": 8, "popularity": 8},
                "log_q": True,
            }
        },
        {"loss": {"name": "gbce", "negatives": {"uniform": 4}, "shared": False}, "optimiser": {"name": "rmsprop"}},
        {
            "loss": {"name": "amince", "tail": 0.5, "second_stage_after": 1},
            "schedule": {"name": "plateau", "patience": 0},
            "max_epochs": 7,
            "patience": 4,
        },
        {"loss": {"name": "full_softmax"}, "ema": 0.9},
    ],
    ids=lambda changes: changes["loss"]["name"],
)
def test_negatives_plateau_second_stage_and_average_are_resumed(tmp_path, changes):
    """Validation is a fixed series, so that plateau and second stage both begin before the interruption."""
    metrics, config = [0.1, 0.2, 0.15, 0.18, 0.19, 0.3, 0.2], {"attention_dropout": 0.1}
    full = run(tmp_path / "full", validate=Series(*metrics), config=config, **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", validate=Series(*metrics[:4]), config=config, **changes)
    assert len(load_tree(tmp_path / "cut" / LAST)["recpipe"]["curve"]) == 4
    resumed = run(tmp_path / "cut", validate=Series(*metrics[4:]), config=config, **changes)
    assert (column(resumed), column(resumed, "lr")) == (column(full), column(full, "lr"))
    assert torch.equal(weights(resumed), weights(full))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_micro_batches_leave_steps_losses_and_metrics_as_they_are(tmp_path, layout):
    options = {"config": {"dropout": 0.0}, "layout": layout, "ema": 0.9, "batch_tokens": 400}
    whole, cut = (run(tmp_path / str(n), accumulate=n, **options) for n in (1, 3))
    assert column(cut, "step") == column(whole, "step")
    for key in ("loss", METRIC, "gradient_norm", "lr"):
        assert column(cut, key) == pytest.approx(column(whole, key), rel=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), atol=1e-5, rtol=0)


def test_a_resumed_training_may_have_other_micro_batches(tmp_path):
    options = {"config": {"dropout": 0.0}, "batch_tokens": 400}
    whole = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", validate=StopAfter(3), **options)
    resumed = run(tmp_path / "cut", accumulate=2, **options)
    assert len(resumed.curve) == len(whole.curve)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=1e-5, rtol=0)


def test_on_epoch_can_interrupt_training(tmp_path):
    full, epochs = run(tmp_path / "full", seed=3), []

    def on_epoch(row):
        epochs.append(row["epoch"])
        return row["epoch"] == 2

    with pytest.raises(KeyboardInterrupt, match=INTERRUPTED):
        run(tmp_path / "cut", seed=3, on_epoch=on_epoch)
    resumed = run(tmp_path / "cut", seed=3, on_epoch=on_epoch)
    assert epochs == column(full, "epoch")
    assert torch.equal(weights(resumed), weights(full))


def test_a_resume_repeats_one_epoch_at_most_and_takes_the_new_patience(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=Series(0.5, 0.4, 0.3, 0.2, 0.1), max_epochs=30)
    assert len(load_tree(tmp_path / LAST)["recpipe"]["curve"]) == 5
    resumed = run(tmp_path, validate=lambda _: {METRIC: 0.1}, max_epochs=30, patience=6)
    assert resumed.cost["epochs"] == 7 and resumed.cost["best_epoch"] == 1


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seed=3, validate=StopAfter(2))
    other = run(tmp_path, seed=4)
    assert column(other, "epoch") == [1, 2, 3, 4, 5]
    assert torch.equal(weights(other), weights(run(tmp_path / "fresh", seed=4)))


def test_fingerprints_of_runs_differ_with_side_information():
    data = described(random_sequences(40, ITEMS))

    def fingerprint(**options) -> str:
        side = side_of(data, ITEMS, **options) if options else None
        model = build("sasrec", {}, n_items=ITEMS, max_length=8, side=side)
        return run_fingerprint("data", TrainSettings(), 1, model)

    assert fingerprint(vectors="text") == fingerprint(vectors="text")
    options = ({}, {"vectors": "text"}, {"vectors": "image"}, {"vectors": "text", "combine": "concat"})
    assert len({fingerprint(**each) for each in options}) == 4


def test_the_state_of_the_best_validation_is_returned_and_patience_ends_training(tmp_path):
    validate = Series(0.1, 0.5, 0.4, 0.3, 0.2, 0.1)
    result = run(tmp_path, validate=validate, max_epochs=50, patience=2)
    assert len(result.curve) == 4 and result.cost["best_epoch"] == 2
    assert torch.equal(weights(result), validate.states[1])


def test_max_minutes_end_training_at_the_next_validated_epoch(tmp_path):
    limited = run(tmp_path, max_epochs=50, validate_every=2, max_minutes=1e-9)
    assert limited.cost["epochs"] == limited.cost["best_epoch"] == 2
    assert limited.cost["device"] == "cpu" and limited.cost["precision"] == "fp32"


def never(model):
    raise AssertionError("a training with train_on_validation was validated")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_put_back_trains_on_validation_events_for_the_same_steps_and_returns_the_last_state(tmp_path, layout):
    states, models = [], []

    def model():
        models.append(sasrec())
        return models[-1]

    both = with_validation(DATA.train, DATA.valid)
    result = run(
        tmp_path,
        model=model,
        data=both,
        validate=never,
        on_epoch=lambda row: states.append(flat(models[-1])),
        steps_from=DATA.train,
        train_on_validation=True,
        layout=layout,
        max_epochs=4,
    )
    without = run(tmp_path / "without", layout=layout, max_epochs=4)
    assert column(result, "step") == column(without, "step")
    tokens = result.cost["tokens_per_second"] * result.cost["train_seconds"]
    assert tokens == pytest.approx(4 * (both.last(PROTOCOL.history + 1).lengths - 1).clip(0).sum())
    assert torch.equal(weights(result), states[-1]) and len(states) == 4
    assert not torch.equal(states[-1], states[0])
    assert not any("valid" in key or key == "best_epoch" for key in (*result.cost, *result.curve[-1]))


def test_put_back_is_refused_without_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="schedule plateau"):
        settings(train_on_validation=True, schedule={"name": "plateau"})
    with pytest.raises(ValueError, match="number of its steps"):
        run(tmp_path, train_on_validation=True)
    stage = {"name": "amince", "tail": 0.5, "second_stage_after": 1}
    with pytest.raises(ValueError, match=r"train\.loss\.second_stage_after"):
        run(tmp_path, train_on_validation=True, steps_from=DATA.train, loss=stage)


def test_closed_form_models_are_fitted_without_epochs(tmp_path):
    result = run(tmp_path, model=lambda: build("popular", {}, n_items=ITEMS, max_length=10))
    assert result.curve == [] and result.cost["epochs"] == 0
    assert result.model.counts.sum() == len(DATA.train.items)


def test_a_layout_that_the_model_does_not_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"packed and GRU4Rec reads padded; set train\.layout=padded"):
        run(tmp_path, model=lambda: build("gru4rec", {}, n_items=ITEMS, max_length=10), layout="packed")


def test_the_progress_bar_counts_all_steps_with_those_of_an_earlier_run(tmp_path, monkeypatch):
    bars: list[Progress] = []

    def recorded(*args, **options) -> Progress:
        bars.append(progress(*args, **options))
        return bars[-1]

    monkeypatch.setattr("recpipe.training.gradient.progress", recorded)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_epoch=lambda row: row["epoch"] == 2)
    run(tmp_path)
    assert [bar.total for bar in bars] == [bars[0].total] * 2 and bars[0].total % 5 == 0
    assert [5 * bar.done for bar in bars] == [2 * bars[0].total, 5 * bars[0].total]


def test_the_work_folder_has_the_fingerprint_and_curves(tmp_path):
    run(tmp_path, max_epochs=2)
    assert list(tmp_path.glob("tensorboard/events.out.tfevents.*"))
    assert json.loads((tmp_path / "run.json").read_text())["fingerprint"]


def weighted(value=None) -> Sequences:
    values = np.random.default_rng(0).integers(1, 9, len(DATA.train.items)) if value is None else value
    return replace(DATA.train, weights=np.broadcast_to(np.float32(values), DATA.train.items.shape).copy())


def test_equal_weights_change_nothing_and_the_scale_of_others_neither(tmp_path):
    plain, equal = run(tmp_path / "plain"), run(tmp_path / "equal", data=weighted(1.0))
    assert torch.equal(weights(plain), weights(equal)) and column(plain) == column(equal)
    one = run(tmp_path / "one", data=weighted())
    eight = run(tmp_path / "eight", data=replace(weighted(), weights=8 * weighted().weights))
    assert torch.equal(weights(one), weights(eight)) and not torch.equal(weights(one), weights(plain))
    off = run(tmp_path / "off", data=weighted(), weights=False)
    assert torch.equal(weights(off), weights(plain)) and one.model.uses_weights and not off.model.uses_weights


def test_weights_of_zero_only_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weight 0"):
        run(tmp_path, data=weighted(0.0))


def test_a_checkpoint_of_other_weights_is_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=StopAfter(2), data=weighted())
    other = run(tmp_path, data=replace(weighted(), weights=weighted().weights[::-1].copy()))
    assert column(other, "epoch") == [1, 2, 3, 4, 5]


def test_a_model_that_does_not_use_weights_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(SASRec, "takes_weights", False)
    assert torch.equal(weights(run(tmp_path / "a", data=weighted())), weights(run(tmp_path / "b")))
    assert "SASRec does not use the weights of events" in caplog.text


def test_a_model_in_evaluation_mode_is_trained_with_dropout(tmp_path):
    expected = run(tmp_path / "training", max_epochs=1)
    again = run(tmp_path / "evaluation", max_epochs=1, model=lambda: sasrec(dropout=0.1).eval())
    assert torch.equal(weights(again), weights(expected))
