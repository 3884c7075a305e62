"""Kedro session and config loader of the project, and the plan of runs over several seeds, protocols and folds.

``recpipe.config`` reads and checks the configuration once; Kedro gets its parameters and globals from there.
"""

from __future__ import annotations

import dataclasses
import glob
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.session import KedroSession
from kedro.runner import ParallelRunner
from kedro.utils import find_kedro_project

from recpipe.config import ConfigError, Configuration, DataPaths, build_config, split_names
from recpipe.config.files import expand_shorthands
from recpipe.config.run_config import AUTO
from recpipe.data.protocol import EVALUATION_FIELDS, Protocol
from recpipe.hooks.checks import check_types
from recpipe.kedro_compat import SessionWithOneLoader, reload_pipelines, restore_globals, spawn_processes
from recpipe.pipelines.wiring import (
    NEED_FOLDS,
    ON_REQUEST,
    WHOLE,
    Wiring,
    command_wiring,
    holds_out,
    model_info,
    remember,
    use_wiring,
)

log = logging.getLogger(__name__)

ONCE = ("ingest", "embed", "semantic_ids")  # pipelines that do not depend on the seed; they run first
REPORT = "report"
LAST = ("geometry", REPORT)  # pipelines that compare all seeds; they run last
PER_SEED = ["train", "evaluate"]  # of the whole project
PER_PROTOCOL = ("evaluate", "ensemble")  # pipelines that run under each of several protocols after one training
Plan = list[tuple[int, list[str] | None]]
PROCESS_COUNTS = {"WORLD_SIZE": "torchrun", "SLURM_STEP_NUM_TASKS": "srun"}  # environment variable: its program
NODE_FILTERS = ("tags", "node_names", "namespaces", "from_nodes", "to_nodes", "from_inputs", "to_outputs")


