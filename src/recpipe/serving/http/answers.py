"""From requests to arrays and back: histories as item indices, keys of batches, lists as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa

from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences
from recpipe.data.user_items import UserItems
from recpipe.evaluation.recommendations import COLD_USERS, CONTENT_SLOTS, SOURCES
from recpipe.serving.http.list_encoder import ListEncoder
from recpipe.serving.http.requests import ExplainRequest, RecommendRequest, RequestError, UserRequest, shorten

if TYPE_CHECKING:
    from recpipe.serving.http.loaded_models import LoadedModel
    from recpipe.serving.model import ServingBundle

NOTHING_LEFT = b',"message":"no item is left by rules, candidates and exclusions"'


@dataclass(frozen=True)
class Call:
    """Key of a call that has a batch of its own."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class ListsKey:
    """What requests must have in common to be computed together."""

    k: int
    rules: str  # JSON with sorted keys; empty for none
    search: str
    now: int | None
    has_times: bool
    profile: tuple[str, ...]  # names of columns
    has_candidates: bool
    has_exclude: bool


@dataclass(frozen=True)
class User:
    """One user of a request, with a history in item indices."""

    user_id: str
    items: np.ndarray  # (T,) int64, known items only
    times: np.ndarray | None  # (T,) int64
    unknown_items: int
    candidates: np.ndarray | None  # (n,)
    exclude: np.ndarray  # (n,)
    profile: dict[str, Any]
    note: bytes = b""  # further fields of the list, as JSON: ``,"name":value``


@dataclass
class ListsAnswer:
    """Lists of the users of one request."""

    users: list[bytes]  # JSON objects
    sources: Counter[str] = field(default_factory=Counter)
    unknown_items: int = 0


