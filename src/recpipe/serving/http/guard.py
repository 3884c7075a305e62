"""ASGI middleware in front of every route: host, API key, content type, size and time of bodies, errors, metrics.

Bodies are read here, so that a route finds a complete body of limited size. Errors are JSON, `error_response`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import orjson

from recpipe.config.schema import ServeConfig
from recpipe.serving.http.batcher import ClosedError, QueueFullError
from recpipe.serving.http.requests import RequestError, shorten

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready", "/")  # need no API key, nor does what is below OPEN_FOLDER
OPEN_FOLDER = "/explorer/"
OTHER = "other"  # label of paths without a route
JSON = b"application/json"


def is_loopback(host: str) -> bool:
    """Return whether an address or name is of this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware around ``app``.

    ``api_key``: what clients must send, None for no check. ``local``: the service listens on loopback only, so that
    requests for any other host name, as by DNS rebinding, are refused. ``paths``: the routes, as labels of metrics.
    ``observe``: called with path, status and seconds of every request. ``direct``: functions from a JSON body to a JSON
    answer, by the path of their POST requests; the app, whose layers cost more than a list, does not see these.
    """

    def __init__(
        self,
        app: App,
        config: ServeConfig,
        *,
        api_key: str | None,
        local: bool,
        paths: Callable[[str], str],
        observe: Callable[[str, int, float], None],
        direct: Mapping[str, Callable[[bytes], Awaitable[bytes]]],
    ) -> None:
        self._app, self._config, self._local, self._paths, self._observe = app, config, local, paths, observe
        self._direct = direct
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass an event of the server's life to the app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            headers = dict(scope["headers"])
            self._check_access(scope, headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(headers, receive)
                if (direct := self._direct.get(scope["path"])) is not None and scope["method"] == "POST":
                    await send_json(send_counted, 200, await direct(body))
                    return
                receive = _replay(body)
            await self._app(scope, receive, send_counted)
        except Exception as error:
            if not status:  # else the route's own handler has logged and answered it
                await respond(send_counted, error)
        finally:
            self._observe(self._paths(scope["path"]), status, time.perf_counter() - started)

    def _check_access(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise RequestError, 403 for a foreign host name, 401 for a missing or wrong API key."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self._local and not is_loopback(_host_name(host)):
            raise RequestError(403, f"host {shorten(host)} is not this machine", allowed="localhost, 127.0.0.1, [::1]")
        path = scope["path"]
        if self._api_key is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        key = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(key, self._api_key):
            raise RequestError(
                401,
                "the API key is wrong" if key else "the service needs an API key",
                allowed="header Authorization: Bearer <key>, or X-API-Key: <key>",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body. Raises RequestError for what is no JSON, too long, compressed or too slow."""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != JSON:
            raise _closing(415, f"content type {shorten(kind.decode('latin-1'))}", allowed="application/json")
        if (encoding := headers.get(b"content-encoding", b"identity").lower()) != b"identity":
            raise _closing(
                415, f"content encoding {shorten(encoding.decode('latin-1'))}", allowed="bodies that are not compressed"
            )
        most, seconds = self._config.max_body, self._config.client_timeout
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > most:
            raise _too_long(most)
        try:
            async with asyncio.timeout(seconds):
                return await _read(receive, most)
        except TimeoutError:
            raise _closing(408, f"the body did not arrive within {seconds:g} seconds") from None


async def _read(receive: Receive, most: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _closing(400, "the client closed the connection before the body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_long(most)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _replay(body: bytes) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _closing(status: int, message: str, *, allowed: object = None) -> RequestError:
    """Return an error after which the connection is closed, as its body is not read to the end."""
    return RequestError(status, message, allowed=allowed, headers={"connection": "close"})


def _too_long(most: int) -> RequestError:
    return _closing(413, "the body is too long", allowed=f"at most {most} bytes (serve.max_body)")


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


async def respond(send: Send, error: Exception) -> None:
    """Send the answer to a request that failed."""
    status, body, headers = error_response(error)
    await send_json(send, status, body, [(name.encode(), value.encode("latin-1")) for name, value in headers.items()])


async def send_json(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send an answer with a JSON body."""
    raw = [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_response(error: Exception) -> tuple[int, bytes, dict[str, str]]:
    """Return status, JSON body and headers of an error; what is not foreseen is logged, and not shown."""
    if isinstance(error, RequestError):
        return error.status, error_body(str(error), error.allowed), dict(error.headers)
    if isinstance(error, QueueFullError):
        return 429, error_body(str(error)), {"retry-after": str(error.retry_after)}
    if isinstance(error, ClosedError):
        return 503, error_body(str(error)), {"retry-after": "1"}
    if isinstance(error, ValueError):
        return 422, error_body(str(error)), {}
    log.error("a request failed", exc_info=error)
    return 500, error_body("the service failed to answer; its log has the reason"), {}


def error_body(message: str, allowed: object = None) -> bytes:
    """Return ``{"error": {"message": …, "allowed": …}}``; characters that JSON cannot hold are replaced."""
    text = message.encode("utf-8", "replace").decode()
    return orjson.dumps({"error": {"message": text, "allowed": allowed}})
