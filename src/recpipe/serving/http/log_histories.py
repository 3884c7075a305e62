"""Histories of the log for users of POST /recommend who come without ``items``.

An empty list of items is a new user's history and stays. A user whose history cannot be read gets the list for users
without history, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recpipe.data.user_histories import UserHistories, UserHistory
from recpipe.serving.http.requests import RecommendRequest, UserRequest, shorten

FALLBACK = "this is the list for users without history"
Notes = dict[str, dict[str, Any]]
"""Further fields of the lists in the answer, by user id: ``log_events`` or ``warning``."""


def lacks_history(user: UserRequest) -> bool:
    """Return whether a user of a request came without a history, not even an empty one."""
    return "items" not in user.model_fields_set and user.timestamps is None


def add_log_histories(
    request: RecommendRequest, log: UserHistories | None, profile_columns: Sequence[str]
) -> tuple[RecommendRequest, Notes]:
    """Add the events of the log for users without ``items``, and the ``profile_columns`` of users that lack a profile.

    ``log``: None where the service may not read one. Times are added where all users of the request then have them.
    """
    users = request.user_requests()
    names = [user.user_id for user in users if lacks_history(user)]
    if log is None:
        warning = f"the request has no items, and this service reads no log: {FALLBACK}; send items"
        return request, {name: {"warning": warning} for name in names}
    histories = log.histories(names)
    profiles = {} if not profile_columns else _profiles(log, list(histories), profile_columns)
    is_timed = all(history.timestamps is not None for history in histories.values()) and all(
        user.timestamps is not None for user in users if not lacks_history(user)
    )
    changed = [_with_log(user, histories.get(user.user_id), profiles, is_timed=is_timed) for user in users]
    notes = {name: _note(name, histories.get(name)) for name in names}
    if request.users is not None:
        return request.model_copy(update={"users": changed}), notes
    (user,) = changed
    fields = {name: getattr(user, name) for name in ("items", "timestamps", "profile")}
    return request.model_copy(update=fields), notes


def _profiles(log: UserHistories, users: list[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows = log.profiles(users, columns).to_pylist()
    return {row.pop("user_id"): row for row in rows}


def _with_log(
    user: UserRequest, history: UserHistory | None, profiles: dict[str, dict[str, Any]], *, is_timed: bool
) -> UserRequest:
    """Return the user with history and profile; users of one request have a profile, if an empty one, or none has."""
    fields: dict[str, Any] = {}
    if profiles and user.profile is None:
        fields["profile"] = profiles.get(user.user_id, {}) if lacks_history(user) else {}
    if lacks_history(user):
        fields["items"] = [] if history is None else history.items
        fields["timestamps"] = None if not is_timed else [] if history is None else history.timestamps
    return user.model_copy(update=fields)


def _note(user: str, history: UserHistory | None) -> dict[str, Any]:
    if history is not None:
        return {"log_events": history.total}
    return {"warning": f"the request has no items, and user {shorten(user)} has no events in the log: {FALLBACK}"}
