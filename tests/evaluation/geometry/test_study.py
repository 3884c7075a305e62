"""All tables of a data set: what is measured, what is named instead, and that it is JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.measures import linear_cka, measure_vectors, nearest, overlap
from recpipe.evaluation.geometry.study import (
    GeometrySettings,
    Items,
    item_map,
    measure_geometry,
    nearest_items,
    tsne,
)
from recpipe.evaluation.geometry.tables import ItemVectors, encoder_source
from recpipe.evaluation.segments import popularity_groups
from recpipe.models.registry import build, model_class
from recpipe.training.bundle import Bundle, load_bundle, save_bundle

ITEMS = 70
DATA = random_sequences(60, ITEMS - 2, seed=1)  # the last two have no event
EVENTS = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
WARM = EVENTS > 0
VOCABULARY = Vocabulary(np.array([f"i{n}" for n in range(ITEMS)], object))
ABOUT = Items(VOCABULARY, [f"title {n}" for n in range(ITEMS)], EVENTS, Protocol(dataset="shop"))
SETTINGS = GeometrySettings(nulls=3, map=40, nearest=2)
CONFIGS = {
    "sasrec": {"dim": 8},
    "hstu": {"dim": 8},
    "tiger": {"dim": 8, "heads": 1, "head_dim": 8, "feed_forward": 8},
}


def bundle(name: str, seed: int = 1, n: int = ITEMS, **changed) -> Bundle:
    torch.manual_seed(seed)
    ids = {"text": catalogue_ids(n, sizes=(8, 8, 8))} if model_class(name).reads_ids else None
    model = build(name, CONFIGS.get(name, {}), n_items=n, max_length=8, ids=ids)
    if model.closed_form:
        model.fit(DATA)
    words = Vocabulary(np.array([f"i{number}" for number in range(n)], object))
    made = Bundle(name, name, model.eval(), words, [None] * n, np.ones(n, int), Protocol(dataset="shop"))
    return replace(made, training={"seed": seed}, **changed)


def on_disk(**bundles: Bundle) -> dict:
    return {f"{name}/seed_{each.training['seed']}": lambda each=each: each for name, each in bundles.items()}


@pytest.fixture(scope="module")
def bundles() -> dict:
    found = on_disk(svd=bundle("svd"), popular=bundle("popular"), tiger=bundle("tiger"))
    return found | on_disk(sasrec=bundle("sasrec")) | {"sasrec/seed_2": lambda: bundle("sasrec", 2)}


@pytest.fixture(scope="module")
def encoder():
    present = np.arange(ITEMS) % 5 != 0
    vectors = np.random.default_rng(5).normal(size=(ITEMS, 6)).astype(np.float32)
    return encoder_source("text encoder", vectors, present)


@pytest.fixture(scope="module")
def found(bundles, encoder) -> dict:
    quality = {"sasrec/seed_2": 0.2, "svd/seed_1": 0.1}
    return measure_geometry(bundles, [encoder], ABOUT, quality=quality, seed=1, settings=SETTINGS)


def test_it_is_json_and_the_best_come_first_with_encoders_behind(found) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    names = [each["name"] for each in found["tables"]]
    assert names == ["sasrec input", "svd input", "tiger codes", "text encoder"]
    assert [each["null"] for each in found["tables"]] == [
        "untrained",
        "random numbers",
        "untrained",
        "random numbers",
    ]
    assert found["without"] == ["popular"] and found["problems"] == []
    assert found["tables"][0]["run"] == "sasrec/seed_1"  # of the seed that was asked for
    assert (found["items"], found["with_events"]) == (WARM.sum(), WARM.sum())


def test_values_are_the_librarys_of_items_with_events(found, bundles, encoder) -> None:
    vectors = bundles["sasrec/seed_1"]().model.items.weight[1:].detach().numpy()[WARM].astype(float)
    own = measure_vectors(vectors, EVENTS[WARM], popularity_groups(EVENTS)[WARM], 10)
    told = found["tables"][0]
    assert told["values"] == pytest.approx(own.values)
    assert told["groups"]["tail"]["values"] == pytest.approx(own.groups["tail"])
    assert told["width"] == 8 and told["curves"]["own"]["cumulative"][-1] == pytest.approx(1)
    inside = [low <= told["values"][key] <= high for key, (low, high) in told["bands"].items()]
    assert np.mean(inside) >= 0.7  # the model is not trained; of many such, 95 %: test_null.py
    text = found["tables"][3]
    assert text["items"] == (WARM & (np.arange(ITEMS) % 5 != 0)).sum()


def test_pairs_are_compared_on_what_both_have(found, bundles, encoder) -> None:
    names = found["agreement"]["names"]
    both = WARM & (np.arange(ITEMS) % 5 != 0)
    one = bundles["svd/seed_1"]().model.factors[1:].numpy()[both].astype(float)
    other = encoder.tables["text encoder"][both].astype(float)
    a, b = names.index("svd input"), names.index("text encoder")
    assert found["agreement"]["overlap"][a][b] == pytest.approx(
        overlap(nearest(one, 10), nearest(other, 10)).mean()
    )
    assert found["agreement"]["cka"][b][a] == pytest.approx(linear_cka(one, other))
    assert found["agreement"]["overlap_by_chance"][a][b] == pytest.approx(10 / (both.sum() - 1), abs=0.05)
    assert found["agreement"]["cka"][a][a] == 1


def test_seeds_of_one_model_are_compared_and_untrained_ones_agree_by_chance(found) -> None:
    (stable,) = found["stability"]
    assert (stable["name"], stable["seeds"], stable["pairs"]) == ("sasrec input", 2, 1)
    assert stable["overlap"] == pytest.approx(stable["by_chance"], abs=0.08)
    assert stable["cka"] == pytest.approx(stable["cka_by_chance"], abs=0.15)
    assert set(stable["groups"]) == {"head", "mid", "tail"}


def test_no_two_random_tables_are_the_same() -> None:
    """Models of one width would begin with the same numbers if they began with the same seed."""
    made = on_disk(sasrec=bundle("sasrec"), hstu=bundle("hstu")) | {
        f"sasrec/seed_{seed}": lambda seed=seed: bundle("sasrec", seed) for seed in (2, 3)
    }
    found = measure_geometry(made, [], ABOUT, seed=1, settings=SETTINGS)
    assert found["tables"][0]["width"] == found["tables"][1]["width"] == 8
    assert found["agreement"]["cka_by_chance"][0][1] < 0.4
    assert found["stability"][0]["pairs"] == 3 and found["stability"][0]["cka_by_chance"] < 0.4
    assert found["stability"][0]["by_chance"] == pytest.approx(10 / (WARM.sum() - 1), abs=0.05)


def test_untrained_models_that_read_the_same_codes_agree_by_more_than_chance() -> None:
    made = {f"tiger/seed_{seed}": lambda seed=seed: bundle("tiger", seed) for seed in (1, 2)}
    (stable,) = measure_geometry(made, [], ABOUT, seed=1, settings=SETTINGS)["stability"]
    assert stable["by_chance"] > 1.5 * 10 / (WARM.sum() - 1)
    assert stable["overlap"] == pytest.approx(stable["by_chance"], abs=0.1)


def test_map_and_nearest_items_are_of_the_best_model(found) -> None:
    assert found["map"]["name"] == "sasrec input" and len(found["map"]["x"]) == 40
    assert list(found["nearest"][0]["nearest"]) == [
        "sasrec input",
        "svd input",
        "tiger codes",
        "text encoder",
    ]
    assert all(len(each["nearest"]["svd input"]) == 2 for each in found["nearest"])


def test_again_it_is_the_same(found, bundles, encoder) -> None:
    quality = {"sasrec/seed_2": 0.2, "svd/seed_1": 0.1}
    assert measure_geometry(bundles, [encoder], ABOUT, quality=quality, seed=1, settings=SETTINGS) == found


def nan(model):
    model.factors[3] = torch.nan
    return model


BROKEN = {
    "catalogue": (
        bundle("svd", n=ITEMS + 1),
        r"svd/seed_1 is left out: svd was trained on another catalogue",
    ),
    "data set": (
        bundle("svd", protocol=Protocol(dataset="other")),
        "svd/seed_1 is left out: it is a bundle of other, not of shop",
    ),
    "split": (
        bundle("svd", protocol=Protocol(dataset="shop", split="ratio")),
        r"svd/seed_1 is left out: trained on another split \(split",
    ),
    "numbers": (bundle("svd", model=nan(bundle("svd").model)), "svd input is left out: its vectors hold NaN"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_of_other_data_is_named_and_the_rest_made(case: str) -> None:
    made, message = BROKEN[case]
    found = measure_geometry(on_disk(svd=made, sasrec=bundle("sasrec")), [], ABOUT, seed=1, settings=SETTINGS)
    (problem,) = found["problems"]
    assert re.match(message, problem), problem
    assert [each["name"] for each in found["tables"]] == ["sasrec input"]


def test_a_bundle_that_cannot_be_read_is_named_and_another_seed_takes_its_place(tmp_path) -> None:
    save_bundle(bundle("sasrec", 2), tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("items.parquet", "config.json", "model.safetensors"):
        (broken / name).write_bytes((tmp_path / name).read_bytes()[:40])
    older = tmp_path / "older"
    older.mkdir()
    save_bundle(bundle("sasrec", 3), older)
    (older / "config.json").write_text("{}")
    bundles = {
        "sasrec/seed_1": lambda: load_bundle(broken),
        "sasrec/seed_2": lambda: load_bundle(tmp_path),
        "sasrec/seed_3": lambda: load_bundle(older),
        "sasrec/seed_4": lambda: load_bundle(tmp_path / "nothing"),
    }
    found = measure_geometry(bundles, [], ABOUT, seed=1, settings=SETTINGS)
    assert [each["run"] for each in found["tables"]] == ["sasrec/seed_2"]
    first, second, third = found["problems"]
    assert first.startswith("sasrec/seed_1 is left out: ")
    assert second.startswith("sasrec/seed_3 is left out: it cannot be read (KeyError('type')")
    assert "nothing is not a bundle" in third


@pytest.mark.parametrize("n", [0, 1, 3, 11], ids=lambda n: f"{n} items")
def test_too_few_items_are_named(n: int) -> None:
    few = replace(ABOUT, events=np.where(np.arange(ITEMS) < n, EVENTS + 1, 0))
    found = measure_geometry(on_disk(sasrec=bundle("sasrec")), [], few, seed=1, settings=SETTINGS)
    assert found["problems"] == [
        f"sasrec input is left out: {n} items have a vector; geometry needs at least 12"
    ]
    assert (found["tables"], found["map"], found["nearest"], found["stability"]) == ([], None, [], [])


def test_a_catalogue_of_one_popularity_and_nothing_on_disk() -> None:
    same = replace(ABOUT, events=np.full(ITEMS, 3))
    found = measure_geometry(on_disk(sasrec=bundle("sasrec")), [], same, seed=1, settings=SETTINGS)
    assert found["tables"][0]["values"]["norm_popularity"] is None and list(found["tables"][0]["groups"]) == [
        "mid"
    ]
    assert len(found["tables"][0]["norms"]["events"]) == 1
    none = measure_geometry({}, [], ABOUT, seed=1, settings=SETTINGS)
    assert (none["tables"], none["map"], none["agreement"]["names"]) == ([], None, [])


def test_a_large_catalogue_is_sampled(bundles, encoder) -> None:
    few = replace(SETTINGS, items=30)
    found = measure_geometry(bundles, [encoder], ABOUT, seed=1, settings=few)
    assert found["items"] == 30 and found["tables"][0]["items"] == 30
    assert found["map"]["items"] == WARM.sum()  # nearest items and the map are of the whole catalogue


RNG = np.random.default_rng(0)
VECTORS = np.repeat(RNG.normal(size=(5, 8)), 30, 0) + 0.3 * RNG.normal(size=(150, 8))  # five kinds
MAP_EVENTS = RNG.zipf(1.4, 160).clip(max=500)
MAP_GROUPS = popularity_groups(MAP_EVENTS)
MAP_TITLES = [f"title {n}" for n in range(160)]
TABLE = ItemVectors(VECTORS, np.arange(10, 160))  # the first ten items have no vector


def test_what_is_near_on_the_map_is_alike() -> None:
    places = tsne(VECTORS, seed=1)
    assert trustworthiness(VECTORS, places, metric="cosine") > 0.9
    np.testing.assert_array_equal(places, tsne(3 * VECTORS, seed=1))
    with pytest.raises(ValueError, match="map of 3 items"):
        tsne(VECTORS[:3], seed=1)
    assert tsne(VECTORS[:4, :1], seed=1).shape == (4, 2)


def test_the_map_has_the_popular_items_and_others_with_their_titles() -> None:
    drawn = item_map(TABLE, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, limit=60, seed=3)
    rows = [MAP_TITLES.index(title) for title in drawn["titles"]]
    assert len({*rows}) == len(drawn["x"]) == len(drawn["y"]) == 60 and min(rows) >= 10
    assert drawn["events"] == MAP_EVENTS[rows].tolist()
    head = {row for row in TABLE.rows if MAP_GROUPS[row] == 0}
    assert head and head <= {*rows}
    assert {row for row, group in zip(rows, drawn["groups"], strict=True) if group == "head"} == head
    assert len(item_map(TABLE, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, limit=999, seed=3)["x"]) == 150


def test_nearest_items_are_the_nearest_of_both_tables() -> None:
    other = ItemVectors(VECTORS[::-1].copy(), np.arange(5, 155))
    found = nearest_items(
        {"a": TABLE, "b": other}, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, per_group=2, k=3, seed=0
    )
    assert [each["group"] for each in found] == sorted(each["group"] for each in found)
    assert {each["group"] for each in found} == {"head", "mid", "tail"} and len(found) <= 6
    for each in found:
        row = MAP_TITLES.index(each["title"])
        assert 10 <= row < 155 and each["events"] == MAP_EVENTS[row]
        for name, table in (("a", TABLE), ("b", other)):
            own = table.vectors[table.rows == row][0]
            cosines = {
                int(item): own @ x / np.linalg.norm(own) / np.linalg.norm(x)
                for item, x in zip(table.rows, table.vectors, strict=True)
                if item != row
            }
            best = sorted(cosines, key=cosines.__getitem__, reverse=True)[:3]
            assert [shown["title"] for shown in each["nearest"][name]] == [MAP_TITLES[item] for item in best]
            assert each["nearest"][name][0]["cosine"] == pytest.approx(cosines[best[0]], abs=1e-4)


def test_one_item_has_no_nearest() -> None:
    alone = ItemVectors(VECTORS[:1], np.array([4]))
    assert nearest_items({"a": alone}, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, per_group=2, k=3, seed=0) == []
    assert nearest_items({}, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, per_group=2, k=3, seed=0) == []
