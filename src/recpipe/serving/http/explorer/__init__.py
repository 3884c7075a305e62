"""Explorer: the web page of the HTTP service, in plain HTML, CSS and JavaScript, and the routes that send its files.

The page calls the JSON routes of the service it comes from and nothing else; its Content-Security-Policy says so to the
browser. There is no build step: the files in this folder are what the browser reads.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from recpipe.serving.http.guard import error_body

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = "index.html"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time, answered with 304 as long as nothing has changed
}


def explorer_router() -> APIRouter:
    """Return the routes ``GET /`` and ``GET /explorer/{name}``; the files are read once."""
    contents = {
        file.name: file.read_bytes()
        for file in files(__package__).iterdir()
        if file.name.rpartition(".")[2] in MEDIA_TYPES
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return _answer(PAGE, contents[PAGE], request)

    @router.get("/explorer/{name}")
    async def asset(name: str, request: Request) -> Response:
        if name not in contents:
            return Response(error_body(f"the explorer has no file {name[:100]!r}"), 404, media_type="application/json")
        return _answer(name, contents[name], request)

    return router


def _answer(name: str, content: bytes, request: Request) -> Response:
    """Answer with the file, or with 304 where the browser has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[name.rpartition(".")[2]])
