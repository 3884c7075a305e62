"""The layout of the data folder, which conf/base/catalog repeats for what Kedro saves and loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataPaths:
    """Folders of one data set below ``data_root``, and of its raw log below ``raw_root``."""

    data_root: Path
    raw_root: Path
    dataset: str

    def __post_init__(self) -> None:
        for name in ("data_root", "raw_root"):  # strings in the conf
            object.__setattr__(self, name, Path(getattr(self, name)))

    @property
    def raw(self) -> Path:
        """Files of the raw log."""
        return self.raw_root / self.dataset

    @property
    def spill(self) -> Path:
        """Temporary files of an SQL engine that runs out of memory."""
        return self._layer("02_intermediate") / "spill"

    @property
    def primary(self) -> Path:
        """Interactions, items, users."""
        return self._layer("03_primary")

    @property
    def features(self) -> Path:
        """Item vectors."""
        return self._layer("04_feature")

    @property
    def split(self) -> Path:
        """Protocol, vocabulary, training set and folds."""
        return self._layer("05_model_input")

    @property
    def models(self) -> Path:
        """Bundles and checkpoints."""
        return self._layer("06_models")

    @property
    def reporting(self) -> Path:
        """Metrics, figures and the report."""
        return self._layer("08_reporting")

    def cache(self, modality: str) -> Path:
        """Cache of vectors by content, for one modality."""
        return self.features / f"{modality}_cache"

    def ids(self, kind: str) -> Path:
        """Quantizer, semantic ids and prefix tree of one kind."""
        return self.split / "semantic_ids" / f"{kind}_ids"

    def work(self, model: str, seed: int) -> Path:
        """Checkpoints and curves of an unfinished training."""
        return self.models / model / f"seed_{seed}" / "work"

    def studies(self, model: str, seed: int) -> Path:
        """Checkpoints and finished variants of studies."""
        return self.models / model / f"seed_{seed}" / "studies"

    def for_dataset(self, dataset: str) -> DataPaths:
        """The folders of another data set."""
        return DataPaths(self.data_root, self.raw_root, dataset)

    def _layer(self, layer: str) -> Path:
        return self.data_root / layer / self.dataset
