"""HTTP service of loaded bundles: routes of FastAPI, one batcher per model, a watcher for newer bundles.

`Service.app` is an ASGI application; `recpipe.serving.server` runs it. Requests are checked before they are queued;
what waits at the same time for the same model with the same rules is computed in one call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client.core import Metric
from starlette.exceptions import HTTPException

from recpipe import __version__
from recpipe.config.schema import ServeConfig
from recpipe.data.user_histories import UserHistories
from recpipe.serving.http.answers import Call, describe, explanation, item_rows, recommend_body
from recpipe.serving.http.docs import docs_page
from recpipe.serving.http.explorer import explorer_router
from recpipe.serving.http.guard import OTHER, App, Guard, error_response
from recpipe.serving.http.loaded_models import LoadedModel, LoadedModels
from recpipe.serving.http.log_histories import Notes, add_log_histories, lacks_history
from recpipe.serving.http.metrics import CONTENT_TYPE, Metrics, gauge
from recpipe.serving.http.requests import (
    ExplainRequest,
    RecommendRequest,
    RequestError,
    SimilarRequest,
    UserRequest,
    check_count,
    check_history,
    check_k,
    check_recommend,
    parse_request,
    shorten,
)
from recpipe.serving.http.users import users_router

log = logging.getLogger(__name__)

T = TypeVar("T")
IdsQuery = Annotated[list[str] | None, Query()]
REFERENCE = "#/components/schemas/{model}"
MAX_TEXT = 200  # characters of a search for items
EXAMPLES: dict[str, dict[str, Any]] = {
    "RecommendRequest": {
        "k": 10,
        "users": [{"user_id": "ann", "items": ["21754", "22423"]}],
        "rules": {"seen": "allow"},
    },
    "SimilarRequest": {"item": "22423", "k": 5},
    "ExplainRequest": {"items": ["21754", "22423"], "candidates": ["22720"]},
}


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe the API, with the parts that request bodies refer to."""
        description = super().openapi()
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        schemas["UserRequest"] = UserRequest.model_json_schema(ref_template=REFERENCE)
        return description


