"""MLflow runs of one `kedro run`: a parent run and a nested run per model.

A background thread imports mlflow, opens its store and logs in the order of the calls, so that nodes do not wait. It
uses MlflowClient and no active run, so that several runs in one process stay apart. A failure of tracking is a warning
and does not stop the run.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import math
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from recpipe.config import RunConfig
from recpipe.data.atomic import process_start

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
LONGEST_VALUE = 500  # MLflow's own limit for old servers; longer values are cut
BLOCKS = (  # of metrics.json, with numbers
    "test", "valid", "warm_items", "cold_items", "memorised", "generalised", "debiased", "cold_users", "cost",
)  # fmt: skip
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 500  # MLflow's limits per request are 100 and 1000
PORTS = {"http": 80, "https": 443}
CONNECT_SECONDS = 10
PROCESS = "process"  # tag with host, process id and start of the process that logs a run


class DeletedExperimentError(ValueError):
    """The experiment of the data set was deleted in MLflow; the message says how to restore it."""


class TrackingError(ValueError):
    """Tracking failed, and a node needs it."""


class MlflowRuns:
    """Runs of one command, opened by `start` and closed by `close`.

    `model` names a nested run, as `sasrec` or `sasrec production`; None is the parent.
    """

    def __init__(self) -> None:
        self.where = ""  # experiment and run, for the summary
        self.command = ""  # opens MLflow's page, where the runs are in a file
        self._client: Any = None
        self._experiment = self._parent = ""
        self._tags: dict[str, str] = {}
        self._nested: dict[str, str] = {}
        self._points: set[tuple[str | None, str, int]] = set()
        self._down = False
        self._queue = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        atexit.register(self._killed)  # Ctrl-C is no Exception: Kedro calls no hook then

    def guard(self, action: Callable[[], None]) -> None:
        """Queue `action`; after a failure the rest of the queue is skipped."""
        self._queue.submit(self._do, action)

    def run_id(self, model: str) -> str:
        """Return the id of a run after all queued actions. Raises TrackingError where tracking failed."""
        ids: list[str] = []
        self._queue.submit(self._do, lambda: ids.append(self._run(model))).result()
        if not ids:
            raise TrackingError(f"MLflow has no run for {model}: tracking failed, see the warning above")
        return ids[0]

    def close(self, status: str, *, reason: str | None = None) -> None:
        """End the runs after all queued actions, and wait for that."""
        atexit.unregister(self._killed)
        self.guard(lambda: self.end(status, reason=reason))
        self._queue.shutdown()

    def _do(self, action: Callable[[], None]) -> None:
        if self._down:
            return
        try:
            action()
        except DeletedExperimentError as error:
            self._down = True
            log.warning("MLflow tracking is off for this run; results are not affected. %s", error)
        except Exception as error:  # whatever a tracking server may raise
            self._down = True
            log.warning(
                "MLflow tracking failed and is off for the rest of this run; results are not affected. "
                "See tracking_uri in conf/base/mlflow.yml, or set enabled: false there. %s: %s",
                type(error).__name__,
                error,
            )

    def start(self, conf: dict[str, Any], project: Path, tags: dict[str, str]) -> None:
        """Open the parent run in the experiment of the data set.

        Raises DeletedExperimentError if that was deleted in MLflow.
        """
        from mlflow import MlflowClient

        uri = tracking_uri(conf["tracking_uri"], project)
        check_server(uri)
        self._client = client = MlflowClient(tracking_uri=uri)
        title = f"{conf['experiment_prefix'] or ''}{tags['dataset']}"
        experiment = client.get_experiment_by_name(title)
        _remove_quoted_folder(uri)
        if experiment and experiment.lifecycle_stage == "deleted":
            shown = uri if uri.startswith(SQLITE) else "<tracking_uri>"  # another one may hold a password
            raise DeletedExperimentError(
                f"Its experiment {title!r} was deleted in MLflow: restore it with `MLFLOW_TRACKING_URI='{shown}' "
                f"mlflow experiments restore --experiment-id {experiment.experiment_id}`, or set another "
                "experiment_prefix in conf/base/mlflow.yml"
            )
        files = None if uri.startswith("http") else (project / conf["artifacts"]).resolve().as_uri()
        self._experiment = experiment.experiment_id if experiment else client.create_experiment(title, files)
        self._end_dead_runs(conf["experiment_prefix"] or "")
        self._tags = tags = tags | {PROCESS: f"{platform.node()} {os.getpid()} {process_start(os.getpid())}"}
        name = f"{tags['pipelines']} {tags['models'].replace(' ', '+')}".strip()
        self._parent = client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        self.where = f"experiment {title}, run {name} ({self._parent})"
        self.command = f"mlflow ui --backend-store-uri {conf['tracking_uri']}" if uri.startswith(SQLITE) else ""

    def _end_dead_runs(self, prefix: str) -> None:
        """Mark runs as killed that are still running in MLflow, and whose process on this machine is gone."""
        experiments = [each.experiment_id for each in self._client.search_experiments() if each.name.startswith(prefix)]
        running = f"attributes.status = 'RUNNING' AND tags.{PROCESS} LIKE '{platform.node()} %'"
        for run in self._client.search_runs(experiments, running) if experiments else ():
            host, pid, start = run.data.tags[PROCESS].rsplit(" ", 2)
            if host == platform.node() and str(process_start(int(pid))) != start:  # an underscore is any sign for LIKE
                self._client.set_terminated(run.info.run_id, status="KILLED")

    def params(self, model: str | None, values: dict[str, str]) -> None:
        """Log parameters; a second node of the same model may repeat them."""
        from mlflow.entities import Param

        rows = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(rows), PARAMS_AT_ONCE):
            self._client.log_batch(self._run(model), params=rows[start : start + PARAMS_AT_ONCE])

    def metrics(self, model: str | None, data: dict[str, Any]) -> None:
        """Log a metrics.json: protocol, seed and commit as tags, settings in effect (with defaults) as parameters."""
        from mlflow.entities import RunTag

        self._log_metrics(model, ((name, value, 0) for name, value in metric_values(data).items()))
        protocol = data["protocol"]
        about = {"protocol": protocol["id"], "protocol_name": protocol.get("name"), "fold": protocol.get("fold")}
        about |= {"seed": data["seed"], "commit": data.get("commit")}
        tags = [RunTag(name, str(value)) for name, value in about.items() if value is not None]
        self._client.log_batch(self._run(model), tags=tags)
        if settings := data.get("settings"):
            self.params(model, flat(settings, "settings"))

    def numbers(self, model: str | None, data: dict[str, Any]) -> None:
        """Log every number of nested JSON under its path."""
        self._log_metrics(model, ((name, value, 0) for name, value in numbers(data).items()))

    def curves(self, model: str | None, rows: Any) -> None:
        """Log a curve, or some rows of it, by step; points that were logged before are skipped."""
        points = []
        for name, value, step in curve_points(rows):
            if (model, name, step) not in self._points:
                self._points.add((model, name, step))
                points.append((name, value, step))
        self._log_metrics(model, points)

    def trial(self, model: str | None, row: Mapping[str, Any]) -> None:
        """Log a trial of tuning as a nested run of the model's: settings, values and curve; its state is a tag."""
        from mlflow.entities import Metric, Param, RunTag

        tags = self._nested_tags(self._run(model), model or "") | {"trial": str(row["number"]), "state": row["state"]}
        run = self._client.create_run(self._experiment, run_name=f"trial {row['number']}", tags=tags)
        run_id, now = run.info.run_id, int(time.time() * 1000)
        numbers = {name: row.get(name) for name in ("value", "seconds", "train_seconds", "inference_seconds", "epochs")}
        metrics = [Metric(name, float(value), now, 0) for name, value in numbers.items() if value is not None]
        metrics += [Metric("curve/value", float(value), now, int(epoch)) for epoch, value in row["curve"]]
        params = [Param(allowed(name), str(value)[:LONGEST_VALUE]) for name, value in row["settings"].items()]
        reasons = [RunTag("reason", row["reason"])] if row["reason"] else []
        self._client.log_batch(run_id, metrics=metrics[:METRICS_AT_ONCE], params=params[:PARAMS_AT_ONCE], tags=reasons)
        self._client.set_terminated(run_id)

    def production(self, model: str | None, training: Mapping[str, Any], curve: Any) -> None:
        """Log a production bundle: curve, cost and settings in effect, and as tags the run that it stands for."""
        from mlflow.entities import RunTag

        self.curves(model, curve)
        self.numbers(model, {"cost": training.get("cost") or {}})
        if settings := training.get("settings"):
            self.params(model, flat(settings, "settings"))
        production = training["production"]
        prefix, source = f"{production['made_by']}_of", production["stands_for"]
        tags = {prefix: source["run"], f"{prefix}_version": source["version"], "seed": training.get("seed")}
        rows = [RunTag(name, str(value)) for name, value in tags.items() if value is not None]
        self._client.log_batch(self._run(model), tags=rows)

    def _log_metrics(self, model: str | None, points: Iterable[tuple[str, float, int]]) -> None:
        """Log (name, value, step)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._run(model), metrics=metrics[start : start + METRICS_AT_ONCE])

    def artifact(self, model: str | None, path: Path, *, folder: str | None = None) -> None:
        """Copy a file to the artifacts of the run, into ``folder`` of them."""
        self._client.log_artifact(self._run(model), str(path), folder)

    def json(self, model: str | None, data: Any, name: str) -> None:
        """Write JSON as an artifact of the run."""
        self._client.log_dict(self._run(model), data, name)

    def end(self, status: str, *, reason: str | None = None) -> None:
        """End the nested runs, then the parent. A second call does nothing."""
        client, self._client = self._client, None
        if client is None or not self._parent:
            return
        if reason:
            client.set_tag(self._parent, "error", reason[:500])
        for run_id in (*self._nested.values(), self._parent):
            client.set_terminated(run_id, status=status)

    def _killed(self) -> None:
        self._do(lambda: self.end("KILLED"))  # the queue takes nothing more by then

    def _run(self, model: str | None) -> str:
        """The id of a model's run, which is opened at its first use; of the parent without a model."""
        if model is None:
            return self._parent
        if model not in self._nested:
            tags = self._nested_tags(self._parent, model.partition(" ")[0])
            self._nested[model] = self._client.create_run(self._experiment, run_name=model, tags=tags).info.run_id
        return self._nested[model]

    def _nested_tags(self, parent: str, model: str) -> dict[str, str]:
        tags = {name: value for name, value in self._tags.items() if name != "models"}
        return tags | {"mlflow.parentRunId": parent, "model": model}


