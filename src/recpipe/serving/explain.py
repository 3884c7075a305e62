"""Explanation of recommendations by leaving events out: which events of a history mattered for an item, and how much.

The effect of an event is how much lower the item scores when the event is missing: the difference of the
log-probabilities, or of the scores where a model has no probabilities. All shortened histories are scored in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from recpipe.serving.model import ServingBundle

MAX_EVENTS = 50  # latest events whose effect is measured
WHOLE = "whole"  # the row of the whole history; others are named by the position of the event they lack


def explain(
    model: ServingBundle,
    history: Sequence[str],
    items: Sequence[str],
    *,
    timestamps: Sequence[int] | None = None,
    now: int | None = None,
    last: int = MAX_EVENTS,
) -> pa.Table:
    """Return the effect of the ``last`` events of ``history`` (oldest first) on each of ``items``.

    The table has a row per item and event, items in their order, an item's largest effect first: ``recommended_id``,
    ``position`` (of the event in ``history``, from 0), ``item_id`` and ``title`` of the event, ``effect``. A positive
    effect means that the event made the item likelier. Events of unknown items are left out. An effect is null where
    both sides cannot be compared: an item that cannot be scored, or the only event of a model without probabilities,
    whose fallback for empty histories scores on another scale.

    ``timestamps``: seconds of every event. ``now``: seconds since 1970 for models that read the time of the query,
    by default the clock's.

    Raises ValueError for unknown items and for timestamps that are not one per event.
    """
    events = _readable_events(model, history, timestamps)
    items = list(dict.fromkeys(items))
    if not items:
        raise ValueError("explain needs at least one recommended item")
    if unknown := [item for item, index in zip(items, model.vocabulary.encode(items), strict=True) if not index]:
        raise ValueError(f"item {unknown[0]!r} is not in the catalogue of {model.name}, so nothing explains it")
    left_out = events[len(events) - min(last, len(events)) :]
    scores = _scores(model, history, events, left_out, items, timestamps=timestamps, now=now)
    effects = (scores[:1] - scores[1:]).T  # (items, events)
    if len(events) == 1 and not model.model.probabilistic and model.model.cold_users is not None:
        effects[:] = np.nan
    return _table(model, history, left_out, items, effects)


def explain_response(
    model: ServingBundle,
    history: Sequence[str],
    items: Sequence[str],
    *,
    timestamps: Sequence[int] | None = None,
    now: int | None = None,
    last: int = MAX_EVENTS,
) -> dict[str, Any]:
    """Return `explain` as the JSON of the HTTP service: a list of events per recommended item."""
    table = explain(model, history, items, timestamps=timestamps, now=now, last=last)
    by_item: dict[str, list[dict[str, Any]]] = {item: [] for item in items}
    for row in table.to_pylist():
        by_item[row.pop("recommended_id")].append(row)
    titles = dict(zip(model.vocabulary.ids.tolist(), model.titles, strict=True))
    unit = "log_probability" if model.model.probabilistic else "score"
    explained = [{"item_id": item, "title": titles[item], "events": events} for item, events in by_item.items()]
    return {"unit": unit, "candidates": explained}


def _readable_events(model: ServingBundle, history: Sequence[str], timestamps: Sequence[int] | None) -> list[int]:
    """Return the positions of the events that are read, and of the one before: it moves up if one is left out."""
    if timestamps is not None and len(timestamps) != len(history):
        raise ValueError(f"there are {len(timestamps)} timestamps for {len(history)} events; give one per event")
    known = np.flatnonzero(model.vocabulary.encode(list(history)) > 0)
    return [int(position) for position in known[-(model.model.max_length + 1) :]]


def _scores(
    model: ServingBundle,
    history: Sequence[str],
    events: list[int],
    left_out: list[int],
    items: list[str],
    *,
    timestamps: Sequence[int] | None,
    now: int | None,
) -> np.ndarray:
    """Score (1 + events, items) float64 for the whole history and for it without each event; NaN where impossible."""
    rows = {WHOLE: events} | {str(gap): [event for event in events if event != gap] for gap in left_out}
    histories = {name: [history[event] for event in kept] for name, kept in rows.items()}
    times = None if timestamps is None else {name: [timestamps[e] for e in kept] for name, kept in rows.items()}
    table = model.score(histories, items, timestamps=times, now=now)
    values = table["probability" if model.model.probabilistic else "score"].to_numpy().astype(np.float64)
    if model.model.probabilistic:
        with np.errstate(divide="ignore"):
            values = np.log(values)
    values[~np.isfinite(values)] = np.nan
    row = pa.compute.index_in(table["user_id"], pa.array(list(rows), pa.string())).to_numpy()
    column = pa.compute.index_in(table["item_id"], pa.array(items, pa.string())).to_numpy()
    scores = np.full((len(rows), len(items)), np.nan)
    scores[row, column] = values
    return scores


def _table(
    model: ServingBundle, history: Sequence[str], left_out: list[int], items: list[str], effects: np.ndarray
) -> pa.Table:
    """Lay out ``effects`` (items, events), per item the largest first, null last."""
    order = np.argsort(np.where(np.isnan(effects), np.inf, -effects), axis=1, kind="stable")
    positions = np.array(left_out, np.int64)[order].ravel() if left_out else np.zeros(0, np.int64)
    event_ids = pa.array([history[position] for position in positions.tolist()], pa.string())
    indices = model.vocabulary.encode(event_ids.to_pylist()) - 1
    return pa.table(
        {
            "recommended_id": pa.array(np.repeat(np.array(items, object), len(left_out)), pa.string()),
            "position": pa.array(positions, pa.int64()),
            "item_id": event_ids,
            "title": pa.array([model.titles[index] for index in indices], pa.string()),
            "effect": pa.array(np.take_along_axis(effects, order, 1).ravel(), pa.float64(), from_pandas=True),
        }
    )
