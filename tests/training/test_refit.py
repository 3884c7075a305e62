"""Refit: the weights that a measured run had at its best epoch if the data are the same, and what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.models.generative import BOTH, create
from tests.synthetic import random_sequences, untrained
from tests.training.runs import ADAM, METRIC, Series, flat, run, weights

from recpipe.config.run_config import RunConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.data.splits import TrainingData, split
from recpipe.evaluation.evaluate import evaluate, validator
from recpipe.training.bundle import Bundle, curve_table, load_bundle, save_bundle
from recpipe.training.job import ItemInputs, TrainingJob
from recpipe.training.module import Replay
from recpipe.training.refit import MeasuredRun, choose_item_model, copy_tuned, refit

ITEMS = 12
LOG = random_sequences(60, ITEMS, longest=9, shortest=4, seed=5)
VOCABULARY = Vocabulary(np.array([f"i{number:02}" for number in range(ITEMS)], object))
PROTOCOL = Protocol(dataset="shop", history=8, fingerprint=LOG.fingerprint(), steps=("raw",))
INPUTS = ItemInputs(pa.table({"item_id": VOCABULARY.ids.tolist(), "title": [f"t {item}" for item in VOCABULARY.ids]}))
FAST = {"device": "cpu", "batch_tokens": 100, "max_epochs": 4, "optimiser": ADAM, "loggers": []}
SMALL = {"sasrec": {"dim": 8, "layers": 1}, "svd": {"factors": 3}, "popular": {}}


def config(type_: str, *, settings: dict | None = None, **train) -> RunConfig:
    values = SMALL[type_] if settings is None else settings
    return RunConfig(
        name="m", dataset="shop", type=type_, settings=values, train={**FAST, **train}, side={}, cold_users={}
    )


def training_data(protocol: Protocol, log: Sequences = LOG) -> TrainingData:
    parts = split(log, protocol, VOCABULARY)
    return TrainingData({"id": protocol.id, **protocol.to_dict()}, VOCABULARY, parts.train, parts.valid)


def job(folder: Path, run_config: RunConfig, data: TrainingData) -> TrainingJob:
    return TrainingJob(config=run_config, data=data, inputs=INPUTS, work_folder=folder, validator=validator)


def measured_run(folder: Path, type_: str, **train) -> MeasuredRun:
    """A model as the pipelines train and evaluate leave it on disk."""
    bundle = job(folder / "work", config(type_, **train), training_data(PROTOCOL)).train()
    (folder / "bundle").mkdir()
    save_bundle(bundle, folder / "bundle")
    parts = split(LOG, PROTOCOL)
    metrics = evaluate(bundle, parts.valid, parts.test, PROTOCOL, k=3).metrics
    return MeasuredRun(load_bundle(folder / "bundle"), metrics, "v1", curve_table(bundle))


def refitted(folder: Path, measured: MeasuredRun, current: RunConfig | None = None) -> Bundle:
    current = current or config(measured.bundle.type)
    data = measured.data(LOG, VOCABULARY)
    return refit(job(folder / "refit", measured.config(current), data), measured)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": {"name": "cosine", "warmup_steps": 3}, "ema": 0.9},
        {"schedule": {"name": "one_cycle"}, "validate_every": 2},
        {"layout": "packed", "loss": {"name": "sampled_softmax", "negatives": {"uniform": 8}}},
    ],
    ids=["default", "cosine and average", "validated every second epoch", "packed, sampled"],
)
def test_on_the_same_data_a_replay_ends_with_the_weights_of_the_best_epoch(tmp_path, changes):
    measured = run(tmp_path / "measured", max_epochs=6, optimiser=ADAM, **changes)
    replay = Replay(measured.cost["best_epoch"])
    again = run(tmp_path / "again", max_epochs=6, optimiser=ADAM, replay=replay, **changes)
    assert torch.equal(weights(again), weights(measured))
    assert len(again.curve) == replay.epochs
    assert not [name for row in again.curve for name in row if "valid" in name] and "best_epoch" not in again.cost


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"name": "plateau", "patience": 0}},
        {"loss": {"name": "amince", "tail": 0.5, "second_stage_after": 1}, "patience": 3},
    ],
    ids=["plateau", "second stage"],
)
def test_what_follows_validations_follows_those_of_the_measured_run(tmp_path, changes):
    metrics = (0.3, 0.2, 0.1, 0.4, 0.35)  # the best is the fourth, after a reduction or in the second stage
    measured = run(tmp_path / "measured", validate=Series(*metrics), **changes)
    assert measured.cost["best_epoch"] == 4
    replay = Replay(4, dict(enumerate(metrics, 1)))
    again = run(tmp_path / "again", replay=replay, **changes)
    assert torch.equal(weights(again), weights(measured))
    assert METRIC not in {name for row in again.curve for name in row}
    other = run(tmp_path / "other", replay=Replay(4, dict(enumerate((0.1, 0.2, 0.3, 0.4), 1))), **changes)
    assert not torch.equal(weights(other), weights(measured))
    with pytest.raises(ValueError, match="nothing is validated in this training"):
        run(tmp_path / "without", replay=Replay(4), **changes)


def test_an_interrupted_replay_is_resumed(tmp_path):
    full = run(tmp_path / "full", replay=Replay(4))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", replay=Replay(4), on_epoch=lambda row: row["epoch"] == 2)
    resumed = run(tmp_path / "cut", replay=Replay(4))
    assert torch.equal(weights(resumed), weights(full))


@pytest.mark.parametrize("type_", ["sasrec", "svd", "popular"])
def test_a_refit_is_trained_on_every_event_and_stands_for_its_measured_run(type_, tmp_path):
    measured = measured_run(tmp_path, type_)
    bundle = refitted(tmp_path, measured)
    assert bundle.train_events.tolist() == np.bincount(LOG.items, minlength=ITEMS + 1)[1:].tolist()
    production = bundle.training["production"]
    assert production["made_by"] == "refit"
    stands_for = {
        "run": "shop/m/seed_42",
        "version": "v1",
        "protocol": PROTOCOL.id,
        "metrics": measured.metrics["test"],
    }
    assert production["stands_for"] == stands_for
    assert bundle.protocol == replace(PROTOCOL, split="none") and bundle.protocol.id != PROTOCOL.id
    assert bundle.model.cold_users.config == measured.bundle.model.cold_users.config
    assert bundle.titles == measured.bundle.titles
    parts = split(LOG, PROTOCOL)
    for protocol in (PROTOCOL, bundle.protocol):
        with pytest.raises(ValueError, match="another split|split is none"):
            evaluate(bundle, parts.valid, parts.test, protocol)
    with pytest.raises(ValueError, match="may know validation or test events"):
        bundle.check_held_out(PROTOCOL, train_on_validation=False, where="init_from=shop/m/seed_42")


@pytest.mark.parametrize("type_", ["sasrec", "svd"])
def test_where_nothing_is_held_out_training_and_refit_are_the_same(type_, tmp_path):
    measured = measured_run(tmp_path, type_)
    bundle = refitted(tmp_path, measured)
    epochs = measured.bundle.training["cost"].get("best_epoch", 1)
    data = training_data(replace(PROTOCOL, split="none"))
    trained = job(tmp_path / "none", config(type_, max_epochs=epochs, train_on_validation=True), data).train()
    assert torch.equal(flat(trained.model), flat(bundle.model))
    assert trained.protocol == bundle.protocol and not trained.train_on_validation
    with pytest.raises(ValueError, match=r"protocol.split=none, on all events already"):
        MeasuredRun(trained, measured.metrics, "v1")


def test_a_model_trained_on_validation_events_is_refitted_for_all_its_epochs(tmp_path):
    measured = measured_run(tmp_path, "sasrec", train_on_validation=True, max_epochs=3)
    assert measured.replay() == Replay(3)
    assert len(refitted(tmp_path, measured).curve) == 3


def test_the_settings_of_the_bundle_win_and_differences_are_named(tmp_path, caplog):
    measured = measured_run(tmp_path, "sasrec")
    changed = config("sasrec", settings={"dim": 16, "layers": 1}, max_epochs=50, log_every=1)
    with caplog.at_level(logging.WARNING):
        used = measured.config(changed)
    assert "dim is 8, not 16" in caplog.text and "train.max_epochs is 4, not 50" in caplog.text
    assert (used.settings["dim"], used.train["max_epochs"], used.train["log_every"]) == (8, 4, 1)
    caplog.clear()
    measured.config(config("sasrec"))
    assert not caplog.records


def test_a_plateau_needs_the_curve_of_the_measured_run(tmp_path):
    measured = measured_run(tmp_path, "sasrec", schedule={"name": "plateau", "patience": 0})
    replay, rows = measured.replay(), measured.curve.to_pylist()
    assert replay is not None and replay.metrics == {row["epoch"]: row[METRIC] for row in rows}
    refitted(tmp_path, measured)
    for curve in (None, measured.curve.slice(1)):
        with pytest.raises(ValueError, match="follows its validations"):
            replace(measured, curve=curve).replay()


def test_another_log_is_refused_with_the_command_that_helps(tmp_path):
    measured = measured_run(tmp_path, "popular")
    measured.check_log(LOG, VOCABULARY, ("raw",))
    longer = random_sequences(61, ITEMS, longest=9, shortest=4, seed=5)
    fewer = Vocabulary(VOCABULARY.ids[:-1])
    command = r"kedro run --pipelines=train,evaluate --params dataset=shop,model=m,seed=42"
    for log, vocabulary, steps, what in (
        (longer, VOCABULARY, ("raw",), "events"),
        (LOG, fewer, ("raw",), "catalogue"),
        (LOG, VOCABULARY, ("raw", "last"), "cleaning or sampling steps"),
    ):
        with pytest.raises(ValueError, match=rf"\({what} differ\).*{command}"):
            measured.check_log(log, vocabulary, steps)


def test_metrics_of_another_training_are_refused(tmp_path):
    measured = measured_run(tmp_path, "sasrec")
    cost = {**measured.metrics["cost"], "train_seconds": 1e9}
    with pytest.raises(ValueError, match=r"metrics.json of shop/m/seed_42 is of another training .*evaluate"):
        replace(measured, metrics={**measured.metrics, "cost": cost})


@pytest.mark.parametrize("name", ["mql4grec", "parallel_tiger", "setrec"])
def test_values_chosen_on_the_validation_fold_are_those_of_the_measured_model(name):
    torch.manual_seed(0)
    source, target = (_tunable(name) for _ in range(2))
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    values = iter(np.arange(100.0))
    assert source.tune(lambda: next(values))  # the last choice is the best
    changed = {key for key, tensor in source.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == set(type(source).tuned)
    copy_tuned(source, target)
    for key in changed:
        assert torch.equal(target.state_dict()[key], source.state_dict()[key])


def _tunable(name: str):
    if name == "setrec":
        small = {"dim": 8, "heads": 2, "head_dim": 4, "feed_forward": 8, "layers": 1, "decoder_layers": 1}
        options = {**small, "tokens": 2, "widths": [8, 4]}
        return untrained("setrec", options, LOG, n_items=ITEMS, max_length=5)
    return create(name, BOTH)


def test_item_vectors_come_from_a_refit_of_the_same_log_if_there_is_one(tmp_path):
    measured = measured_run(tmp_path, "sasrec")
    data, production = measured.data(LOG, VOCABULARY), refitted(tmp_path, measured)
    assert choose_item_model(measured.bundle, production, data) is production
    assert choose_item_model(measured.bundle, None, data) is measured.bundle
    protocol = replace(production.protocol, fingerprint="another log")
    assert choose_item_model(measured.bundle, replace(production, protocol=protocol), data) is measured.bundle


def test_item_vectors_of_another_model_are_refused(tmp_path):
    item_model = measured_run(tmp_path, "sasrec").bundle
    inputs = replace(INPUTS, collaborative=item_model)
    reader = replace(config("sasrec"), name="reader", side={"vectors": "collaborative"}, collaborative="m")
    data = training_data(PROTOCOL)
    bundle = replace(job(tmp_path / "reader", reader, data), inputs=inputs).train()
    measured = MeasuredRun(bundle, {"cost": bundle.training["cost"], "protocol": {"id": PROTOCOL.id}, "test": {}}, "v1")
    measured.check_inputs(reader, inputs)
    for other, what in ((None, "none"), (replace(item_model, name="other"), "other")):
        with pytest.raises(ValueError, match=rf"item vectors of m .* reads {what}: set models.reader.collaborative=m"):
            measured.check_inputs(reader, replace(inputs, collaborative=other))
