"""Requests of the HTTP service as pydantic models, and the check of their limits.

A request body is parsed straight from its bytes. The first problem becomes a `RequestError`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recpipe.config.schema import ServeConfig

MAX_LEVELS = 100  # values of a setting of a search, such as temperatures per level
SHOWN = 80  # characters of a wrong value in a message
IdList = Annotated[list[str], Field(fail_fast=True)]
Seconds = Annotated[int, Field(ge=-(2**62), le=2**62)]


class RequestError(ValueError):
    """An error of a request: HTTP status, message, allowed values and further headers."""

    def __init__(
        self, status: int, message: str, *, allowed: object = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.allowed, self.headers = status, allowed, headers or {}


class Request(BaseModel):
    """Strict base model: unknown keys and values of another type, such as "10" for a number, are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UserRequest(Request):
    """One user: a history, oldest event first, and what is known besides."""

    user_id: str = "user"
    items: IdList = []  # where they are left out, those of the log are read, see log_histories
    timestamps: Annotated[list[Seconds], Field(fail_fast=True)] | None = None  # of the events
    profile: dict[str, str | int | float | bool | None] | None = None  # columns of users, for models that read them
    candidates: IdList | None = None  # the only items that may be recommended
    exclude: IdList | None = None


class RecommendRequest(UserRequest):
    """Lists for ``users``, or for one user whose fields stand beside ``k``."""

    model: str | None = None
    k: int = 10
    users: list[UserRequest] | None = None
    rules: dict[str, Any] | None = None  # keys of recpipe.serving.rules.Rules
    search: dict[str, Any] | None = None  # settings of the search, such as beam, of generative models
    now: Seconds | None = None  # time of the request, for rules in days and models that read time

    @model_validator(mode="after")
    def _check_users(self) -> RecommendRequest:
        own = self.model_fields_set & set(UserRequest.model_fields)
        if self.users is None and not own & {"items", "user_id"}:
            raise ValueError("give users, a list of objects with user_id and items, or items or user_id of one user")
        if self.users is not None and own:
            raise ValueError(f"give either users or {', '.join(sorted(own))} of one user")
        return self

    def user_requests(self) -> list[UserRequest]:
        """Return all users of the request."""
        return [self] if self.users is None else self.users


class SimilarRequest(Request):
    """Items nearest to one."""

    item: str
    model: str | None = None
    k: int = 10


class ExplainRequest(Request):
    """Effect of every event of a history on the recommendation of the candidates."""

    items: IdList
    candidates: IdList
    timestamps: Annotated[list[Seconds], Field(fail_fast=True)] | None = None
    model: str | None = None


AnyRequest = TypeVar("AnyRequest", bound=Request)


def parse_request(cls: type[AnyRequest], body: bytes) -> AnyRequest:
    """Parse a JSON body. Raises RequestError, 400 for malformed JSON, 422 for values that are not allowed."""
    try:
        return cls.model_validate_json(body, strict=True)
    except ValidationError as errors:
        raise _request_error(errors, cls) from errors


def _request_error(errors: ValidationError, cls: type[Request]) -> RequestError:
    error = errors.errors(include_url=False, include_context=False)[0]
    message = f"{error['msg'][:1].lower()}{error['msg'][1:]}".removeprefix("value error, ")
    if error["type"] == "json_invalid":
        return RequestError(400, f"the body is no JSON: {message.removeprefix('invalid JSON: ')}")
    place = ".".join(str(part) for part in error["loc"])
    fields = sorted(_object_at(cls, error["loc"][:-1]).model_fields)
    if error["type"] == "extra_forbidden":
        return RequestError(422, f"unknown field {place!r}", allowed=fields)
    if not place:
        return RequestError(422, message, allowed=fields)
    if error["type"] == "missing":
        return RequestError(422, f"{place} is missing", allowed=fields)
    return RequestError(422, f"{place} cannot be {shorten(error['input'])}: {message}")


def _object_at(cls: type[Request], place: tuple[int | str, ...]) -> type[Request]:
    """Return the model of the object at a place of a request, such as UserRequest at ("users", 0)."""
    for name in place:
        if (field := cls.model_fields.get(str(name))) is not None:
            cls = next(iter(_models_in(field.annotation)), cls)
    return cls


def _models_in(annotation: object) -> list[type[Request]]:
    """Return the models in an annotation, such as that of list[UserRequest] | None."""
    if isinstance(annotation, type) and issubclass(annotation, Request):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def shorten(value: object) -> str:
    """Return ``repr(value)`` with at most ``SHOWN`` characters."""
    text = repr(value[:SHOWN]) if isinstance(value, str | list) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def check_recommend(request: RecommendRequest, limits: ServeConfig) -> None:
    """Raise RequestError for numbers out of range, repeated users and lists that do not fit together."""
    check_k(request.k, limits)
    users = request.user_requests()
    if not 1 <= len(users) <= limits.max_users:
        raise RequestError(422, f"the request has {len(users)} users", allowed=f"from 1 to {limits.max_users}")
    if (places := len(users) * request.k) > limits.max_places:
        most = f"at most {limits.max_places} (serve.max_places): send fewer users at once"
        raise RequestError(422, f"{len(users)} users with k {request.k} are {places} places", allowed=most)
    if len({user.user_id for user in users}) < len(users):
        names = [user.user_id for user in users]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RequestError(422, f"user_id {shorten(repeated)} stands twice in the request", allowed="each user once")
    check_search(request.search or {}, limits)
    for name in ("candidates", "exclude"):
        check_count((request.rules or {}).get(name), f"rules.{name}", limits.max_candidates)
    for user in users:
        check_history(user.items, user.timestamps, limits, user=user.user_id)
        for name in ("candidates", "exclude"):
            check_count(getattr(user, name), f"{name} of user {shorten(user.user_id)}", limits.max_candidates)


def check_search(search: dict[str, Any], limits: ServeConfig) -> None:
    """Raise RequestError for settings of a search that would cost too much: wide beams and long lists."""
    for name, value in search.items():
        values = value if isinstance(value, list) else [value]
        check_count(values, f"search.{name}", MAX_LEVELS)
        is_seed = name.endswith("seed")
        for number in values:
            if isinstance(number, int | float) and not is_seed and not abs(number) <= limits.max_k:
                raise RequestError(422, f"search.{name} is {shorten(number)}", allowed=f"at most {limits.max_k}")


def check_k(k: int, limits: ServeConfig) -> None:
    """Raise RequestError unless ``k`` is from 1 to the limit."""
    if not 1 <= k <= limits.max_k:
        raise RequestError(422, f"k is {shorten(k)}", allowed=f"a whole number from 1 to {limits.max_k}")


def check_history(items: list[str], timestamps: list[int] | None, limits: ServeConfig, *, user: str) -> None:
    """Raise RequestError for a history that is too long, or whose timestamps are not one per event."""
    if len(items) > limits.max_history:
        raise RequestError(
            422,
            f"the history of user {shorten(user)} has {len(items)} events; send the last {limits.max_history}",
            allowed=f"at most {limits.max_history} events (serve.max_history)",
        )
    if timestamps is not None and len(timestamps) != len(items):
        raise RequestError(
            422,
            f"user {shorten(user)} has {len(items)} items and {len(timestamps)} timestamps",
            allowed="one timestamp per item, or null",
        )


def check_count(values: object, name: str, most: int) -> None:
    """Raise RequestError for a list of more than ``most`` values."""
    if isinstance(values, list) and len(values) > most:
        raise RequestError(422, f"{name} has {len(values)} values", allowed=f"at most {most}")
