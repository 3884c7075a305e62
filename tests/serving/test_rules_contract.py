"""Contract of rules over all models: every place of a list is the best item that the rules leave, by brute force."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.synthetic import SIZES, catalogue_ids, random_sequences, untrained

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.top_k import tie_order
from recpipe.models.generator import Generator
from recpipe.models.registry import build, model_class, types
from recpipe.serving.model import ServingBundle
from recpipe.training.bundle import Bundle

ITEMS, WINDOW, DAY, NOW = 22, 6, 86_400, 100 * 86_400
IDS = [f"i{n:02}" for n in range(1, ITEMS + 1)]
DATA = random_sequences(40, ITEMS - 3, longest=12, seed=1)  # the last three items have no training event
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
HISTORIES = {
    "ann": ["i03", "i04", "i05", "i04"],
    "bob": ["i19", "unknown", "i01", "i02", "i20", "i07", "i08", "i09", "i10"],
    "new": [],
}
TIMES = {"ann": [DAY * day for day in (60, 70, 98, 99)], "bob": [DAY * day for day in range(91, 100)], "new": []}
ROWS: dict[str, dict[str, Any]] = {
    item: {
        "price": None if n % 7 == 6 else float(n % 5),
        "brand": None if n % 6 == 5 else f"b{n % 4}",
        "stock": (True, False, None)[n % 3],
        "regions": (["DE", "AT"], ["AT"], [], None)[n % 4],
    }
    for n, item in enumerate(IDS)
}
CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "price < 3": lambda row: row["price"] is not None and row["price"] < 3,
    "not price >= 2": lambda row: row["price"] is not None and row["price"] < 2,
    "stock = true OR price = 4": lambda row: row["stock"] is True or row["price"] == 4,
    "brand <> 'b0' and stock is not null": lambda row: row["brand"] not in (None, "b0") and row["stock"] is not None,
    "brand in ['b0', 'b1']": lambda row: row["brand"] in ("b0", "b1"),
    "'DE' in regions": lambda row: "DE" in (row["regions"] or ()),
    "'DE' not in regions": lambda row: row["regions"] is not None and "DE" not in row["regions"],
    "train_events = 0": lambda row: row["train_events"] == 0,
    "train_events < 9": lambda row: row["train_events"] < 9,
    "price > 7": lambda row: False,
}


@cache
def serving_bundle(name: str, **config: Any) -> ServingBundle:
    """Fitted closed-form model, or a network with random weights."""
    torch.manual_seed(0)
    small = SIZES.get(name, TINY) if model_class(name).reads_ids else {}
    model = untrained(name, {**small, **config}, DATA, n_items=ITEMS, max_length=WINDOW)
    if model.closed_form:
        model.fit(DATA)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(DATA, seed=0)
    events = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    for item, count in zip(IDS, events.tolist(), strict=True):
        ROWS[item]["train_events"] = count
    columns = {key: [ROWS[item][key] for item in IDS] for key in ("price", "brand", "stock", "regions")}
    vocabulary, protocol = Vocabulary(np.array(IDS, object)), Protocol(dataset="tiny", exclude_seen=True)
    bundle = Bundle(
        name, name, model.eval(), vocabulary, [None] * ITEMS, events, protocol, item_columns=pa.table(columns)
    )
    return ServingBundle.of(bundle)


subsets = st.lists(st.sampled_from([*IDS, "unknown"]), max_size=12)
conditions = st.none() | st.sampled_from(list(CONDITIONS))
limits = st.tuples(st.sampled_from(["brand", "stock", "price", "title"]), st.integers(1, 3))
new_items = st.fixed_dictionaries(
    {"share": st.sampled_from([0.1, 0.34, 0.5, 1])}, optional={"where": st.sampled_from(list(CONDITIONS))}
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `recommend`."""
    rules: dict[str, Any] = {}
    if draw(st.booleans()):
        rules["where"] = draw(conditions)
    if draw(st.integers(0, 3)) == 0:
        rules["candidates"] = draw(subsets)
    if draw(st.booleans()):
        rules["exclude"] = draw(subsets)
    if draw(st.booleans()):
        rules["seen"] = draw(st.sampled_from(["protocol", "exclude", "allow", 0, 1.5, 30]))
    if draw(st.booleans()):
        rules["category"], rules["max_per_category"] = draw(limits)
    if draw(st.integers(0, 2)) == 0:
        rules["new_items"] = draw(new_items)
    if draw(st.integers(0, 2)) == 0:
        rules["diversity"] = draw(st.sampled_from([0.3, 1.0]))
    request = {"rules": rules, "k": draw(st.integers(5 if "diversity" in rules else 1, ITEMS + 3))}
    if draw(st.integers(0, 3)) == 0:
        request["candidates"] = draw(st.dictionaries(st.sampled_from(list(HISTORIES)), subsets))
    if draw(st.integers(0, 3)) == 0:
        request["exclude"] = draw(st.dictionaries(st.sampled_from(list(HISTORIES)), subsets))
    return request


