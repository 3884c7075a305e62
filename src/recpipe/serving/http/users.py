"""HTTP routes that look up users of an ingested log: GET /users and GET /users/{user_id}."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from recpipe.data.user_histories import UserHistories
from recpipe.serving.http.guard import error_body

MAX_EVENTS = 1000  # of a history in an answer: its last ones
MAX_USERS = 100


def users_router(histories: UserHistories) -> APIRouter:
    """Return the routes for the users of a log."""
    router = APIRouter(tags=["users"])

    @router.get("/users", summary="Find users of the log by a part of their id")
    def find_users(
        q: Annotated[str, Query(max_length=500)] = "", limit: Annotated[int, Query(ge=1, le=MAX_USERS)] = 20
    ) -> dict[str, Any]:
        return {"users": [{"user_id": user} for user in histories.find(q, limit)]}

    @router.get("/users/{user_id:path}", summary="Return the last events of a user of the log, oldest first")
    def user_history(user_id: str, limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = MAX_EVENTS) -> Response:
        history = histories.history(user_id, limit)
        if history is None:
            message = f"user {user_id[:200]!r} has no events in this log; GET /users?q=<part of the id> finds users"
            return Response(error_body(message), 404, media_type="application/json")
        events = {"items": history.items, "timestamps": history.timestamps, "titles": history.titles}
        return JSONResponse({"user_id": history.user_id, "total": history.total, **events})

    return router
