"""A small trained-looking model on disk, a service of it in memory, and a client that calls it without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.conftest import PROJECT
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.config import read_yaml
from recpipe.config.run_config import BUNDLES, ColdUsersConfig
from recpipe.config.schema import ServeConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.serving.http.app import Service
from recpipe.serving.http.loaded_models import LoadedModels
from recpipe.serving.http.metrics import Metrics
from recpipe.serving.http.model_loader import ModelLoader
from recpipe.training.bundle import Bundle, save_bundle

ITEMS = 20
IDS = [f"i{n:02}" for n in range(ITEMS)]
TIGER = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1, "beam": 12}
SETTINGS = {"tiger": TIGER, "sasrec": {"dim": 16}}
VERSIONS = ("2026-01-01T00.00.00.000Z", "2026-02-01T00.00.00.000Z", "2026-03-01T00.00.00.000Z")
SERVE = read_yaml((PROJECT / "conf" / "base" / "parameters" / "serve.yml").read_text(encoding="utf-8"))["serve"]


def serve_config(**changes: Any) -> ServeConfig:
    """The block ``serve`` of conf with changes; newer bundles are looked for all the time."""
    return ServeConfig(**{**SERVE, "poll_seconds": 0.02, **changes})


def write_bundle(folder: Path, version: str, *, name: str = "sasrec", seed: int = 0, dataset: str = "tiny") -> Path:
    """Write a version of an untrained model below the model's ``folder``; the weights depend on the seed."""
    torch.manual_seed(seed)
    data = random_sequences(30, ITEMS, seed=1)
    options = {"ids": {"text": catalogue_ids(ITEMS, seed=0)}} if name == "tiger" else {}
    model = build(name, SETTINGS.get(name, {}), n_items=ITEMS, max_length=6, **options)
    if model.closed_form:
        model.fit(data)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(data, seed=0)
    titles = [f"Lantern {n}" if n % 2 else None for n in range(ITEMS)]
    counts = np.bincount(data.items, minlength=ITEMS + 1)[1:]
    vocabulary = Vocabulary(np.array(IDS, object))
    bundle = Bundle(name, name, model.eval(), vocabulary, titles, counts, Protocol(dataset=dataset))
    path = folder / "seed_1" / "bundle" / version / "bundle"
    path.mkdir(parents=True)
    save_bundle(bundle, path)
    return path


@dataclass(frozen=True)
class Answer:
    """An answer: status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The message of an error."""
        return self.json["error"]["message"]


class Client:
    """Calls an ASGI application in the running event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, content: Any, **headers: str) -> Answer:
        return await self.call("POST", path, json.dumps(content).encode(), headers=headers)

    async def call(
        self, method: str, path: str, *chunks: bytes, headers: dict[str, str] | None = None, host: str = "127.0.0.1"
    ) -> Answer:
        """Send a request whose body comes in ``chunks``; none at all for GET."""
        path, _, query = path.partition("?")
        names = {"host": host, "content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in (headers or {}).items()
        }
        parts = list(chunks) or [b""]
        messages = [
            {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
            for number, part in enumerate(parts)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.sleep(3600)
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items()], "root_path": "",
            "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        await self.service.app(scope, receive, send)
        start, *rest = sent
        found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], found, b"".join(part.get("body", b"") for part in rest))


@asynccontextmanager
async def running(models: Path, *, dataset: str = "tiny", **options: Any) -> AsyncIterator[Client]:
    """Serve the models below a folder until the block ends; options of `Service`, others are of conf."""
    of_service = {name: options.pop(name) for name in ("api_key", "local", "users") if name in options}
    config, metrics = serve_config(**options), Metrics()
    loader = ModelLoader(config, metrics, dataset=dataset, items=lambda _: models / "items.parquet")

    def find() -> dict[str, Path]:
        return {folder.name: folder for folder in sorted(models.glob("*/"))}

    loaded = LoadedModels(find, loader.load, files=loader.files, kinds=BUNDLES[config.bundle], on_reload=metrics.reload)
    service = Service(loaded, metrics, config, **of_service)
    await service.start()
    try:
        await until(lambda: loaded.is_complete or bool(loaded.errors))
        yield Client(service)
    finally:
        await service.stop()


async def until(is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.005)
