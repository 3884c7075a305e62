"""Nodes that read from groups of nodes, whose names have dots."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from kedro.pipeline import Node


def with_dots(make: Callable[[], Node]) -> Node:
    """Kedro warns of dots in names of inputs; these are what it keeps dots for, the namespaces of groups of nodes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain", category=UserWarning)
        return make()
