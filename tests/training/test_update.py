"""Updates of small models: which events train them, when they stop, what they forget, what their bundles say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import random_sequences, target_mask

from recpipe.config.run_config import RunConfig
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.evaluation.evaluate import validator
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.training import fit
from recpipe.training.bundle import Bundle
from recpipe.training.job import ItemInputs
from recpipe.training.settings import TrainSettings
from recpipe.training.update import ForgettingGuard, Update
from recpipe.training.update_data import UpdateSettings, update_data

ITEMS, NEW_ITEMS, USERS = 16, 4, 90
IDS = np.array([f"i{n:02}" for n in range(ITEMS + NEW_ITEMS)], object)
SETTINGS = UpdateSettings(
    replay=0.5, learning_rate=0.5, schedule={"name": "constant"}, max_epochs=3, patience=3, tolerance=0.5, held_out=0.1,
    users=20,
)  # fmt: skip
TRAIN = {
    "batch_tokens": 200, "max_epochs": 4, "patience": 9, "device": "cpu", "loggers": [],
    "optimiser": {"name": "adam", "learning_rate": 0.02},
}  # fmt: skip
PROTOCOL = Protocol(dataset="tiny", history=6, exclude_seen=False)


def log() -> tuple[Sequences, np.ndarray]:
    """Walks over all items, and how many events of every user are old: those have only the first items."""
    data = random_sequences(USERS, ITEMS + NEW_ITEMS, seed=3, longest=14, shortest=6)
    old = np.random.default_rng(0).integers(3, 6, USERS)
    place = np.arange(len(data.items)) - np.repeat(data.offsets[:-1], data.lengths)
    is_old = place < np.repeat(old, data.lengths)
    items = np.where(is_old, (data.items - 1) % ITEMS + 1, data.items).astype(np.int32)
    return replace(data, items=items, timestamps=(place * 100).astype(np.int64)), old


def stale(tmp_path: Path, name: str = "sasrec") -> tuple[Bundle, Sequences]:
    """A model of the old events, and the whole log."""
    data, old = log()
    seen = data.select(np.arange(USERS), np.zeros_like(old), old)
    config = {"dim": 16, "layers": 1} if name == "sasrec" else {}
    result = fit.train(
        lambda: build(name, config, n_items=ITEMS, max_length=6),
        seen,
        lambda model: {},
        TrainSettings(**TRAIN, train_on_validation=True),
        seed=0,
        folder=tmp_path / "stale",
        steps_from=seen,
    )
    training = {"seed": 0, "settings": {"train": {**TRAIN, "metric": "ndcg@10"}}}
    events = np.bincount(seen.items, minlength=ITEMS + 1)[1:]
    vocabulary = Vocabulary(IDS[:ITEMS])
    bundle = Bundle(
        name, name, result.model.eval(), vocabulary, [None] * ITEMS, events, PROTOCOL, training,
        seen_events=SeenEvents.of(seen),
    )  # fmt: skip
    return bundle, data


def update(bundle: Bundle, data: Sequences, folder: Path, **changes: object) -> Update:
    blocks = {key: {} for key in ("settings", "side", "cold_users")}
    items = pa.table({"item_id": IDS, "title": [f"title {item}" for item in IDS]})
    order = np.random.default_rng(1).permutation(len(IDS))  # a vocabulary of the log in another order
    place = np.concatenate([[0], np.argsort(order) + 1]).astype(np.int32)
    return Update(
        bundle=bundle,
        version="v1",
        stands_for={"run": "tiny/sasrec/seed_0"},
        sequences=replace(data, items=place[data.items]),
        vocabulary=Vocabulary(IDS[order]),
        protocol=replace(PROTOCOL, fingerprint=data.fingerprint()),
        inputs=ItemInputs(items),
        config=RunConfig(name=bundle.name, type=bundle.type, dataset="tiny", train=TRAIN, seed=0, **blocks),
        settings=replace(SETTINGS, **changes),
        validator=validator,
        work_folder=folder / "update",
    )


def test_an_update_learns_new_items_and_says_what_it_was_trained_on(tmp_path: Path) -> None:
    bundle, data = stale(tmp_path)
    result = update(bundle, data, tmp_path).run()
    assert result.vocabulary.ids.tolist() == IDS.tolist() and result.titles[ITEMS] == f"title {IDS[ITEMS]}"
    lists, _ = result.model.recommend(data, 5, exclude_seen=False)
    assert (lists > ITEMS).any()
    (record,) = result.training["updates"]
    assert record["best"] > record["before"]
    assert result.training["production"] == {"made_by": "update", "stands_for": {"run": "tiny/sasrec/seed_0"}}
    assert result.train_events.sum() == result.seen_events.events.sum() == len(data.items) - 20
    assert result.model.cold_users.counts.sum() == result.train_events.sum()
    with pytest.raises(ValueError, match="another split"):
        result.check_held_out(PROTOCOL, train_on_validation=False, where="init_from")
    names = [run["protocol"]["fingerprint"] for run in result.training_runs()]
    assert names == [data.fingerprint(), ""]


def test_a_second_update_goes_on_from_the_first(tmp_path: Path) -> None:
    bundle, data = stale(tmp_path)
    first = update(bundle, data, tmp_path).run()
    (held_out,) = {int((data.lengths - first.seen_events.first_new(data)).sum())}
    assert held_out == 20  # the events that watched over the first update are new to the second
    second = update(first, data, tmp_path).run()
    assert [row["new_events"] > 0 for row in second.training["updates"]] == [True, True]


def test_a_history_with_newer_events_changes_the_list_without_any_training(tmp_path: Path) -> None:
    bundle, data = stale(tmp_path)
    known = data.items.copy()
    known[known > ITEMS] = 1
    data, old = replace(data, items=known), log()[1]
    before, _ = bundle.model.recommend(data.select(np.arange(USERS), np.zeros_like(old), old), 5, exclude_seen=False)
    after, _ = bundle.model.recommend(data, 5, exclude_seen=False)
    assert (before != after).any(1).mean() > 0.9


def events_of(part: Sequences, mask: np.ndarray) -> set[tuple[str, int]]:
    """User and time of the events of ``mask``."""
    users = np.repeat(part.users, part.lengths)[mask]
    return set(zip(users.tolist(), part.timestamps[mask].tolist(), strict=True))


@pytest.mark.parametrize(("window", "stride"), [(50, None), (4, None), (4, 1)])
def test_windows_have_all_new_events_as_targets_once_and_the_share_of_old_ones(window: int, stride: int | None) -> None:
    data, old = log()
    seen = data.select(np.arange(USERS), np.zeros_like(old), old)
    settings = replace(SETTINGS, replay=0.3)
    parts = update_data(SeenEvents.of(seen), data, settings, window=window, stride=stride, seed=0)
    place = np.arange(len(data.items)) - np.repeat(data.offsets[:-1], data.lengths)
    new = events_of(data, place >= np.repeat(old, data.lengths))
    windows = parts.windows.last(window + 1)
    mask = target_mask(windows)
    recent = events_of(parts.recent.targets, np.ones(len(parts.recent), bool))
    watched = events_of(parts.earlier.targets, np.ones(len(parts.earlier), bool))
    targets = events_of(windows, mask)
    assert targets & new == new - recent and len(targets) == mask.sum()
    assert not targets & watched and not {user for user, _ in targets - new} & {user for user, _ in watched}
    assert (len(recent), len(watched)) == (20, 9) and recent < new
    assert parts.new_events == len(new) - 20
    assert 0.27 < parts.replayed_events / mask.sum() <= 0.31
    assert len(parts.seen.items) == len(data.items) - 20


def test_without_replay_only_new_events_are_targets() -> None:
    data, old = log()
    seen = SeenEvents.of(data.select(np.arange(USERS), np.zeros_like(old), old))
    parts = update_data(seen, data, replace(SETTINGS, replay=0.0), window=50, stride=None, seed=0)
    assert parts.replayed_events == 0 and target_mask(parts.windows).sum() == parts.new_events


def test_training_stops_and_keeps_the_best_state_when_old_events_are_forgotten() -> None:
    model = build("popular", {}, n_items=3, max_length=2)
    new, old = iter([0.10, 0.12, 0.20]), iter([0.30, 0.29, 0.20])
    guard = ForgettingGuard(
        lambda _: {"valid_ndcg@10": next(new)}, lambda _: {"valid_ndcg@10": next(old)}, "ndcg@10", 0.1
    )
    guard.start(model)
    curve = [guard(model), guard(model)]
    assert [row["valid_guarded_ndcg@10"] for row in curve] == [0.12, -np.inf]  # old: more than a tenth below 0.30
    assert guard.best_of(curve) == 0.12 and guard.best_of(curve[1:]) is None


def test_weights_stay_where_no_epoch_is_better(tmp_path: Path) -> None:
    bundle, data = stale(tmp_path)
    calls = []

    def worse(*_: object, **__: object) -> object:
        def validate(model: Recommender) -> dict[str, float]:
            calls.append(model)
            return {"valid_ndcg@10": 0.5 if len(calls) <= 2 else 0.1}

        return validate

    result = replace(update(bundle, data, tmp_path), validator=worse).run()
    assert len(calls) == 4  # before and after one epoch, then it stops
    (record,) = result.training["updates"]
    assert record["best"] is None
    old = bundle.model.state_dict()
    for name, tensor in result.model.state_dict().items():
        if not name.startswith("cold_users."):
            assert torch.equal(tensor[: len(old[name])], old[name]), name


@pytest.mark.parametrize(("name", "command"), [("svd", "refit"), ("popular", "refit")])
def test_closed_form_models_name_the_refit(tmp_path: Path, name: str, command: str) -> None:
    bundle, data = stale(tmp_path, name)
    with pytest.raises(ValueError, match=f"--pipeline={command} --params model={name}"):
        update(bundle, data, tmp_path).run()


def test_a_log_without_new_events_and_a_bundle_without_a_record_are_refused(tmp_path: Path) -> None:
    bundle, data = stale(tmp_path)
    old = log()[1]
    with pytest.raises(ValueError, match="no event of the log is later"):
        update(bundle, data.select(np.arange(USERS), np.zeros_like(old), old), tmp_path).run()
    with pytest.raises(ValueError, match="does not say which events"):
        update(replace(bundle, seen_events=None), data, tmp_path).run()


@pytest.mark.parametrize(
    ("name", "value"), [("replay", 1.0), ("max_epochs", 0), ("learning_rate", 0), ("tolerance", -1), ("held_out", 0.6)]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"update.{name} is {value}"):
        replace(SETTINGS, **{name: value})