def allowed_items(request: Mapping[str, Any], user: str) -> set[str]:
    """Items that a user may get, by the rules that look at one item."""
    rules, known = request["rules"], set(IDS)
    allowed = known & set(rules.get("candidates", IDS)) - set(rules.get("exclude", ()))
    if rules.get("where"):
        allowed = {item for item in allowed if CONDITIONS[rules["where"]](ROWS[item])}
    if user in request.get("candidates", ()):
        allowed &= set(request["candidates"][user])
    allowed -= set(request.get("exclude", {}).get(user, ()))
    seen = rules.get("seen", "protocol")
    after = -math.inf if seen in ("protocol", "exclude") else math.inf if seen == "allow" else NOW - DAY * seen
    return allowed - {item for item, time in zip(HISTORIES[user], TIMES[user], strict=True) if time > after}


def new_ones(model: ServingBundle, rules: Mapping[str, Any]) -> set[str]:
    """New items that the model can rank."""
    if "new_items" not in rules:
        return set()
    is_new = CONDITIONS[rules["new_items"].get("where", "train_events = 0")]
    return {item for item in IDS if is_new(ROWS[item]) and (model.ranks_new_items or ROWS[item]["train_events"] > 0)}


def leaves_nothing(model: ServingBundle, request: Mapping[str, Any]) -> bool:
    """Whether the rules leave no item to anybody."""
    rules = request["rules"]
    no_item = not allowed_items({"rules": {**rules, "seen": "allow"}}, "new")
    needs_vectors = rules.get("diversity") and not model.model.item_tables()
    return no_item or bool(needs_vectors) or ("new_items" in rules and not new_ones(model, rules))


def relevance(scores: Mapping[str, float]) -> dict[str, float]:
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {item: (score - low) / (high - low or 1) for item, score in scores.items()}


def cosines(model: ServingBundle) -> np.ndarray:
    tables = model.model.item_tables()
    by_item = tables.get("output", tables.get("input"))
    vectors = torch.cat(list(tables.values()), 1) if by_item is None else by_item
    unit = torch.nn.functional.normalize(vectors.detach().double(), dim=1)[1:].numpy()
    return unit @ unit.T


def check_places(
    items: list[str], scores: Mapping[str, float], new: set[str], request: Mapping[str, Any], model: ServingBundle
) -> None:
    """Check place by place that no open item is better; ``scores`` are those of the items that the user may get."""
    rules, k = request["rules"], min(request["k"], ITEMS)
    share, dial = rules.get("new_items", {}).get("share", 0), rules.get("diversity", 0)
    of_all, of_new = relevance(scores), relevance({item: scores[item] for item in scores.keys() & new})
    cosine = cosines(model) if dial else None
    column, limit = rules.get("category"), rules.get("max_per_category", math.inf)
    categories = {item: ROWS[item].get(column) for item in IDS}  # nobody has a title
    counts: Counter[Any] = Counter()
    for place in range(k):
        left = [item for item in scores if item not in items[:place]]
        left = [item for item in left if categories[item] is None or counts[categories[item]] < limit]
        if not left:
            assert len(items) == place
            return
        is_slot = math.floor(share * (place + 1) + 1e-9) > math.floor(share * place + 1e-9)
        pool = [item for item in left if item in new] if is_slot else left
        by, pool = (of_new, pool) if is_slot and pool else (of_all, left)

        def value(item: str, by: Mapping[str, float] = by, place: int = place) -> float:
            if cosine is None:
                return by[item]
            chosen = [IDS.index(other) for other in items[:place]]
            return (1 - dial) * by[item] - dial * max(cosine[IDS.index(item), chosen], default=0)

        assert items[place] in pool
        best = max(pool, key=value)
        is_level = cosine is None and abs(scores[items[place]] - scores[best]) < 1e-6  # batches differ by rounding
        assert is_level or value(items[place]) >= value(best) - 1e-4
        if model.name == "popular" and not dial:  # whose scores are integers, many of them equal
            order = tie_order(ITEMS + 1).tolist()
            assert items[place] == min(pool, key=lambda item: (-scores[item], order[IDS.index(item) + 1]))
        counts[categories[items[place]]] += 1
    assert len(items) == k