class Service:
    """The service: models, metrics and routes.

    ``api_key``: what clients must send, None for no check. ``local``: whether it listens on loopback only.
    ``users``: folder of an ingested log, whose users may be looked up. ``images``: route of item images.
    """

    def __init__(
        self,
        models: LoadedModels,
        metrics: Metrics,
        config: ServeConfig,
        *,
        api_key: str | None = None,
        local: bool = True,
        users: Path | None = None,
        images: APIRouter | None = None,
    ) -> None:
        self.models, self.config, self.images = models, config, images
        self.histories = None if users is None else _open_log(users)
        self.metrics = metrics
        metrics.add_gauges(self.state)
        self.is_stopping = False
        self._watcher: asyncio.Task[None] | None = None
        api = self._api()
        known = {route.path for route in api.routes if hasattr(route, "path")}
        self.app: App = Guard(
            api,
            config,
            api_key=api_key,
            local=local,
            paths=lambda path: path if path in known else OTHER,
            observe=self.metrics.request,
            direct={"/recommend": self.recommend},
        )

    async def start(self) -> None:
        """Load the models in the background and look for newer ones from then on."""
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Answer what waits, and end the threads of the models."""
        self.is_stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.models.close()

    async def _watch(self) -> None:
        while True:
            try:
                await self.models.refresh()
            except Exception:  # the next one may work
                log.exception("the look for newer bundles failed")
            await asyncio.sleep(self.config.poll_seconds)

    def state(self) -> Iterator[Metric]:
        """Yield the gauges of all models."""
        models = list(self.models)
        info = {(model.name, model.bundle.protocol.dataset, model.bundle.version): 1 for model in models}
        yield gauge("recpipe_model_info", "Version that is served", ["model", "dataset", "version"], info)
        loaded = {(model.name,): model.loaded_at for model in models}
        yield gauge("recpipe_model_loaded_timestamp_seconds", "When it was loaded", ["model"], loaded)
        waiting = {(model.name,): model.batcher.waiting_users for model in models}
        yield gauge("recpipe_queue_users", "Users that wait for a model", ["model"], waiting)
        failing = {(name,): 1 for name in self.models.errors}
        yield gauge("recpipe_model_refused", "1 while the newest bundle is refused", ["model"], failing)

    async def recommend(self, body: bytes) -> bytes:
        """Answer the body of POST /recommend."""
        request = parse_request(RecommendRequest, body)
        check_recommend(request, self.config)
        model = self.models.get(request.model)
        notes: Notes = {}
        if any(map(lacks_history, request.user_requests())):
            columns = model.bundle.profile_columns
            request, notes = await self.in_time(asyncio.to_thread(add_log_histories, request, self.histories, columns))
            check_recommend(request, self.config)
        key, users = model.answers.prepare(request, notes)
        lists = await self.in_time(model.batcher.submit(key, users, users=len(users)))
        for source, count in lists.sources.items():
            self.metrics.users(model.name, source, count)
        if lists.unknown_items:
            self.metrics.unknown_items(model.name, lists.unknown_items)
        return recommend_body(model, lists)

    async def in_time(self, work: Awaitable[T]) -> T:
        """Await ``work`` within the time limit. Raises RequestError 503 after it."""
        try:
            async with asyncio.timeout(self.config.timeout):
                return await work
        except TimeoutError:
            raise RequestError(
                503,
                f"no answer within {self.config.timeout:g} seconds (serve.timeout); send the request again",
                headers={"retry-after": "1"},
            ) from None

    async def call(self, model: LoadedModel, function: Callable[[], T]) -> T:
        """Call a function of a model in the thread of that model."""
        result: T = await self.in_time(model.batcher.submit(Call(function), None))
        return result

    def _api(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            await self.start()
            yield
            await self.stop()

        api = _Api(
            title="recpipe",
            version=__version__,
            description='Recommendations from trained models. Every error is {"error": {"message", "allowed"}}.',
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
        )
        for kind in (RequestError, RequestValidationError, HTTPException, ValueError, Exception):
            api.add_exception_handler(kind, _error)
        _add_post_routes(api, self)
        _add_get_routes(api, self)
        _add_state_routes(api, self)
        self._add_explorer(api)
        return api

    def _add_explorer(self, api: FastAPI) -> None:
        """Add the page, and what it asks for beyond the models."""
        api.include_router(explorer_router())
        if self.images is not None:
            api.include_router(self.images)
        if self.histories is not None:
            api.include_router(users_router(self.histories))


def _open_log(folder: Path) -> UserHistories | None:
    """Open the log of a data set; None, with a warning, for one that cannot be read."""
    try:
        return UserHistories(folder)
    except ValueError as error:
        log.warning("users of the log cannot be looked up: %s", error)
        return None


def _error(_: Request, error: Exception) -> Response:
    """Return errors of routes, also those of FastAPI itself, as JSON."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        error = RequestError(422, f"{first['loc'][-1]} cannot be {shorten(first.get('input'))}: {first['msg']}")
    if isinstance(error, HTTPException):
        method = {"allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else {}
        error = RequestError(error.status_code, str(error.detail), allowed=method.get("allow"), headers=method)
    status, body, headers = error_response(error)
    return Response(body, status, headers, "application/json")


def json_response(content: object) -> Response:
    """Return ``content`` as JSON."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _body_schema(cls: type[Any]) -> dict[str, Any]:
    """Describe a request body for OpenAPI; the route parses it itself, from its bytes."""
    schema = cls.model_json_schema(ref_template=REFERENCE)
    schema.pop("$defs", None)
    content = {"schema": schema, "example": EXAMPLES[cls.__name__]}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _add_post_routes(api: FastAPI, service: Service) -> None:
    config, models = service.config, service.models

    @api.post("/recommend", openapi_extra=_body_schema(RecommendRequest))
    async def recommend(request: Request) -> Response:
        """Return top-k lists for one user or many, who need not be known; unknown items are counted and left out.

        A user with a user_id and without items has the history of the log, if the service reads one; log_events says
        how many events that are. Without a history, as for empty items, the list is that for users without history: its
        source is cold_users, and a warning says so where items were not sent.
        """
        return Response(await service.recommend(await request.body()), media_type="application/json")

    @api.post("/similar", openapi_extra=_body_schema(SimilarRequest))
    async def similar(request: Request) -> Response:
        """Return the items nearest to one by the model's vectors."""
        body = parse_request(SimilarRequest, await request.body())
        check_k(body.k, config)
        model = models.get(body.model)
        table = await service.call(model, lambda: model.bundle.similar(body.item, body.k))
        return json_response({"model": model.name, "version": model.bundle.version, "items": table.to_pylist()})

    @api.post("/explain", openapi_extra=_body_schema(ExplainRequest))
    async def explain(request: Request) -> Response:
        """Return how much each event of a history matters for the recommendation of each candidate."""
        body = parse_request(ExplainRequest, await request.body())
        check_history(body.items, body.timestamps, config, user="user")
        check_count(body.candidates, "candidates", config.max_k)
        model = models.get(body.model)
        answer = await service.call(model, lambda: explanation(model, body))
        return json_response({"model": model.name, "version": model.bundle.version, **answer})


def _add_get_routes(api: FastAPI, service: Service) -> None:
    config, models = service.config, service.models

    @api.get("/items")
    async def items(q: str | None = None, ids: IdsQuery = None, model: str | None = None, limit: int = 50) -> Response:
        """Return items whose title or id contains the text q, most frequent in training first, or the items ids."""
        if not 1 <= limit <= config.max_items:
            raise RequestError(422, f"limit is {shorten(limit)}", allowed=f"from 1 to {config.max_items}")
        if q is not None and len(q) > MAX_TEXT:
            raise RequestError(422, f"q has {len(q)} characters", allowed=f"at most {MAX_TEXT}")
        if (q is None) == (not ids):
            raise RequestError(422, "give either q or ids", allowed=["q", "ids"])
        check_count(ids, "ids", config.max_items)
        loaded = models.get(model)
        rows = await service.call(loaded, lambda: item_rows(loaded, q, ids or [], limit))
        return json_response({"model": loaded.name, "version": loaded.bundle.version, "items": rows})

    @api.get("/models")
    async def list_models() -> Response:
        """Return the models that are served, what they stand for, and what they can do."""
        served = [{**describe(model), "error": models.errors.get(model.name)} for model in models]
        absent = sorted(set(models.errors) - {model.name for model in models})
        refused = [{"name": name, "error": models.errors[name]} for name in absent]
        page = {"histories": service.histories is not None, "images": service.images is not None}
        return json_response({"default": models.default, **page, "models": served, "refused": refused})


def _add_state_routes(api: FastAPI, service: Service) -> None:
    models = service.models

    @api.get("/health")
    async def health() -> Response:
        """Return 200 while the process answers."""
        return json_response({"status": "ok"})

    @api.get("/ready")
    async def ready() -> Response:
        """Return 200 when all models are loaded or refused and the default answers, 503 before and while it stops."""
        is_ready = models.is_complete and not service.is_stopping
        content = {"ready": is_ready, "models": [model.name for model in models], "errors": models.errors}
        return Response(orjson.dumps(content), 200 if is_ready else 503, media_type="application/json")

    @api.get("/metrics")
    async def metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """Return the API as a page."""
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(docs_page(api.openapi()), media_type="text/html; charset=utf-8", headers=headers)