class ListAnswers:
    """Requests and answers of one bundle; ``head`` is the start of the JSON of its answers."""

    def __init__(self, bundle: ServingBundle, name: str | None = None) -> None:
        self._bundle = bundle
        ids = bundle.vocabulary.ids.tolist()
        codes = {kind: item.codes.cpu().numpy() for kind, item in bundle.model.item_codes().items()}
        self.head = orjson.dumps(
            {"model": name or bundle.name, "version": bundle.version, "dataset": bundle.protocol.dataset}
        )[:-1]
        self.description = describe_bundle(bundle)
        self._encoder = ListEncoder(ids, bundle.titles, codes)

    def prepare(
        self, request: RecommendRequest, notes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> tuple[ListsKey, list[User]]:
        """Return the key of a request and its users. Raises RequestError for users who differ in what they give.

        ``notes``: further fields of the lists in the answer, by user id.
        """
        requests = request.user_requests()
        first = requests[0]
        for user in requests:
            for name in ("timestamps", "profile"):
                if (getattr(user, name) is None) != (getattr(first, name) is None):
                    raise RequestError(422, f"user {shorten(user.user_id)} differs in {name}", allowed="all or none")
        key = ListsKey(
            k=min(request.k, len(self._bundle.vocabulary)),
            rules=_text(request.rules),
            search=_text(request.search),
            now=request.now,
            has_times=first.timestamps is not None,
            profile=tuple(sorted({name for user in requests for name in user.profile or ()})),
            has_candidates=any(user.candidates is not None for user in requests),
            has_exclude=any(user.exclude for user in requests),
        )
        return key, [self._user(user, (notes or {}).get(user.user_id)) for user in requests]

    def compute(self, key: ListsKey | Call, requests: Sequence[Any]) -> list[Any]:
        """Answer requests of one key, in the thread of the model."""
        if isinstance(key, Call):
            return [key.function() for _ in requests]
        users = [user for request in requests for user in request]
        lists = self._bundle.lists(
            _sequences(users, key),
            key.k,
            rules=json.loads(key.rules) if key.rules else None,
            now=key.now,
            candidates=_candidates(users) if key.has_candidates else None,
            restricted=np.array([user.candidates is not None for user in users]),
            excluded=UserItems.of_lists([user.exclude for user in users]) if key.has_exclude else None,
            search=json.loads(key.search) if key.search else None,
        )
        is_mixed = bool((lists.sources == SOURCES.index(CONTENT_SLOTS)).any())
        arrays = self._encoder.items(
            lists.items, lists.scores, lists.probabilities, np.array(SOURCES)[lists.sources] if is_mixed else None
        )
        is_cold = (lists.sources == SOURCES.index(COLD_USERS)).any(1)
        return _split(requests, users, arrays, [COLD_USERS if cold else SOURCES[0] for cold in is_cold.tolist()])

    def _user(self, user: UserRequest, note: Mapping[str, Any] | None) -> User:
        items = self._bundle.encode(user.items)
        known = items > 0
        unknown = len(items) - int(np.count_nonzero(known))
        times = None if user.timestamps is None else np.array(user.timestamps, np.int64)
        if unknown:
            items, times = items[known], None if times is None else times[known]
        candidates = None if user.candidates is None else self._bundle.encode(user.candidates)
        exclude = self._bundle.encode(user.exclude or ())
        fields = b"," + orjson.dumps(note)[1:-1] if note else b""
        return User(user.user_id, items, times, unknown, candidates, exclude, user.profile or {}, fields)


def _text(values: dict[str, Any] | None) -> str:
    """Return rules or settings as JSON with sorted keys, empty for none."""
    return json.dumps(values, sort_keys=True) if values else ""


def _candidates(users: Sequence[User]) -> UserItems:
    none = np.zeros(0, np.int64)
    return UserItems.of_lists([none if user.candidates is None else user.candidates for user in users])


def _sequences(users: Sequence[User], key: ListsKey) -> Sequences:
    """Return the histories of a batch."""
    names = Ids([user.user_id for user in users])
    offsets = np.concatenate([[0], np.cumsum([len(user.items) for user in users])]).astype(np.int64)
    items = np.concatenate([user.items for user in users]).astype(np.int32)
    times = np.concatenate([user.times for user in users]) if key.has_times else None
    profiles = {name: pa.array([user.profile.get(name) for user in users]) for name in key.profile}
    return Sequences(names, items, times, offsets, profiles=profiles)


def _split(
    requests: Sequence[list[User]], users: Sequence[User], arrays: list[bytes], sources: Sequence[str]
) -> list[ListsAnswer]:
    """Return one answer per request."""
    entries = [
        b'{"user_id":%b,"source":"%b","unknown_items":%d,"items":%b%b%b}'
        % (
            orjson.dumps(user.user_id),
            source.encode(),
            user.unknown_items,
            array,
            NOTHING_LEFT if array == b"[]" else b"",
            user.note,
        )
        for user, array, source in zip(users, arrays, sources, strict=True)
    ]
    answers, start = [], 0
    for request in requests:
        stop = start + len(request)
        unknown = sum(user.unknown_items for user in request)
        answers.append(ListsAnswer(entries[start:stop], Counter(sources[start:stop]), unknown))
        start = stop
    return answers


def describe(model: LoadedModel) -> dict[str, Any]:
    """Return what GET /models says of one model."""
    loaded_at = datetime.fromtimestamp(model.loaded_at, UTC).isoformat(timespec="seconds")
    return {"name": model.name, **model.answers.description, "loaded_at": loaded_at}


def describe_bundle(bundle: ServingBundle) -> dict[str, Any]:
    """Return what a bundle stands for and what it can do, for GET /models."""
    production = bundle.training.get("production")
    return {
        "dataset": bundle.protocol.dataset,
        "type": bundle.type,
        "version": bundle.version,
        "made_by": production["made_by"] if production else "train",
        "stands_for": production["stands_for"] if production else None,
        "protocol": bundle.protocol.id,
        "metrics": production["stands_for"].get("metrics", {}) if production else {},
        "items": len(bundle.vocabulary),
        "item_columns": [{"name": column.name, "type": str(column.type)} for column in bundle.item_table().schema],
        "abilities": {
            "similar": bool(bundle.model.item_tables()),
            "probability": bundle.gives_probabilities,
            "explain": True,
            "search": list(bundle.model.search_settings),
        },
    }


def item_rows(model: LoadedModel, text: str | None, ids: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """Return items by text, or the known ones of ``ids`` in their order."""
    bundle = model.bundle
    if text is not None:
        items: list[dict[str, Any]] = bundle.find_items(text, limit).to_pylist()
        return items
    rows = [row - 1 for row in bundle.vocabulary.encode(list(ids)).tolist() if row]
    names = bundle.vocabulary.ids
    events = bundle.train_events
    return [
        {"item_id": names[row], "title": bundle.titles[row] or names[row], "train_events": int(events[row])}
        for row in rows
    ]


def explanation(model: LoadedModel, request: ExplainRequest) -> dict[str, Any]:
    """Return the effects of events, see `recpipe.serving.explain`."""
    from recpipe.serving.explain import explain_response

    answer: dict[str, Any] = explain_response(
        model.bundle, request.items, request.candidates, timestamps=request.timestamps
    )
    return answer


def recommend_body(model: LoadedModel, lists: ListsAnswer) -> bytes:
    """Return the JSON of POST /recommend."""
    return b'%b,"lists":[%b]}' % (model.answers.head, b",".join(lists.users))
