"""Configuration of a run: parameter files and the command line merged in one order of precedence.

Later layers win, key by key at any depth: defaults < data set < model < model x profile < model x data set < command
line. A named protocol (``recpipe.config.protocols``) lies between the defaults and the data set's block ``protocol``.
A data set overrides the blocks of ``BY_DATASET``; ``like: other`` puts the settings of another one below its own.
A model overrides those of ``BY_MODEL`` and its own settings, per ``profile`` (a kind of data set, which the data set
names) and per data set. ``extends: other`` takes all settings of another model on this data set and changes those that
follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from recpipe.config.checks import ConfigError, check_known, nearest, split_names
from recpipe.config.files import (
    COMMAND_LINE,
    SEARCH_SPACE,
    Leaf,
    Tree,
    block,
    drop_null,
    expand_shorthands,
    leaves,
    merge,
    pick_blocks,
    read_parameters,
    to_tree,
    to_values,
)
from recpipe.config.overrides import check_inputs, check_names, check_overrides
from recpipe.config.protocols import NAME, NamedProtocols, with_effective_name
from recpipe.config.run_config import (
    BY_DATASET,
    BY_MODEL,
    COLLABORATIVE,
    MODEL_KEYS,
    ModelInfo,
    RunConfig,
    is_accelerated,
    with_kinds,
)

SQLITE = "sqlite:///"
# taken by ``like``, besides the blocks of BY_DATASET
LIKE_KEYS = ("steps", "profile", "baselines", "bad_rows", "protocols")


def resolve(
    conf: Tree, dataset: str | None = None, model: str | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the configuration of one model on one data set, by default those that ``conf`` names.

    Raises ConfigError for unknown names; see ``Configuration``.
    """
    choice = {key: value for key, value in (("dataset", dataset), ("model", model)) if value is not None}
    configuration = Configuration(conf, {**(overrides or {}), **choice})
    return configuration.run(configuration["model"])


