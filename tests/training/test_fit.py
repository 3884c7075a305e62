from __future__ import annotations

import json
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from filelock import FileLock
from tests.synthetic import described, random_sequences, side_of

from recpipe.data.protocol import Protocol
from recpipe.data.splits import Split, split, with_validation
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import build
from recpipe.models.sasrec import SASRec
from recpipe.progress import Progress, progress
from recpipe.training.callbacks import curve_loggers
from recpipe.training.checkpoint import LAST, load_tree
from recpipe.training.fit import TrainingResult, run_fingerprint, train
from recpipe.training.losses.amince import AMINCE
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.module import NonFiniteLossError, target_counts, training_windows
from recpipe.training.settings import TrainSettings, choose_device

ITEMS = 30
PROTOCOL = Protocol(dataset="x", history=10)


@pytest.fixture(scope="module")
def data() -> Split:
    return split(random_sequences(120, ITEMS, longest=14, seed=2), PROTOCOL)


def settings(**changed) -> TrainSettings:
    return TrainSettings(**{"batch_tokens": 200, "max_epochs": 5, "patience": 50, "device": "cpu", **changed})


def run(
    data: Split, folder: Path, *, seed: int = 0, validate=None, config=None, on_epoch=None, **changed
) -> TrainingResult:
    return train(
        lambda: build(
            "sasrec",
            {"dim": 16, "dropout": 0.1, **(config or {})},
            n_items=ITEMS,
            max_length=PROTOCOL.history,
        ),
        data.train,
        validate or validator(data.valid, PROTOCOL),
        settings(**changed),
        seed=seed,
        folder=folder,
        on_epoch=on_epoch,
    )


def weights(trained: TrainingResult) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in trained.model.state_dict().values()])


def losses(trained: TrainingResult) -> list[float]:
    return [row["loss"] for row in trained.curve]


def test_it_learns_what_there_is_to_learn(data, tmp_path):
    trained = run(data, tmp_path, max_epochs=40, optimiser={"name": "adam", "learning_rate": 0.01})
    assert trained.cost["best_valid_ndcg@10"] > 0.75
    assert losses(trained)[-1] < 0.5 * losses(trained)[0]
    assert trained.cost["parameters"] == sum(p.numel() for p in trained.model.parameters())


def test_items_without_events_are_left_alone_if_asked(data, tmp_path):
    """Adam moves every weight that has a gradient; a softmax over all items gives one to those nobody had."""
    items = ITEMS + 1  # the last one is nobody's

    def moved(which: str) -> torch.Tensor:
        begun: list[torch.Tensor] = []

        def made() -> SASRec:
            model = build("sasrec", {"dim": 16}, n_items=items, max_length=PROTOCOL.history)
            begun.append(model.items.weight.detach().clone())
            return model

        chosen = settings(max_epochs=2, loss={"name": "full_softmax", "items": which})
        trained = train(
            made, data.train, validator(data.valid, PROTOCOL), chosen, seed=0, folder=tmp_path / which
        )
        return (trained.model.items.weight != begun[0]).any(1)

    assert moved("all")[1:].all()
    found = moved("trained")
    assert found[1:items].all() and not found[items]


