"""The configuration of a run: parameter files and the command line merged in one order of precedence.

Later ones win, key by key at any depth: defaults < data set < model < model x profile < model x data set < command
line. A data set overrides the blocks of ``BY_DATASET``; a model those of ``BY_MODEL`` and its own settings, for
a ``profile`` (a kind of data set, which the data set names) and for single data sets. ``extends: other`` makes a model
of another one, as that would be on the data set, and of the lines in which it differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from recpipe.config.files import read_parameters
from recpipe.config.overrides import check_overrides
from recpipe.config.suggest import ConfigError, check_known, nearest, split_names
from recpipe.config.tree import COMMAND_LINE, Leaf, Tree, block, leaves, merge, plain, tree_of

BY_DATASET = ("protocol", "cold_users", "embed", "semantic_ids", "train", "side", "evaluate")
BY_MODEL = ("train", "side")
MODEL_KEYS = ("type", "ids", "collaborative", *BY_MODEL)  # the others are settings of the model's own Config
VECTORS = ("text", "image", "text_image")
COLLABORATIVE = "collaborative"  # item vectors that are those of another trained model
ID_KINDS = (*VECTORS, "text_parts")


@dataclass(frozen=True)
class ModelInfo:
    """What the code of a model type says: defaults of its Config by name, and whether it reads side information."""

    settings: Mapping[str, Any]
    takes_side: bool


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How one model is trained on one data set, every override applied.

    ``settings`` are the fields of the model's Config that the files give; ``train``, ``side`` and ``cold_users`` are
    whole blocks. ``ids``: kinds of semantic ids that it reads. ``collaborative``: the model whose item vectors
    it reads. ``init_from``: ``<dataset>/<model>/seed_<seed>`` whose weights training begins with, or none.
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

    @property
    def vectors(self) -> tuple[str, ...]:
        """Modalities of the item vectors that it reads, without those of another model."""
        return tuple(name for name in split_names(self.side.get("vectors")) if name != COLLABORATIVE)

    @property
    def item_model(self) -> str | None:
        """The model whose trained item vectors it reads."""
        return self.collaborative if COLLABORATIVE in split_names(self.side.get("vectors")) else None


def resolve(
    conf: Tree,
    dataset: str | None = None,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one model on one data set; both default to what ``conf`` runs. See ``Configuration``."""
    choice = {key: value for key, value in (("dataset", dataset), ("model", model)) if value is not None}
    configuration = Configuration(conf, {**(overrides or {}), **choice})
    return configuration.run(configuration["model"])


