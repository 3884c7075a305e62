"""What Kedro prepared, read from the data folder, and where it will look for what is trained: for machines without it.

Places are those of conf/base/catalog: one that moves there has to move here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from recpipe.content.embeddings import Embeddings
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.experiments.material import Material
from recpipe.layers.cold_users import ColdUsersConfig
from recpipe.layers.side import names
from recpipe.models.registry import ModelSpec, configured, model_class, resolve, side_config
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle, load_bundle

OWN = ("cold_users",)  # blocks that a data set's own file overrides


class Numbers(yaml.SafeLoader):
    """Plain YAML in which 1e-3 is a number, as it is for Kedro."""


Numbers.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Values of conf files and of the command line; no objects."""
    return yaml.load(text, Numbers)


@dataclass(frozen=True)
class Conf:
    """Parameter files of a conf folder (``conf/base/parameters``), for one data set."""

    folder: Path
    dataset: str

    def block(self, name: str) -> dict[str, Any]:
        """That of ``<name>.yml``, and over it the data set's own where it may have one."""
        own = (self._read("datasets", self.dataset).get("datasets") or {}).get(self.dataset) or {}
        return {**self._file(f"{name}.yml")[name], **((own.get(name) or {}) if name in OWN else {})}

    def model(self, name: str, changed: Mapping[str, Any] | None = None) -> tuple[ModelSpec, str | None]:
        """A model's block for the data set, and the model whose items it reads.

        ``changed`` settings by their name in the block, as ``train.max_epochs``. Raises ValueError that names what is
        unknown.
        """
        block = self._read("models", name)["models"][name]
        spec, own = resolve(block, self.dataset), (block.get("datasets") or {}).get(self.dataset) or {}
        other = own.get("collaborative", block.get("collaborative"))
        for path, value in (changed or {}).items():
            place, _, key = path.rpartition(".")
            if path == "collaborative":
                other = value
            elif path == "ids":
                spec = replace(spec, ids=names(value))
            elif place in ("", "train", "side"):
                {"": spec.config, "train": spec.train, "side": spec.side}[place][key] = value
            else:
                raise ValueError(
                    f"{path} cannot be set; allowed: a setting of {name}, train.<key>, side.<key>"
                )
        configured(model_class(spec.type).Config, spec.config, where=f"models.{name}")
        return spec, other

    def _read(self, kind: str, name: str) -> dict[str, Any]:
        """A file of a model or of a data set, by its name."""
        known = sorted(file.stem for file in (self.folder / kind).glob("*.yml"))
        if known and name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{self.folder / kind} has no {name!r}{hint}; it has {', '.join(known)}")
        return self._file(f"{kind}/{name}.yml")

    def _file(self, path: str) -> dict[str, Any]:
        file = self.folder / path
        if not file.is_file():
            raise ValueError(f"{file} is missing; give the folder of parameters with --conf")
        return read_yaml(file.read_text()) or {}


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
        """What ``spec`` may be trained on; only vectors and ids that it asks for are read.

        Raises ValueError that names what is missing, and the command that makes it.
        """
        if not (self.split / "train_set.parquet").is_file():
            raise ValueError(
                f"{self.split} holds no split; run `kedro run --pipelines=train --params dataset={self.dataset},"
                "model=popular` where Kedro is, and bring the folder"
            )
        given: dict[str, Any] = {}
        for modality in names(side_config(spec, conf.block("side"), where=f"models.{name}").vectors):
            if modality == "collaborative":
                given[modality] = self._bundle(collaborative, name)
            else:
                place = self.data / "04_feature" / self.dataset / f"{modality}_embeddings.parquet"
                given[f"{modality}_embeddings"] = Embeddings.read(_there(place, "embed"))
        for modality in spec.ids:
            folder = self.split / "semantic_ids" / f"{modality}_ids"
            ids, tree = folder / "semantic_ids.parquet", folder / "prefix_tree.safetensors"
            given[f"{modality}_ids"] = SemanticIds.read(_there(ids, "semantic_ids"))
            given[f"{modality}_tree"] = PrefixTree.read(_there(tree, "semantic_ids"))
        items = _there(self.data / "03_primary" / self.dataset / "items.parquet", "ingest")
        return Material(
            train_set=Sequences.read(self.split / "train_set.parquet"),
            valid_set=Fold.read(self.split / "valid_set.parquet"),
            vocabulary=Vocabulary.read(self.split / "vocabulary.parquet"),
            items=pq.read_table(items),
            protocol=json.loads((self.split / "protocol.json").read_text()),
            train=conf.block("train"),
            side=conf.block("side"),
            dataset=self.dataset,
            seed=self.seed,
            work_folder=self.run_folder("06_models", name) / "work",
            cold_users=configured(ColdUsersConfig, conf.block("cold_users"), where="cold_users"),
            **given,
        )

    def bundles(self, name: str) -> list[Path]:
        """Those of a model, the latest last, among results and among what was brought."""
        roots = dict.fromkeys(root for root in (self.data, self.into) if root is not None)
        place = f"06_models/{self.dataset}/{name}/seed_{self.seed}/bundle/*/bundle"
        return sorted(
            (each for root in roots for each in root.glob(place)), key=lambda each: each.parent.name
        )

    def _bundle(self, name: str | None, reader: str) -> Bundle:
        if name is None:
            raise ValueError(f"models.{reader}.collaborative is not set; name the model whose items are read")
        if not (found := self.bundles(name)):
            raise ValueError(
                f"{self.dataset} has no trained {name} of seed {self.seed}, whose items {reader} reads: train it first"
            )
        return load_bundle(found[-1])


def _there(file: Path, pipeline: str) -> Path:
    if not file.is_file():
        raise ValueError(
            f"{file} is missing; run `kedro run --pipelines={pipeline}` where Kedro is, and bring it"
        )
    return file
