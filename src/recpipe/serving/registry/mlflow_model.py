"""A bundle as an MLflow pyfunc model: signature, input example, pinned requirements, its own copy of the code.

python -m recpipe.serving.registry.mlflow_model data/06_models/online_retail/sasrec model   # into the folder model
mlflow models serve -m model --env-manager local --port 5001                       # POST /invocations

The model is code, JSON, Parquet and safetensors, without a pickle (MLflow's "models from code"). A row of the input is
a user, a row of the output a recommendation. Registration in a registry is in ``mlflow_registry.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

import recpipe
from recpipe.serving.registry.packaging import copy_code, try_bundle
from recpipe.training.bundle import Bundle, save_bundle

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("mlflow_script.py")
USER, HISTORY = "user_id", "items"
OPTIONAL = {  # columns by name, one value or list for each user
    "timestamps": Array(DataType.long),
    "candidates": Array(DataType.string),
    "exclude": Array(DataType.string),
}
PARAMETERS = {"k": (DataType.long, 10), "rules": (DataType.string, "{}"), "search": (DataType.string, "{}")}
TYPES = {
    pa.string(): DataType.string,
    pa.int32(): DataType.integer,
    pa.int64(): DataType.long,
    pa.float32(): DataType.float,
    pa.float64(): DataType.double,
}
ALWAYS = (USER, "rank", "item_id", "title", "source")  # columns of the output without null
EXAMPLE_ITEMS, EXAMPLE_K = 3, 5
PACKAGES = ("mlflow-skinny", "pandas")  # what MLflow needs to load and serve, besides what the bundle imports


class BundleModel(PythonModel):
    """Recommendations of the bundle in the artifact ``bundle``; ``model_config`` may name a ``device``."""

    def load_context(self, context: Any) -> None:
        """Load the bundle; its digests are checked."""
        device = (context.model_config or {}).get("device", "cpu")
        self.bundle = recpipe.load_bundle(context.artifacts["bundle"], device=device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend to each row of ``model_input``; see ``signature`` for columns and parameters."""
        defaults: dict[str, Any] = {name: default for name, (_, default) in PARAMETERS.items()}
        values = defaults | (params or {})
        try:
            options: dict[str, Any] = {name: _by_user(model_input, name) for name in OPTIONAL if name in model_input}
            table = self.bundle.recommend(
                _by_user(model_input, HISTORY),
                k=values["k"],
                rules=_parse_object(values["rules"], "rules"),
                search=_parse_object(values["search"], "search"),
                profiles=_profiles(model_input),
                **options,
            )
        except ValueError as error:  # a request that is not valid: MLflow answers 400 with this message
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return to_frame(table)


def _by_user(frame: pd.DataFrame, column: str) -> dict[str, list[Any]]:
    """Return the lists of ``column`` by user. Raises ValueError for users with several rows, and for missing lists."""
    users, lists = frame[USER].tolist(), frame[column].tolist()
    values = dict(zip(users, lists, strict=True))
    if len(values) < len(users):
        repeated = frame[USER][frame[USER].duplicated()].iloc[0]
        raise ValueError(f"user {repeated!r} has several rows; give one row for each user")
    if missing := [user for user, value in values.items() if not isinstance(value, list | tuple | np.ndarray)]:
        raise ValueError(f"user {missing[0]!r} has no list in the column {column!r}; an empty list is []")
    return {user: list(value) for user, value in values.items()}


def _profiles(frame: pd.DataFrame) -> pa.Table | None:
    """Return the columns of ``frame`` that describe users, None without any."""
    columns = [name for name in frame if name not in (USER, HISTORY, *OPTIONAL)]
    return pa.Table.from_pandas(frame[[USER, *columns]], preserve_index=False) if columns else None


def _parse_object(text: str, name: str) -> dict[str, Any] | None:
    """Parse the JSON object in the parameter ``name``, None for an empty one."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"the parameter {name} is no JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the parameter {name} is {text!r}; give a JSON object, such as {{}}")
    return value or None


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Convert recommendations to pandas; null stays None, since NaN is no JSON."""
    frame = table.to_pandas()
    for name in (name for name in table.column_names if table[name].null_count):
        column = frame[name].astype(object)
        frame[name] = column.where(pa.compute.is_valid(table[name]).to_numpy(), None)
    return frame