@dataclass(frozen=True)
class Configuration:
    """Parameters of a command: ``files`` (see ``read_parameters``) and ``overrides`` of the command line.

    ``model_info`` is asked for a model type only where the files cannot tell whether a setting exists, or where side
    information is configured for all models. Raises ConfigError for what does not exist; the message
    names key, origin, choice and nearest spelling.
    """

    files: Tree
    overrides: Mapping[str, Any] = field(default_factory=dict)
    model_info: Callable[[str], ModelInfo] | None = None
    conf: Path | None = None

    @classmethod
    def read(
        cls,
        conf: Path,
        env: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        model_info: Callable[[str], ModelInfo] | None = None,
    ) -> Configuration:
        """From a conf folder. Checks all that can be checked without the models' code."""
        configuration = cls(read_parameters(conf, env), dict(overrides or {}), model_info, conf)
        configuration.check()
        return configuration

    def __getitem__(self, key: str) -> Any:
        """A value or block of the top level, such as ``seed``; blocks that a data set overrides with its own."""
        return plain(self._top[key])

    @cached_property
    def _given(self) -> Tree:
        return tree_of(self.overrides, COMMAND_LINE)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self._choice("dataset"))

    def is_overridden(self, key: str) -> bool:
        """Whether the command line says something of the top-level ``key``."""
        return key in self._given

    @property
    def model_names(self) -> list[str]:
        """All models of the conf."""
        return list(block(self.files, "models"))

    @property
    def profile(self) -> str | None:
        """The kind of data set that ``datasets.<name>.profile`` names."""
        return plain(self._dataset_tree["profile"]) if "profile" in self._dataset_tree else None

    def _choice(self, key: str) -> Any:
        leaf = self._given.get(key, self.files.get(key))
        if not isinstance(leaf, Leaf):
            raise ConfigError(
                f"{key} is not set: give --params {key}=..., or set it in conf/base/globals.yml"
            )
        return leaf.value

    @cached_property
    def _dataset_tree(self) -> Tree:
        return merge(*(block(source, "datasets", self.dataset) for source in (self.files, self._given)))

    @cached_property
    def _top(self) -> Tree:
        """The top level without models and data sets, every block with the data set's own over it."""
        top: Tree = {}
        for source in (self.files, self._given):
            own = block(source, "datasets", self.dataset)
            shared = {name: each for name, each in source.items() if name not in ("models", "datasets")}
            top = merge(top, shared, {name: own[name] for name in BY_DATASET if name in own})
        if "baselines" in self._dataset_tree and "baselines" not in self._given:
            top["baselines"] = self._dataset_tree["baselines"]
        top["datasets"] = {self.dataset: self._own_dataset()}
        top["semantic_ids"] = with_kinds(block(top, "semantic_ids"))
        return top

    def _own_dataset(self) -> Tree:
        return {
            name: each for name, each in self._dataset_tree.items() if name not in (*BY_DATASET, "baselines")
        }

    def tree(self, model: str) -> Tree:
        """All settings of a model on the data set, with their origins: ``train`` and ``side`` are whole blocks."""
        common = {name: block(self._top, name) for name in BY_MODEL}
        if not self._reads_common_side(model):
            common["side"] = {}
        layers: list[Tree] = [common]
        for name in reversed(self._ancestors(model)):
            layers += self._layers(self.files, name)
        shared = {name: block(self._given, name) for name in BY_MODEL if name in self._given}
        of_dataset = block(self._given, "datasets", self.dataset)
        shared = merge(shared, {name: block(of_dataset, name) for name in BY_MODEL if name in of_dataset})
        if not self._reads_common_side(model):
            shared.pop("side", None)
        return merge(*layers, shared, *self._layers(self._given, model))

    def known_tree(self, model: str) -> Tree:
        """All settings of a model that the files know, whatever the command line says."""
        shared = {name: block(self.files, name) for name in BY_MODEL}
        return merge(
            shared, *(each for name in self._ancestors(model) for each in self._layers(self.files, name))
        )

    def extra_settings(self, path: str, model: str | None) -> Mapping[str, Any]:
        """Defaults of settings at ``path`` that no file names: those of the model's Config."""
        parts = path.split(".")[2:]  # behind models.<model>
        if (
            model is None
            or self.model_info is None
            or len(parts) not in (0, 2)
            or parts[:1] in (["train"], ["side"])
        ):
            return {}
        return self.model_info(self.type_of(model)).settings

    def _layers(self, source: Tree, model: str) -> list[Tree]:
        whole = block(source, "models", model)
        own = {name: each for name, each in whole.items() if name not in ("extends", "profiles", "datasets")}
        by_profile = block(whole, "profiles", self.profile) if self.profile else {}
        return [own, by_profile, block(whole, "datasets", self.dataset)]

    def _ancestors(self, model: str) -> list[str]:
        """The model and those that it extends, one after the other."""
        chain = [model]
        while isinstance(leaf := block(self.files, "models", chain[-1]).get("extends"), Leaf):
            parent = str(leaf.value)
            if parent in chain:
                raise ConfigError(f"{leaf.origin} goes in a circle: {' extends '.join([*chain, parent])}")
            if parent not in self.model_names:
                raise ConfigError(
                    f"{leaf.origin} is {parent!r}, an unknown model{nearest(parent, self.model_names)}; choose "
                    f"{', '.join(self.model_names)}"
                )
            chain.append(parent)
        return chain

    def _reads_common_side(self, model: str) -> bool:
        """Whether the block ``side`` for all models reaches this one: where it is empty, that makes no difference."""
        side = plain(block(self._top, "side"))
        if self.model_info is None or not any(
            split_names(side.get(part)) for part in ("vectors", "items", "users", "events")
        ):
            return True
        return self.model_info(self.type_of(model)).takes_side

    def type_of(self, model: str) -> str:
        """The model's type, the name of its file of code. Raises ConfigError where the conf does not say."""
        for name in self._ancestors(model):
            if isinstance(leaf := block(self.files, "models", name).get("type"), Leaf):
                return str(leaf.value)
        raise ConfigError(
            f"models.{model} has no type: add `type: <file in recpipe/models>`, or `extends: <model>`"
        )

    def run(self, model: str) -> RunConfig:
        """How ``model`` is trained on the data set. Raises ConfigError for an unknown one."""
        check_known(model, self.model_names, what="model")
        config = self._run(model)
        self._check_reads(config)
        return config

    def _run(self, model: str) -> RunConfig:
        values = plain(self.tree(model))
        return RunConfig(
            name=model,
            dataset=self.dataset,
            type=self.type_of(model),
            settings={name: value for name, value in values.items() if name not in MODEL_KEYS},
            train=values["train"],
            side=values["side"],
            cold_users=self["cold_users"],
            ids=split_names(values.get("ids")),
            collaborative=values.get(COLLABORATIVE),
            seed=self["seed"],
            init_from=self["init_from"],
        )

    def _check_reads(self, config: RunConfig) -> None:
        where = f"models.{config.name}"
        for name in split_names(config.side.get("vectors")):
            check_known(
                name,
                (*VECTORS, COLLABORATIVE),
                what=f"vectors of {where}.side",
                also=", several as a+b, or none",
            )
        for name in config.ids:
            check_known(name, ID_KINDS, what=f"ids of {where}", also=", several as a+b")
        others = [name for name in self.model_names if name != config.name]
        if COLLABORATIVE in split_names(config.side.get("vectors")) and config.collaborative not in others:
            raise ConfigError(
                f"{where}.{COLLABORATIVE} is {config.collaborative!r}{nearest(config.collaborative, others)}; name the "
                f"model whose items are read, one of {', '.join(others)}"
            )

    def parameters(self, models: Iterable[str] = ()) -> dict[str, Any]:
        """Plain values for nodes: blocks of the data set, every kind of semantic ids, and ``models`` as RunConfigs.

        Blocks know what they belong to: the protocol its data set, evaluation the protocol, a kind of ids its name and
        the data sets that it shares a quantizer with. ``paths`` are those of DataPaths, absolute where the conf folder is
        known.
        """
        values = plain(self._top)
        root = Path() if self.conf is None else self.conf.resolve().parent
        paths = {"data_root": str(root / values["data"]), "raw_root": str(root / values["raw"])}
        values["paths"] = {**paths, "dataset": self.dataset}
        values["protocol"]["dataset"] = self.dataset
        values["evaluate"]["protocol"] = dict(values["protocol"])
        for name in ("ties", "context"):
            values[name]["metric"] = values[name]["metric"] or values["report"]["metric"]
        for kind, ids in values["semantic_ids"]["kinds"].items():
            ids |= {"kind": kind, **{name: values[name] for name in ("quantizer_from", "quantizer_with")}}
        for name, study in values["studies"].items():
            study["name"] = name
        return values | {"models": {name: dataclasses.asdict(self._run(name)) for name in models}}

    def scalars(self) -> dict[str, Any]:
        """Single values of the top level, such as ``dataset``, ``seed`` and ``data``: catalog entries are made of them."""
        return {name: each.value for name, each in self._top.items() if isinstance(each, Leaf)}

    def origins(self, models: list[str]) -> dict[str, Leaf]:
        """Where each value of ``parameters`` comes from, by its dotted path."""
        return dict(leaves({**self._top, "models": {name: self.tree(name) for name in models}}))

    def place(self, path: str, models: Iterable[str] = ()) -> str:
        """`` (file)`` of the value or block at a dotted path of ``parameters``, an empty string where none is known."""
        origins = self.origins([name for name in models if path.startswith(f"models.{name}.")])
        for key, leaf in origins.items():
            if key == path or key.startswith(f"{path}."):
                return f" ({leaf.file})"
        return ""

    def check(self) -> None:
        """Raises ConfigError for names and overrides that the files do not know."""
        datasets = list(block(self.files, "datasets"))
        check_overrides(self)
        check_known(self.dataset, datasets, what="dataset", also=" (files in conf/base/parameters/datasets)")
        profiles = list(block(self.files, "profiles"))
        for name in datasets:
            leaf = block(self.files, "datasets", name).get("profile")
            if isinstance(leaf, Leaf) and leaf.value is not None:
                check_known(leaf.value, profiles, what="profile", also=f" ({leaf.origin})")
        for model in self.model_names:
            own = block(self.files, "models", model)
            for key, known in (("profiles", profiles), ("datasets", datasets)):
                for name, each in block(own, key).items():
                    where = next((leaf.file for _, leaf in leaves({name: each})), "")
                    check_known(
                        name, known, what=f"{key[:-1]} of models.{model}", also=f" ({where})" if where else ""
                    )
            self._ancestors(model)
            self.type_of(model)


def with_kinds(semantic_ids: Tree) -> Tree:
    """The block ``semantic_ids`` with all settings under every kind, the kind's own over the common ones."""
    common = {name: each for name, each in semantic_ids.items() if name != "kinds"}
    kinds = {kind: merge(common, block(semantic_ids, "kinds", kind)) for kind in ID_KINDS}
    return {**common, "kinds": kinds}
