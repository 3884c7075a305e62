"""Steps of training: loss, gradient norm and clipping, validation, target counts, the curve and log lines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.runs import DATA, ITEMS, METRIC, Series, flat, run, sasrec, settings

from recpipe.data.batch_samplers import TrainingBatches
from recpipe.data.batches import DeviceSequences
from recpipe.data.windows import Windows
from recpipe.models.registry import build
from recpipe.models.sasrec import SASRec
from recpipe.training.batches import target_counts, training_windows
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.module import NonFiniteLossError


def test_the_loss_of_a_step_is_the_mean_over_its_targets_however_it_is_cut_into_batches():
    model = sasrec().double().eval()
    data = DeviceSequences(DATA.train, window=11, device="cpu")
    parts = next(iter(TrainingBatches(data.lengths, tokens=300, seed=0, minimum=2)))
    assert len(parts) > 4
    batches = [data.batch(rows) for rows in parts]
    targets = sum(batch.n_targets for batch in batches)
    in_parts = sum(model.loss(batch, FullSoftmax()) * (batch.n_targets / targets) for batch in batches)
    at_once = model.loss(data.batch(np.concatenate(parts)), FullSoftmax())
    torch.testing.assert_close(in_parts, at_once, rtol=1e-12, atol=0)


def test_the_recorded_norm_is_that_of_the_full_gradient_before_clipping(tmp_path):
    config = {"dim": 8, "dropout": 0.0}
    result = run(tmp_path, config=config, max_epochs=1, batch_tokens=10**6, gradient_clip=1e-3)
    torch.manual_seed(0)
    model = sasrec(**config)
    batch = model.on_device(DATA.train, window=11).batch(np.flatnonzero(DATA.train.lengths > 1))
    model.loss(batch, FullSoftmax()).backward()
    squares = sum(float(w.grad.square().sum()) for w in model.parameters() if w.grad is not None)
    assert result.curve[0]["gradient_norm"] == pytest.approx(squares**0.5, rel=1e-4)
    assert result.curve[0]["gradient_norm_max"] == result.curve[0]["gradient_norm"]  # of one step


def test_gradient_clip_limits_the_norm(tmp_path):
    """A step of plain descent at rate 1 moves the weights by the gradient."""
    plain = {"optimiser": {"name": "sgd", "learning_rate": 1.0}, "batch_tokens": 10_000, "max_epochs": 2}

    def step(clip: float | None) -> float:
        validate = Series(0.1, 0.1)
        run(tmp_path / str(clip), validate=validate, gradient_clip=clip, **plain)
        return (validate.states[1] - validate.states[0]).norm().item()

    assert step(None) > 0.01
    assert step(1e-3) == pytest.approx(1e-3, rel=1e-3)


def test_a_non_finite_loss_stops_with_its_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    loss, calls = SASRec.loss, []

    def broken(self, batch, criterion):
        calls.append(1)
        return loss(self, batch, criterion) * (math.nan if len(calls) == 153 else 1.0)

    monkeypatch.setattr(SASRec, "loss", broken)
    with pytest.raises(NonFiniteLossError, match="step 19 .*train.optimiser.learning_rate"):
        run(tmp_path, max_epochs=50)
    monkeypatch.undo()
    assert run(tmp_path, max_epochs=50).cost["epochs"] == 50


def test_validation_is_in_float32_in_a_bf16_training(tmp_path):
    autocast = []

    def validate(model):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return {METRIC: 0.1}

    run(tmp_path, validate=validate, max_epochs=1, precision="bf16")
    assert autocast == [False]


def test_a_metric_that_validation_does_not_give_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"train.metric asks for valid_auc@10; validation gives {METRIC}"):
        run(tmp_path, metric="auc@10")


def test_target_counts_are_those_of_the_targets_in_an_epoch():
    model = build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=4)
    for windows, rows in (("last", DATA.train.last(5)), ("all", Windows.cut(DATA.train, 4).copy())):
        expected = torch.zeros(ITEMS + 1, dtype=torch.long)
        for user in range(len(rows)):
            for item in rows.row(user)[1:]:
                expected[item] += 1
        data = training_windows(DATA.train, model, settings(windows=windows))
        assert torch.equal(target_counts(data, model), expected)


@pytest.mark.parametrize("windows", ["last", "all"])
def test_windows_without_a_target_event_are_left_out(windows):
    model = build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=4)
    marks = replace(DATA.train, is_target=np.random.default_rng(0).random(len(DATA.train.items)) < 0.2)
    whole = Windows.cut(marks, 4).copy() if windows == "all" else marks.last(5)
    data = training_windows(marks, model, settings(windows=windows))
    expected = [u for u in range(len(whole)) if whole.is_target[whole.offsets[u] + 1 : whole.offsets[u + 1]].any()]
    assert 0 < len(expected) < len(whole)
    rows = data.last(5).copy()
    assert [rows.row(u).tolist() for u in range(len(rows))] == [whole.row(u).tolist() for u in expected]
    places = [place for u in expected for place in range(whole.offsets[u] + 1, whole.offsets[u + 1])]
    items = [whole.items[place] for place in places if whole.is_target[place]]
    assert target_counts(data, model).tolist() == np.bincount(items, minlength=ITEMS + 1).tolist()
    device_data = DeviceSequences(data, window=5, device="cpu")
    assert device_data.n_targets.min() >= 1 and device_data.n_targets.sum() == len(items)
    none = replace(marks, is_target=np.zeros_like(marks.is_target))
    with pytest.raises(ValueError, match="protocol.target_events"):
        training_windows(none, model, settings(windows=windows))


def test_on_epoch_gets_the_rows_of_the_curve(tmp_path):
    rows = []
    result = run(tmp_path, max_epochs=2, on_epoch=rows.append)
    assert rows == result.curve and [row["epoch"] for row in rows] == [1, 2]
    validated = {METRIC, *(f"valid_{name}@10" for name in ("recall", "hit_rate", "mrr"))}
    columns = {"epoch", "step", "seconds", "loss", "lr", "gradient_norm", "gradient_norm_max", "peak_memory_mib"}
    assert set(rows[0]) == columns | validated


@pytest.mark.parametrize(
    ("validate_every", "log_every", "epochs"), [(1, 1, [1, 2, 3, 4, 5, 6]), (1, 4, [1, 5]), (2, 3, [2, 6])]
)
def test_validated_epochs_are_logged_every_so_often(tmp_path, caplog, validate_every, log_every, epochs):
    with caplog.at_level("INFO", logger="recpipe.training.module"):
        run(tmp_path, max_epochs=6, validate_every=validate_every, log_every=log_every)
    lines = [line for line in caplog.messages if line.startswith("train SASRec: epoch ")]
    assert [int(line.split()[3].rstrip(",")) for line in lines] == epochs
    assert all(f"{METRIC} 0." in line and "loss " in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_epochs": 3, "patience": 9}, "max_epochs 3"),
        ({"max_epochs": 9, "patience": 2}, "patience 2"),
        ({"max_epochs": 9, "max_minutes": 1e-9}, "max_minutes 1e-09"),
    ],
)
def test_the_end_of_training_is_logged_with_its_reason(tmp_path, caplog, changes, reason):
    with caplog.at_level("INFO", logger="recpipe.training.fit"):
        result = run(tmp_path, validate=Series(*(2.0**-n for n in range(1, 10))), **changes)
    (line,) = [line for line in caplog.messages if "ended by" in line]
    epochs, loss = len(result.curve), result.curve[-1]["loss"]
    assert line.startswith(f"train SASRec: {epochs} epochs in ")
    best = f"best {METRIC} 0.5000 in epoch 1"
    assert line.endswith(f"{best}, last {2.0**-epochs:.4f} with loss {loss:.4f}; ended by {reason}")


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"validate": Series(0.5, 0.25)}, KeyboardInterrupt, "an interruption"),
        ({"optimiser": {"name": "sgd", "learning_rate": 1e30}}, NonFiniteLossError, "a loss that is not finite"),
    ],
)
def test_a_training_that_breaks_off_logs_its_reason_too(tmp_path, caplog, changes, error, reason):
    with caplog.at_level("INFO", logger="recpipe.training.fit"), pytest.raises(error):
        run(tmp_path, **changes)
    (line,) = [line for line in caplog.messages if "ended by" in line]
    assert line.endswith(f"; ended by {reason}")
    assert ("best valid_ndcg@10 0.5000 in epoch 1, last" in line) == (error is KeyboardInterrupt)


def test_an_interruption_by_on_epoch_is_logged(tmp_path, caplog):
    with caplog.at_level("INFO", logger="recpipe.training.fit"), pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_epoch=lambda row: True)
    assert any("ended by on_epoch" in line for line in caplog.messages)


def test_the_model_keeps_its_trained_weights_while_the_average_is_validated(tmp_path):
    """One step an epoch: the recurrence over the weights of a training without average gives the validated ones."""
    metrics = (0.1, 0.2, 0.3, 0.2, 0.1)
    plain, averaged = Series(*metrics), Series(*metrics)
    initial = []

    def model():
        initial.append(flat(built := sasrec(dropout=0.1)))
        return built

    run(tmp_path / "plain", model=model, validate=plain, batch_tokens=10**6)
    result = run(tmp_path / "average", validate=averaged, batch_tokens=10**6, ema=0.4)
    expected = initial[0].double()
    for step, (weights_after, validated) in enumerate(zip(plain.states, averaged.states, strict=True), 1):
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights_after
        torch.testing.assert_close(validated.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(flat(result.model), averaged.states[2])
    assert not torch.equal(flat(result.model), plain.states[2])