def signature(bundle: Bundle, recommendations: pa.Table) -> ModelSignature:
    """Return the signature: a user a row in, a recommendation a row out, with the columns of ``recommendations``.

    Columns of profiles that the bundle reads, and those of ``OPTIONAL``, may be left out.
    """
    optional = _profile_types(bundle) | OPTIONAL
    inputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, USER), ColSpec(Array(DataType.string), HISTORY)]
    inputs += [ColSpec(type_, name, required=False) for name, type_ in optional.items()]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(_mlflow_type(field.type), field.name, required=field.name in ALWAYS) for field in recommendations.schema
    ]
    params = [ParamSpec(name, type_, default) for name, (type_, default) in PARAMETERS.items()]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


def _profile_types(bundle: Bundle) -> dict[str, DataType | Array]:
    """Types of the user columns that the bundle reads, for side information or for users without history."""
    cold, side = bundle.model.cold_users, bundle.model.side
    columns = (*(() if cold is None else cold.columns), *(() if side is None else side.users))
    words: dict[bool, DataType | Array] = {True: Array(DataType.string), False: DataType.string}
    return {each.name: words[each.per_row > 1] if each.categorical else DataType.double for each in columns}


def _mlflow_type(type_: pa.DataType) -> DataType | Array:
    return Array(TYPES[type_.value_type]) if pa.types.is_list(type_) else TYPES[type_]


def example_histories(bundle: Bundle) -> dict[str, list[str]]:
    """Invent two users for the input example: one with the most frequent items, one without history.

    No real user stands in it, since a model is copied to more places than a log.
    """
    frequent = np.argsort(-bundle.train_events, kind="stable")[:EXAMPLE_ITEMS]
    return {"ann": bundle.vocabulary.ids[frequent].tolist(), "new_user": []}


def save_mlflow_model(
    bundle_folder: Path, path: Path, *, mlflow_model: Model | None = None, metadata: Mapping[str, Any] | None = None
) -> Model:
    """Write the MLflow model of a bundle into the new folder ``path``, after a trial in a fresh interpreter.

    ``mlflow_model`` already has the ids of a registry. Raises ValueError for a bundle that does not answer there as it
    does here.
    """
    bundle = recpipe.load_bundle(bundle_folder)
    histories = example_histories(bundle)
    model = Model() if mlflow_model is None else mlflow_model
    with tempfile.TemporaryDirectory(prefix="recpipe-") as temporary:
        work = Path(temporary)
        code, copy = copy_code(work / "code"), work / "bundle"
        copy.mkdir()
        save_bundle(bundle, copy)  # without the users of the log, whom only training reads
        trial = try_bundle(code, copy, histories, EXAMPLE_K, work)
        expected = bundle.recommend(histories, k=EXAMPLE_K)
        if not _same(expected, trial.recommendations):
            raise ValueError(f"{bundle_folder} recommends other items in a fresh interpreter; nothing is saved")
        model.metadata = dict(metadata or {}) or None
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(SCRIPT),
            artifacts={"bundle": str(copy)},
            code_paths=[str(code)],
            mlflow_model=model,
            signature=signature(bundle, expected),
            input_example=pd.DataFrame({USER: list(histories), HISTORY: list(histories.values())}),
            pip_requirements=trial.requirements(*PACKAGES),
        )
    return model


def _same(first: pa.Table, second: pa.Table) -> bool:
    columns = [USER, "rank", "item_id"]
    return bool(first.select(columns).equals(second.select(columns)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the newest bundle of a run as an MLflow model; exit status 2 where that is not possible.

    Raises ValueError for a folder that exists.
    """
    from recpipe.training.bundle_folders import newest_bundle

    parser = argparse.ArgumentParser(
        "python -m recpipe.serving.registry.mlflow_model", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("run", type=Path, help="data/06_models/<dataset>/<model>, a seed folder in it, or a bundle")
    parser.add_argument("path", type=Path, help="new folder for the MLflow model")
    options = parser.parse_args(arguments)
    try:
        if options.path.exists():
            raise ValueError(f"{options.path} exists; name a new folder")
        save_mlflow_model(newest_bundle(options.run), options.path)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    log.info("%s is written; `mlflow models serve -m %s --env-manager local` serves it", options.path, options.path)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
