"""Requests in Python that are wrong: each is an error that names the value, never a list that ignores it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.generative import create
from tests.synthetic import random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.models.registry import build
from recpipe.serving.model import ServingBundle
from recpipe.serving.rules import Rules
from recpipe.training.bundle import Bundle

ITEMS = 25
IDS = [f"i{n:02}" for n in range(ITEMS)]
HISTORY = {"ann": ["i01", "i02"]}
COLUMNS = pa.table({"price": list(range(ITEMS)), "tags": [["a"]] * ITEMS})


@cache
def serving_bundle(name: str = "popular") -> ServingBundle:
    if name == "tiger":
        model = create("tiger")
    else:
        model = build(name, {}, n_items=ITEMS, max_length=6)
        model.fit(random_sequences(30, ITEMS, seed=1))
    vocabulary, protocol = Vocabulary(np.array(IDS, object)), Protocol(dataset="tiny")
    bundle = Bundle(name, name, model, vocabulary, IDS, np.ones(ITEMS, int), protocol, item_columns=COLUMNS)
    return ServingBundle.of(bundle)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"histories": {"ann": [1, 2]}}, "item 1 is of type int; item ids are texts, such as '1'"),
        ({"histories": {"ann": ["i01", None]}}, "item None is of type NoneType"),
        ({"histories": {"ann": [["i01"]]}}, r"item \['i01'\] is of type list"),
        ({"histories": {"ann": "i01"}}, "history of user 'ann' is of type str; it is a list of item ids"),
        ({"histories": {"ann": None}}, "history of user 'ann' is of type NoneType"),
        ({"histories": {7: ["i01"]}}, "user 7 is of type int; user ids are texts, such as '7'"),
        ({"histories": [["i01"]]}, "histories are of type list; give a mapping"),
        ({"timestamps": {"ann": [1]}}, "not one for each event"),
        ({"timestamps": {}}, "not one for each event"),
        ({"timestamps": [1, 2]}, "timestamps are of type list"),
        ({"timestamps": {"ann": [1, 2.5]}}, "of user 'ann' are not all whole seconds"),
        ({"timestamps": {"ann": [1, None]}}, "not all whole seconds"),
        ({"timestamps": {"ann": ["1", "2"]}}, "not all whole seconds"),
        ({"timestamps": {"ann": [1, 10**30]}}, "not all whole seconds"),
        ({"timestamps": {"ann": [1, 2**63]}}, "not all whole seconds"),
        ({"timestamps": {"ann": [2, 1]}}, "of user 'ann' go back in time"),
        ({"now": "today"}, "now is 'today'"),
        ({"now": float("nan")}, "now is nan"),
        ({"now": 10**30}, "whole seconds since 1970"),
        ({"candidates": "i01"}, "item ids are 'i01', of type str; give a list"),
        ({"candidates": 5}, "item ids are 5"),
        ({"candidates": [21]}, "item 21 is of type int"),
        ({"candidates": []}, "none of the 0 candidates"),
        ({"candidates": {"ann": "i01"}}, "item ids are 'i01'"),
        ({"exclude": "i01"}, "item ids are 'i01'"),
        ({"exclude": [21]}, "item 21 is of type int"),
        ({"exclude": {"ann": None}}, "item ids are None"),
        ({"search": "beam"}, "search is 'beam'; give a mapping"),
        ({"profiles": {"user_id": ["ann"]}}, "profiles are of type dict; give an Arrow table"),
        ({"profiles": pa.table({"id": ["ann"]})}, "profiles have no column user_id, only id"),
        ({"rules": "seen"}, "rules are 'seen'; give a mapping"),
        ({"rules": {"exclude": [21]}}, "rules.exclude has 21; item ids are texts, in quotation marks"),
        ({"rules": {"candidates": [None]}}, "rules.candidates has None"),
        ({"rules": {"seen": 10**400}}, "seen is 1000.*a number of days from 0 to 1,000,000"),
        ({"rules": {"max_per_category": 1, "category": "tags"}}, "category is 'tags', a column of lists"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_an_error_that_names_the_value(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        serving_bundle().recommend(**{"histories": HISTORY, **request_})


@pytest.mark.parametrize("beam", ["wide", 0, -1, 2.5, None, True])
def test_a_wrong_beam_is_an_error(beam: object) -> None:
    with pytest.raises(ValueError, match="beam"):
        serving_bundle("tiger").recommend(HISTORY, search={"beam": beam})


def test_a_bundle_without_item_columns_says_so() -> None:
    for columns, hint in ((None, True), (COLUMNS, False)):
        model = replace(serving_bundle(), item_columns=columns)
        with pytest.raises(ValueError, match="no column 'stock'") as error:
            model.recommend(HISTORY, rules={"where": "stock > 0"})
        assert ("trained without item columns" in str(error.value)) == hint


def test_current_columns_count_at_once_for_rules_that_were_asked_before() -> None:
    model, rules = serving_bundle(), {"where": "price > 22"}
    assert sorted(model.recommend(HISTORY, rules=rules)["item_id"].to_pylist()) == ["i23", "i24"]
    prices = pa.table({"item_id": ["i03", "i04"], "price": [30, 2]})
    for current in (model.with_items(prices), model.with_item_columns(prices)):
        assert current.recommend(HISTORY, rules=rules)["item_id"].to_pylist() == ["i03"]


def test_ids_may_be_arrays_and_times_numpy_integers() -> None:
    model = serving_bundle()
    items = np.array(HISTORY["ann"])
    table = model.recommend({"ann": items}, timestamps={"ann": np.array([5, 5])}, now=np.int64(9))
    assert table == model.recommend(HISTORY)
    table = model.recommend({"ann": items}, candidates=np.array(["i05", "i06"]), exclude=("i06",))
    assert table["item_id"].to_pylist() == ["i05"]
    assert model.recommend({}).num_rows == 0


def test_a_long_history_of_unknown_and_repeated_items_is_answered() -> None:
    history = ["i01", "unknown"] * 50_000
    one, other = (serving_bundle().recommend({"ann": items}) for items in (history, ["i01"]))
    assert one == other


WORDS = ["price", "i01", "price > 3"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["share", "where", "x"]), inner),
    max_leaves=5,
)
names = st.sampled_from([*Rules.__dataclass_fields__, "other"])


@settings(deadline=None, max_examples=150)
@given(rules=st.dictionaries(names, values, max_size=3))
def test_any_rules_give_a_valid_list_or_an_error(rules: dict[str, Any]) -> None:
    try:
        table = serving_bundle().recommend(HISTORY, 5, rules=rules, timestamps={"ann": [1, 2]}, now=9)
    except ValueError as error:
        assert str(error)
        return
    items = table["item_id"].to_pylist()
    assert set(items) <= set(IDS) - set(rules.get("exclude", ())) and len(items) == len(set(items)) <= 5


def test_categories_may_be_of_any_plain_type() -> None:
    shades = [("red", "blue", None)[n % 3] for n in range(ITEMS)]
    numbers = [(1.5, 2.5, float("nan"))[n % 3] for n in range(ITEMS)]
    columns = {
        "text": pa.array(shades),
        "dictionary": pa.array(shades).dictionary_encode().cast(pa.dictionary(pa.uint32(), pa.large_string())),
        "number": pa.array(numbers),
        "same": pa.array([True] * ITEMS),
    }
    model = serving_bundle().with_items(pa.table({"item_id": IDS, **columns, "nothing": pa.nulls(ITEMS)}))
    lists = {
        name: model.recommend(HISTORY, 9, rules={"category": name, "max_per_category": 1})["item_id"].to_pylist()
        for name in [*columns, "nothing"]
    }
    assert lists["text"] == lists["dictionary"] == lists["number"]
    chosen = [shades[IDS.index(item)] for item in lists["text"]]
    assert (chosen.count("red"), chosen.count("blue")) == (1, 1) and None in chosen
    assert len(lists["same"]) == 1
    assert lists["nothing"] == model.recommend(HISTORY, 9)["item_id"].to_pylist()


def test_threads_with_more_rules_than_the_cache_holds_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recpipe.serving.rules.RULES_CACHED", 2)
    model, interval = serving_bundle(), sys.getswitchinterval()
    requests = [{"exclude": [item]} for item in IDS] * 40

    def excluded(rules: dict[str, Any]) -> bool:
        mask = model.rules(rules).candidates
        return mask is not None and not mask[IDS.index(rules["exclude"][0]) + 1]

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(excluded, requests))
    finally:
        sys.setswitchinterval(interval)
