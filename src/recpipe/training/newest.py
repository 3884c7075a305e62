"""Newest bundle of a run, measured or for production, with the measured run that it stands for."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recpipe.config import DataPaths, RunConfig
from recpipe.data.atomic import versions_newest_first
from recpipe.data.digests import verified
from recpipe.training.bundle import Bundle, load_bundle
from recpipe.training.bundle_folders import newest_bundle, version_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewestRun:
    """A bundle, its version, and the measured run that it is or stands for, as in ``training["production"]``."""

    bundle: Bundle
    version: str
    stands_for: dict[str, Any]


def newest_run(paths: DataPaths, config: RunConfig) -> NewestRun:
    """Load the newest bundle of a model and seed. Raises ValueError without one, with the command that trains it."""
    seed = f"seed_{config.seed}"
    try:
        folder = newest_bundle(paths.models / config.name / seed)
    except ValueError as error:
        raise ValueError(
            f"there is no bundle of {config.name} with seed {config.seed}: `kedro run --pipelines=train,evaluate "
            f"--params dataset={config.dataset},model={config.name},seed={config.seed}` trains it"
        ) from error
    version = version_of(folder)
    bundle = load_bundle(folder, accelerate=config.accelerate, with_seen_events=True)
    log.info("%s: the newest bundle is %s/%s", config.name, folder.name, version)
    production = bundle.training.get("production")
    if production is not None:
        return NewestRun(bundle, version, dict(production["stands_for"]))
    metrics = _metrics(paths.reporting / config.name / seed / "metrics.json", bundle)
    about = {"run": f"{config.dataset}/{config.name}/{seed}", "version": version, "protocol": bundle.protocol.id}
    return NewestRun(bundle, version, {**about, "metrics": metrics})


def evaluation_of(path: Path, bundle: Bundle) -> dict[str, Any] | None:
    """Return the newest metrics.json of this training under the bundle's protocol, else under any; None without one.

    ``path`` is the metrics.json of the run, with a folder for each version. A training may be evaluated under several
    protocols; that of the training is what the bundle is known by. A damaged version is left out with a warning.
    """
    newest = None
    for file in versions_newest_first(path):
        try:
            metrics: dict[str, Any] = json.loads(verified(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("an evaluation is left out, as it cannot be read: %s", error)
            continue
        if is_of_training(metrics, bundle):
            if metrics["protocol"]["id"] == bundle.protocol.id:
                return metrics
            newest = newest or metrics
    return newest


def is_of_training(metrics: Mapping[str, Any], bundle: Bundle) -> bool:
    """Return whether a metrics.json belongs to this training of the model, by its measured cost if it has one."""
    cost = metrics.get("cost")
    if cost is None:  # of an older version
        return True
    return all(cost.get(key) == value for key, value in bundle.training.get("cost", {}).items())


def _metrics(path: Path, bundle: Bundle) -> dict[str, Any]:
    """Return the test metrics of the newest evaluation under the bundle's protocol, none if there is none."""
    metrics = evaluation_of(path, bundle)
    if metrics is not None and metrics["protocol"]["id"] == bundle.protocol.id:
        return dict(metrics["test"])
    log.warning("%s has no metrics under its protocol %s: it was not evaluated", bundle.name, bundle.protocol.id)
    return {}
