"""The conf block ``cold_users``; apart from the code that it configures, as checks of the conf import no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ColdUsersConfig:
    """The conf block ``cold_users``.

    ``segments``: none, columns of the users as a+b, or cluster. ``bins``: quantiles that a column of many different
    numbers is cut into. ``clusters``: how many, of users alike in the columns ``cluster_by`` (a+b, or all).
    ``smoothing``: events of the whole catalogue's popularity mixed into a segment's. ``novelty`` in [0, 1].
    ``recent_days`` counts only events of that many days before the last training event; null counts all.
    """

    segments: str = "none"
    bins: int = 4
    clusters: int = 8
    cluster_by: str = "all"
    smoothing: float = 100.0
    novelty: float = 0.0
    recent_days: float | None = None

    def __post_init__(self) -> None:
        for name in ("segments", "cluster_by"):
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"cold_users.{name} is {value!r}; write columns as a+b")
        for name, least in (("bins", 2), ("clusters", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"cold_users.{name} is {value!r}; give a whole number from {least}")
        if not _number(self.smoothing) or self.smoothing <= 0:
            raise ValueError(f"cold_users.smoothing is {self.smoothing!r}; give a number above 0")
        if not _number(self.novelty) or not 0 <= self.novelty <= 1:
            raise ValueError(f"cold_users.novelty is {self.novelty!r}; give a number from 0 to 1")
        if self.recent_days is not None and (not _number(self.recent_days) or self.recent_days <= 0):
            raise ValueError(
                f"cold_users.recent_days is {self.recent_days!r}; give a number above 0, or null"
            )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
