"""Cleaning and sampling steps, chosen and ordered in the conf, as Ibis expressions that engines run alike.

A step is a function of a `Log` and its arguments; the conf names it: `{step: min_events, users: 5}`.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from recpipe.config import check_known
from recpipe.data.sampling import steps as cleaning
from recpipe.data.sampling import steps as samples
from recpipe.data.sampling.log import Log, measure

logger = logging.getLogger(__name__)

STEPS: dict[str, Callable[..., Log]] = {
    step.__name__: step
    for step in (
        cleaning.duplicates,
        cleaning.min_rating,
        cleaning.min_events,
        cleaning.k_core,
        cleaning.time_window,
        samples.last,
        samples.cap_per_user,
        samples.hash_users,
        samples.random_rows,
        samples.stratified,
        samples.systematic,
    )
}


def apply(
    log: Log, steps: Sequence[Mapping[str, Any]], before: Mapping[str, Any]
) -> tuple[Log, list[dict[str, Any]]]:
    """The log after all steps and a row of the step table for each; `before` is the row of the log as given.

    An unknown step or argument, and a step that leaves nothing, is a ValueError.
    """
    rows = [dict(before)]
    for number, (name, arguments) in enumerate(check(steps), start=before["step"] + 1):
        log = STEPS[name](log, **arguments)
        found = {"step": number, "name": name, "detail": json.dumps(arguments, default=str)} | measure(log)
        if not found["rows"]:
            had = f"{rows[-1]['rows']:,} rows of {rows[-1]['users']:,} users"
            raise ValueError(
                f"step {number}, {name} {found['detail']}, leaves nothing of {had}; "
                "loosen it under `steps` in the data set's conf"
            )
        logger.info(
            "%s: %s rows, %s users, %s items", name, *(f"{found[k]:,}" for k in ("rows", "users", "items"))
        )
        rows.append(found)
    return log, rows[1:]


def check(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of every step; unknown or wrong ones are refused before anything is read."""
    checked = []
    for step in steps:
        if not isinstance(step, Mapping) or "step" not in step:
            raise ValueError(
                f"step {step!r} must be a mapping with a name, as in {{step: min_events, users: 5}}"
            )
        name = str(step["step"])
        check_known(name, list(STEPS), what="step")
        checked.append((name, _arguments(name, {key: value for key, value in step.items() if key != "step"})))
    return checked


def _arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, of the types and in the ranges that the step's signature asks for."""
    model = _model(name)
    for argument in given:
        check_known(argument, list(model.model_fields), what=f"argument of {name}")
    try:
        checked = model(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}, not {e['input']!r}" for e in error.errors())
        raise ValueError(f"step {name}: {wrong}. It takes {', '.join(model.model_fields)}") from None
    return {key: getattr(checked, key) for key in given}


@cache
def _model(name: str) -> type[BaseModel]:
    hints = get_type_hints(STEPS[name], include_extras=True)
    parameters = list(inspect.signature(STEPS[name]).parameters.values())[1:]
    fields: Any = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters}
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
