"""Saved MLflow models against the bundle itself, in this process, in a fresh one, and by the scoring server's JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import pickletools
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from tests.synthetic import random_sequences

import recpipe
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.serving.registry.mlflow_model import main, save_mlflow_model, to_frame
from recpipe.training.bundle import Bundle, save_bundle

ITEMS = 20
HISTORIES = {"ann": ["i03", "i08"], "new": []}
FRAME = pd.DataFrame({"user_id": list(HISTORIES), "items": list(HISTORIES.values())})


def write_bundle(folder: Path, name: str = "sasrec") -> Path:
    """A small model whose users without history get what is popular."""
    torch.manual_seed(0)
    data = random_sequences(30, ITEMS, seed=1)
    model = build(name, {"dim": 16} if name == "sasrec" else {}, n_items=ITEMS, max_length=6)
    if model.closed_form:
        model.fit(data)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(data, seed=0)
    vocabulary = Vocabulary(np.array([f"i{n:02}" for n in range(ITEMS)], object))
    events = np.bincount(data.items, minlength=ITEMS + 1)[1:]
    folder.mkdir(parents=True)
    protocol = Protocol(dataset="tiny", fingerprint="f" * 12)
    bundle = Bundle(name, name, model.eval(), vocabulary, [None] * ITEMS, events, protocol, {"seed": 1})
    save_bundle(dataclasses.replace(bundle, seen_events=SeenEvents.of(data)), folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "seed_1/bundle/2026-01-01T00.00.00.000Z/bundle")


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "model"
    assert main([str(bundle.parents[2]), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def model(saved) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(saved))


def post(model: mlflow.pyfunc.PyFuncModel, body: dict) -> list[dict]:
    """Answer of `mlflow models serve` to POST /invocations, read by a strict JSON parser."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    answer = invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
    return json.loads(answer.response, parse_constant=refuse)["predictions"]


def test_its_recommendations_are_those_of_the_bundle(model, bundle) -> None:
    expected = recpipe.load_bundle(bundle).recommend(HISTORIES, k=4)
    found = model.predict(FRAME, params={"k": 4})
    pd.testing.assert_frame_equal(found, to_frame(expected))
    assert set(found["source"]) == {"model", "cold_users"}
    assert len(model.predict(FRAME)) == 20  # k is 10 by default


def test_candidates_by_user_and_rules_are_those_of_the_bundle(model, bundle) -> None:
    candidates = {"ann": ["i01", "i04", "i08"], "new": ["i02", "i03"]}
    rules = {"exclude": ["i04"], "seen": "exclude"}
    expected = recpipe.load_bundle(bundle).recommend(HISTORIES, rules=rules, candidates=candidates)
    frame = FRAME.assign(candidates=list(candidates.values()))
    found = model.predict(frame, params={"rules": json.dumps(rules)})
    pd.testing.assert_frame_equal(found, to_frame(expected))
    assert set(zip(found["user_id"], found["item_id"], strict=True)) == {("ann", "i01"), ("new", "i02"), ("new", "i03")}


@pytest.mark.slow
def test_the_scoring_server_answers_json_with_null_where_there_is_no_probability(tmp_path, model) -> None:
    records = [{"user_id": user, "items": items} for user, items in HISTORIES.items()]
    body = {"dataframe_records": records, "params": {"k": 2}}
    assert [row["item_id"] for row in post(model, body)] == model.predict(FRAME, params={"k": 2})["item_id"].tolist()
    path = tmp_path / "model"
    save_mlflow_model(write_bundle(tmp_path / "knn", "item_knn"), path)
    rows = post(mlflow.pyfunc.load_model(str(path)), body)
    assert rows[0]["probability"] is None and rows[0]["source"] == "model"


def test_no_file_is_a_pickle(saved) -> None:
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {"MLmodel", "requirements.txt", "mlflow_script.py", "model.safetensors"} <= {path.name for path in files}
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pyc") or path.name == "__pycache__"]
    for path in files:
        content = path.read_bytes()
        if content[:1] == b"\x80":  # the opcode that a pickle begins with
            with pytest.raises(ValueError):
                list(pickletools.genops(content))
    assert "python_model:" not in (saved / "MLmodel").read_text()


def test_users_of_the_log_stay_at_home(saved, bundle) -> None:
    assert "u017" in pq.read_table(bundle / "seen_events.parquet")["user_id"].to_pylist()
    assert not list(saved.rglob("seen_events.parquet"))
    assert not [path for path in saved.rglob("*") if path.is_file() and b"u017" in path.read_bytes()]


def test_requirements_are_the_few_packages_that_serve_at_installed_versions(saved) -> None:
    pins = dict(line.split("==") for line in (saved / "requirements.txt").read_text().split())
    assert {"torch", "numpy", "pyarrow", "safetensors", "PyYAML", "mlflow-skinny", "pandas"} <= set(pins)
    assert not set(pins) & {"recpipe", "kedro", "lightning", "duckdb", "polars", "transformers", "mlflow", "pytest"}
    assert all(version(name).partition("+")[0] == pin for name, pin in pins.items())


@pytest.mark.slow
def test_it_answers_in_a_process_that_has_never_seen_the_project(saved, model, tmp_path) -> None:
    script = (
        "import sys, json, pandas, mlflow.pyfunc\n"
        f"frame = pandas.DataFrame(json.loads({FRAME.to_json(orient='records')!r}))\n"
        "print(mlflow.pyfunc.load_model(sys.argv[1]).predict(frame, params={'k': 3})['item_id'].tolist())\n"
        "print(sys.modules['recpipe'].__file__)\n"
        "print(sorted({'kedro', 'lightning', 'duckdb', 'transformers'} & set(sys.modules)))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", script, str(saved)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    items, place, others = done.stdout.splitlines()[-3:]
    assert items == str(model.predict(FRAME, params={"k": 3})["item_id"].tolist())
    assert place == str(saved / "code" / "recpipe" / "__init__.py") and others == "[]"


def test_the_input_example_holds_no_real_user_and_fits_the_signature(saved, model, bundle) -> None:
    example = model.input_example
    assert example["user_id"].tolist() == ["ann", "new_user"]
    frequent = np.argsort(-recpipe.load_bundle(bundle).train_events, kind="stable")[:3]
    assert list(example["items"][0]) == [f"i{n:02}" for n in frequent] and list(example["items"][1]) == []
    assert model.metadata.signature.outputs.input_names() == model.predict(example).columns.tolist()


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        ({}, {"k": 0}, "k"),
        ({}, {"rules": "{"}, "rules is no JSON"),
        ({}, {"search": "[1]"}, "give a JSON object"),
        ({"user_id": ["ann", "ann"]}, {}, "'ann' has several rows"),
        ({"items": ["i01", "i02"]}, {}, "items"),
    ],
    ids=["k", "json", "object", "users", "list"],
)
def test_a_bad_request_is_an_error_with_its_reason_and_no_trace(model, change, params, message) -> None:
    with pytest.raises(MlflowException, match=message) as error:
        model.predict(FRAME.assign(**change), params=params)
    assert error.value.get_http_status_code() == 400 and "Traceback" not in str(error.value)


def test_a_bundle_that_cannot_answer_outside_is_not_saved(tmp_path, capsys) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), str(tmp_path / "model")])
    assert "missing" in capsys.readouterr().err and not (tmp_path / "model").exists()
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), str(tmp_path)])
    assert "name a new folder" in capsys.readouterr().err
