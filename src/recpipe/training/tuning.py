"""What a model chooses on the validation fold once its weights are trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from recpipe.models.recommender import Recommender
from recpipe.training.module import Validate
from recpipe.training.settings import TrainSettings

log = logging.getLogger(__name__)


@runtime_checkable
class Tunable(Protocol):
    """A model that chooses something on the validation fold when its weights are trained."""

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """What it chose by name: that for which ``validate``, ``train.metric`` of the validation fold, is highest."""


def tuned(model: Recommender, validate: Validate, settings: TrainSettings) -> dict[str, float]:
    """What ``model`` chose on the validation fold, and how good that is; nothing with ``put_back``."""
    if settings.put_back or not isinstance(model, Tunable):
        return {}
    watched = f"valid_{settings.metric}"
    seen: list[float] = []

    def judged() -> float:
        seen.append(validate(model)[watched])
        return seen[-1]

    chosen = model.tune(judged)
    if not chosen:
        return {}
    log.info("chosen on the validation fold: %s, of %s", chosen, [round(value, 4) for value in seen])
    return {**{f"tuned_{name}": value for name, value in chosen.items()}, f"tuned_{watched}": max(seen)}
