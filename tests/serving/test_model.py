"""Lists, scores and rules of a bundle in use, against brute force over the scores of all items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import catalogue, catalogue_ids, random_sequences

import recpipe
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.side import Side, SideConfig
from recpipe.models.registry import build
from recpipe.serving import lists
from recpipe.serving.model import ServingBundle
from recpipe.training.bundle import Bundle, save_bundle
from recpipe.training.bundle_folders import newest_bundle

ITEMS, DAY = 40, 86_400
IDS = [f"i{n:02}" for n in range(ITEMS)]
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1, "beam": 12}
CATEGORIES = ["red", "blue", "green", None]
COLUMNS = pa.table({"colour": CATEGORIES * (ITEMS // 4), "price": list(range(ITEMS))})
DATA = random_sequences(30, ITEMS - 5, seed=1)  # the last five items have no event
HISTORY = {"ann": ["i02", "i07", "i11"]}


def bundle(name: str) -> ServingBundle:
    """Small model of random weights, or fitted to random events."""
    torch.manual_seed(0)
    inputs = {"ids": {"text": catalogue_ids(ITEMS, seed=0)}} if "tiger" in name else {}
    model = build(
        name, {"dim": 16} if name == "sasrec" else TINY if inputs else {}, n_items=ITEMS, max_length=6, **inputs
    )
    if model.closed_form:
        model.fit(DATA)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(DATA, seed=0)
    events = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    titles = [f"Title {n}" if n % 2 else None for n in range(ITEMS)]
    fields = (name, name, model.eval(), Vocabulary(np.array(IDS, object)), titles, events, Protocol(dataset="tiny"))
    return ServingBundle.of(Bundle(*fields, item_columns=COLUMNS))


@pytest.fixture(scope="module", params=["sasrec", "item_knn", "tiger", "parallel_tiger"])
def model(request) -> ServingBundle:
    return bundle(request.param)


def by_score(model: ServingBundle, histories: dict[str, list[str]] = HISTORY) -> list[str]:
    """All items in the order of the model."""
    return model.recommend(histories, ITEMS, rules={"seen": "allow"})["item_id"].to_pylist()


def listed(model: ServingBundle, k: int, rules: dict | None = None, **options) -> list[str]:
    return model.recommend(HISTORY, k, rules=rules, **options)["item_id"].to_pylist()


def test_a_list_is_the_head_of_all_items_by_score(model):
    table = model.score(HISTORY, IDS)
    scores = dict(zip(table["item_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    order = by_score(model)
    values = [scores[item] for item in order]
    assert values == sorted(values, reverse=True)
    rows = model.recommend(HISTORY, 5).to_pylist()
    assert [row["item_id"] for row in rows] == [item for item in order if item not in HISTORY["ann"]][:5]
    for row in rows:
        assert row["score"] == pytest.approx(scores[row["item_id"]], abs=1e-5)
        number = int(row["item_id"][1:])
        assert row["title"] == (f"Title {number}" if number % 2 else row["item_id"])
    if model.model.probabilistic:
        total = sum(model.recommend(HISTORY, ITEMS)["probability"].to_pylist())
        assert total <= 1 + 1e-5
        assert sum(table["probability"].to_pylist()) == pytest.approx(1, abs=1e-4) or "tiger" in model.name


def test_the_probability_of_a_scored_item_does_not_depend_on_the_other_candidates():
    torch.manual_seed(0)
    model = bundle("tiger").with_search_settings({"renormalise": True})
    alone = [model.score(HISTORY, [item])["probability"][0].as_py() for item in IDS]
    assert alone == pytest.approx(model.score(HISTORY, IDS)["probability"].to_pylist(), abs=1e-6)
    assert sum(alone) == pytest.approx(1, abs=1e-4) and max(alone) < 0.5


def test_conditions_lists_and_exclusions_restrict_the_catalogue(model):
    order = [item for item in by_score(model) if item not in HISTORY["ann"]]
    cheap = [item for item in order if int(item[1:]) < 20 and CATEGORIES[int(item[1:]) % 4] == "red"]
    assert listed(model, ITEMS, {"where": "price < 20 and colour = 'red'"}) == cheap
    assert listed(model, ITEMS, {"candidates": ["i05", "i06", "i02", "zz"]}) == [
        i for i in order if i in ("i05", "i06")
    ]
    assert listed(model, 9, {"exclude": order[:3]}) == order[3:12]
    assert listed(model, ITEMS, candidates={"ann": ["i05", "i09"]}) == [i for i in order if i in ("i05", "i09")]
    assert listed(model, 9, exclude={"ann": order[:3], "bob": order[3:]}) == order[3:12]
    with pytest.raises(ValueError, match="no item of .* is left by the rules where"):
        listed(model, 3, {"where": "price > 99"})
    with pytest.raises(ValueError, match="none of the 1 candidates"):
        listed(model, 3, candidates=["zz"])


def test_items_seen_long_ago_may_come_again(model):
    order, now = by_score(model), 100 * DAY
    times = {"ann": [now - 50 * DAY, now - 31 * DAY, now - 2 * DAY]}
    expected = [item for item in order if item != "i11"]
    assert listed(model, ITEMS, {"seen": 30}, timestamps=times, now=now) == expected
    assert listed(model, ITEMS, {"seen": 60}, timestamps=times, now=now) == [
        i for i in expected if i not in HISTORY["ann"]
    ]
    with pytest.raises(ValueError, match="needs timestamps"):
        listed(model, 3, {"seen": 30})


def test_no_category_has_more_items_than_allowed_and_no_place_is_empty(model):
    order = [item for item in by_score(model) if item not in HISTORY["ann"]]
    for limit, k in ((1, 5), (2, 12), (3, ITEMS)):
        counts: dict[str, int] = {}
        expected = []
        for item in order:
            colour = CATEGORIES[int(item[1:]) % 4]
            if colour is None or counts.get(colour, 0) < limit:
                expected.append(item)
                counts[colour] = counts.get(colour, 0) + 1
        assert listed(model, k, {"max_per_category": limit, "category": "colour"}) == expected[:k]


def test_lists_are_the_same_whatever_number_of_users_is_filled_at_once(model, monkeypatch):
    histories = {f"u{n}": IDS[n : n + 3] for n in range(9)}
    rules = {"max_per_category": 1, "category": "colour"}
    expected = model.recommend(histories, 12, rules=rules)["item_id"].to_pylist()
    monkeypatch.setattr(lists, "POOL", 1)  # short pools, so that many users need another one
    for name in ("POOLED_AT_ONCE", "EXCLUDED_AT_ONCE"):
        monkeypatch.setattr(lists, name, 1)
        assert model.recommend(histories, 12, rules=rules)["item_id"].to_pylist() == expected


def test_all_diversities_share_the_vectors_of_the_items():
    model = bundle("sasrec")
    vectors = [model.rules({"diversity": dial}).vectors for dial in (0.1, 0.2, 0.3)]
    assert len({each.data_ptr() for each in vectors}) == 1


@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test_diversity_is_maximal_marginal_relevance(diversity):
    model, k = bundle("sasrec"), 6
    pool = model.recommend(HISTORY, 30).to_pylist()  # five for each place
    scores = np.array([row["score"] for row in pool])
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    vectors = model.model.item_vectors().detach().numpy()
    unit = vectors[[int(row["item_id"][1:]) + 1 for row in pool]]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    chosen: list[int] = []
    for _ in range(k):
        similarity = np.max([unit @ unit[n] for n in chosen], axis=0) if chosen else 0
        value = (1 - diversity) * relevance - diversity * similarity
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
    assert listed(model, k, {"diversity": diversity}) == [pool[n]["item_id"] for n in chosen]


def test_a_share_of_the_places_is_for_new_items():
    model = bundle("tiger")
    order = [item for item in by_score(model) if item not in HISTORY["ann"]]
    new = [item for item in order if int(item[1:]) >= ITEMS - 5]
    items = listed(model, 10, {"new_items": {"share": 0.2}})
    assert [items[4], items[9]] == new[:2]
    assert [item for n, item in enumerate(items) if n not in (4, 9)] == [i for i in order if i not in new[:1]][:8]
    with pytest.raises(ValueError, match="has learned nothing of the items that are new"):
        listed(bundle("sasrec"), 10, {"new_items": {"share": 0.2}})


def test_another_model_may_rank_the_new_items():
    vectors, _ = catalogue(ITEMS)[1]["text"]
    side = Side.of(SideConfig(vectors="text"), DATA, {}, {"text": (vectors, np.ones(ITEMS, bool))}, n_items=ITEMS)
    knn = build("content_knn", {}, n_items=ITEMS, max_length=6, side=side)
    knn.fit(DATA)
    model = bundle("item_knn")
    fields = (model.vocabulary, model.titles, model.train_events, model.protocol)
    content = Bundle("text_knn", "content_knn", knn.eval(), *fields)
    table = ServingBundle.of(model, content).recommend(HISTORY, 10, rules={"new_items": {"share": 0.2}}).to_pylist()
    cold = [row for row in table if row["source"] == "content_slots"]
    assert [row["rank"] for row in cold] == [5, 10] and {row["score"] for row in cold} == {None}
    restricted = ServingBundle.of(content).recommend(HISTORY, 2, rules={"where": "train_events = 0"})
    assert [row["item_id"] for row in cold] == restricted["item_id"].to_pylist()


def test_users_without_known_items_get_the_fallback(model):
    histories = {"new": [], "ann": HISTORY["ann"], "stranger": ["zz"]}
    table = model.recommend(histories, 3, rules={"max_per_category": 1, "category": "colour"}).to_pylist()
    sources = {row["user_id"]: row["source"] for row in table}
    assert sources == {"new": "cold_users", "ann": "model", "stranger": "cold_users"}
    assert len(table) == 9


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"wher": "price < 3"}, "unknown setting 'rules.wher'"),
        ({"seen": "sometimes"}, "seen is 'sometimes'"),
        ({"seen": -1}, "seen is -1"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"max_per_category": 2}, "belong together"),
        ({"max_per_category": 0, "category": "colour"}, "max_per_category is 0"),
        ({"max_per_category": 1, "category": "color"}, "colour"),
        ({"new_items": {"share": 0}}, "share is 0"),
        ({"where": "prise < 3"}, "price"),
        ({"where": "__import__('os')"}, "position"),
        ({"candidates": "i01"}, "rules.candidates"),
    ],
)
def test_wrong_rules_are_errors(rules, message):
    with pytest.raises(ValueError, match=message):
        listed(bundle("item_knn"), 3, rules)


@pytest.mark.parametrize("k", [0, -1, "ten", 1.5, True, None])
def test_k_is_a_whole_number_from_1(k):
    with pytest.raises(ValueError, match="k is"):
        bundle("item_knn").recommend(HISTORY, k)


def test_k_above_the_catalogue_gives_all_items(model):
    assert len(listed(model, 10**9)) == ITEMS - 3


def test_the_newest_bundle_of_a_model_is_loaded_whatever_made_it(tmp_path):
    saved = bundle("item_knn")
    versions = [("seed_42", "bundle", "01"), ("seed_43", "bundle", "03"), ("seed_42", "production", "02")]
    for seed, kind, month in versions:
        folder = tmp_path / "item_knn" / seed / kind / f"2026-{month}-01T00.00.00.000Z" / kind
        folder.mkdir(parents=True)
        save_bundle(saved, folder)
    assert recpipe.load_bundle(tmp_path / "item_knn").version.startswith("2026-03")
    model = recpipe.load_bundle(tmp_path / "item_knn" / "seed_42", items=pa.table({"item_id": ["i00"], "price": [7]}))
    assert model.version.startswith("2026-02") and model.folder == newest_bundle(tmp_path / "item_knn/seed_42")
    assert listed(model, 3, {"where": "price = 7"}) == ["i00"]
    with pytest.raises(ValueError, match="no bundle in"):
        recpipe.load_bundle(tmp_path / "svd")


def test_items_are_found_by_title_or_id():
    model = bundle("item_knn")
    rows = model.find_items("TITLE 1").to_pylist()
    assert {row["item_id"] for row in rows} == {"i01", *(f"i{n}" for n in range(11, 20, 2))}
    assert [row["train_events"] for row in rows] == sorted((row["train_events"] for row in rows), reverse=True)
    assert model.find_items("I07").to_pylist()[0]["title"] == "Title 7"
    assert model.find_items("boat").num_rows == 0