def test_the_seed_decides_everything(data, tmp_path):
    first, second, other = (run(data, tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


class StopAfter:
    """Validates as usual and stops, as Ctrl-C does, in the n-th validation."""

    def __init__(self, validate, calls: int) -> None:
        self.validate, self.left = validate, calls

    def __call__(self, model):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.validate(model)


def test_training_goes_on_after_ctrl_c_as_if_nothing_had_happened(data, tmp_path):
    whole = run(data, tmp_path / "whole", seed=3)
    stopped = StopAfter(validator(data.valid, PROTOCOL), 3)
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        run(data, tmp_path / "cut", seed=3, validate=stopped)
    assert (tmp_path / "cut" / LAST).is_file()
    resumed = run(data, tmp_path / "cut", seed=3)
    assert losses(resumed) == losses(whole)
    assert torch.equal(weights(resumed), weights(whole))
    assert not (tmp_path / "cut" / LAST).exists()


def test_who_watches_the_epochs_may_end_training_and_go_on_another_time(data, tmp_path):
    whole, seen = run(data, tmp_path / "whole", seed=3), []

    def watch(row):
        seen.append(row["epoch"])
        return row["epoch"] == 2

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        run(data, tmp_path / "cut", seed=3, on_epoch=watch)
    resumed = run(data, tmp_path / "cut", seed=3, on_epoch=watch)
    assert seen == [row["epoch"] for row in whole.curve]
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    "changed",
    [
        {
            "loss": {
                "name": "sampled_softmax",
                "negatives": {"uniform": 8, "in_batch": 8, "popularity": 8},
                "log_q": True,
            }
        },
        {
            "loss": {"name": "gbce", "negatives": {"uniform": 4}, "shared": False},
            "optimiser": {"name": "rmsprop"},
        },
        {
            "loss": {"name": "amince", "tail": 0.5, "second_stage_after": 1},
            "schedule": {"name": "plateau", "patience": 0},
            "max_epochs": 7,
            "patience": 4,
        },
        {"loss": {"name": "full_softmax"}, "ema": 0.9},
    ],
    ids=lambda changed: changed["loss"]["name"],
)
def test_training_with_drawn_negatives_goes_on_as_if_nothing_had_happened(data, tmp_path, changed):
    """Validation is a fixed series here, so that plateau and second stage both begin before the stop."""

    def validate(calls: int):
        series = iter([0.1, 0.2, 0.15, 0.18, 0.19, 0.3, 0.2][:calls])

        def next_or_stop(model):
            value = next(series, None)
            if value is None:
                raise KeyboardInterrupt
            return {"valid_ndcg@10": value}

        return next_or_stop

    config = {"attention_dropout": 0.1}
    whole = run(data, tmp_path / "whole", validate=validate(7), config=config, **changed)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", validate=validate(4), config=config, **changed)
    seen = len(load_tree(tmp_path / "cut" / LAST)["recpipe"]["curve"])
    assert seen == 4
    rest = iter([0.1, 0.2, 0.15, 0.18, 0.19, 0.3, 0.2][seen:])
    resumed = run(
        data, tmp_path / "cut", validate=lambda _: {"valid_ndcg@10": next(rest)}, config=config, **changed
    )
    assert losses(resumed) == losses(whole)
    assert [row["lr"] for row in resumed.curve] == [row["lr"] for row in whole.curve]
    assert torch.equal(weights(resumed), weights(whole))


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
def test_every_loss_learns_what_there_is_to_learn(data, tmp_path, name, options):
    trained = run(
        data,
        tmp_path,
        max_epochs=60 if name == "gbce" else 30,  # its positives count for half: it starts late
        loss={"name": name, **options},
        optimiser={"name": "adam", "learning_rate": 0.01},
    )
    assert trained.cost["best_valid_ndcg@10"] > 0.7


def test_the_second_stage_begins_and_patience_with_it(data, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(AMINCE, "begin_second_stage", lambda self: begun.append(True))
    amince = {"name": "amince", "second_stage_after": 2}
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    trained = run(
        data,
        tmp_path,
        validate=lambda _: {"valid_ndcg@10": next(scores)},
        max_epochs=9,
        patience=3,
        loss=amince,
    )
    assert begun == [True]
    assert trained.cost["epochs"] in (5, 6)  # two bad ones, then three more
    with pytest.raises(ValueError, match="less than train.patience 2"):
        run(data, tmp_path / "b", patience=2, loss=amince)


def test_target_counts_are_those_of_the_targets_in_an_epoch(data):
    model = build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=4)
    for windows, cut in (("last", data.train.last(5)), ("all", data.train.windows(4))):
        expected = torch.zeros(ITEMS + 1, dtype=torch.long)
        for user in range(len(cut)):
            for item in cut.row(user)[1:]:
                expected[item] += 1
        training_data = training_windows(data.train, model, settings(windows=windows))
        assert torch.equal(target_counts(training_data, model), expected)


def test_the_gradient_is_clipped(data, tmp_path):
    """One step of plain descent at rate 1 moves the weights by the gradient, whose norm is the setting then."""
    kept: list[torch.Tensor] = []

    def validate(model):
        kept.append(torch.cat([tensor.flatten().clone() for tensor in model.state_dict().values()]))
        return {"valid_ndcg@10": 0.1}

    plain = {"optimiser": {"name": "sgd", "learning_rate": 1.0}, "batch_tokens": 10_000, "max_epochs": 2}
    for clip, folder in ((None, "free"), (1e-3, "clipped")):
        run(data, tmp_path / folder, validate=validate, gradient_clip=clip, **plain)
    free, clipped = (kept[1] - kept[0]).norm().item(), (kept[3] - kept[2]).norm().item()
    assert free > 0.01
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_resume_loses_one_epoch_at_most_and_takes_the_new_patience(data, tmp_path):
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])

    def falling(model):
        score = next(scores, None)
        if score is None:
            raise KeyboardInterrupt
        return {"valid_ndcg@10": score}

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, validate=falling, max_epochs=30)
    assert len(load_tree(tmp_path / LAST)["recpipe"]["curve"]) == 5
    resumed = run(data, tmp_path, validate=lambda _: {"valid_ndcg@10": 0.1}, max_epochs=30, patience=6)
    assert resumed.cost["epochs"] == 7 and resumed.cost["best_epoch"] == 1


