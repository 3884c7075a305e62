"""recpipe: from a raw interaction log to compared, tracked and servable recommenders.

import recpipe
model = recpipe.load_bundle("data/06_models/online_retail/sasrec")
model.recommend({"ann": ["21754", "22423"]}, k=10)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recpipe.serving.model import ServingBundle, load_bundle
    from recpipe.serving.rules import Rules

__version__ = "0.2.0"
__all__ = ["Rules", "ServingBundle", "__version__", "load_bundle"]

# OpenMP threads of torch wait for each other in a busy loop, by default for milliseconds. On busy cores this makes
# training up to three times slower (docs/experiments/training-speed.md). libgomp reads the variable when it is loaded.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"  # rounds of the loop, some ten microseconds


def __getattr__(name: str) -> Any:
    """Import the public classes and functions at their first use, since they import torch."""
    if name in ("load_bundle", "ServingBundle"):
        from recpipe.serving import model

        return getattr(model, name)
    if name == "Rules":
        from recpipe.serving.rules import Rules

        return Rules
    raise AttributeError(f"module 'recpipe' has no attribute {name!r}")