@dataclass(frozen=True)
class Configuration:
    """Parameters of a command: ``files`` (see ``read_parameters``) and ``overrides`` of the command line.

    model_info: function from a model type to its ModelInfo, which may import torch. It is called only for settings
    that no file names, and where side information is configured for all models.
    project: the folder that ``data`` and ``raw`` are relative to, by default the working directory.

    Raises ConfigError for unknown names, with the key, its file, the choices and the nearest spelling.
    """

    files: Tree
    overrides: Mapping[str, Any] = field(default_factory=dict)
    model_info: Callable[[str], ModelInfo] | None = None
    project: Path = Path()

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", expand_shorthands(self.overrides))

    @classmethod
    def read(
        cls,
        conf: Path,
        env: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        model_info: Callable[[str], ModelInfo] | None = None,
        project: Path | None = None,
    ) -> Configuration:
        """Read and check a conf folder. ``project`` is by default the folder that ``conf`` is in."""
        project = project or conf.resolve().parent
        configuration = cls(read_parameters(conf, env), dict(overrides or {}), model_info, project)
        configuration.check()
        return configuration

    def check(self) -> None:
        """Raise ConfigError for names and overrides that the files do not have."""
        check_overrides(self)
        check_names(self)

    def run(self, model: str) -> RunConfig:
        """Return the configuration of ``model`` on the data set. Raises ConfigError for unknown names."""
        check_known(model, self.model_names, what="model")
        config = self._run(model)
        check_inputs(config, self.model_names)
        return config

    def _run(self, model: str) -> RunConfig:
        values = to_values(self.tree(model))
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
            init_from=self["init_from"] or "none",
            accelerate=is_accelerated(self["accelerate"]),
            search_space=values.get(SEARCH_SPACE) or {},
        )

    def parameters(self, models: Iterable[str] = ()) -> dict[str, Any]:
        """Return plain values for nodes: the top level, and ``models`` as fields of RunConfig.

        Blocks are completed with values from elsewhere: the protocol with the data set, ``evaluate`` with the
        protocol, each kind of ids with its name and lending data sets. ``paths`` are the fields of DataPaths.
        """
        values: dict[str, Any] = to_values(self._top)
        data, raw = (str(self.project / str(self[name])) for name in ("data", "raw"))
        values["paths"] = {"data_root": data, "raw_root": raw, "dataset": self.dataset}
        values["protocol"]["dataset"] = self.dataset
        values["evaluate"]["protocol"] = dict(values["protocol"])
        recommend = values["recommend"]
        recommend["requests"] = values["requests"] or recommend["requests"]
        for name in ("requests", "users", "items"):
            recommend[name] = None if recommend[name] is None else str(self.project / str(recommend[name]))
        for name in ("ties", "context", "register"):
            values[name]["metric"] = values[name]["metric"] or values["report"]["metric"]
        values["tune"]["storage"] = self._storage(values["tune"]["storage"])
        for kind, ids in values["semantic_ids"]["kinds"].items():
            ids |= {"kind": kind, **{name: values[name] for name in ("quantizer_from", "quantizer_with")}}
        for name, study in values["studies"].items():
            study["name"] = name
        return values | {"models": {name: dataclasses.asdict(self._run(name)) for name in models}}

    def _storage(self, storage: str | None) -> str | None:
        """Make the path of a journal or of an SQLite file absolute; other URLs stay."""
        if not isinstance(storage, str):
            return storage
        prefix, path = (SQLITE, storage.removeprefix(SQLITE)) if storage.startswith(SQLITE) else ("", storage)
        return storage if "://" in path else f"{prefix}{self.project / path}"

    def scalars(self) -> dict[str, Any]:
        """Return values of the top level, such as ``dataset``, ``seed`` and ``data``, for paths in the catalog."""
        return {name: leaf.value for name, leaf in self._top.items() if isinstance(leaf, Leaf)}

    def __getitem__(self, key: str) -> Any:
        """Return a value or block of the top level, such as ``protocol``, with the data set's overrides."""
        if key not in self._top:
            raise ConfigError(f"{key} is not set: no parameter file of the conf folder has it")
        return to_values(self._top[key])

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        leaf = self._command_line.get("dataset", self.files.get("dataset"))
        if not isinstance(leaf, Leaf):
            raise ConfigError("dataset is not set: give --params dataset=..., or set it in conf/base/globals.yml")
        return str(leaf.value)

    @property
    def profile(self) -> str | None:
        """The kind of data set, ``datasets.<name>.profile``; AUTO until the session has chosen one."""
        leaf = self._dataset_tree.get("profile")
        return None if leaf is None else to_values(leaf)

    @property
    def protocol_names(self) -> tuple[str, ...]:
        """Names of the requested protocols, by default the first that the data set lists; () without a name.

        Raises ConfigError for a name that the data set does not list. Values of ``protocol`` are those of the first.
        """
        request = None
        for source in (
            self.files,
            self._dataset_files,
            self._command_line,
            block(self._command_line, "datasets", self.dataset),
        ):
            leaf = block(source, "protocol").get(NAME)
            request = leaf.value if isinstance(leaf, Leaf) and leaf.value is not None else request
        return self.protocols.choose(request)

    def check_one_protocol(self) -> None:
        """Raise ConfigError for several protocols, which only `kedro run` evaluates one after the other."""
        if len(names := self.protocol_names) > 1:
            raise ConfigError(f"protocol={'+'.join(names)}: choose one; only `kedro run` takes several")

    @cached_property
    def protocols(self) -> NamedProtocols:
        """The named protocols of the data set."""
        definitions = merge(*(block(source, "protocols") for source in (self.files, self._command_line)))
        return NamedProtocols(self.dataset, definitions, block(self._dataset_tree, "protocols"))

    @property
    def model_names(self) -> list[str]:
        """Names of all models in the files."""
        return list(block(self.files, "models"))

    def is_overridden(self, key: str) -> bool:
        """Return whether the command line sets the top-level ``key``."""
        return key in self._command_line

    def type_of(self, model: str) -> str:
        """Return the model's type, a file name in ``recpipe/models``. Raises ConfigError where no file has one."""
        leaf = self._model_tree(model).get("type")
        if isinstance(leaf, Leaf) and leaf.value is not None:
            return str(leaf.value)
        raise ConfigError(f"models.{model} has no type: add `type: <file in recpipe/models>`, or `extends: <model>`")

    def tree(self, model: str) -> Tree:
        """Return all settings of a model on the data set with their origins; ``train`` and ``side`` are complete."""
        common: Tree = {name: block(self._top, name) for name in BY_MODEL}
        of_dataset = block(self._command_line, "datasets", self.dataset)
        overrides = merge(*(pick_blocks(tree, BY_MODEL) for tree in (self._command_line, of_dataset)))
        side = to_values(common["side"])
        is_side_set = any(split_names(side.get(part)) for part in ("vectors", "items", "users", "events"))
        if is_side_set and self.model_info is not None and not self.model_info(self.type_of(model)).takes_side:
            common["side"] = {}
            overrides.pop("side", None)
        return merge(common, self._model_tree(model), overrides, *self._layers(self._command_line, model))

    def file_tree(self, model: str) -> Tree:
        """Return all settings of a model that the files name, without the command line."""
        return merge({SEARCH_SPACE: {}}, pick_blocks(self.files, BY_MODEL), self._model_tree(model))

    def extra_settings(self, path: str, model: str | None) -> Mapping[str, Any]:
        """Return defaults of the model's Config, for settings at ``path`` that no file names."""
        parts = path.split(".")[2:]  # behind models.<model>
        is_config = len(parts) in (0, 2) and parts[:1] not in (["train"], ["side"])
        if model is None or self.model_info is None or not is_config:
            return {}
        return self.model_info(self.type_of(model)).settings

    def origins(self, models: list[str]) -> dict[str, Leaf]:
        """Return values of ``parameters`` with their origins, by dotted path."""
        return dict(leaves({**self._top, "models": {name: self.tree(name) for name in models}}))

    def file_hint(self, path: str, models: Iterable[str] = (), name: str | None = None) -> str:
        """Return the file of a dotted path of ``parameters`` as `` (file)``; an empty string if unknown.

        For a block it is the file of its key called ``name``, otherwise of its first key.
        """
        origins = self.origins([model for model in models if f"{path}.".startswith(f"models.{model}.")])
        inside = {key: leaf for key, leaf in origins.items() if f"{key}.".startswith(f"{path}.")}
        matches = [leaf for key, leaf in inside.items() if name in key.split(".")]
        leaf = next(iter([*matches, *inside.values()]), None)
        return "" if leaf is None else f" ({leaf.file})"

    @cached_property
    def _command_line(self) -> Tree:
        return to_tree(self.overrides, COMMAND_LINE)

    @cached_property
    def _dataset_tree(self) -> Tree:
        return merge(self._dataset_files, block(self._command_line, "datasets", self.dataset))

    @cached_property
    def _dataset_files(self) -> Tree:
        """The data set's block in the files, over the settings of the one that it is ``like``."""
        other = block(self.files, "datasets", self.like) if self.like else {}
        settings: Tree = {name: entry for name, entry in other.items() if name in (*BY_DATASET, *LIKE_KEYS)}
        return merge(settings, drop_null(block(self.files, "datasets", self.dataset), (*BY_DATASET, "steps")))

    @cached_property
    def like(self) -> str | None:
        """The data set whose settings this one takes. Raises ConfigError for an unknown one."""
        sources = (block(source, "datasets", self.dataset) for source in (self.files, self._command_line))
        leaf = merge(*sources).get("like")
        if not isinstance(leaf, Leaf) or leaf.value is None:
            return None
        others = [name for name in block(self.files, "datasets") if name != self.dataset]
        check_known(leaf.value, others, what="data set", hint=f" ({leaf.origin})")
        if "like" in block(self.files, "datasets", str(leaf.value)):
            raise ConfigError(f"{leaf.origin} is {leaf.value!r}, which is like another data set itself; name that one")
        return str(leaf.value)

    @cached_property
    def _top(self) -> Tree:
        """The top level without models, the data set's blocks over the common ones; of the data sets only this one."""
        top: Tree = {}
        name = next(iter(self.protocol_names), None)
        named = {} if name is None else self.protocols.fields(name)
        for source in (self.files, self._command_line):
            common = {key: entry for key, entry in source.items() if key not in ("models", "datasets")}
            dataset, by_name = self._dataset_files, Tree({"protocol": named} if named else {})
            if source is self._command_line:
                dataset, by_name = block(source, "datasets", self.dataset), Tree()
            top = merge(top, common, by_name, pick_blocks(dataset, BY_DATASET))
        protocol = block(top, "protocol")
        top["protocol"] = with_effective_name(protocol, block(self.files, "protocol"), named, name)
        dataset = {key: entry for key, entry in self._dataset_tree.items() if key not in BY_DATASET}
        if (baselines := dataset.pop("baselines", None)) and "baselines" not in self._command_line:
            top["baselines"] = baselines
        semantic_ids = with_kinds(block(top, "semantic_ids"))
        return {**top, "datasets": {self.dataset: dataset}, "semantic_ids": semantic_ids}

    def _model_tree(self, model: str) -> Tree:
        """Return settings of a model and of those that it extends, from the files, without the common blocks."""
        return merge(*(layer for name in reversed(self._ancestors(model)) for layer in self._layers(self.files, name)))

    def _layers(self, source: Tree, model: str) -> list[Tree]:
        """Return the settings of a model in ``source``: for all data sets, for the profile, for the data set."""
        entry = block(source, "models", model)
        general = {name: value for name, value in entry.items() if name not in ("extends", "profiles", "datasets")}
        by_profile = block(entry, "profiles", self.profile) if self.profile else {}
        by_dataset = [block(entry, "datasets", name) for name in (self.like, self.dataset) if name]
        return [drop_null(layer, (*BY_MODEL, SEARCH_SPACE)) for layer in (general, by_profile, *by_dataset)]

    def _ancestors(self, model: str) -> list[str]:
        """Return the model, the one that it extends, and so on."""
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
