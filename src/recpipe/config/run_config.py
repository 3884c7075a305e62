"""The conf block ``cold_users``; apart from the code that it configures, as checks of the conf import no torch.

The configuration of one model on one data set, and the blocks and names that configuration knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recpipe.config.checks import ConfigError, split_names
from recpipe.config.files import Tree, block, merge


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


TOP_LEVEL = (
    *(
        "dataset",
        "model",
        "baselines",
        "modality",
        "seed",
        "seeds",
        "accelerate",
        "study",
        "data",
        "raw",
        "init_from",
    ),
    *(
        "quantizer_from",
        "quantizer_with",
        "datasets",
        "models",
        "profiles",
        "ingest",
        "protocol",
        "cold_users",
    ),
    *("embed", "text_encoders", "image_encoders", "semantic_ids", "train", "side", "evaluate", "report"),
    *("ensemble", "ties", "context", "studies", "geometry"),
)
BY_DATASET = ("protocol", "cold_users", "embed", "semantic_ids", "train", "side", "evaluate")
BY_MODEL = ("train", "side")
MODEL_KEYS = ("type", "ids", "collaborative", *BY_MODEL)  # the others are settings of the model's own Config
VECTORS = ("text", "image", "text_image")
COLLABORATIVE = "collaborative"  # item vectors of another trained model
ID_KINDS = (*VECTORS, "text_parts")


@dataclass(frozen=True)
class ModelInfo:
    """What the code of a model type says: defaults of its Config by name, whether it reads side information, and if
    it is trained by gradient descent, with the settings of ``train``.
    """

    settings: Mapping[str, Any]
    takes_side: bool
    by_gradient: bool


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How one model is trained on one data set, every override applied.

    ``settings`` are the fields of the model's Config that the files name; ``train``, ``side`` and ``cold_users`` are
    complete blocks. ``ids``: kinds of semantic ids that the model reads. ``collaborative``: the model whose item
    vectors it reads. ``init_from``: ``<dataset>/<model>/seed_<seed>``, the run whose weights training starts from, or
    ``none``. ``accelerate``: whether the faster CPU versions of ``recpipe.accelerate`` are used.
    """

    name: str
    dataset: str
    type: str
    settings: dict[str, Any]
    train: dict[str, Any]
    side: dict[str, Any]
    cold_users: dict[str, Any]
    ids: tuple[str, ...] = ()
    collaborative: str | None = None
    seed: int = 42
    init_from: str = "none"
    accelerate: bool = True

    @property
    def vectors(self) -> tuple[str, ...]:
        """Modalities of the content vectors that the model reads."""
        return tuple(name for name in split_names(self.side.get("vectors")) if name != COLLABORATIVE)

    @property
    def item_model(self) -> str | None:
        """The model whose trained item vectors are read, None without one."""
        return self.collaborative if COLLABORATIVE in split_names(self.side.get("vectors")) else None


def is_accelerated(accelerate: object) -> bool:
    """The setting ``accelerate``, auto or off, as a bool; YAML reads off as false. Raises ConfigError for others."""
    if accelerate in ("auto", "off", False):
        return accelerate == "auto"
    raise ConfigError(f"accelerate is {accelerate!r}; allowed: auto, off")


def with_kinds(semantic_ids: Tree) -> Tree:
    """Return ``semantic_ids`` with all settings under every kind: those of the kind over the common ones."""
    common = {name: each for name, each in semantic_ids.items() if name != "kinds"}
    kinds: Tree = {kind: merge(common, block(semantic_ids, "kinds", kind)) for kind in ID_KINDS}
    return {**common, "kinds": kinds}
