"""Protocols: validation, use of time, ids that stay equal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recpipe.data.protocol import Protocol


def test_a_use_of_time_beyond_the_protocol_is_refused():
    order = ("none", "last_item", "query")
    for allowed in order:
        for used in order:
            if order.index(used) <= order.index(allowed):
                Protocol(dataset="x", time=allowed).check_time(used, model="clock")
                continue
            message = f"clock uses time as {used} and protocol.time is {allowed}.* protocol.time={used}"
            with pytest.raises(ValueError, match=message):
                Protocol(dataset="x", time=allowed).check_time(used, model="clock")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "random"}, "allowed: leave_one_out, temporal, rolling, ratio, cold_users"),
        ({"targets": "all"}, "no meaning under leave_one_out"),
        ({"split": "none", "held_out_items": 0.1}, "protocol.split none, which holds nothing out"),
        ({"history": 0}, "at least 1"),
        ({"cutoffs": ()}, "at least one cut-off"),
        ({"candidates": "sampled"}, "allowed: full"),
        ({"split": "rolling", "folds": 0}, "number of test windows, at least 1"),
        ({"split": "rolling", "folds": 3, "fold": 4}, "allowed: 1 to 3"),
        ({"split": "rolling", "fold": 0}, "allowed: 1 to 3"),
        ({"split": "temporal", "fold": 1}, "protocol.split temporal; only rolling has folds"),
        ({"time": "now"}, "allowed: none, last_item, query"),
        *(
            ({"held_out_items": share}, "share of the items, from 0 to below 1")
            for share in (-0.1, 1, 1.5, float("nan"), True, "2011-10-01")
        ),
    ],
)
def test_bad_protocols_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Protocol(dataset="x", **fields)


def test_protocol_id_depends_on_fields_that_change_metrics_only():
    one = Protocol(dataset="x", fingerprint="f", seed=1)
    assert (
        one.id
        == Protocol(dataset="x", fingerprint="f", seed=2).id
        == Protocol(dataset="x", fingerprint="f", valid=0.3).id
    )
    others = [
        {"exclude_seen": False},
        {"ties": "shuffle"},
        {"history": 50},
        {"fingerprint": "g"},
        {"split": "ratio"},
        {"time": "last_item"},
        {"time": "query"},
    ]
    assert len({Protocol(**{"dataset": "x", "fingerprint": "f", **other}).id for other in others} | {one.id}) == 8
    shuffled = [Protocol(dataset="x", ties="shuffle", seed=seed).id for seed in (1, 2)]
    assert shuffled[0] != shuffled[1]
    assert Protocol.from_dict({"id": one.id, **one.to_dict()}) == one
    assert one.data_differences(Protocol(dataset="x", fingerprint="f", seed=1, exclude_seen=False)) == []
    assert one.data_differences(Protocol(dataset="x", fingerprint="f", seed=1, time="query")) == []
    assert one.data_differences(Protocol(dataset="x", fingerprint="g", seed=1)) == ["fingerprint"]
    with pytest.raises(ValueError, match=r"unknown protocol key 'exclude_sene' \(did you mean 'exclude_seen'\?\)"):
        Protocol.from_dict({"dataset": "x", "exclude_sene": True})


PUBLISHED = {
    "16498059": {
        "dataset": "amazon-beauty",
        "fingerprint": "3d38764cd954",
        "steps": ["raw {}", 'bad_rows {"policy": "quarantine", "reasons": {}}'],
        "history": 50,
    },
    "48d08476": {
        "dataset": "ml-100k",
        "fingerprint": "c1ec8651ab27",
        "steps": ["raw {}", 'bad_rows {"policy": "quarantine", "reasons": {}}'],
    },
    "c0cc9684": {
        "dataset": "ml-1m",
        "fingerprint": "e17e6cd2bfe5",
        "steps": ["raw {}", 'bad_rows {"policy": "quarantine", "reasons": {}}', 'k_core {"items": 5}'],
    },
}


@pytest.mark.parametrize("protocol_id", PUBLISHED)
def test_published_ids_are_stable_and_held_out_items_change_them(protocol_id):
    usual = Protocol.from_dict(PUBLISHED[protocol_id])
    assert usual.id == protocol_id == replace(usual, seed=1, held_out_items=0).id
    held_out = replace(usual, held_out_items=0.03)
    assert len({usual.id, held_out.id, replace(held_out, seed=1).id, replace(held_out, held_out_items=0.04).id}) == 4
    assert usual.data_differences(held_out) == held_out.data_differences(usual) == ["seed", "held_out_items"]
    assert Protocol.from_dict({"id": held_out.id, **held_out.to_dict()}) == held_out


def test_target_events_change_the_id_only_where_they_are_set():
    plain, bought = Protocol(dataset="x"), Protocol(dataset="x", target_events=["cart", "buy"])
    old = {key: value for key, value in plain.to_dict().items() if key != "target_events"}
    assert Protocol.from_dict(old).id == plain.id == Protocol(dataset="x", target_events="none").id
    assert bought.id != plain.id and bought.target_events == ("buy", "cart")
    assert Protocol.from_dict(bought.to_dict()) == bought == Protocol(dataset="x", target_events="cart+buy")
    assert plain.data_differences(bought) == ["target_events"]
    with pytest.raises(ValueError, match="target_events is empty"):
        Protocol(dataset="x", target_events=[])


def test_without_a_split_the_id_depends_on_the_sequences_and_not_on_what_was_held_out():
    splits = [
        Protocol(dataset="x", held_out_items=0.1, seed=3),
        Protocol(dataset="x", split="ratio", valid=0.3, targets="all"),
        Protocol(dataset="x", split="temporal", test="2011-10-01"),
        Protocol(dataset="x", split="rolling", test="14d", fold=2),
        Protocol(dataset="x", split="none", test=0.4),
    ]
    whole = [protocol.without_split() for protocol in splits]
    assert len({protocol.id for protocol in whole}) == 1 and not any(protocol.holds_out for protocol in whole)
    assert not {protocol.id for protocol in whole} & {protocol.id for protocol in splits[:4]}
    assert whole[0].data_differences(whole[1]) == []
    assert Protocol(dataset="x", history=3).without_split().id != whole[0].id


def test_every_fold_is_a_protocol_and_other_splits_have_no_folds():
    folds = [Protocol(dataset="x", split="rolling", fold=fold) for fold in (1, 2, 3)]
    assert len({fold.id for fold in folds} | {folds[0].folds_id}) == 4
    assert len({fold.folds_id for fold in folds}) == 1
    assert folds[0].data_differences(folds[1]) == ["fold"]
    plain = Protocol(dataset="x")
    assert plain.id == replace(plain, folds=7).id == plain.folds_id
