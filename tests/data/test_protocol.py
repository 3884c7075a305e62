"""Protocols: validation, use of time, ids that stay equal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recpipe.data.protocol import Protocol


def test_a_protocol_allows_as_much_of_time_as_it_says_and_less():
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
    ("given", "message"),
    [
        ({"split": "random"}, "allowed: leave_one_out, temporal, ratio, cold_users"),
        ({"targets": "all"}, "no meaning under leave_one_out"),
        ({"history": 0}, "at least 1"),
        ({"cutoffs": ()}, "at least one cut-off"),
        ({"candidates": "sampled"}, "allowed: full"),
        ({"time": "now"}, "allowed: none, last_item, query"),
        *(
            ({"held_out_items": share}, "share of the items, from 0 to below 1")
            for share in (-0.1, 1, 1.5, float("nan"), True, "2011-10-01")
        ),
    ],
)
def test_bad_protocols_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Protocol(dataset="x", **given)


def test_protocol_id_changes_with_what_moves_a_number_and_only_with_that():
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
    assert (
        len({Protocol(**{"dataset": "x", "fingerprint": "f", **other}).id for other in others} | {one.id})
        == 8
    )
    shuffled = [Protocol(dataset="x", ties="shuffle", seed=seed).id for seed in (1, 2)]
    assert shuffled[0] != shuffled[1]
    assert Protocol.from_dict({"id": one.id, **one.to_dict()}) == one
    assert one.data_differences(Protocol(dataset="x", fingerprint="f", seed=1, exclude_seen=False)) == []
    assert one.data_differences(Protocol(dataset="x", fingerprint="f", seed=1, time="query")) == []
    assert one.data_differences(Protocol(dataset="x", fingerprint="g", seed=1)) == ["fingerprint"]
    with pytest.raises(
        ValueError, match=r"unknown protocol key 'exclude_sene' \(did you mean 'exclude_seen'\?\)"
    ):
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


@pytest.mark.parametrize("known", PUBLISHED)
def test_ids_of_numbers_in_the_log_stay_as_they_are_and_held_out_items_make_another(known):
    usual = Protocol.from_dict(PUBLISHED[known])
    assert usual.id == known == replace(usual, seed=1, held_out_items=0).id
    few = replace(usual, held_out_items=0.03)
    assert len({usual.id, few.id, replace(few, seed=1).id, replace(few, held_out_items=0.04).id}) == 4
    assert usual.data_differences(few) == few.data_differences(usual) == ["seed", "held_out_items"]
    assert Protocol.from_dict({"id": few.id, **few.to_dict()}) == few
