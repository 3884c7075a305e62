"""What Kedro prepared, read from the data folder, and where it will look for what is trained: for machines without it.

The places are those of conf/base/catalog; `tests/shell/test_experiments.py` holds the two against each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from recpipe.content.embeddings import Embeddings
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.experiments.material import Material
from recpipe.layers.cold_users import ColdUsersConfig
from recpipe.layers.side import names
from recpipe.models.registry import ModelSpec, configured, resolve, side_config
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle, load_bundle

BLOCKS = ("train", "side", "cold_users")


@dataclass(frozen=True)
class Conf:
    """Parameter files of a conf folder (``conf/base/parameters``), for one data set."""

    folder: Path
    dataset: str

    def block(self, name: str) -> dict[str, Any]:
        """That of ``<name>.yml``, the data set's own over it."""
        common, own = self._read(f"{name}.yml")[name], self._read(f"datasets/{self.dataset}.yml")
        of_data = own["datasets"][self.dataset]
        return {**common, **((of_data.get(name) or {}) if name in BLOCKS else {})}

    def model(self, name: str, changed: Mapping[str, Any] | None = None) -> tuple[ModelSpec, str | None]:
        """A model's block for the data set, and the model whose items it reads.

        ``changed`` settings by their name in the block, as ``train.max_epochs``.
        """
        block = self._read(f"models/{name}.yml")["models"][name]
        spec = resolve(block, self.dataset)
        for path, value in (changed or {}).items():
            place, _, key = path.rpartition(".")
            if place not in ("", "train", "side"):
                raise ValueError(
                    f"{path} cannot be set; allowed: a setting of the model, train.<key>, side.<key>"
                )
            if path == "ids":
                spec = replace(spec, ids=names(value))
            else:
                {"": spec.config, "train": spec.train, "side": spec.side}[place][key] = value
        return spec, block.get("collaborative")

    def _read(self, path: str) -> dict[str, Any]:
        file = self.folder / path
        if not file.is_file():
            raise ValueError(f"{file} is missing; give the folder of parameters with --conf")
        found: dict[str, Any] = yaml.safe_load(file.read_text())
        return found


@dataclass(frozen=True)
class Prepared:
    """The data folder of a data set, for one seed; ``into`` is where results go, the same folder by default."""

    data: Path
    dataset: str
    seed: int = 42
    into: Path | None = None

    @property
    def split(self) -> Path:
        """The folder of the split."""
        return self.data / "05_model_input" / self.dataset

    def run_folder(self, layer: str, name: str) -> Path:
        """``06_models`` or ``08_reporting`` of a model."""
        return (self.into or self.data) / layer / self.dataset / name / f"seed_{self.seed}"

    def test(self) -> Fold:
        """The test fold, which no training reads."""
        return Fold.read(self.split / "test_set.parquet")

    def material(self, name: str, spec: ModelSpec, collaborative: str | None, conf: Conf) -> Material:
        """What ``spec`` may be trained on; only vectors and ids that it asks for are read."""
        if not (self.split / "train_set.parquet").is_file():
            raise ValueError(
                f"{self.split} holds no split; run `kedro run --pipelines=train --params dataset={self.dataset},"
                "model=popular` where Kedro is, and bring the folder"
            )
        given: dict[str, Any] = {"collaborative": None}
        for modality in names(side_config(spec, conf.block("side"), where=f"models.{name}").vectors):
            if modality == "collaborative":
                given[modality] = self._bundle(str(collaborative))
            else:
                given[f"{modality}_embeddings"] = Embeddings.read(self._vectors(modality))
        for modality in spec.ids:
            folder = self.split / "semantic_ids" / f"{modality}_ids"
            given[f"{modality}_ids"] = SemanticIds.read(folder / "semantic_ids.parquet")
            given[f"{modality}_tree"] = PrefixTree.read(folder / "prefix_tree.safetensors")
        return Material(
            train_set=Sequences.read(self.split / "train_set.parquet"),
            valid_set=Fold.read(self.split / "valid_set.parquet"),
            vocabulary=Vocabulary.read(self.split / "vocabulary.parquet"),
            items=pq.read_table(self.data / "03_primary" / self.dataset / "items.parquet"),
            protocol=json.loads((self.split / "protocol.json").read_text()),
            train=conf.block("train"),
            side=conf.block("side"),
            dataset=self.dataset,
            seed=self.seed,
            work_folder=self.run_folder("06_models", name) / "work",
            cold_users=configured(ColdUsersConfig, conf.block("cold_users"), where="cold_users"),
            **given,
        )

    def _vectors(self, modality: str) -> Path:
        return self.data / "04_feature" / self.dataset / f"{modality}_embeddings.parquet"

    def _bundle(self, name: str) -> Bundle:
        """The latest of a model, among results or among what was brought."""
        for root in filter(None, (self.into, self.data)):
            folder = root / "06_models" / self.dataset / name / f"seed_{self.seed}" / "bundle"
            if found := sorted(folder.glob("*/bundle")):
                return load_bundle(found[-1])
        raise ValueError(
            f"{self.dataset} has no trained {name} of seed {self.seed}, whose items are asked for: train it first"
        )
