"""Channel from training nodes to hooks for each epoch; Kedro's own hooks are called at the end of a node only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

Listener = Callable[[Mapping[str, Any]], None]

_listener: ContextVar[Listener | None] = ContextVar("listener to epochs", default=None)


def listen(listener: Listener | None) -> None:
    """Set the function that `tell` calls in this thread; None removes it."""
    _listener.set(listener)


def tell(row: Mapping[str, Any]) -> None:
    """Send a row of a training curve to the listener."""
    listener = _listener.get()
    if listener is not None:
        listener(row)
