"""Registration of a bundle in the MLflow model registry: version, tags, data set, alias champion or challenger.

Everything goes through MlflowClient, without an active run, so that several registrations in one process stay apart.
Ranks of the test users lie in the run of a version (``evaluation/ranks.parquet``): later evaluations replace those on
disk, and a later version is compared by them.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from recpipe.serving.registry.champion import Decision, Evidence
from recpipe.serving.registry.mlflow_model import save_mlflow_model
from recpipe.training.bundle import Bundle

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: MLflow's page shows its registered versions by it
EVALUATION = "evaluation"  # folder of artifacts of a version's run
RANKS = f"{EVALUATION}/ranks.parquet"
MEASURED_METRIC = "measured."  # prefix of tags with metrics of the measured run
LOG_COLUMNS = {"user_id": "string", "item_id": "string", "timestamp": "long", "order": "long"}
DESCRIPTION = "Recommendations of recpipe for users with and without history: a user a row in, an item a row out."


@dataclass(frozen=True)
class Registry:
    """Registered models of an MLflow store; ``run_id`` is the run that new versions belong to."""

    tracking_uri: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        """A client of the store."""
        return MlflowClient(tracking_uri=self.tracking_uri)

    def champion(self, name: str) -> tuple[str, Evidence] | None:
        """Return version and evidence of the present champion, None without one."""
        with _store_errors(self.tracking_uri):
            version = _version_of_alias(self.client, name, CHAMPION)
            return None if version is None else (str(version.version), _evidence(self.client, version))

    def register(self, name: str, bundle: Bundle, folder: Path, evidence: Evidence, tags: Mapping[str, str]) -> str:
        """Log the bundle in ``folder`` as an MLflow model and register it under ``name``; return its version."""
        tags = {**tags, **evidence_tags(evidence)}
        with _store_errors(self.tracking_uri):
            client = self.client
            model = self._log_model(name, bundle, folder, tags)
            client.log_inputs(self.run_id, datasets=[dataset_input(bundle)])
            if evidence.ranks is not None:
                self._log_evaluation(evidence.ranks, evidence.metrics)
            _create_registered_model(client, name)
            version = client.create_model_version(
                name,
                model.artifact_location,  # by models:/<id> MLflow would look in its store of the whole process
                run_id=self.run_id,
                tags=tags,
                description=_description(bundle, evidence),
                model_id=model.model_id,
            )
            registered = [{"name": name, "version": version.version}]
            client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(registered)})
            return str(version.version)

    def set_alias(self, name: str, version: str, decision: Decision) -> str:
        """Give ``version`` the alias of ``decision`` and its reason as a tag; return the alias."""
        alias = CHAMPION if decision.champion else CHALLENGER
        with _store_errors(self.tracking_uri):
            client = self.client
            client.set_model_version_tag(name, version, "alias_reason", decision.reason)
            if decision.p is not None:
                client.set_model_version_tag(name, version, "alias_p_value", f"{decision.p:.6g}")
            client.set_registered_model_alias(name, alias, version)
        return alias

    def _log_model(self, name: str, bundle: Bundle, folder: Path, tags: Mapping[str, str]) -> LoggedModel:
        """Upload the MLflow model of a bundle."""
        client = self.client
        experiment = client.get_run(self.run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment, name=_logged_name(name), source_run_id=self.run_id, tags=dict(tags), model_type="recommender"
        )
        try:
            with tempfile.TemporaryDirectory(prefix="recpipe-") as temporary:
                target = Path(temporary) / "model"
                model = Model(
                    artifact_path=logged.artifact_location,
                    run_id=self.run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                )
                save_mlflow_model(folder, target, mlflow_model=model, metadata=tags)
                client.log_model_artifacts(logged.model_id, str(target))
        except BaseException:
            with suppress(MlflowException):  # the first error counts
                client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(self.run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
        return logged

    def _log_evaluation(self, ranks: pa.Table, metrics: Mapping[str, float]) -> None:
        with tempfile.TemporaryDirectory(prefix="recpipe-") as temporary:
            file = Path(temporary) / Path(RANKS).name
            pq.write_table(ranks, file, compression="zstd")
            self.client.log_artifact(self.run_id, str(file), EVALUATION)
        self.client.log_dict(self.run_id, dict(metrics), f"{EVALUATION}/metrics.json")


def evidence_tags(evidence: Evidence) -> dict[str, str]:
    """Tags from which ``Registry.champion`` reads the evidence of a version again."""
    tags = {
        "measured_run": evidence.run,
        "measured_version": evidence.run_version,
        "protocol": evidence.protocol,
        "made_by": evidence.made_by,
        "bundle_version": evidence.bundle_version,
    }
    numbers = {name: value for name, value in evidence.metrics.items() if isinstance(value, int | float)}
    return tags | {metric_tag(name): f"{value:.6g}" for name, value in numbers.items()}


def metric_tag(name: str) -> str:
    """Name of the tag with a test metric of the measured run, such as ``measured.ndcg_at_10``."""
    return f"{MEASURED_METRIC}{name.replace('@', '_at_')}"


def _evidence(client: MlflowClient, version: ModelVersion) -> Evidence:
    """Read the evidence of a registered version; the ranks are None where they are lost."""
    tags, ranks = version.tags, None
    with tempfile.TemporaryDirectory(prefix="recpipe-") as temporary:
        try:
            ranks = pq.read_table(client.download_artifacts(version.run_id or "", RANKS, temporary))
        except (MlflowException, OSError, pa.ArrowException) as error:
            log.warning("the ranks of %s version %s cannot be read: %s", version.name, version.version, error)
    names = ("measured_run", "measured_version", "protocol", "made_by", "bundle_version")
    run, run_version, protocol, made_by, bundle_version = (tags.get(name, "") for name in names)
    return Evidence(run, run_version, protocol, made_by, bundle_version, ranks=ranks)


def dataset_input(bundle: Bundle) -> DatasetInput:
    """Return the log that a bundle was trained on, by its fingerprint, for MLflow's list of data sets."""
    protocol = bundle.protocol
    profile = {"items": len(bundle.vocabulary), "training_events": int(bundle.train_events.sum())}
    steps = {"protocol": protocol.id, "split": protocol.split, "steps": list(protocol.steps)}
    source = {"uri": f"data/03_primary/{protocol.dataset}/interactions.parquet"}
    dataset = Dataset(
        name=protocol.dataset,
        digest=protocol.fingerprint or protocol.id,
        source_type="local",
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": [{"name": name, "type": type_} for name, type_ in LOG_COLUMNS.items()]}),
        profile=json.dumps(profile | steps),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _description(bundle: Bundle, evidence: Evidence) -> str:
    values = [f"{name} {evidence.metrics[name]:.4f}" for name in ("ndcg@10", "recall@10") if name in evidence.metrics]
    measured = f"; measured: {', '.join(values)} (test fold, protocol {evidence.protocol})" if values else ""
    how = "trained and evaluated" if evidence.made_by == "train" else f"made by {evidence.made_by}"
    return (
        f"{bundle.name} on {bundle.protocol.dataset}, {len(bundle.vocabulary):,} items, bundle "
        f"{evidence.bundle_version}, {how}. Stands for {evidence.run}, version {evidence.run_version}{measured}."
    )


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        number = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if number is None else client.get_model_version(name, number)


def _logged_name(name: str) -> str:
    """Name of a logged model, which allows fewer characters than that of a registered one."""
    return "".join("-" if sign in "/:.%\"'" else sign for sign in name)


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Turn errors of the store into ValueErrors that say where to look."""
    try:
        yield
    except (MlflowException, OSError) as error:
        where = uri if uri.startswith("sqlite") else "the tracking server"  # an address may hold a password
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = reason if uri.startswith("sqlite") else reason.replace(uri, "<tracking_uri>")
        raise ValueError(
            f"MLflow refused the registration ({reason}); see that {where} can be written to, and "
            "tracking_uri and artifacts in conf/base/mlflow.yml"
        ) from error