class RecpipeConfigLoader(OmegaConfigLoader):
    """Kedro's loader of catalog, credentials and mlflow.yml; parameters and globals come from ``Configuration``."""

    def __init__(
        self, conf_source: str, env: str | None = None, runtime_params: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        conf = Path(conf_source).resolve()
        project = find_kedro_project(conf) or find_kedro_project(Path.cwd())
        check_path(conf)
        check_path(project or conf)
        self.configuration = Configuration.read(conf, env, runtime_params, model_info, project)
        remember(self.configuration)
        reload_pipelines()  # those of an earlier session in this process are of other models
        self._parameters: dict[str, Any] | None = None
        super().__init__(conf_source, env=env, runtime_params=dict(runtime_params or {}), **options)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """As in Kedro; ``globals`` are all scalars of the top level, such as ``dataset`` and ``seed``."""
        if key == "globals":
            return self.configuration.scalars()
        if key == "parameters":
            if self._parameters is None:
                self._parameters = self.configuration.parameters(self.configuration.model_names)
            return self._parameters
        restore_globals(self)
        return super().__getitem__(key)


def check_path(path: Path) -> None:
    """Raise ConfigError for a folder that Kedro reads as a pattern: one with braces, brackets, ``*`` or ``?``."""
    if path.exists() and ("{" in str(path) or "}" in str(path) or glob.glob(str(path)) != [str(path)]):
        raise ConfigError(
            f"Kedro cannot work in {path}: it reads braces, brackets, * and ? in the path of a project as a pattern. "
            "Rename the folder"
        )


def check_single_process(environment: Mapping[str, str]) -> None:
    """Raise ConfigError in one of several processes of torchrun or SLURM's srun: each would run the pipeline."""
    for name, launcher in PROCESS_COUNTS.items():
        if (count := environment.get(name, "1")).isdecimal() and int(count) > 1:
            raise ConfigError(
                f"{launcher} started {count} processes, and each would run the whole pipeline. One machine needs no "
                f"{launcher}: `kedro run --params train.devices=...`. Several run {launcher} ... "
                f"{'-m' if launcher == 'torchrun' else 'python -m'} recpipe.training.standalone --dataset ... "
                "--models ... on data that Kedro prepared (docs/tutorials/gpus-and-clusters.md)"
            )


class RecpipeSession(SessionWithOneLoader):
    """Kedro's session with pipelines for the models of the command, and a run for each seed, protocol and fold."""

    @classmethod
    def create(cls, *args: Any, **options: Any) -> KedroSession:
        """As KedroSession.create; Kedro merges ``runtime_params`` into the parameters, so shorthands are expanded."""
        bound = inspect.signature(super().create).bind(*args, **options).arguments
        return super().create(**{**bound, "runtime_params": expand_shorthands(bound.get("runtime_params") or {})})

    @property
    def configuration(self) -> Configuration:
        """Configuration of the files and ``--params``."""
        loader = self.config_loader
        assert isinstance(loader, RecpipeConfigLoader)
        return loader.configuration

    def run(self, *args: Any, **options: Any) -> dict[str, Any]:
        """As KedroSession.run. Raises ConfigError for unknown names and wrong types before the first node."""
        check_single_process(os.environ)
        options = dict(inspect.signature(super().run).bind(*args, **options).arguments)
        # Kedro deprecates the first
        names = [options.pop("pipeline_name", None), *(options.get("pipeline_names") or ())]
        options["pipeline_names"] = [name for name in names if name]
        if isinstance(options.get("runner"), ParallelRunner):
            spawn_processes()
        if folds := requested_folds(self.configuration, options["pipeline_names"]):
            return self._run_folds(folds, options)
        if len(self.configuration.protocol_names) > 1:
            return self._run_protocols(options)
        if seeds := requested_seeds(self.configuration):
            return self._run_seeds(seeds, options)
        filters = [str(word) for key in NODE_FILTERS for word in options.get(key) or ()]
        wiring = command_wiring(self.configuration, options["pipeline_names"], filters)
        check_types(self.configuration, wiring.runs.values())
        if not wiring.holds_out and (not options["pipeline_names"] or WHOLE in options["pipeline_names"]):
            log.info("protocol.split is none: nothing is held out, so evaluate and report are left out")
        if self.configuration.profile == AUTO and wiring.requested != ("ingest",):
            return self._run_with_profile(options, wiring, ingest_first="ingest" in wiring.requested and not filters)
        with use_wiring(wiring):
            reload_pipelines()
            return super().run(**options)

    def _run_with_profile(self, options: dict[str, Any], wiring: Wiring, *, ingest_first: bool) -> dict[str, Any]:
        """Run in a session with the profile that the statistics of the log give, after a session that ingests it."""
        from recpipe.data.digests import verified
        from recpipe.evaluation.profile import choose_profile

        pipelines, params = options["pipeline_names"], dict(self.store.get("runtime_params") or {})
        dataset = self.configuration.dataset
        if ingest_first:
            with self.sibling(params) as session:
                session.run(**{"pipeline_names": ["ingest"]})
            if not pipelines or WHOLE in pipelines:  # its models, the baselines too, and no second ingest
                params["model"], pipelines = "+".join(wiring.models), wiring.requested
            pipelines = [name for name in pipelines if name != "ingest"]
        paths = DataPaths(**self.configuration.parameters()["paths"])
        if (file := paths.reporting / "data_profile.json").is_file():
            statistics = json.loads(verified(file).read_text(encoding="utf-8"))
            profile = choose_profile(statistics, self.configuration["profiles"])
            log.info(
                "profile auto: %s, as the log has %s events, %.1f a user",
                profile or "defaults, no tuned settings fit",
                f"{statistics['rows']:,}",
                statistics["rows"] / statistics["users"],
            )
        else:
            profile = None
            log.warning("profile auto: none, as %s has no statistics yet; run the pipeline ingest", dataset)
        datasets = dict(params.get("datasets") or {})
        datasets[dataset] = {**(datasets.get(dataset) or {}), "profile": profile}
        params = {**params, "datasets": datasets}
        log_settings(dataclasses.replace(self.configuration, overrides=params), pipelines)
        with self.sibling(params) as session:
            outputs: dict[str, Any] = session.run(**{**options, "pipeline_names": pipelines})
        return outputs

    def _run_folds(self, folds: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """Run a session for each fold of a rolling split, and the report under the last, which the split on disk is."""
        pipelines, outputs = options["pipeline_names"], {}
        models = "+".join(command_wiring(self.configuration, pipelines).models)
        filtered = any(options.get(name) for name in NODE_FILTERS)
        for number, (fold, stages) in enumerate(plan_runs(folds, pipelines, filtered=filtered, last=folds[-1])):
            log.info("fold %s: %s", fold, ", ".join(stages or ["the whole project"]))
            params = with_protocol(self.store.get("runtime_params") or {}, self.configuration.dataset, fold=fold)
            params |= {"model": models} if number else {}  # of a whole run the baselines too
            with self.sibling(params) as session:
                outputs = session.run(**{**options, "pipeline_names": stages or []})
        return outputs

    def _run_protocols(self, options: dict[str, Any]) -> dict[str, Any]:
        """Run a session for each of several protocols: the first for all pipelines, the others to evaluate."""
        names, pipelines = self.configuration.protocol_names, options["pipeline_names"]
        check_same_training(self.configuration)
        wiring = command_wiring(self.configuration, pipelines)
        filtered = any(options.get(name) for name in NODE_FILTERS)
        outputs: dict[str, Any] = {}
        for name, stages in plan_protocols(names, pipelines, wiring.requested, filtered=filtered):
            log.info("protocol %s: %s", name, ", ".join(stages or ["the whole project"]))
            params = with_protocol(self.store.get("runtime_params") or {}, self.configuration.dataset, name=name)
            if stages != pipelines:
                params["model"] = "+".join(wiring.models)  # of a whole run the baselines too
            with self.sibling(params) as session:
                outputs = session.run(**{**options, "pipeline_names": stages})
        return outputs

    def _run_seeds(self, seeds: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """Run a session for each seed, since Kedro allows one run in each; return the outputs of the last one."""
        filtered = any(options.get(name) for name in NODE_FILTERS)
        outputs: dict[str, Any] = {}
        plan = plan_runs(seeds, options["pipeline_names"], filtered=filtered)
        whole = not options["pipeline_names"] or WHOLE in options["pipeline_names"]
        for seed, pipelines in without_folds(plan) if whole and not holds_out(self.configuration) else plan:
            log.info("seed %s: %s", seed, ", ".join(pipelines or ["the whole project"]))
            params = {**(self.store.get("runtime_params") or {}), "seed": seed, "seeds": None}
            with self.sibling(params) as session:
                outputs = session.run(**{**options, "pipeline_names": pipelines or []})
        return outputs


def with_protocol(params: Mapping[str, Any], dataset: str, **fields: Any) -> dict[str, Any]:
    """Return overrides with these fields of the block ``protocol``, and of the data set's block where it has them."""
    overrides = {**params, "protocol": {**(params.get("protocol") or {}), **fields}}
    of_dataset = (params.get("datasets") or {}).get(dataset) or {}
    block = of_dataset.get("protocol") or {}
    if repeated := {name: value for name, value in fields.items() if name in block}:
        block = {"protocol": {**block, **repeated}}
        overrides["datasets"] = {**params["datasets"], dataset: {**of_dataset, **block}}
    return overrides


def requested_folds(configuration: Configuration, pipelines: Sequence[str]) -> list[int]:
    """Return the folds of a rolling split to run one after the other, [] where there is one or none needs a split.

    Raises ConfigError for pipelines whose results would replace each other, and for folds that do not exist.
    """
    protocol = configuration["protocol"]
    if protocol["split"] != "rolling" or type(protocol["fold"]) is int:
        return []
    number = protocol["folds"]
    if type(number) is not int or number < 1:
        raise ConfigError(f"protocol.folds is {number!r}; give the number of test windows, a whole number from 1")
    try:
        folds = parse_seeds(protocol["fold"]) if protocol["fold"] is not None else list(range(1, number + 1))
    except ValueError:
        folds = [0]
    if not folds or min(folds) < 1 or max(folds) > number:
        raise ConfigError(f"protocol.fold is {protocol['fold']!r}; give folds from 1 to {number}, as 1+2")
    unable = [name for name in pipelines if name in ON_REQUEST and name not in (*PER_PROTOCOL, *LAST)]
    if unable and len(folds) > 1:
        raise ConfigError(
            f"{', '.join(unable)} cannot run over the folds of a rolling split: choose one, as "
            f"--params protocol.fold={number}"
        )
    needs_all = not pipelines or bool(set(pipelines) - {*ONCE, *LAST})
    return folds if needs_all else folds[-1:]


def check_same_training(configuration: Configuration) -> None:
    """Raise ConfigError where the protocols of a command need trainings of their own, with the fields that differ."""
    protocols = {}
    for name in configuration.protocol_names:
        params = with_protocol(configuration.overrides, configuration.dataset, name=name)
        fields = dataclasses.replace(configuration, overrides=params).parameters()["protocol"]
        protocols[name] = build_config(Protocol, fields, where="protocol")
    first, *others = protocols
    for name in others:
        if differing := protocols[first].data_differences(protocols[name]):
            pairs = [(key, getattr(protocols[first], key), getattr(protocols[name], key)) for key in differing]
            values = [f"{key}, {one} and {other}" for key, one, other in pairs]
            raise ConfigError(
                f"protocol={'+'.join(protocols)}: one training can be evaluated under several protocols only where "
                f"they differ in {', '.join(EVALUATION_FIELDS)}; {first} and {name} differ in {' and '.join(values)}. "
                "Run the command once for each"
            )


def plan_protocols(
    names: Sequence[str], pipelines: Sequence[str], requested: Sequence[str], *, filtered: bool = False
) -> list[tuple[str, list[str]]]:
    """Return protocol and pipelines of each run in order; the report comes last, under the first protocol.

    ``requested``: the pipelines of the command, those of a whole run by name. Without a training among them, the report
    and what precedes the training run once. Raises ConfigError for others without an evaluation.
    """
    if filtered:
        return [(name, list(pipelines)) for name in names]
    if set(requested) <= {*ONCE, *LAST}:  # as the report after the last of several folds
        return [(names[0], list(pipelines))]
    again = [pipeline for pipeline in PER_PROTOCOL if pipeline in requested]
    if not again:
        raise ConfigError(
            f"protocol={'+'.join(names)}: only {' and '.join(PER_PROTOCOL)} run under several protocols, and this "
            f"command has {', '.join(requested)}: choose one protocol, or add evaluate"
        )
    first, *others = names
    whole = not pipelines or WHOLE in pipelines
    begins = [name for name in pipelines if name not in LAST]
    ends = [name for name in LAST if name in pipelines or (name == REPORT and REPORT in requested)]
    runs = [(first, [] if whole else begins), *((name, again) for name in others), (first, ends)]
    return [(name, stages) for number, (name, stages) in enumerate(runs) if stages or (whole and number == 0)]


def without_folds(plan: Plan) -> Plan:
    """Return the runs of a whole project whose protocol holds nothing out."""
    runs = [(seed, names and [name for name in names if name not in NEED_FOLDS]) for seed, names in plan]
    return [(seed, names) for seed, names in runs if names is None or names]


def log_settings(configuration: Configuration, pipelines: Sequence[str]) -> None:
    """Log batch size, history length and dropout of the models of a command that are trained by gradient."""
    for run in command_wiring(configuration, pipelines).runs.values():
        if model_info(run.type).by_gradient:
            window = run.train["window"] or configuration["protocol"]["history"]
            dropout = run.settings.get("dropout", model_info(run.type).settings.get("dropout"))
            tokens = run.train["batch_tokens"]
            log.info("%s: steps of %s events, histories of %s, dropout %s", run.name, tokens, window, dropout)


def requested_seeds(configuration: Configuration) -> list[int]:
    """Return the seeds to run, [] for a single run. Raises ConfigError for other values, and for seed with seeds."""
    try:
        seeds = parse_seeds(configuration["seeds"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    overrides = configuration.overrides
    if seeds and "seeds" in overrides and "seed" in overrides:
        raise ConfigError(f"seed={overrides['seed']} and seeds={overrides['seeds']}: give one of the two")
    return [] if "seeds" not in overrides and "seed" in overrides else seeds


def parse_seeds(seeds: Any) -> list[int]:
    """Parse `42+123`, 42 or a list to a list without repeats, null to []. Raises ValueError for other values."""
    if seeds is None:
        return []
    words = seeds if isinstance(seeds, Sequence) and not isinstance(seeds, str) else split_names(seeds)
    try:
        numbers = [int(str(word)) for word in words]
    except ValueError:
        numbers = [-1]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds is {seeds!r}; give whole numbers from 0, as 42+123+2023")
    return list(dict.fromkeys(numbers))


def plan_runs(
    seeds: Sequence[int], pipelines: Sequence[str] | None, *, filtered: bool = False, last: int | None = None
) -> Plan:
    """Return seed, or fold, and pipelines (None: all) of each run in order; a ``filtered`` command repeats its own.

    The report runs with ``last``, by default the first.
    """
    first, *others = seeds
    if filtered or not others:
        return [(seed, list(pipelines) if pipelines else None) for seed in seeds]
    ends = [name for name in pipelines or () if name in LAST]
    if not pipelines or WHOLE in pipelines:
        ends = [*(name for name in ends if name != REPORT), REPORT]
        return [(first, None), *((seed, PER_SEED) for seed in others), (last or first, ends)]
    begins = [name for name in pipelines if name not in LAST]
    again = [name for name in begins if name not in ONCE]
    runs = [(first, begins), *((seed, again) for seed in others), (last or first, ends)]
    return [(seed, names) for seed, names in runs if names]
