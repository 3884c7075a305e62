"""A service with made-up answers for tests of the explorer page, in a thread: the JSON of the real one, without models.

Items are recommended in the order of their numbers; the first event of the history is what mattered.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from recpipe.data.user_histories import UserHistories
from recpipe.serving.http.explorer import explorer_router
from recpipe.serving.http.users import users_router

HOSTILE = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
TITLES = {
    "21754": "HOME BUILDING BLOCK WORD", "22423": "REGENCY CAKESTAND 3 TIER",
    "85123A": "WHITE HANGING HEART T-LIGHT HOLDER",
    "a,b&c=d#e": HOSTILE, "22720": "SET OF 3 CAKE TINS PANTRY DESIGN ",
    "rtl": "\u202e\u0647\u062f\u064a\u0629 \u062c\u0645\u064a\u0644\u0629",
    "47566": "PARTY BUNTING", "20725": "LUNCH BAG RED RETROSPOT", "84879": "ASSORTED COLOUR BIRD ORNAMENT",
    "long": "A" + "title without a space that goes on and on ".replace(" ", "") * 5, "23298": "SPOTTY BUNTING",
    "22197": "POPCORN HOLDER", "23203": "JUMBO BAG DOILEY PATTERNS", "20727": "LUNCH BAG BLACK SKULL", "untitled": None,
}  # fmt: skip
PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4.5" cy="4.5" r="4" fill="#00629b"/></svg>'
)
MODELS = {
    "sasrec": {"version": "2026-11-29T02.10.00.000Z", "made_by": "refit", "metrics": {"ndcg@10": 0.1631}},
    "tiger": {"version": "2026-11-29T01.10.00.000Z", "made_by": "train", "metrics": {"ndcg@10": 0.1942}},
    "item_knn": {"version": "2026-11-28T21.10.00.000Z", "made_by": "train", "metrics": {"ndcg@10": 0.1204}},
}


def service(users: Path | None = None, *, key: str | None = None, images: bool = False) -> FastAPI:
    """The application; ``app.state.requests`` holds path and body of every POST. With images, every third has none."""
    app = FastAPI()
    app.state.requests = []
    app.include_router(explorer_router())
    if users is not None:
        app.include_router(users_router(UserHistories(users)))

    def item(item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "title": TITLES[item_id], "train_events": 100}

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        is_page = request.url.path == "/" or request.url.path.startswith("/explorer/")
        if key and not is_page and request.headers.get("authorization") != f"Bearer {key}":
            return error(401, "the API key is missing or wrong")
        return await call_next(request)

    @app.get("/ready")
    def ready() -> dict[str, Any]:
        return {"ready": True}

    @app.get("/models")
    def models() -> dict[str, Any]:
        abilities = {"similar": True, "probability": True, "explain": True}
        rows = [
            {"name": name, "dataset": "online_retail", "protocol": "1d99c5f7", "items": len(TITLES), **fields,
             "item_columns": [{"name": "price", "type": "double"}, {"name": "country", "type": "string"}],
             "abilities": abilities | ({"probability": False, "similar": False} if name == "item_knn" else {})}
            for name, fields in MODELS.items()
        ]  # fmt: skip
        return {"default": "sasrec", "histories": users is not None, "images": images, "models": rows}

    @app.get("/images/{item_id:path}")
    def image(item_id: str) -> Response:
        if item_id not in TITLES or list(TITLES).index(item_id) % 3 == 2:
            return error(404, "no image")
        return Response(PICTURE, media_type="image/svg+xml")

    @app.get("/items")
    def items(
        q: str | None = None, ids: Annotated[list[str] | None, Query()] = None, limit: int = 50
    ) -> dict[str, Any]:
        chosen = [i for i in TITLES if i in (ids or ()) or (q is not None and q.lower() in (TITLES[i] or "").lower())]
        return {"items": [item(item_id) for item_id in chosen[:limit]]}

    @app.post("/recommend")
    async def recommend(request: Request) -> Any:
        body = await request.json()
        app.state.requests.append(("/recommend", body))
        (user,), rules = body["users"], body.get("rules") or {}
        if "nothing" in rules.get("where", ""):
            return error(422, "rules.where: there is no column 'nothing' (position 1); columns: price, country")
        if body["model"] == "tiger" and "22197" in user["items"]:
            return error(503, "no answer within 10 seconds")
        seen = () if rules.get("seen") == "allow" else user["items"]
        allowed = rules.get("candidates") or list(TITLES)
        left = [i for i in allowed if i not in seen and i not in rules.get("exclude", [])][: body["k"]]
        is_cold = not any(i in TITLES for i in user["items"])
        rows = []
        for rank, item_id in enumerate(left, start=1):
            chance = None if body["model"] == "item_knn" else 0.2 / rank
            codes = {"text": [rank, 17, 4, 0]} if body["model"] == "tiger" else {}
            rows.append({"rank": rank, **item(item_id), "score": 3.0 - rank / 5, "probability": chance, "codes": codes})
        source = "cold_users" if is_cold else "model"
        lists = [
            {
                "user_id": user["user_id"],
                "source": source,
                "unknown_items": len({*user["items"]} - {*TITLES}),
                "items": rows,
            }
        ]
        return {"model": body["model"], "version": MODELS[body["model"]]["version"], "lists": lists}

    @app.post("/explain")
    async def explain(request: Request) -> Any:
        body = await request.json()
        app.state.requests.append(("/explain", body))
        n = len(body["items"])
        events = [
            {
                "position": p,
                "item_id": i,
                "title": TITLES.get(i),
                "effect": (2.5 if p == 0 else -0.4 * p) if n > 1 else None,
            }
            for p, i in enumerate(body["items"])
        ]
        candidates = [{"item_id": i, "title": TITLES[i], "events": events} for i in body["candidates"]]
        return {"unit": "log_probability", "candidates": candidates}

    @app.post("/similar")
    async def similar(request: Request) -> Any:
        body = await request.json()
        others = [i for i in TITLES if i != body["item"]][: body["k"]]
        return {"items": [{**item(i), "similarity": 1 - n / 10} for n, i in enumerate(others)]}

    return app


def error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "allowed": None}}, status_code=status)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an ASGI application on a free port of this machine; the address, as long as it runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            limit = time.monotonic() + 60
            while not server.started and time.monotonic() < limit:
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