def tracking_uri(uri: str, project: Path) -> str:
    """Return MLflow's URI; the path of an SQLite file is relative to ``project``, and its folder is created."""
    from sqlalchemy import URL, make_url

    if not uri.startswith(SQLITE):
        return uri
    path = project / uri.removeprefix(SQLITE)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_plain = make_url(f"{SQLITE}{path}").database == str(path)
    return f"{SQLITE}{path}" if is_plain else URL.create("sqlite", database=str(path)).render_as_string()


def check_server(uri: str) -> None:
    """Raise ConnectionError at once where no server listens at an http address: MLflow would try for minutes."""
    address = urlsplit(uri)
    if address.scheme not in PORTS or getproxies().get(address.scheme):
        return
    place = (address.hostname or "", address.port or PORTS[address.scheme])
    try:
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no tracking server answers at {place[0]}:{place[1]} ({error})") from error


def _remove_quoted_folder(uri: str) -> None:
    """Remove the empty folder that MLflow creates beside a project with ``%`` or ``?`` in its path, by quoted name."""
    if uri.startswith(SQLITE) and "%" in uri:
        with suppress(OSError):  # it is the project's own, or not empty
            os.removedirs(Path(uri.removeprefix(SQLITE)).parent)


def flat(value: Any, name: str) -> dict[str, str]:
    """Flatten a parameter block to `{"train.lr": "0.001"}`; dataclasses and pydantic models too."""
    if isinstance(value, RunConfig):  # under the paths of the command line
        fields = dataclasses.asdict(value)
        del fields["search_space"]
        value = fields.pop("settings") | fields
    elif hasattr(value, "model_dump"):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        rows: dict[str, str] = {}
        for key, inner in value.items():
            rows |= flat(inner, f"{name}.{key}")
        return rows
    return {allowed(name): str(value)[:LONGEST_VALUE]}


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a metrics.json as `{"test/ndcg_at_10": 0.18}`."""
    return {
        allowed(f"{part}/{name}"): float(value)
        for part in BLOCKS
        for name, value in (metrics.get(part) or {}).items()
        if _is_number(value)
    }


def numbers(data: Any, path: str = "") -> dict[str, float]:
    """Every finite number of nested JSON by its path, `{"levels/1/usage": 0.99}`; lists count from 1."""
    if _is_number(data):
        return {allowed(path): float(data)}
    inner = data.items() if isinstance(data, Mapping) else enumerate(data, 1) if isinstance(data, list) else ()
    values: dict[str, float] = {}
    for key, value in inner:
        values |= numbers(value, f"{path}/{key}" if path else str(key))
    return values


def curve_points(curves: Any) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every finite number of a curve: a polars table or dicts, a row per `step`."""
    rows = curves.to_dicts() if hasattr(curves, "to_dicts") else curves
    for number, row in enumerate(rows):
        step = int(row["step"]) if row.get("step") is not None else number
        for name, value in row.items():
            if name not in ("step", "epoch") and _is_number(value):
                yield allowed(f"curve/{name}"), float(value), step


def allowed(name: str) -> str:
    """Replace `@` and other characters that MLflow does not allow in names."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
