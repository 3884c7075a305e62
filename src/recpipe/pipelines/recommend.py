"""Pipeline recommend: lists for every user of the log, or for a file of requests, from the newest bundle of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import ConfigError, DataPaths, RunConfig, build_config
from recpipe.config.run_config import BUNDLES
from recpipe.config.schema import DatasetConfig, EvaluateConfig, RecommendConfig
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

if TYPE_CHECKING:
    from recpipe.data.requests import Requests
    from recpipe.evaluation.recommendations import SubmissionLayout
    from recpipe.serving.batch import BatchJob, Compute
    from recpipe.serving.batch_spark import BundleSource
    from recpipe.serving.model import ServingBundle

log = logging.getLogger(__name__)

PRODUCERS = {"bundle": ("train",), "production": ("refit", "update", "add_items")}  # pipelines by kind of bundle


@dataclass
class BatchLists:
    """Lists that ``write`` computes, so that they never lie in memory as a whole; then there is a ``summary``."""

    job: BatchJob
    requests: Requests
    engine: Mapping[str, Any]
    compute: Compute | None = None  # by default in this process
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write lists, submission, summary and rows that could not be used into ``folder``."""
        quarantine = folder / "quarantine.parquet"
        with self.requests.stored(self.job.model.vocabulary, self.engine, quarantine=quarantine) as histories:
            self.summary = self.job.write(histories, folder, self.compute)


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``recommend_to_users`` in the namespace of every model."""
    shared = node_inputs("interactions", params=("recommend", "evaluate", "ingest", "paths"))
    shared |= {"dataset": f"params:datasets.{wiring.dataset}"}
    nodes = []
    for model in wiring.models:
        inputs = {**shared, "config": f"params:models.{model}"}
        for kind, pipelines in PRODUCERS.items():  # a bundle that the same command makes comes first
            if set(pipelines) & set(wiring.requested):
                inputs[kind] = f"{model}_{kind}"
        nodes.append(create_node(recommend_to_users, inputs, f"{model}_recommendations", model))
    return Pipeline(nodes)


def recommend_to_users(
    interactions: Path,
    recommend: RecommendConfig,
    evaluate: EvaluateConfig,
    ingest: dict[str, Any],
    paths: DataPaths,
    dataset: DatasetConfig,
    config: RunConfig,
    **bundles: Any,
) -> BatchLists:
    """Prepare lists of all requested users; ``bundles`` are those that the same command has just made.

    Raises ConfigError if Spark is asked for and not set up.
    """
    from recpipe.data.engines import check
    from recpipe.evaluation.recommendations import SubmissionLayout
    from recpipe.serving.batch import BatchJob

    layout = build_config(SubmissionLayout, evaluate.submission, where="evaluate.submission")
    requests = _requests(recommend, layout, dataset, interactions)
    for request in (requests.requests, requests.users):
        if request is not None:
            request.check()
    source = _bundle_source(config, recommend, paths)
    model = source.load()
    _log_bundle(model, config)
    about: dict[str, Any] = {
        "dataset": config.dataset,
        "model": config.name,
        "bundle": f"{_kind(model)} {model.version}",
    }
    about |= {"protocol": model.protocol.id}
    about |= {"requests": recommend.requests, "users_file": recommend.users}
    job = BatchJob(
        model,
        recommend.k,
        layout,
        rules=recommend.rules,
        now=recommend.now,
        batch_users=recommend.batch_users,
        about=about,
    )
    engine = {"memory_limit": recommend.memory_limit, "threads": ingest["engine"].get("threads")}
    engine["spill_folder"] = ingest["engine"].get("spill_folder") or str(paths.spill)
    compute = None
    if recommend.engine == "spark":
        from recpipe.serving.batch_spark import SparkLists

        if check(ingest["engine"]) != "spark":
            raise ConfigError(
                "recommend.engine is spark and ingest.engine, which has the settings of Spark, is duckdb: `kedro run "
                "--env spark` sets both"
            )
        compute = SparkLists(source, {**ingest["engine"], "spill_folder": engine["spill_folder"]})
    return BatchLists(job, _with_profiles(requests, model, paths), engine, compute)


def _bundle_source(config: RunConfig, recommend: RecommendConfig, paths: DataPaths) -> BundleSource:
    """Find the newest bundle of the run."""
    from dataclasses import asdict

    from recpipe.serving.batch_spark import BundleSource
    from recpipe.serving.item_index.build import IndexConfig
    from recpipe.training.bundle_folders import newest_bundle
    from recpipe.training.settings import choose_device

    run = paths.models / config.name / f"seed_{config.seed}"
    content = None if recommend.content is None else paths.models / recommend.content / f"seed_{config.seed}"
    return BundleSource(
        str(newest_bundle(run, BUNDLES[recommend.bundle]).absolute()),
        str(choose_device(recommend.device, setting="recommend.device")),
        items=None if recommend.items is None else str(Path(recommend.items).absolute()),
        content=None if content is None else str(content.absolute()),
        accelerate=config.accelerate,
        index=asdict(build_config(IndexConfig, recommend.index, where="recommend.index")),
        settings=dict(config.settings),
    )


def _log_bundle(model: ServingBundle, config: RunConfig) -> None:
    """Log which bundle the lists come from."""
    production = model.training.get("production")
    if production is not None:
        log.info("%s: lists from the production bundle %s, made by %s", *_named(model), production.get("made_by"))
    else:
        log.info(
            "%s: lists from the measured bundle %s, which was not trained on the %s events; "
            "`kedro run --pipeline=refit --params model=%s` trains on every event",
            *_named(model), "test" if model.train_on_validation else "validation and test", config.name,
        )  # fmt: skip


def _named(model: ServingBundle) -> tuple[str, str]:
    return model.name, model.version


def _kind(model: ServingBundle) -> str:
    return "measured" if model.training.get("production") is None else "production"


def _requests(
    recommend: RecommendConfig, layout: SubmissionLayout, dataset: DatasetConfig, interactions: Path
) -> Requests:
    """Describe where histories and users come from."""
    from recpipe.data.requests import RequestFile, Requests

    of_log = dict(dataset.options or {}) if dataset.source == "files" else {}
    requests = users = None
    if recommend.requests is not None:
        columns = {role: column for role, column in recommend.columns.items() if column is not None}
        requests = RequestFile(Path(recommend.requests), columns, recommend.options, of_log)
    if recommend.users is not None:
        names = [name for name in (recommend.columns.get("user_id"), layout.columns.get("user")) if name is not None]
        users = RequestFile(Path(recommend.users), options=recommend.options, log=of_log, user_names=names)
    return Requests(interactions, requests, users)


def _with_profiles(requests: Requests, model: ServingBundle, paths: DataPaths) -> Requests:
    """Add the columns of users that the model reads, and the table of users of the data set."""
    from dataclasses import replace

    return replace(requests, profiles=paths.primary / "users.parquet", profile_columns=model.profile_columns)