def test_validation_is_in_float32_whatever_training_is(data, tmp_path):
    seen = []

    def validate(model):
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"valid_ndcg@10": 0.1}

    run(data, tmp_path, validate=validate, max_epochs=1, precision="bf16")
    assert seen == [False]


def test_a_checkpoint_of_other_settings_is_not_continued(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, seed=3, validate=StopAfter(validator(data.valid, PROTOCOL), 2))
    other = run(data, tmp_path, seed=4)
    assert [row["epoch"] for row in other.curve] == [1, 2, 3, 4, 5]
    assert torch.equal(weights(other), weights(run(data, tmp_path / "fresh", seed=4)))


def test_the_best_validation_is_what_is_returned_and_patience_ends(data, tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    kept: list[torch.Tensor] = []

    def validate(model):
        kept.append(torch.cat([tensor.flatten().clone() for tensor in model.state_dict().values()]))
        return {"valid_ndcg@10": next(scores)}

    trained = run(data, tmp_path, validate=validate, max_epochs=50, patience=2)
    assert len(trained.curve) == 4
    assert trained.cost["best_epoch"] == 2
    assert torch.equal(weights(trained), kept[1])


def never(model):
    raise AssertionError("validation was asked for")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_put_back_trains_on_validation_too_for_as_many_steps_and_keeps_the_last_state(data, tmp_path, layout):
    ends: list[torch.Tensor] = []
    models: list[SASRec] = []

    def model():
        models.append(build("sasrec", {"dim": 16}, n_items=ITEMS, max_length=PROTOCOL.history))
        return models[-1]

    def on_epoch(row):
        ends.append(torch.cat([tensor.flatten().clone() for tensor in models[-1].state_dict().values()]))

    both = with_validation(data.train, data.valid)
    asked = settings(put_back=True, layout=layout, max_epochs=4)
    found = train(
        model, both, never, asked, seed=0, folder=tmp_path, on_epoch=on_epoch, steps_from=data.train
    )
    without = run(data, tmp_path / "without", layout=layout, max_epochs=4)
    assert [row["step"] for row in found.curve] == [row["step"] for row in without.curve]
    seen = found.cost["tokens_per_second"] * found.cost["train_seconds"]
    assert seen == pytest.approx(4 * (both.last(PROTOCOL.history + 1).lengths - 1).clip(0).sum())
    assert torch.equal(weights(found), ends[-1]) and len(ends) == 4
    assert not torch.equal(ends[-1], ends[0])
    assert not any("valid" in key or key == "best_epoch" for key in (*found.cost, *found.curve[-1]))


def test_put_back_is_refused_where_something_needs_validation(data, tmp_path):
    with pytest.raises(ValueError, match="schedule plateau"):
        settings(put_back=True, schedule={"name": "plateau"})
    with pytest.raises(ValueError, match="number of its steps"):
        run(data, tmp_path, put_back=True)


def test_a_layout_that_a_model_does_not_read_is_refused(data, tmp_path):
    with pytest.raises(
        ValueError, match="layout is packed and GRU4Rec reads padded; set train.layout=padded"
    ):
        train(
            lambda: build("gru4rec", {}, n_items=ITEMS, max_length=PROTOCOL.history),
            data.train,
            never,
            settings(layout="packed"),
            seed=0,
            folder=tmp_path,
        )
    with pytest.raises(ValueError, match="layout is 'ragged'; allowed: padded, packed"):
        settings(layout="ragged")


def test_packed_training_learns_and_goes_on_as_padded_does(data, tmp_path):
    asked = {"layout": "packed", "max_epochs": 40, "optimiser": {"name": "adam", "learning_rate": 0.01}}
    whole = run(data, tmp_path / "whole", **asked)
    assert whole.cost["best_valid_ndcg@10"] > 0.75
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", validate=StopAfter(validator(data.valid, PROTOCOL), 3), **asked)
    assert torch.equal(weights(run(data, tmp_path / "cut", **asked)), weights(whole))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    honest, calls = SASRec.loss, []

    def breaks(self, batch, criterion):
        calls.append(1)
        return honest(self, batch, criterion) * (math.nan if len(calls) == 153 else 1.0)

    monkeypatch.setattr(SASRec, "loss", breaks)
    with pytest.raises(NonFiniteLossError, match="not finite at step 19") as stopped:
        run(data, tmp_path, max_epochs=50)
    assert "train.optimiser.learning_rate" in str(stopped.value)
    monkeypatch.undo()
    assert run(data, tmp_path, max_epochs=50).cost["epochs"] == 50


def test_a_cosine_schedule_falls_to_its_end_and_is_resumed(data, tmp_path):
    schedule = {"schedule": {"name": "cosine", "warmup_steps": 3}}
    whole = run(data, tmp_path / "whole", **schedule)
    rates = [row["lr"] for row in whole.curve]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05e-3
    assert rates[0] > 0.9e-3
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", validate=StopAfter(validator(data.valid, PROTOCOL), 2), **schedule)
    resumed = run(data, tmp_path / "cut", **schedule)
    assert [row["lr"] for row in resumed.curve] == rates
    assert torch.equal(weights(resumed), weights(whole))


def test_curves_go_to_tensorboard_and_to_whoever_listens(data, tmp_path):
    rows: list[dict] = []
    train(
        lambda: build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=10),
        data.train,
        validator(data.valid, PROTOCOL),
        settings(max_epochs=2),
        seed=0,
        folder=tmp_path,
        on_epoch=rows.append,
    )
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == {"epoch", "step", "seconds", "loss", "lr", "gradient_norm", "valid_ndcg@10"}
    assert list(tmp_path.glob("tensorboard/events.out.tfevents.*"))
    assert json.loads((tmp_path / "run.json").read_text())["fingerprint"]