@pytest.mark.parametrize("name", types())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_every_place_is_the_best_item_that_the_rules_leave(name: str, request: dict[str, Any]) -> None:
    exhaustive = {"beam": ITEMS} if issubclass(model_class(name), Generator) else {}
    model = serving_bundle(name, **exhaustive)
    arguments = {"timestamps": TIMES, "now": NOW, **request}
    if leaves_nothing(model, request):
        with pytest.raises(ValueError, match="no item of|none of the|has learned nothing of|needs vectors"):
            model.recommend(HISTORIES, **arguments)
        return
    scores: dict[str, dict[str, float]] = {user: {} for user in HISTORIES}
    for row in model.score(HISTORIES, IDS, timestamps=TIMES).to_pylist():
        if row["score"] is not None:
            scores[row["user_id"]][row["item_id"]] = row["score"]
    table = model.recommend(HISTORIES, **arguments)
    new = new_ones(model, request["rules"])
    for user in HISTORIES:
        rows = [row for row in table.to_pylist() if row["user_id"] == user]
        may_get = {item: scores[user][item] for item in scores[user].keys() & allowed_items(request, user)}
        check_places([row["item_id"] for row in rows], may_get, new, request, model)
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert {row["source"] for row in rows} <= {"cold_users" if user == "new" else "model"}
        assert [row["score"] for row in rows] == pytest.approx(
            [may_get[row["item_id"]] for row in rows], rel=1e-3, abs=1e-3
        )
        if model.model.probabilistic:
            total = 1 if isinstance(model.model, Generator) else sum(map(math.exp, may_get.values()))
            chances = [math.exp(may_get[row["item_id"]]) / total for row in rows]
            assert [row["probability"] for row in rows] == pytest.approx(chances, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in types() if issubclass(model_class(name), Generator)])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests(), beam=st.integers(1, 4), stochastic=st.booleans())
def test_a_narrow_beam_finds_as_many_valid_items_as_there_are(
    name: str, request: dict[str, Any], beam: int, stochastic: bool
) -> None:
    model, rules = serving_bundle(name, beam=ITEMS), request["rules"]
    if leaves_nothing(model, request):
        return
    search = {"beam": beam, "stochastic": stochastic}
    search = {key: value for key, value in search.items() if key in model.model.search_settings}
    table = model.recommend(HISTORIES, timestamps=TIMES, now=NOW, search=search, **request)
    for user in HISTORIES:
        items = [row["item_id"] for row in table.to_pylist() if row["user_id"] == user]
        allowed = allowed_items(request, user)
        assert set(items) <= allowed and len(items) == len(set(items))
        limit = rules.get("max_per_category", math.inf)
        counts, left = (
            Counter(None if rules.get("category") is None else ROWS[item].get(rules["category"]) for item in part)
            for part in (items, allowed)
        )
        assert all(count <= limit for category, count in counts.items() if category is not None)
        most = sum(count if category is None else min(count, limit) for category, count in left.items())
        assert len(items) == min(request["k"], most)


