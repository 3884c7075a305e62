"""Second stage, loggers of curves, and the lock of a work folder."""

from __future__ import annotations

import pytest
from filelock import FileLock
from tests.training.runs import DATA, PROTOCOL, Series, run

from recpipe.evaluation.ranking import fold_metric
from recpipe.training.callbacks import curve_loggers
from recpipe.training.losses.amince import AMINCE


def test_the_second_stage_restarts_patience(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(AMINCE, "begin_second_stage", lambda self: calls.append(True))
    loss = {"name": "amince", "second_stage_after": 2}
    metrics = Series(0.5, 0.4, 0.3, 0.2, *[0.1] * 5)
    result = run(tmp_path, validate=metrics, max_epochs=9, patience=3, loss=loss)
    assert calls == [True]
    assert result.cost["epochs"] in (5, 6)  # two without a new best, then three more
    with pytest.raises(ValueError, match=r"less than train\.patience 2"):
        run(tmp_path / "b", patience=2, loss=loss)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="another process trains in"):
        run(tmp_path)
    assert run(tmp_path, max_epochs=1).cost["epochs"] == 1


def test_curves_go_to_the_configured_loggers(tmp_path):
    run(tmp_path / "two", max_epochs=1, loggers=["csv", "tensorboard"])
    assert (tmp_path / "two" / "csv" / "metrics.csv").is_file()
    assert list((tmp_path / "two" / "tensorboard").iterdir())
    run(tmp_path / "none", max_epochs=1, loggers=[])
    assert not {"csv", "tensorboard"} & {path.name for path in (tmp_path / "none").iterdir()}


def test_tensorboard_has_every_column_of_the_curve_and_the_number_of_parameters(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, max_epochs=3, loggers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    names = {"loss": "train_loss", "lr": "learning_rate"}
    for name in result.curve[0]:
        values = pytest.approx([row[name] for row in result.curve])
        assert scalars[names.get(name, name)] == values or name == "epoch"  # which Lightning logs too
    weights = sum(tensor.numel() for tensor in result.model.state_dict().values())
    assert scalars["parameters"] == [weights] * 3


@pytest.mark.parametrize("name", ["ndcg", "recall", "hit_rate", "mrr"])
def test_validation_metrics_of_the_best_epoch_are_those_of_the_trained_model(tmp_path, name):
    result = run(tmp_path, max_epochs=3, loggers=[])
    value = fold_metric(result.model, DATA.valid, PROTOCOL, f"{name}@10")
    assert result.curve[result.cost["best_epoch"] - 1][f"valid_{name}@10"] == pytest.approx(value, abs=1e-12)


def test_without_tensorboard_curves_go_to_a_csv_file(tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda _: None)
    run(tmp_path, max_epochs=2, loggers=["tensorboard", "csv"])
    header, *rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "valid_ndcg@10"} <= set(header.split(",")) and len(rows) >= 2


def test_wandb_is_used_where_installed_and_refused_where_not(tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        run(tmp_path, loggers=["wandb"])
    calls = []
    monkeypatch.setattr("recpipe.training.callbacks.find_spec", lambda name: name)
    monkeypatch.setattr("recpipe.training.callbacks.WandbLogger", lambda **options: calls.append(options))
    curve_loggers(["tensorboard", "wandb", "wandb"], tmp_path / "d" / "m" / "s")
    assert calls == [{"name": "d/m/s", "project": "recpipe", "save_dir": tmp_path / "d" / "m" / "s"}]