def test_the_norm_is_that_of_the_whole_gradient_before_it_is_clipped(data, tmp_path):
    def model():
        return build("sasrec", {"dim": 8, "dropout": 0.0}, n_items=ITEMS, max_length=10)

    rows: list[dict] = []
    whole = settings(max_epochs=1, batch_tokens=10**6, gradient_clip=1e-3)
    train(
        model,
        data.train,
        validator(data.valid, PROTOCOL),
        whole,
        seed=0,
        folder=tmp_path,
        on_epoch=rows.append,
    )
    torch.manual_seed(0)
    alone = model()
    batch = alone.on_device(data.train, window=11).batch(np.flatnonzero(data.train.lengths > 1))
    alone.loss(batch, FullSoftmax()).backward()
    squares = sum(float(each.grad.square().sum()) for each in alone.parameters() if each.grad is not None)
    assert rows[0]["gradient_norm"] == pytest.approx(squares**0.5, rel=1e-4)


def test_a_moving_average_of_the_weights_is_validated_and_kept_and_disturbs_no_step(data, tmp_path):
    """A step an epoch: the recurrence over the weights of a training without it gives what validation sees."""

    def seen(folder: str, **changed) -> tuple[list[torch.Tensor], TrainingResult]:
        found: list[torch.Tensor] = []

        def validate(model) -> dict[str, float]:
            found.append(torch.cat([weight.detach().flatten().double() for weight in model.parameters()]))
            return {"valid_ndcg@10": [0.1, 0.2, 0.3, 0.2, 0.1][len(found) - 1]}

        return found, run(data, tmp_path / folder, validate=validate, batch_tokens=10**6, **changed)

    pl.seed_everything(0, verbose=False)
    begun = build("sasrec", {"dim": 16, "dropout": 0.1}, n_items=ITEMS, max_length=PROTOCOL.history)
    average = torch.cat([weight.detach().flatten().double() for weight in begun.parameters()])
    (plain, _), (judged, trained) = seen("plain"), seen("average", ema=0.4)
    for step, weights_after in enumerate(plain, 1):
        decay = min(0.4, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights_after
        torch.testing.assert_close(judged[step - 1], average, rtol=0, atol=1e-6)
    kept = torch.cat([weight.detach().flatten().double() for weight in trained.model.parameters()])
    assert torch.equal(kept, judged[2]) and not torch.equal(kept, plain[2])


def test_a_second_process_in_the_same_folder_is_refused(data, tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="another process trains in"):
        run(data, tmp_path)
    assert run(data, tmp_path, max_epochs=1).cost["epochs"] == 1


def test_without_tensorboard_curves_go_to_a_csv_file(data, tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda _: None)
    run(data, tmp_path, max_epochs=2, loggers=["tensorboard", "csv"])
    header, *rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "valid_ndcg@10"} <= set(header.split(",")) and len(rows) >= 2


