"""The HTTP service in memory: its lists are those of the bundle, and every error is JSON that says what is allowed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.small_service import IDS, ITEMS, VERSIONS, Answer, Client, running, write_bundle

import recpipe

HISTORIES = {f"user {n}": [IDS[(n + step * step) % ITEMS] for step in range(n % 7)] for n in range(12)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("sasrec", "tiger", "popular"):
        write_bundle(folder / name, VERSIONS[0], name=name)
    return folder


def answers(models: Path, *calls: Callable[[Client], Any], **options: Any) -> list[Answer]:
    """Start the service, make the calls at the same time, and stop it."""

    async def run() -> list[Answer]:
        async with running(models, **options) as client:
            return await asyncio.gather(*(call(client) for call in calls))

    return asyncio.run(run())


def expected(model: recpipe.serving.model.ServingBundle, histories: dict, **options: Any) -> dict[str, list[tuple]]:
    """Lists of `recommend` by user: item, title, score, probability."""
    lists: dict[str, list[tuple]] = {user: [] for user in histories}
    for row in model.recommend(histories, **options).to_pylist():
        lists[row["user_id"]].append(tuple(row[name] for name in ("item_id", "title", "score", "probability")))
    return lists


def lists_of(answer: Answer) -> dict[str, list[tuple]]:
    assert answer.status == 200, answer.body
    return {
        entry["user_id"]: [
            tuple(item[name] for name in ("item_id", "title", "score", "probability")) for item in entry["items"]
        ]
        for entry in answer.json["lists"]
    }


def assert_equal(lists: dict[str, list[tuple]], wanted: dict[str, list[tuple]]) -> None:
    assert lists.keys() == wanted.keys()
    for user, items in lists.items():
        assert [item[:2] for item in items] == [item[:2] for item in wanted[user]]
        for item, other in zip(items, wanted[user], strict=True):
            numbers, wanted_numbers = ([-1.0 if n is None else n for n in values[2:]] for values in (item, other))
            assert numbers == pytest.approx(wanted_numbers, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["sasrec", "tiger", "popular"])
def test_lists_are_those_of_the_bundle(models, name):
    body = {"model": name, "k": 5, "users": [{"user_id": u, "items": items} for u, items in HISTORIES.items()]}
    (answer,) = answers(models, lambda client: client.post("/recommend", body))
    model = recpipe.load_bundle(models / name)
    assert_equal(lists_of(answer), expected(model, HISTORIES, k=5))
    assert (answer.json["model"], answer.json["version"], answer.json["dataset"]) == (name, VERSIONS[0], "tiny")
    for entry in answer.json["lists"]:
        assert entry["source"] == ("model" if HISTORIES[entry["user_id"]] else "cold_users")
        assert [item["rank"] for item in entry["items"]] == [1, 2, 3, 4, 5]
    codes = model.model.item_codes()
    item = answer.json["lists"][3]["items"][0]
    assert item["codes"] == {kind: each.codes[IDS.index(item["item_id"]) + 1].tolist() for kind, each in codes.items()}


def test_concurrent_requests_are_batched_and_every_user_gets_the_own_list(models):
    def ask(user: str, k: int) -> Callable[[Client], Any]:
        return lambda client: client.post("/recommend", {"user_id": user, "items": HISTORIES[user], "k": k})

    async def run() -> tuple[list[Answer], Answer]:
        async with running(models) as client:
            calls = [ask(user, k)(client) for k in (3, 7) for user in HISTORIES]
            return await asyncio.gather(*calls), await client.get("/metrics")

    results, metrics = asyncio.run(run())
    model = recpipe.load_bundle(models / "popular")  # the default: first by name
    for number, answer in enumerate(results):
        user = list(HISTORIES)[number % len(HISTORIES)]
        k = (3, 7)[number // len(HISTORIES)]
        assert_equal(lists_of(answer), {user: expected(model, {user: HISTORIES[user]}, k=k)[user]})
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.body.decode())
        for sample in family.samples
    }
    assert samples["recpipe_batch_users_sum", "popular"] == len(results)
    assert samples["recpipe_batch_users_count", "popular"] < len(results) / 2
    assert samples["recpipe_requests_total", "/recommend", "200"] == len(results)
    empty = 2 * sum(not items for items in HISTORIES.values())
    assert samples["recpipe_users_total", "cold_users", "popular"] == empty
    assert samples["recpipe_model_info", VERSIONS[0], "popular", "tiny"] == 1
    assert samples["recpipe_queue_users", "popular"] == 0


def test_rules_candidates_and_exclusions_are_those_of_recommend(models):
    history, rules = {"ann": ["i03", "i04"]}, {"seen": "allow", "where": "train_events > 0"}
    body = {"model": "sasrec", "user_id": "ann", "items": history["ann"], "k": 6, "rules": rules}
    plain, restricted, nothing = answers(
        models,
        lambda client: client.post("/recommend", body),
        lambda client: client.post("/recommend", {**body, "candidates": ["i01", "i02", "zz"], "exclude": ["i02"]}),
        lambda client: client.post("/recommend", {**body, "candidates": ["zz"]}),
    )
    model = recpipe.load_bundle(models / "sasrec")
    assert_equal(lists_of(plain), expected(model, history, k=6, rules=rules))
    assert [item["item_id"] for item in restricted.json["lists"][0]["items"]] == ["i01"]
    assert nothing.status == 200 and nothing.json["lists"][0]["items"] == []
    assert "no item is left" in nothing.json["lists"][0]["message"]


def test_candidates_of_one_user_restrict_no_other_user_of_the_request(models):
    users = [
        {"user_id": "ann", "items": ["i03"], "candidates": ["i01", "i02"]},
        {"user_id": "bob", "items": ["i03"], "exclude": ["i05"]},
        {"user_id": "eve", "items": ["i03"], "candidates": []},
    ]
    for name in ("sasrec", "tiger"):
        (answer,) = answers(
            models, lambda client, name=name: client.post("/recommend", {"model": name, "users": users})
        )
        lists = {entry["user_id"]: [item["item_id"] for item in entry["items"]] for entry in answer.json["lists"]}
        model = recpipe.load_bundle(models / name)
        bob = model.recommend({"bob": ["i03"]}, exclude={"bob": ["i05"]})["item_id"].to_pylist()
        assert set(lists["ann"]) == {"i01", "i02"} and lists["bob"] == bob and lists["eve"] == []
        assert list(lists) == ["ann", "bob", "eve"]


def test_a_user_without_known_items_gets_the_fallback_and_unknown_items_are_counted(models):
    users = [
        {"user_id": "new", "items": []},
        {"user_id": "other shop", "items": ["x", "y"]},
        {"user_id": "", "items": ["x", "i01"]},
    ]
    (answer,) = answers(models, lambda client: client.post("/recommend", {"model": "sasrec", "users": users}))
    entries = answer.json["lists"]
    assert [entry["source"] for entry in entries] == ["cold_users", "cold_users", "model"]
    assert [entry["unknown_items"] for entry in entries] == [0, 2, 1]
    assert entries[0]["items"] == entries[1]["items"]


def test_items_similar_and_models_are_those_of_the_bundle(models):
    found, by_id, similar, listed = answers(
        models,
        lambda client: client.get("/items?model=sasrec&q=LANTERN%201&limit=3"),
        lambda client: client.get("/items?model=sasrec&ids=i05&ids=none&ids=i02"),
        lambda client: client.post("/similar", {"model": "sasrec", "item": "i05", "k": 3}),
        lambda client: client.get("/models"),
    )
    model = recpipe.load_bundle(models / "sasrec")
    assert found.json["items"] == model.find_items("LANTERN 1", 3).to_pylist() and len(found.json["items"]) == 3
    assert [(item["item_id"], item["title"]) for item in by_id.json["items"]] == [("i05", "Lantern 5"), ("i02", "i02")]
    assert [item["item_id"] for item in similar.json["items"]] == model.similar("i05", 3)["item_id"].to_pylist()
    by_name = {entry["name"]: entry for entry in listed.json["models"]}
    assert by_name.keys() == {"sasrec", "tiger", "popular"} and listed.json["default"] == "popular"
    assert by_name["tiger"]["abilities"]["search"] and not by_name["sasrec"]["abilities"]["search"]
    assert by_name["sasrec"]["abilities"]["similar"] and not by_name["popular"]["abilities"]["similar"]
    assert {"name": "train_events", "type": "int64"} in by_name["sasrec"]["item_columns"]
    assert (by_name["sasrec"]["made_by"], by_name["sasrec"]["version"]) == ("train", VERSIONS[0])


ERRORS: list[tuple[dict[str, Any], int, str]] = [
    ({"k": 5}, 422, "give users"),
    ({"items": [], "k": 0}, 422, "k is 0"),
    ({"items": [], "k": -1}, 422, "k is -1"),
    ({"items": [], "k": 10**9}, 422, "k is 1000000000"),
    ({"items": [], "k": 10**40}, 422, "k "),
    ({"items": [], "k": "ten"}, 422, "k cannot be 'ten'"),
    ({"items": [], "k": 2.5}, 422, "k cannot be 2.5"),
    ({"items": [], "k": True}, 422, "k cannot be True"),
    ({"items": [None]}, 422, "items.0 cannot be None"),
    ({"items": [21754]}, 422, "items.0 cannot be 21754"),
    ({"items": "i01"}, 422, "items cannot be 'i01'"),
    ({"items": ["i01"] * 10_001}, 422, "has 10001 events; send the last 10000"),
    ({"items": ["i01"], "timestamps": [1, 2]}, 422, "1 items and 2 timestamps"),
    ({"items": ["i01"], "timestamps": [10**30]}, 422, "timestamps.0"),
    ({"items": [], "users": []}, 422, "give either users or items"),
    ({"users": []}, 422, "0 users"),
    ({"users": [{"user_id": "a"}, {"user_id": "a"}]}, 422, "'a' stands twice"),
    ({"users": [{"user_id": None, "items": []}]}, 422, "users.0.user_id cannot be None"),
    ({"users": [{"items": [], "timestamps": []}, {"user_id": "b"}]}, 422, "differs in timestamps"),
    ({"items": [], "model": "sasrek"}, 404, "did you mean 'sasrec'"),
    ({"items": [], "model": "x" * 100_000}, 404, "unknown model"),
    ({"items": [], "itmes": []}, 422, "unknown field 'itmes'"),
    ({"items": [], "rules": {"whre": ""}}, 422, "whre"),
    ({"items": [], "rules": {"where": "price < 3"}}, 422, "price"),
    ({"items": [], "rules": {"where": "__import__('os').system('true')"}}, 422, ""),
    ({"items": [], "rules": {"where": "train_events <"}}, 422, ""),
    ({"items": [], "rules": {"where": "train_events > 10000000"}}, 422, "no item"),
    ({"items": [], "rules": {"candidates": ["zz"]}}, 422, "none of the 1 candidates"),
    ({"items": [], "rules": {"diversity": 7}}, 422, "diversity"),
    ({"items": ["i01"], "rules": {"seen": 3}}, 422, "timestamps"),
    ({"users": [{"user_id": str(n)} for n in range(201)], "k": 500}, 422, "201 users with k 500 are 100500 places"),
    ({"items": [], "candidates": ["a"] * 10_001}, 422, "candidates of user 'user' has 10001 values"),
    ({"items": [], "search": {"beam": 20}}, 422, "no search settings"),
    ({"items": [], "model": "tiger", "search": {"beams": 20}}, 422, "did you mean 'beam'"),
    ({"items": [], "model": "tiger", "search": {"beam": 10**9}}, 422, "search.beam is 1000000000"),
    ({"items": [], "model": "tiger", "search": {"temperatures": [1e308] * 10_000}}, 422, "search"),
]


def test_wrong_requests_are_4xx_that_say_what_is_wrong(models):
    def ask(body: dict[str, Any]) -> Callable[[Client], Any]:
        return lambda client: client.post("/recommend", {"model": "sasrec", **body})

    for answer, (body, status, message) in zip(
        answers(models, *(ask(body) for body, _, _ in ERRORS)), ERRORS, strict=True
    ):
        assert answer.status == status, (str(body)[:200], answer.body)
        assert message in answer.message and len(answer.body) < 2000, (str(body)[:200], answer.body)
        assert "Traceback" not in answer.message


def test_bodies_that_are_no_json_requests_are_refused(models):
    async def run() -> None:
        async with running(models, max_body=1000, client_timeout=0.1) as client:
            for body in (
                b"",
                b"{",
                b"[" * 500,
                b"nonsense",
                b'{"items": ["\xff"]}',
                b'{"items": ["\\ud800"]}',
                b"[]",
                b"null",
            ):
                answer = await client.call("POST", "/recommend", body)
                assert answer.status in (400, 422) and answer.message, body
            kinds = {"text/plain": 415, "application/xml": 415, "": 415, "application/json; charset=utf-8": 200}
            for kind, status in kinds.items():
                answer = await client.call("POST", "/recommend", b'{"items": []}', headers={"content-type": kind})
                assert answer.status == status
            answer = await client.call("POST", "/recommend", b"\x1f\x8b", headers={"content-encoding": "gzip"})
            assert answer.status == 415 and "not compressed" in answer.json["error"]["allowed"]
            answer = await client.call("POST", "/recommend", b"{", headers={"content-length": "100000000"})
            assert answer.status == 413 and answer.headers["connection"] == "close"
            answer = await client.call("POST", "/recommend", *[b" " * 100] * 11)  # chunked: no length beforehand
            assert answer.status == 413
            for path in ("/nothing", "/models/../x", "/recommend"):
                assert (await client.get(path)).status in (404, 405)
            for query in ("", "q=a&limit=0", "q=a&limit=x", "q=a&ids=b", "q=" + "a" * 201, "limit=1"):
                answer = await client.get(f"/items?{query}")
                assert answer.status == 422 and answer.message, query

    asyncio.run(run())


def test_a_failure_inside_is_500_without_its_text(models, monkeypatch, caplog):
    from recpipe.serving.model import ServingBundle

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the house")

    async def run() -> Answer:
        async with running(models) as client:
            monkeypatch.setattr(ServingBundle, "lists", broken)
            return await client.post("/recommend", {"items": ["i01"]})

    answer = asyncio.run(run())
    assert answer.status == 500 and "secret" not in answer.body.decode()
    assert "secret of the house" in caplog.text


def test_a_slow_answer_is_503_and_a_full_queue_429(models, monkeypatch):
    from recpipe.serving.model import ServingBundle

    original = ServingBundle.lists

    def slow(self, *arguments: Any, **options: Any):
        import time

        time.sleep(0.3)
        return original(self, *arguments, **options)

    async def run() -> tuple[list[Answer], Answer]:
        async with running(models, timeout=0.2, queue_users=2) as client:
            monkeypatch.setattr(ServingBundle, "lists", slow)
            first = asyncio.create_task(client.post("/recommend", {"items": []}))
            await asyncio.sleep(0.05)
            rest = await asyncio.gather(*(client.post("/recommend", {"items": []}) for _ in range(4)))
            return [await first, *rest], await client.get("/health")

    results, health = asyncio.run(run())
    assert sorted(answer.status for answer in results) == [429, 429, 503, 503, 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in results)
    assert health.status == 200


def test_an_api_key_is_needed_where_there_is_one(models):
    key = "k" * 20

    async def run() -> None:
        async with running(models, api_key=key, local=False) as client:
            for path in ("/models", "/metrics", "/docs", "/openapi.json", "/items?q=a", "/nothing"):
                assert (await client.get(path)).status == 401
                assert (await client.get(path, x_api_key="wrong")).status == 401
                assert (await client.get(path, x_api_key=key)).status in (200, 404)
                assert (await client.get(path, authorization=f"Bearer {key}")).status in (200, 404)
            assert (await client.post("/recommend", {"items": []})).status == 401
            assert (await client.get("/health")).status == (await client.get("/ready")).status == 200

    asyncio.run(run())


def test_a_service_on_loopback_answers_only_to_its_own_name(models):
    async def run() -> None:
        async with running(models) as client:
            for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1"):
                assert (await client.call("GET", "/models", host=host)).status == 200
            for host in ("evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:8000", "[::2]"):
                assert (await client.call("GET", "/models", host=host)).status == 403

    asyncio.run(run())


def test_the_api_page_names_every_route_and_loads_nothing(models):
    page, description = answers(models, lambda client: client.get("/docs"), lambda client: client.get("/openapi.json"))
    text = page.body.decode()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|<script|@import|url\(""", text)
    for path, methods in description.json["paths"].items():
        assert path in text
        assert all(operation["description"] for operation in methods.values()), path
    references = set(re.findall(r"#/components/schemas/(\w+)", description.body.decode()))
    assert references <= description.json["components"]["schemas"].keys()


def test_requests_as_the_page_shows_them_are_answered(models):
    (description,) = answers(models, lambda client: client.get("/openapi.json"))
    body = description.json["paths"]["/recommend"]["post"]["requestBody"]["content"]["application/json"]["example"]
    (answer,) = answers(models, lambda client: client.post("/recommend", body))
    assert answer.status == 200 and json.loads(answer.body)["lists"]
