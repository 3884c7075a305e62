"""Types of a run's configuration: RunConfig, ModelInfo, ColdUsersConfig, DataPaths; names of blocks and id kinds.

No pydantic and no torch here: checks of the conf and serving import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recpipe.config.checks import ConfigError, split_names
from recpipe.config.files import SEARCH_SPACE, Tree, block, merge

TOP_LEVEL = (
    "dataset", "model", "baselines", "modality", "seed", "seeds", "accelerate", "study", "data", "raw", "init_from",
    "quantizer_from", "quantizer_with", "datasets", "models", "profiles", "ingest", "protocol", "protocols",
    "cold_users", "embed", "text_encoders", "image_encoders", "semantic_ids", "train", "side", "evaluate", "report",
    "ensemble", "ties", "context", "studies", "geometry", "register", "requests", "recommend", "update", "serve",
    "tune",
)  # fmt: skip
BY_DATASET = ("protocol", "cold_users", "embed", "semantic_ids", "train", "side", "evaluate", "recommend", "tune")
BY_MODEL = ("train", "side")
BUNDLES = {  # folders of a seed that hold bundles, by value of serve.bundle, recommend.bundle and register.bundle
    "newest": ("bundle", "production"),  # measured by an evaluation; made for use by refit, update or add_items
    "measured": ("bundle",),
    "production": ("production",),
}
MODEL_KEYS = (
    "type",
    "ids",
    "collaborative",
    SEARCH_SPACE,
    *BY_MODEL,
)  # other keys are settings of the model's own Config
VECTORS = ("text", "image", "text_image")
AUTO = "auto"  # profile of a data set that is chosen from its statistics
COLLABORATIVE = "collaborative"  # item vectors of another trained model
ID_KINDS = (*VECTORS, "text_parts", "text_parts_32", "text_collaborative", "foreign")


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a model type: defaults of its Config, whether it reads side information and uses gradients."""

    settings: Mapping[str, Any]
    takes_side: bool
    by_gradient: bool


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Configuration of one model on one data set, with every override applied.

    settings: fields of the model's Config that the files name. train, side, cold_users: complete blocks.
    ids: kinds of semantic ids that the model reads. collaborative: the model whose item vectors it reads.
    init_from: ``<dataset>/<model>/seed_<seed>``, the run whose weights training starts from, or ``none``.
    accelerate: whether the faster CPU versions of ``recpipe.accelerate`` are used.
    search_space: ranges of settings for tuning, nested; see ``recpipe.training.tuning.space``.
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
    search_space: dict[str, Any] = field(default_factory=dict)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Modalities of the content vectors that the model reads."""
        return tuple(name for name in split_names(self.side.get("vectors")) if name != COLLABORATIVE)

    @property
    def item_model(self) -> str | None:
        """The model whose trained item vectors are read, None without one."""
        return self.collaborative if COLLABORATIVE in split_names(self.side.get("vectors")) else None


@dataclass(frozen=True)
class ColdUsersConfig:
    """The conf block ``cold_users``.

    segments: none, columns of the users as a+b, or cluster. hierarchy: segments a+b are smoothed towards a, and that
    towards the whole catalogue, instead of at once towards this. bins: quantiles of a column of many different numbers.
    clusters: number of clusters of users by the columns ``cluster_by`` (a+b, or all). smoothing: events of the whole
    catalogue's popularity that are mixed into a segment's. novelty in [0, 1]. recent_days: count only events of that
    many days before the last training event; null counts all.
    """

    segments: str = "none"
    hierarchy: bool = False
    bins: int = 4
    clusters: int = 8
    cluster_by: str = "all"
    smoothing: float = 100.0
    novelty: float = 0.0
    recent_days: float | None = None

    def __post_init__(self) -> None:
        def check(name: str, is_valid: bool, allowed: str) -> None:
            if not is_valid:
                raise ValueError(f"cold_users.{name} is {getattr(self, name)!r}; {allowed}")

        for name in ("segments", "cluster_by"):
            check(name, isinstance(getattr(self, name), str), "write columns as a+b")
        for name, minimum in (("bins", 2), ("clusters", 1)):
            value = getattr(self, name)
            check(name, type(value) is int and value >= minimum, f"give a whole number from {minimum}")
        check("hierarchy", type(self.hierarchy) is bool, "give true or false")
        if self.hierarchy and self.segments in ("none", "cluster"):
            raise ValueError(
                f"cold_users.hierarchy is true and segments {self.segments}, which have no parents: "
                "set segments to columns of the users, such as country+age, or hierarchy: false"
            )
        numbers = (int, float)
        check("smoothing", type(self.smoothing) in numbers and self.smoothing > 0, "give a number above 0")
        check("novelty", type(self.novelty) in numbers and 0 <= self.novelty <= 1, "give a number from 0 to 1")
        days = self.recent_days
        check("recent_days", days is None or (type(days) in numbers and days > 0), "give a number above 0, or null")


class _Layer:
    """Descriptor of the data set's folder in a layer of ``data_root``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, paths: DataPaths, owner: type[DataPaths]) -> Path:
        return paths.data_root / self.name / paths.dataset