def test_loggers_by_conf(data, tmp_path):
    run(data, tmp_path / "two", max_epochs=1, loggers=["csv", "tensorboard"])
    assert (tmp_path / "two" / "csv" / "metrics.csv").is_file()
    assert list((tmp_path / "two" / "tensorboard").iterdir())
    run(data, tmp_path / "none", max_epochs=1, loggers=[])
    assert not {"csv", "tensorboard"} & {path.name for path in (tmp_path / "none").iterdir()}


def test_wandb_is_made_where_it_is_installed_and_named_where_it_is_not(data, tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        run(data, tmp_path, loggers=["wandb"])
    made = []
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda name: name)
    monkeypatch.setattr("recpipe.training.callbacks.WandbLogger", lambda **options: made.append(options))
    curve_loggers(["tensorboard", "wandb", "wandb"], tmp_path / "d" / "m" / "s")
    assert made == [{"name": "d/m/s", "project": "recpipe", "save_dir": tmp_path / "d" / "m" / "s"}]


def test_closed_forms_take_the_same_way(data, tmp_path):
    trained = train(
        lambda: build("popular", {}, n_items=ITEMS, max_length=10),
        data.train,
        validator(data.valid, PROTOCOL),
        settings(),
        seed=0,
        folder=tmp_path,
    )
    assert trained.curve == [] and trained.cost["epochs"] == 0
    assert trained.model.counts.sum() == len(data.train.items)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"precision": "fp8"}, "allowed: auto, fp32, bf16"),
        ({"max_epochs": 0}, "at least 1"),
        ({"optimiser": {"name": "lion"}}, "unknown optimiser 'lion'"),
        ({"optimiser": {"name": "adam", "momentum": 1}}, "train.optimiser"),
        ({"schedule": {"name": "cosinus"}}, "unknown schedule 'cosinus'"),
        ({"schedule": {"name": "cosine", "warm": 3}}, "unknown argument of cosine .*'warm'"),
        ({"validate_every": 9}, "more than train.max_epochs 5"),
        ({"metric": "auc@10"}, "train.metric asks for valid_auc@10; validation gives valid_ndcg@10"),
        ({"batch_tokens": 3}, "raise train.batch_tokens"),
        ({"loggers": ["tensorbord"]}, "allowed: tensorboard, csv, wandb"),
        ({"gradient_clip": 0.0}, "train.gradient_clip is 0.0"),
        ({"max_minutes": "x"}, "train.max_minutes is 'x'; it must be a number, or null"),
        ({"ema": True}, "train.ema is True; it must be a number, or null"),
        ({"ema": 1.0}, "train.ema is 1.0; it is a decay between 0 and 1"),
        ({"loss": {"name": "bce"}}, "train.loss"),
        ({"device": "tpu"}, "allowed: auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_refused_by_name(data, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path, **changed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="train.device=cpu"):
        choose_device("cuda")


def test_the_loss_of_a_step_is_the_mean_over_all_its_targets(data, tmp_path):
    """Cutting a step into parts of like length is a matter of speed: one part or four, the gradient is the same."""
    from recpipe.data.batch_samplers import TrainingBatches
    from recpipe.data.batches import DeviceSequences
    from recpipe.training.losses.full_softmax import FullSoftmax

    model = build("sasrec", {"dim": 16}, n_items=ITEMS, max_length=10).double().eval()
    held = DeviceSequences(data.train, window=11, device="cpu")
    parts = next(iter(TrainingBatches(held.lengths, tokens=300, seed=0, minimum=2)))
    assert len(parts) > 4
    batches = [held.batch(rows) for rows in parts]
    whole = sum(part.targets for part in batches)
    ours = sum(model.loss(part, FullSoftmax()) * (part.targets / whole) for part in batches)
    at_once = model.loss(
        held.batch(torch.cat([torch.from_numpy(rows) for rows in parts]).numpy()), FullSoftmax()
    )
    torch.testing.assert_close(ours, at_once, rtol=1e-12, atol=0)


def test_a_checkpoint_of_other_side_information_is_not_continued():
    known = described(random_sequences(40, ITEMS))

    def mark(**asked) -> str:
        side = side_of(known, ITEMS, **asked) if asked else None
        model = build("sasrec", {}, n_items=ITEMS, max_length=8, side=side)
        return run_fingerprint("data", TrainSettings(), 1, model)

    assert mark(vectors="text") == mark(vectors="text")
    marks = {mark(), mark(vectors="text"), mark(vectors="image"), mark(vectors="text", combine="concat")}
    assert len(marks) == 4


def test_minutes_end_a_training_for_good(data, tmp_path):
    limited = run(data, tmp_path, max_epochs=50, validate_every=2, max_minutes=1e-9)
    assert limited.cost["epochs"] == limited.cost["best_epoch"] == 2  # the first that is validated
    assert limited.cost["device"] == "cpu" and limited.cost["precision"] == "fp32"


def falling(model) -> dict[str, float]:
    """A validation that is best before training learns anything."""
    falling.value *= 0.5
    return {"valid_ndcg@10": falling.value}


@pytest.mark.parametrize(
    "changed, reason, best",
    [
        ({"max_epochs": 3, "patience": 9}, "max_epochs 3", 1),
        ({"max_epochs": 9, "patience": 2}, "patience 2", 1),
        ({"max_epochs": 9, "max_minutes": 1e-9}, "max_minutes 1e-09", 1),
    ],
)
def test_the_end_of_training_is_told_in_one_line(data, tmp_path, caplog, changed, reason, best):
    falling.value = 1.0
    with caplog.at_level("INFO", logger="recpipe"):
        trained = run(data, tmp_path, validate=falling, **changed)
    (line,) = [each for each in caplog.messages if "ended by" in each]
    assert line.startswith(f"train SASRec: {len(trained.curve)} epochs in ")
    assert line.endswith(f"best valid_ndcg@10 0.5000 in epoch {best}; ended by {reason}")


def test_who_cut_training_off_is_told(data, tmp_path, caplog):
    with caplog.at_level("INFO", logger="recpipe"), pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, on_epoch=lambda row: True)
    assert any("ended by on_epoch" in each for each in caplog.messages)


