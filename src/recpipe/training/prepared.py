"""Data folder of a data set without Kedro: inputs of training, and the paths where Kedro looks for results.

Paths are those of conf/base/catalog: what moves there has to move here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recpipe.config import DataPaths, RunConfig
from recpipe.content.embeddings import Embeddings
from recpipe.data.sequences import Fold
from recpipe.data.training_data import TrainingData
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle, load_bundle
from recpipe.training.job import ItemInputs, TrainingJob, Validator


@dataclass(frozen=True)
class PreparedData:
    """The data folder of a data set, for one seed; results go to ``into``, by default the same folder."""

    data: Path
    dataset: str
    seed: int = 42
    into: Path | None = None

    @property
    def paths(self) -> DataPaths:
        """Folders of the inputs."""
        return DataPaths(self.data, self.data, self.dataset)

    @property
    def results(self) -> DataPaths:
        """Folders of the results."""
        return DataPaths(self.into or self.data, self.data, self.dataset)

    def bundle_folder(self, model: str) -> Path:
        """The folder with all versions of a model's bundle."""
        return self.results.models / model / f"seed_{self.seed}" / "bundle"

    def curves_file(self, model: str) -> Path:
        """The training curve of a model."""
        return self.results.reporting / model / f"seed_{self.seed}" / "curves.parquet"

    def test(self) -> Fold:
        """The test fold, which no training reads."""
        return Fold.read(self.paths.split / "test_set.parquet")

    def job(self, config: RunConfig, validator: Validator) -> TrainingJob:
        """The training job of a model; loads only vectors and ids that the model reads.

        Raises ValueError for a missing file, with the command that makes it.
        """
        if config.init_from != "none":
            raise ValueError(
                f"init_from={config.init_from}: only `kedro run` begins with another run's weights"
            )
        split = self.paths.split
        if not (split / "train_set.parquet").is_file():
            raise ValueError(
                f"{split} holds no split; run `kedro run --pipelines=train --params dataset={self.dataset},"
                "model=popular` where Kedro is, and bring the folder"
            )
        return TrainingJob(
            config=config,
            data=TrainingData.read(split),
            inputs=self._inputs(config),
            work_folder=self.results.work(config.name, self.seed),
            validator=validator,
        )

    def _inputs(self, config: RunConfig) -> ItemInputs:
        ids: dict[str, Any] = {}
        for kind in config.ids:
            folder = self.paths.ids(kind)
            ids[kind] = (
                SemanticIds.read(_existing(folder / "semantic_ids.parquet", "semantic_ids")),
                PrefixTree.read(_existing(folder / "prefix_tree.safetensors", "semantic_ids")),
            )
        return ItemInputs(
            items=pq.read_table(_existing(self.paths.primary / "items.parquet", "ingest")),
            vectors={
                name: Embeddings.read(_existing(self.paths.features / f"{name}_embeddings.parquet", "embed"))
                for name in config.vectors
            },
            ids=ids,
            collaborative=None if config.item_model is None else self._bundle(config.item_model, config.name),
        )

    def bundles(self, model: str) -> list[Path]:
        """Bundles of a model among inputs and results, the latest last."""
        roots = dict.fromkeys(root for root in (self.data, self.into) if root is not None)
        folders = [DataPaths(root, root, self.dataset).models / model / f"seed_{self.seed}" for root in roots]
        return sorted(
            (each for folder in folders for each in folder.glob("bundle/*/bundle")),
            key=lambda each: each.parent.name,
        )

    def _bundle(self, model: str, reader: str) -> Bundle:
        if not (bundles := self.bundles(model)):
            raise ValueError(
                f"{self.dataset} has no trained {model} of seed {self.seed}, whose items {reader} "
                "reads: train it first"
            )
        return load_bundle(bundles[-1])


def _existing(file: Path, pipeline: str) -> Path:
    if not file.is_file():
        raise ValueError(
            f"{file} is missing; run `kedro run --pipelines={pipeline}` where Kedro is, and bring it"
        )
    return file