@dataclass(frozen=True)
class DataPaths:
    """Folders of a data set below ``data_root`` and ``raw_root``; conf/base/catalog has the same layout."""

    data_root: Path
    raw_root: Path
    dataset: str

    def __post_init__(self) -> None:
        for name in ("data_root", "raw_root"):  # strings in the conf
            object.__setattr__(self, name, Path(getattr(self, name)))

    intermediate = _Layer("02_intermediate")
    primary = _Layer("03_primary")  # interactions, items, users
    features = _Layer("04_feature")  # item vectors
    split = _Layer("05_model_input")  # protocol, vocabulary, training set and folds
    models = _Layer("06_models")  # bundles and checkpoints
    reporting = _Layer("08_reporting")  # metrics, figures and the report

    @property
    def raw(self) -> Path:
        """Files of the raw log."""
        return self.raw_root / self.dataset

    @property
    def export(self) -> Path:
        """Sequences and ids in the layout of other repositories."""
        return self.data_root / "07_model_output" / self.dataset / "export"

    @property
    def spill(self) -> Path:
        """Temporary files of an SQL engine that runs out of memory."""
        return self.intermediate / "spill"

    def cache(self, modality: str) -> Path:
        """Cache of vectors by content, for one modality."""
        return self.features / f"{modality}_cache"

    def ids(self, kind: str) -> Path:
        """Quantizer, semantic ids and prefix tree of one kind."""
        return self.split / "semantic_ids" / f"{kind}_ids"

    def work(self, model: str, seed: int) -> Path:
        """Checkpoints and curves of an unfinished training."""
        return self.models / model / f"seed_{seed}" / "work"

    def refit_work(self, model: str, seed: int) -> Path:
        """Checkpoints and curves of an unfinished refit."""
        return self.models / model / f"seed_{seed}" / "refit_work"

    def studies(self, model: str, seed: int) -> Path:
        """Checkpoints and finished variants of studies."""
        return self.models / model / f"seed_{seed}" / "studies"

    def tuning(self, model: str, seed: int) -> Path:
        """Journal of the studies of tuning, and checkpoints of unfinished trials."""
        return self.models / model / f"seed_{seed}" / "tuning"

    def for_dataset(self, dataset: str) -> DataPaths:
        """Return the folders of another data set."""
        return DataPaths(self.data_root, self.raw_root, dataset)


def is_accelerated(accelerate: object) -> bool:
    """Return the setting ``accelerate``, auto or off, as a bool; YAML reads off as false. Raises ConfigError."""
    if accelerate in ("auto", "off", False):
        return accelerate == "auto"
    raise ConfigError(f"accelerate is {accelerate!r}; allowed: auto, off")


def with_kinds(semantic_ids: Tree) -> Tree:
    """Return ``semantic_ids`` with all settings under every kind: those of the kind over the common ones."""
    common = {name: entry for name, entry in semantic_ids.items() if name != "kinds"}
    kinds: Tree = {kind: merge(common, block(semantic_ids, "kinds", kind)) for kind in ID_KINDS}
    return {**common, "kinds": kinds}
