"""Any body gets a list or a 4xx in JSON: hypothesis looks for one that does not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.small_service import IDS, VERSIONS, Client, running, write_bundle

ROUTES = ("/recommend", "/similar", "/explain")
IDS_OR_TEXT = st.sampled_from(IDS) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
CONDITIONS = st.sampled_from(["train_events > 1", "title = 'x'", "price < 3", "(", "item_id in ['i01']", "a.b()"])
RULES = st.fixed_dictionaries(
    {},
    optional={
        "where": CONDITIONS | st.text(max_size=12),
        "seen": st.sampled_from(["exclude", "allow", "protocol", "x", 3, -1, 0.5]) | VALUES,
        "candidates": st.lists(IDS_OR_TEXT, max_size=4) | VALUES,
        "exclude": st.lists(IDS_OR_TEXT, max_size=4) | VALUES,
        "max_per_category": st.integers(-1, 3) | VALUES,
        "category": st.sampled_from(["title", "item_id", "none"]) | VALUES,
        "diversity": st.floats(-1, 2) | VALUES,
        "new_items": st.fixed_dictionaries({"share": st.floats(0, 1)}) | VALUES,
    },
)
USER = {
    "items": st.lists(IDS_OR_TEXT, max_size=8) | VALUES,
    "timestamps": st.none() | st.lists(st.integers(), max_size=8) | VALUES,
    "profile": st.none() | st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    "candidates": st.none() | st.lists(IDS_OR_TEXT, max_size=8),
    "exclude": st.none() | st.lists(IDS_OR_TEXT, max_size=8),
    "user_id": st.text(max_size=5),
}
REQUESTS = st.fixed_dictionaries(
    {"k": st.integers(-1, 30) | VALUES},
    optional={
        **USER,
        "model": st.sampled_from(["sasrec", "tiger", "tigre"]) | VALUES,
        "users": st.lists(st.fixed_dictionaries({}, optional=USER), max_size=3),
        "rules": RULES,
        "search": st.dictionaries(st.sampled_from(["beam", "temperatures", "stochastic", "x"]), VALUES, max_size=2),
        "now": st.integers(),
        "item": IDS_OR_TEXT,
    },
)


@pytest.fixture(scope="module")
def loop_and_client(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("sasrec", "tiger"):
        write_bundle(folder / name, VERSIONS[0], name=name)
    with asyncio.Runner() as runner:
        context = running(folder)
        yield runner, runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


def check(client: Client, route: str, body: bytes) -> Any:
    """Send a body; whatever it is, the answer is a list or an error of the client."""

    async def call() -> Any:
        answer = await client.call("POST", route, body)
        content = json.loads(answer.body)
        assert answer.status in (200, 400, 404, 422), (answer.status, answer.body)
        if answer.status != 200:
            assert content["error"]["message"] and len(answer.body) < 5000
        elif route == "/recommend":
            for entry in content["lists"]:
                items = [item["item_id"] for item in entry["items"]]
                assert len(items) == len(set(items)) and set(items) <= set(IDS)
        return answer

    return call()


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(
    route=st.sampled_from(ROUTES), body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_answered(loop_and_client, route, body):
    runner, client = loop_and_client
    runner.run(check(client, route, body))


@FUZZ
@given(body=REQUESTS)
def test_any_request_with_the_right_fields_is_answered(loop_and_client, body):
    runner, client = loop_and_client
    runner.run(check(client, "/recommend", json.dumps(body).encode()))


@FUZZ
@given(query=st.dictionaries(st.sampled_from(["q", "ids", "limit", "model"]), st.text(max_size=6), max_size=4))
def test_any_query_for_items_is_answered(loop_and_client, query):
    from urllib.parse import urlencode

    runner, client = loop_and_client
    answer = runner.run(client.get(f"/items?{urlencode(query)}"))
    assert answer.status in (200, 404, 422), answer.body
    assert json.loads(answer.body)
