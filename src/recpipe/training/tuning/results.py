"""Result of a study: trials, best trial, Pareto front, importance of settings; settings as a block of a conf file."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from recpipe.config import RunConfig
from recpipe.config.files import CHOICES
from recpipe.config.run_config import BY_MODEL
from recpipe.training.tuning.space import SearchSpace
from recpipe.training.tuning.study import CONFIGURED, FINISHED, FIRST, REASON
from recpipe.training.variants import all_settings

log = logging.getLogger(__name__)

OF_THE_MACHINE = ("device", "devices", "num_nodes", "strategy", "loggers", "log_every", "resume")
COST = ("train_seconds", "inference_seconds", "epochs", "best_epoch", "parameters", "peak_memory_mib")


def study_result(study: Study, space: SearchSpace, *, metric: str, objectives: str) -> dict[str, Any]:
    """Return the study as JSON.

    trials: finished ones, with ``settings``, ``value`` of the metric (of a pruned trial the best so far), ``state``,
    ``reason``, ``seconds``, ``curve`` of [epoch, value], ``configured`` for the conf as it stands, and the cost. best:
    the number of the completed trial with the best metric. pareto: numbers, by metric, of two objectives.
    importance: share of each setting in the variance of the metric (fANOVA, Hutter et al. 2014); empty below four
    completed trials.
    """
    stored = study.get_trials(deepcopy=False)
    trials = [trial_row(trial, space) for trial in stored if trial.state in FINISHED]
    complete = [row for row in trials if row["state"] == "complete"]
    best = max(complete, key=lambda row: (row["value"], -row["number"]), default=None)
    configured = [row["value"] for row in complete if row["configured"]]
    pareto = [trial.number for trial in study.best_trials] if complete and len(study.directions) > 1 else []
    order = {row["number"]: row["value"] for row in complete}
    return {
        "study": study.study_name,
        "metric": metric,
        "objectives": objectives.split("+"),
        "search_space": space.description(),
        "trials": trials,
        "best": None if best is None else best["number"],
        "configured": configured[0] if configured else None,
        "pareto": sorted(pareto, key=lambda number: -order[number]),
        "importance": importance(study, complete),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def trial_row(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    """Return a finished trial as JSON."""
    curve = sorted(trial.intermediate_values.items())
    value = trial.values[0] if trial.state == TrialState.COMPLETE else max((each for _, each in curve), default=None)
    attributes = trial.user_attrs
    start, end = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "state": "complete" if trial.state == TrialState.COMPLETE else "pruned",
        "value": value,
        "reason": attributes.get(REASON, ""),
        "configured": bool(attributes.get(CONFIGURED)),
        "continues": attributes.get(FIRST),
        "settings": space.decode(trial.params),
        "seconds": (end - start).total_seconds() if start and end else None,
        "curve": [list(point) for point in curve],
        **{name: attributes[name] for name in COST if name in attributes},
    }


def importance(study: Study, complete: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the importance of settings for the metric, largest first; empty without enough different trials."""
    if len(complete) < 4 or len({row["value"] for row in complete}) < 2:
        return {}
    target = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    except (ValueError, RuntimeError, ImportError) as error:
        log.info("importance of settings is left out: %s", error)
        return {}
    return {name: float(share) for name, share in shares.items()}


def best_settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the best trial. Raises KeyError where none was completed."""
    return next(dict(row["settings"]) for row in result["trials"] if row["number"] == result["best"])


def conf_block(parent: RunConfig, tuned: RunConfig) -> dict[str, Any]:
    """Return the settings in which ``tuned`` differs from ``parent`` as a nested block of a conf file.

    A loss, optimiser or schedule of another name stands there as a whole, as it replaces the one below. Settings of the
    machine, such as the device, are left out.
    """
    defaults = {name: value for name, value in all_settings(parent).items() if "." not in name}
    block = _difference(defaults, tuned.settings)
    for name in BY_MODEL:
        if changes := _difference(getattr(parent, name), getattr(tuned, name)):
            block[name] = {key: value for key, value in changes.items() if key not in OF_THE_MACHINE}
    if tuned.ids != parent.ids:
        block["ids"] = "+".join(tuned.ids)
    return {name: value for name, value in block.items() if value != {} or name not in BY_MODEL}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            is_other = name in CHOICES and before.get("name") != value.get("name")
            inner = copy.deepcopy(dict(value)) if is_other else _difference(before, value)
            if inner:
                changes[name] = inner
        elif name not in old or before != value:
            changes[name] = copy.deepcopy(value)
    return changes