@pytest.mark.parametrize("name", ["popular", "sasrec", "tiger"])
@pytest.mark.parametrize("limit", [1, 3])
def test_lists_are_filled_where_most_of_the_best_items_are_of_one_category(name: str, limit: int) -> None:
    items, k, rng = 400, 20, np.random.default_rng(limit)
    ids = [f"i{n:03}" for n in range(items)]
    torch.manual_seed(0)
    data = random_sequences(60, items, longest=12, seed=1)
    small = {**TINY, "beam": items} if name == "tiger" else {}
    inputs = {"ids": {"text": catalogue_ids(items, sizes=(8, 8, 8))}} if name == "tiger" else {}
    model = build(name, small, n_items=items, max_length=WINDOW, **inputs)
    if model.closed_form:
        model.fit(data)
    bundle = Bundle(
        name, name, model.eval(), Vocabulary(np.array(ids, object)), [None] * items, np.ones(items, int),
        Protocol(dataset="tiny", exclude_seen=False),
    )  # fmt: skip
    histories = {"ann": ids[:3], "bob": ids[50:60]}
    order: dict[str, list[str]] = {user: [] for user in histories}
    for row in ServingBundle.of(bundle).recommend(histories, items).to_pylist():
        order[row["user_id"]].append(row["item_id"])
    best = {item for best in order.values() for item in best[:150]}
    shelf = {item: "full" if item in best else str(rng.integers(30)) for item in ids}
    model = ServingBundle.of(replace(bundle, item_columns=pa.table({"shelf": [shelf[item] for item in ids]})))
    table = model.recommend(histories, k, rules={"category": "shelf", "max_per_category": limit})
    for user, ranked in order.items():
        counts: Counter[str] = Counter()
        expected = []
        for item in ranked:
            counts[shelf[item]] += 1
            expected += [item] if counts[shelf[item]] <= limit else []
        listed = [row["item_id"] for row in table.to_pylist() if row["user_id"] == user]
        assert listed == expected[:k]


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "tiger"])
@pytest.mark.parametrize("diversity", [0, 0.5, 1.0])
def test_a_list_does_not_depend_on_the_other_users(name: str, diversity: float) -> None:
    model, rng = serving_bundle(name, **({"beam": ITEMS} if name == "tiger" else {})), np.random.default_rng(0)
    histories = {f"u{n}": [IDS[item] for item in rng.integers(0, ITEMS, rng.integers(1, 9))] for n in range(40)}
    rules = {"category": "brand", "max_per_category": 2, "diversity": diversity}
    with patch("recpipe.serving.lists.pool_size", lambda k, n_items: k + 1):  # many need another pool
        together = model.recommend(histories, 9, rules=rules).to_pylist()
        for user, history in histories.items():
            alone = model.recommend({user: history}, 9, rules=rules)["item_id"].to_pylist()
            assert [row["item_id"] for row in together if row["user_id"] == user] == alone


@pytest.mark.parametrize("name", ["popular", "sasrec", "tiger"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests(), share=st.sampled_from([0.1, 0.34, 0.5, 1]))
def test_places_of_new_items_are_filled_in_the_order_of_the_content_model(
    name: str, request: dict[str, Any], share: float
) -> None:
    content = serving_bundle("content_knn", last=None)
    model = replace(serving_bundle(name, **({"beam": ITEMS} if name == "tiger" else {})), content=content)
    rules = {**request["rules"], "new_items": {"share": share}, "diversity": 0}
    if leaves_nothing(model, {"rules": {**rules, "new_items": {"share": share, "where": "train_events < 9"}}}):
        return
    has_vector = content.model.present.tolist()
    new = {item for n, item in enumerate(IDS, 1) if ROWS[item]["train_events"] == 0 and has_vector[n]}
    arguments = {"timestamps": TIMES, "now": NOW, **request, "rules": rules}
    rows = model.recommend(HISTORIES, **arguments).to_pylist()
    free = {"seen": "allow", "candidates": sorted(new)}
    by_content = content.recommend(HISTORIES, ITEMS, rules=free).to_pylist()
    by_model = model.recommend(HISTORIES, ITEMS, rules={"seen": "allow"}).to_pylist()
    for user in HISTORIES:
        allowed = allowed_items({**request, "rules": rules}, user)
        orders = [
            [row["item_id"] for row in part if row["user_id"] == user and row["item_id"] in allowed and user != nobody]
            for part, nobody in ((by_model, ""), (by_content, "new"))
        ]
        assert [
            (row["item_id"], row["source"] == "content_slots") for row in rows if row["user_id"] == user
        ] == filled_places(orders, share, rules, request["k"])


def filled_places(orders: list[list[str]], share: float, rules: Mapping[str, Any], k: int) -> list[tuple[str, bool]]:
    """Items of a list and whether the content model chose them; ``orders``: those of the model and of content."""
    places: list[tuple[str, bool]] = []
    counts: Counter[Any] = Counter()
    for place in range(min(k, ITEMS)):
        is_slot = math.floor(share * (place + 1) + 1e-9) > math.floor(share * place + 1e-9)
        for from_content in (is_slot, not is_slot):
            chosen = {item for item, _ in places}
            best = next(
                (
                    item
                    for item in orders[from_content]
                    if item not in chosen
                    and ((category := ROWS[item].get(rules.get("category"))) is None
                         or counts[category] < rules["max_per_category"])
                ),
                None,
            )  # fmt: skip
            if best is not None:
                places.append((best, from_content))
                counts[ROWS[best].get(rules.get("category"))] += 1
                break
    return places