@pytest.mark.parametrize(
    "validate_every, log_every, told", [(1, 1, [1, 2, 3, 4, 5, 6]), (1, 4, [1, 5]), (2, 3, [2, 6])]
)
def test_validations_are_told_but_not_more_often_than_asked(
    data, tmp_path, caplog, validate_every, log_every, told
):
    with caplog.at_level("INFO", logger="recpipe"):
        run(data, tmp_path, max_epochs=6, validate_every=validate_every, log_every=log_every)
    lines = [each for each in caplog.messages if each.startswith("train SASRec: epoch ")]
    assert [int(each.split()[3].rstrip(",")) for each in lines] == told
    assert all("valid_ndcg@10 0." in each and "loss " in each for each in lines)


def test_progress_counts_every_step_and_those_of_an_earlier_run(data, tmp_path, monkeypatch):
    bars: list[Progress] = []

    def watched(*args, **options) -> Progress:
        bars.append(progress(*args, **options))
        return bars[-1]

    monkeypatch.setattr("recpipe.training.fit.progress", watched)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, on_epoch=lambda row: row["epoch"] == 2)
    run(data, tmp_path)
    assert [bar.total for bar in bars] == [bars[0].total] * 2 and bars[0].total % 5 == 0
    assert [5 * bar.done for bar in bars] == [2 * bars[0].total, 5 * bars[0].total]
