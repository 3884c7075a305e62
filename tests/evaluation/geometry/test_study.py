"""Geometry of all tables of a data set: measures, agreement, map, nearest items, problems, JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from tests.artefacts import forget_digest
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.config.schema import GeometryConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.measures import linear_cka, measure_vectors, nearest, overlap
from recpipe.evaluation.geometry.study import Items, item_map, measure_geometry, nearest_items, tsne
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
SETTINGS = GeometryConfig(models="all", k=10, nulls=3, items=5000, map=40, examples=2, nearest=2, beside=4)
CONFIGS = {"sasrec": {"dim": 8}, "hstu": {"dim": 8}, "tiger": {"dim": 8, "heads": 1, "head_dim": 8, "feed_forward": 8}}


def bundle(name: str, seed: int = 1, n: int = ITEMS, **changed) -> Bundle:
    torch.manual_seed(seed)
    ids = {"text": catalogue_ids(n, sizes=(8, 8, 8))} if model_class(name).reads_ids else None
    model = build(name, CONFIGS.get(name, {}), n_items=n, max_length=8, ids=ids)
    if model.closed_form:
        model.fit(DATA)
    words = Vocabulary(np.array([f"i{number}" for number in range(n)], object))
    result = Bundle(name, name, model.eval(), words, [None] * n, np.ones(n, int), Protocol(dataset="shop"))
    return replace(result, training={"seed": seed}, **changed)


def on_disk(**bundles: Bundle) -> dict:
    return {f"{name}/seed_{each.training['seed']}": lambda each=each: each for name, each in bundles.items()}


@pytest.fixture(scope="module")
def bundles() -> dict:
    result = on_disk(svd=bundle("svd"), popular=bundle("popular"), tiger=bundle("tiger"))
    return result | on_disk(sasrec=bundle("sasrec")) | {"sasrec/seed_2": lambda: bundle("sasrec", 2)}


@pytest.fixture(scope="module")
def encoder():
    present = np.arange(ITEMS) % 5 != 0
    vectors = np.random.default_rng(5).normal(size=(ITEMS, 6)).astype(np.float32)
    return encoder_source("text encoder", vectors, present)


@pytest.fixture(scope="module")
def result(bundles, encoder) -> dict:
    quality = {"sasrec/seed_2": 0.2, "svd/seed_1": 0.1}
    return measure_geometry(bundles, [encoder], ABOUT, quality=quality, seed=1, settings=SETTINGS)


def test_it_is_json_with_the_best_models_first_and_encoders_last(result) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    names = [each["name"] for each in result["tables"]]
    assert names == ["sasrec input", "svd input", "tiger codes", "text encoder"]
    assert [each["null"] for each in result["tables"]] == ["untrained", "random numbers", "untrained", "random numbers"]
    assert result["without"] == ["popular"] and result["problems"] == []
    assert result["tables"][0]["run"] == "sasrec/seed_1"  # the requested seed
    assert (result["items"], result["with_events"]) == (WARM.sum(), WARM.sum())


def test_values_are_measures_of_the_items_with_events(result, bundles, encoder) -> None:
    vectors = bundles["sasrec/seed_1"]().model.items.weight[1:].detach().numpy()[WARM].astype(float)
    expected = measure_vectors(vectors, EVENTS[WARM], popularity_groups(EVENTS)[WARM], 10)
    entry = result["tables"][0]
    assert entry["values"] == pytest.approx(expected.values)
    assert entry["groups"]["tail"]["values"] == pytest.approx(expected.groups["tail"])
    assert entry["width"] == 8 and entry["curves"]["own"]["cumulative"][-1] == pytest.approx(1)
    inside = [low <= entry["values"][key] <= high for key, (low, high) in entry["bands"].items()]
    assert np.mean(inside) >= 0.7  # the model is not trained; of many such, 95 %: test_tables.py
    text = result["tables"][3]
    assert text["items"] == (WARM & (np.arange(ITEMS) % 5 != 0)).sum()


def test_pairs_are_compared_on_their_common_items(result, bundles, encoder) -> None:
    names = result["agreement"]["names"]
    both = WARM & (np.arange(ITEMS) % 5 != 0)
    one = bundles["svd/seed_1"]().model.factors[1:].numpy()[both].astype(float)
    other = encoder.tables["text encoder"][both].astype(float)
    a, b = names.index("svd input"), names.index("text encoder")
    assert result["agreement"]["overlap"][a][b] == pytest.approx(overlap(nearest(one, 10), nearest(other, 10)).mean())
    assert result["agreement"]["cka"][b][a] == pytest.approx(linear_cka(one, other))
    assert result["agreement"]["overlap_by_chance"][a][b] == pytest.approx(10 / (both.sum() - 1), abs=0.05)
    assert result["agreement"]["cka"][a][a] == 1


def test_seeds_of_one_model_are_compared_and_untrained_ones_agree_by_chance(result) -> None:
    (stable,) = result["stability"]
    assert (stable["name"], stable["seeds"], stable["pairs"]) == ("sasrec input", 2, 1)
    assert stable["overlap"] == pytest.approx(stable["by_chance"], abs=0.08)
    assert stable["cka"] == pytest.approx(stable["cka_by_chance"], abs=0.15)
    assert set(stable["groups"]) == {"head", "mid", "tail"}


def test_no_two_random_tables_are_the_same() -> None:
    """With equal seeds, models of equal width would start from the same numbers."""
    bundles = on_disk(sasrec=bundle("sasrec"), hstu=bundle("hstu")) | {
        f"sasrec/seed_{seed}": lambda seed=seed: bundle("sasrec", seed) for seed in (2, 3)
    }
    result = measure_geometry(bundles, [], ABOUT, seed=1, settings=SETTINGS)
    assert result["tables"][0]["width"] == result["tables"][1]["width"] == 8
    assert result["agreement"]["cka_by_chance"][0][1] < 0.4
    assert result["stability"][0]["pairs"] == 3 and result["stability"][0]["cka_by_chance"] < 0.4
    assert result["stability"][0]["by_chance"] == pytest.approx(10 / (WARM.sum() - 1), abs=0.05)


def test_untrained_models_that_read_the_same_codes_agree_by_more_than_chance() -> None:
    bundles = {f"tiger/seed_{seed}": lambda seed=seed: bundle("tiger", seed) for seed in (1, 2)}
    (stable,) = measure_geometry(bundles, [], ABOUT, seed=1, settings=SETTINGS)["stability"]
    assert stable["by_chance"] > 1.5 * 10 / (WARM.sum() - 1)
    assert stable["overlap"] == pytest.approx(stable["by_chance"], abs=0.1)


def test_map_and_nearest_items_are_of_the_best_model(result) -> None:
    assert result["map"]["name"] == "sasrec input" and len(result["map"]["x"]) == 40
    assert list(result["nearest"][0]["nearest"]) == ["sasrec input", "svd input", "tiger codes", "text encoder"]
    assert all(len(each["nearest"]["svd input"]) == 2 for each in result["nearest"])


def test_results_are_reproducible(result, bundles, encoder) -> None:
    quality = {"sasrec/seed_2": 0.2, "svd/seed_1": 0.1}
    assert measure_geometry(bundles, [encoder], ABOUT, quality=quality, seed=1, settings=SETTINGS) == result


def nan(model):
    model.factors[3] = torch.nan
    return model


BROKEN = {
    "catalogue": (bundle("svd", n=ITEMS + 1), r"svd/seed_1 is left out: svd was trained on another catalogue"),
    "data set": (
        bundle("svd", protocol=Protocol(dataset="other")),
        "svd/seed_1 is left out: it is a bundle of other, not of shop",
    ),
    "split": (
        bundle("svd", protocol=Protocol(dataset="shop", split="ratio")),
        r"svd/seed_1 is left out: svd was trained on another split \(split",
    ),
    "numbers": (bundle("svd", model=nan(bundle("svd").model)), "svd input is left out: its vectors hold NaN"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bundles_of_other_data_are_problems_and_the_rest_is_measured(case: str) -> None:
    broken, message = BROKEN[case]
    result = measure_geometry(on_disk(svd=broken, sasrec=bundle("sasrec")), [], ABOUT, seed=1, settings=SETTINGS)
    (problem,) = result["problems"]
    assert re.match(message, problem), problem
    assert [each["name"] for each in result["tables"]] == ["sasrec input"]


def test_an_unreadable_bundle_is_a_problem_and_another_seed_takes_its_place(tmp_path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    save_bundle(bundle("sasrec", 2), whole)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("items.parquet", "config.json", "model.safetensors"):
        (broken / name).write_bytes((whole / name).read_bytes()[:40])
    older = tmp_path / "older"
    older.mkdir()
    save_bundle(bundle("sasrec", 3), older)
    (older / "config.json").write_text("{}")
    forget_digest(older)
    bundles = {
        "sasrec/seed_1": lambda: load_bundle(broken),
        "sasrec/seed_2": lambda: load_bundle(whole),
        "sasrec/seed_3": lambda: load_bundle(older),
        "sasrec/seed_4": lambda: load_bundle(tmp_path / "nothing"),
    }
    result = measure_geometry(bundles, [], ABOUT, seed=1, settings=SETTINGS)
    assert [each["run"] for each in result["tables"]] == ["sasrec/seed_2"]
    first, second, third = result["problems"]
    assert first.startswith("sasrec/seed_1 is left out: ")
    assert second.startswith("sasrec/seed_3 is left out: ") and "config.json is damaged" in second
    assert "nothing is not a bundle" in third


@pytest.mark.parametrize("n", [0, 1, 3, 11], ids=lambda n: f"{n} items")
def test_too_few_items_are_a_problem(n: int) -> None:
    few_items = replace(ABOUT, events=np.where(np.arange(ITEMS) < n, EVENTS + 1, 0))
    result = measure_geometry(on_disk(sasrec=bundle("sasrec")), [], few_items, seed=1, settings=SETTINGS)
    assert result["problems"] == [f"sasrec input is left out: {n} items have a vector; geometry needs at least 12"]
    assert (result["tables"], result["map"], result["nearest"], result["stability"]) == ([], None, [], [])


def test_a_catalogue_of_one_popularity_and_nothing_on_disk() -> None:
    same = replace(ABOUT, events=np.full(ITEMS, 3))
    result = measure_geometry(on_disk(sasrec=bundle("sasrec")), [], same, seed=1, settings=SETTINGS)
    assert result["tables"][0]["values"]["norm_popularity"] is None and list(result["tables"][0]["groups"]) == ["mid"]
    assert len(result["tables"][0]["norms"]["events"]) == 1
    none = measure_geometry({}, [], ABOUT, seed=1, settings=SETTINGS)
    assert (none["tables"], none["map"], none["agreement"]["names"]) == ([], None, [])


def test_a_large_catalogue_is_sampled(bundles, encoder) -> None:
    settings = SETTINGS.model_copy(update={"items": 30})
    result = measure_geometry(bundles, [encoder], ABOUT, seed=1, settings=settings)
    assert result["items"] == 30 and result["tables"][0]["items"] == 30
    assert result["map"]["items"] == WARM.sum()  # nearest items and the map are of the whole catalogue


RNG = np.random.default_rng(0)
VECTORS = np.repeat(RNG.normal(size=(5, 8)), 30, 0) + 0.3 * RNG.normal(size=(150, 8))  # five kinds
MAP_EVENTS = RNG.zipf(1.4, 160).clip(max=500)
MAP_GROUPS = popularity_groups(MAP_EVENTS)
MAP_TITLES = [f"title {n}" for n in range(160)]
TABLE = ItemVectors(VECTORS, np.arange(10, 160))  # the first ten items have no vector


def test_neighbours_on_the_map_are_similar() -> None:
    places = tsne(VECTORS, seed=1)
    assert trustworthiness(VECTORS, places, metric="cosine") > 0.9
    np.testing.assert_array_equal(places, tsne(3 * VECTORS, seed=1))
    with pytest.raises(ValueError, match="map of 3 items"):
        tsne(VECTORS[:3], seed=1)
    assert tsne(VECTORS[:4, :1], seed=1).shape == (4, 2)


def test_the_map_has_the_popular_items_and_others_with_their_titles() -> None:
    result_map = item_map(TABLE, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, limit=60, seed=3)
    rows = [MAP_TITLES.index(title) for title in result_map["titles"]]
    assert len({*rows}) == len(result_map["x"]) == len(result_map["y"]) == 60 and min(rows) >= 10
    assert result_map["events"] == MAP_EVENTS[rows].tolist()
    head = {row for row in TABLE.rows if MAP_GROUPS[row] == 0}
    assert head and head <= {*rows}
    assert {row for row, group in zip(rows, result_map["groups"], strict=True) if group == "head"} == head
    assert len(item_map(TABLE, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, limit=999, seed=3)["x"]) == 150


def test_nearest_items_are_the_nearest_of_both_tables() -> None:
    other = ItemVectors(VECTORS[::-1].copy(), np.arange(5, 155))
    result = nearest_items({"a": TABLE, "b": other}, MAP_TITLES, MAP_EVENTS, MAP_GROUPS, per_group=2, k=3, seed=0)
    assert [each["group"] for each in result] == sorted(each["group"] for each in result)
    assert {each["group"] for each in result} == {"head", "mid", "tail"} and len(result) <= 6
    for each in result:
        row = MAP_TITLES.index(each["title"])
        assert 10 <= row < 155 and each["events"] == MAP_EVENTS[row]
        for name, table in (("a", TABLE), ("b", other)):
            expected = table.vectors[table.rows == row][0]
            cosines = {
                int(item): expected @ x / np.linalg.norm(expected) / np.linalg.norm(x)
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
