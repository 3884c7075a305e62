"""Newer bundles are taken up without a lost request; damaged, half-written and foreign ones never are."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import flip_bit
from tests.serving.small_service import IDS, VERSIONS, Client, running, until, write_bundle

import recpipe
from recpipe.serving.http.loaded_models import LoadedModel
from recpipe.serving.http.model_loader import ModelLoader
from recpipe.training.bundle import WEIGHTS

BODY = {"items": IDS[:3], "k": 5}


def first_scores(folder: Path) -> list[float]:
    return recpipe.load_bundle(folder).recommend({"user": BODY["items"]}, 5)["score"].to_pylist()


async def version_and_scores(client: Client) -> tuple[str, list[float]]:
    answer = await client.post("/recommend", BODY)
    assert answer.status == 200, answer.body
    return answer.json["version"], [item["score"] for item in answer.json["lists"][0]["items"]]


def is_close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def test_a_newer_version_is_taken_up_while_requests_go_on(tmp_path):
    scores = {VERSIONS[0]: first_scores(write_bundle(tmp_path / "sasrec", VERSIONS[0]))}

    async def run() -> None:
        seen: set[str] = set()

        async def client_loop(client: Client) -> None:
            while VERSIONS[1] not in seen:
                version, values = await version_and_scores(client)
                assert is_close(values, scores[version])
                seen.add(version)

        async with running(tmp_path) as client:
            loops = [asyncio.create_task(client_loop(client)) for _ in range(8)]
            await until(lambda: bool(seen))
            new = write_bundle(tmp_path / "elsewhere", VERSIONS[1], seed=1)
            shutil.move(tmp_path / "elsewhere", tmp_path.parent / f"{tmp_path.name} elsewhere")
            new = tmp_path.parent / f"{tmp_path.name} elsewhere" / new.relative_to(tmp_path / "elsewhere")
            scores[VERSIONS[1]] = first_scores(new)
            target = tmp_path / "sasrec" / "seed_1" / "bundle" / VERSIONS[1] / "bundle"
            target.parent.mkdir()
            shutil.move(new, target)
            async with asyncio.timeout(20):
                await asyncio.gather(*loops)
            assert seen == set(VERSIONS[:2])
            assert (await client.get("/ready")).status == 200

    asyncio.run(run())


def test_a_damaged_bundle_is_refused_and_the_old_one_stays(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])

    async def run() -> None:
        async with running(tmp_path) as client:
            old = await version_and_scores(client)
            new = write_bundle(tmp_path / "sasrec", VERSIONS[1], seed=1)
            intact = (new / WEIGHTS).read_bytes()
            await until(lambda: next(iter(client.service.models)).folder == new)
            other = write_bundle(tmp_path / "sasrec", VERSIONS[2], seed=2)
            flip_bit(other / WEIGHTS, 3)
            await until(lambda: "damaged" in client.service.models.errors.get("sasrec", ""))
            version, _ = await version_and_scores(client)
            assert version == VERSIONS[1] != old[0] and intact
            (entry,) = (await client.get("/models")).json["models"]
            assert entry["version"] == VERSIONS[1] and "damaged" in entry["error"]
            metrics = (await client.get("/metrics")).body.decode()
            assert 'recpipe_model_refused{model="sasrec"} 1.0' in metrics
            assert 'recpipe_reloads_total{model="sasrec",result="refused"} 1.0' in metrics  # tried once, not each time

    asyncio.run(run())


def test_a_bundle_is_taken_up_when_its_copy_is_complete(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    source = write_bundle(tmp_path.parent / f"{tmp_path.name} source", VERSIONS[1], seed=1)
    target = tmp_path / "sasrec" / "seed_1" / "bundle" / VERSIONS[1] / "bundle"

    async def run() -> None:
        async with running(tmp_path) as client:
            target.mkdir(parents=True)
            for file in sorted(source.iterdir(), key=lambda path: path.name == WEIGHTS):
                await asyncio.sleep(0.06)
                assert (await version_and_scores(client))[0] == VERSIONS[0]
                content = file.read_bytes()
                (target / file.name).write_bytes(content[: len(content) // 2])
                await asyncio.sleep(0.06)
                (target / file.name).write_bytes(content)
            await until(lambda: next(iter(client.service.models)).folder == target)
            assert is_close((await version_and_scores(client))[1], first_scores(source))
            assert client.service.models.errors == {}

    asyncio.run(run())


def test_a_service_starts_with_the_newest_bundle_that_is_intact(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    flip_bit(write_bundle(tmp_path / "sasrec", VERSIONS[1], seed=1) / WEIGHTS, 0)

    async def run() -> None:
        async with running(tmp_path) as client:
            await until(lambda: client.service.models.is_complete)
            assert (await version_and_scores(client))[0] == VERSIONS[0]
            assert VERSIONS[1] in client.service.models.errors["sasrec"]

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "version"), [("newest", 2), ("measured", 2), ("production", 1)])
def test_an_experiment_need_not_replace_a_bundle_for_production(tmp_path, kind, version):
    refit = write_bundle(tmp_path / "sasrec", VERSIONS[1])
    production = tmp_path / "sasrec" / "seed_1" / "production" / VERSIONS[1] / "production"
    production.parent.mkdir(parents=True)
    shutil.move(refit, production)
    write_bundle(tmp_path / "sasrec", VERSIONS[2], seed=1)

    async def run() -> None:
        async with running(tmp_path, bundle=kind) as client:
            assert (await version_and_scores(client))[0] == VERSIONS[version]

    asyncio.run(run())


def test_a_bundle_of_another_data_set_is_refused(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    write_bundle(tmp_path / "popular", VERSIONS[0], name="popular", dataset="other shop")

    async def run() -> None:
        async with running(tmp_path) as client:
            await until(lambda: "popular" in client.service.models.errors and any(client.service.models))
            answer = await client.post("/recommend", {**BODY, "model": "popular"})
            assert answer.status == 503 and "data set other shop" in answer.message
            (entry,) = (await client.get("/models")).json["refused"]
            assert entry["name"] == "popular"
            ready = await client.get("/ready")  # one damaged model takes no other one out of service
            assert ready.status == 200 and json.loads(ready.body)["models"] == ["sasrec"]
            assert "data set other shop" in json.loads(ready.body)["errors"]["popular"]

    asyncio.run(run())


def write_stock(folder: Path, stocked: set[str]) -> None:
    stock = [item in stocked for item in IDS]
    pq.write_table(pa.table({"item_id": IDS, "in_stock": stock}), folder / "new.parquet")
    (folder / "new.parquet").rename(folder / "items.parquet")


async def items_in_stock(client: Client) -> set[str]:
    rules = {"where": "in_stock = true", "seen": "allow"}
    answer = await client.post("/recommend", {"items": IDS[:1], "k": 20, "rules": rules})
    assert answer.status == 200, answer.body
    return {item["item_id"] for item in answer.json["lists"][0]["items"]}


def test_current_columns_of_items_reach_the_rules_without_a_restart(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])

    async def run() -> None:
        async with running(tmp_path) as client:
            assert await items_in_stock(client) == {"i04", "i05"}
            write_stock(tmp_path, {"i07", "i08", "i09"})
            model = next(iter(client.service.models))
            await until(lambda: next(iter(client.service.models)) is not model)
            assert await items_in_stock(client) == {"i07", "i08", "i09"}

    write_stock(tmp_path, {"i04", "i05"})
    asyncio.run(run())


def test_columns_that_change_while_a_bundle_is_loaded_are_read_again(tmp_path, monkeypatch):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    write_stock(tmp_path, {"i04", "i05"})
    changes, load = [{"i07", "i08"}], ModelLoader.load

    def load_and_change(loader: ModelLoader, name: str, folder: Path) -> LoadedModel:
        model = load(loader, name, folder)
        if changes:
            write_stock(tmp_path, changes.pop())
        return model

    async def run() -> None:
        async with running(tmp_path) as client:
            first = next(iter(client.service.models))
            await until(lambda: next(iter(client.service.models)) is not first)
            assert await items_in_stock(client) == {"i07", "i08"}

    monkeypatch.setattr(ModelLoader, "load", load_and_change)
    asyncio.run(run())


def test_a_bundle_refused_for_its_item_columns_is_tried_again_when_they_are_whole(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    (tmp_path / "items.parquet").write_bytes(b"half written")

    async def run() -> None:
        async with running(tmp_path) as client:
            assert "sasrec" in client.service.models.errors
            write_stock(tmp_path, {"i04"})
            await until(lambda: client.service.models.is_complete)
            assert await items_in_stock(client) == {"i04"} and client.service.models.errors == {}

    asyncio.run(run())


def test_a_bundle_of_another_model_is_refused(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    write_bundle(tmp_path / "popular", VERSIONS[0], name="item_knn")

    async def run() -> None:
        async with running(tmp_path) as client:
            await until(lambda: "popular" in client.service.models.errors and any(client.service.models))
            assert "it is the model item_knn" in client.service.models.errors["popular"]

    asyncio.run(run())


def test_the_error_of_a_model_that_is_removed_goes(tmp_path):
    write_bundle(tmp_path / "sasrec", VERSIONS[0])
    flip_bit(write_bundle(tmp_path / "popular", VERSIONS[0], name="popular") / WEIGHTS, 0)

    async def run() -> None:
        async with running(tmp_path) as client:
            await until(lambda: "popular" in client.service.models.errors and any(client.service.models))
            shutil.rmtree(tmp_path / "popular")
            await until(lambda: client.service.models.errors == {})
            assert client.service.models.is_complete

    asyncio.run(run())
