"""How a training node tells a hook of an epoch while it still runs: Kedro knows only the ends of nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

Listener = Callable[[Mapping[str, Any]], None]

_listener: ContextVar[Listener | None] = ContextVar("listener to epochs", default=None)


def listen(listener: Listener | None) -> None:
    """From now on, in this thread, `tell` calls `listener`; None ends it."""
    _listener.set(listener)


def tell(row: Mapping[str, Any]) -> None:
    """One row of a training curve, as soon as it is known."""
    listener = _listener.get()
    if listener is not None:
        listener(row)
