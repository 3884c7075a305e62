"""A small project with a log of its own, whose pipelines run in a child process that a test may kill.

Children are forked from a server that has imported everything, so that a run takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recpipe.data.atomic import latest_version
from recpipe.data.digests import digest_path, verified
from recpipe.training.bundle import load_bundle

ROOT = Path(__file__).parents[2]
DATASET, MODELS = "tiny", ("sasrec", "svd")
CONF = """
datasets:
  tiny:
    source: files
    files: {interactions: log.csv}
    options: {columns: {user_id: user, item_id: item, timestamp: time}, timestamp: s}
    steps: []
"""
IMPORTS = (
    "recpipe.session",
    "recpipe.settings",
    "recpipe.io.datasets",
    "recpipe.data.interactions",
    "recpipe.data.readers.files",
    "recpipe.evaluation.evaluate",
    "recpipe.evaluation.profile",
    "recpipe.training.job",
    "kedro.framework.startup",
    "kedro.runner",
    "sklearn.decomposition",
)


def write_project(project: Path) -> None:
    """Write log and configuration into a copy of the project without data."""
    (project / "data" / "01_raw").unlink()
    raw, generator = project / "data" / "01_raw" / DATASET, random.Random(0)
    raw.mkdir(parents=True)
    rows = [f"u{user},i{generator.randrange(30)},{1000 + n}\n" for user in range(60) for n in range(8)]
    (raw / "log.csv").write_text("user,item,time\n" + "".join(rows))
    (project / "conf/base/parameters/datasets/tiny.yml").write_text(CONF)
    (project / "conf/test/mlflow.yml").write_text("enabled: false\n")


def start(project: Path) -> BaseProcess:
    """Start ingest, train and evaluate of two models; its output goes to ``project/output.txt``."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])  # of the server
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    process = context.Process(target=run, args=(str(project),))
    process.start()
    return process


def run(folder: str) -> None:
    """Run the pipelines in this process."""
    from kedro.framework.startup import bootstrap_project

    from recpipe.session import RecpipeSession

    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    bootstrap_project(Path(folder))
    params: dict[str, Any] = {"dataset": DATASET, "model": "+".join(MODELS), "train": {"max_epochs": 6}}
    with RecpipeSession.create(project_path=folder, save_on_close=False, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["ingest", "train", "evaluate"])


def layer(project: Path, name: str) -> Path:
    """Return the folder of the data set in a layer."""
    return project / "data" / "test" / name / DATASET


def results(project: Path) -> dict[str, Any]:
    """Return what a run is for: tables, weights and metrics, without times."""
    table = pq.read_table(layer(project, "03_primary") / "interactions.parquet")
    values: dict[str, Any] = {"interactions": table.to_pydict()}
    for model in MODELS:
        run_folder = f"{model}/seed_42"
        bundle = load_bundle(latest_version(layer(project, "06_models") / run_folder / "bundle") or Path())
        weights = hashlib.sha256()
        for name, tensor in sorted(bundle.model.state_dict().items()):
            weights.update(name.encode() + tensor.numpy().tobytes())
        file = latest_version(layer(project, "08_reporting") / run_folder / "metrics.json") or Path()
        metrics = json.loads(verified(file).read_text())
        output = layer(project, "07_model_output") / run_folder / metrics["protocol"]["id"]
        ranks = pq.read_table(verified(output / "ranks.parquet")).to_pydict()
        values[model] = {"weights": weights.hexdigest(), "ranks": ranks}
        values[model] |= {part: metrics[part] for part in ("test", "valid", "protocol")}
    return values


def check_disk(project: Path) -> None:
    """Raise an error unless every file under its final name is complete, and every bundle can be loaded."""
    data = project / "data" / "test"
    for path in data.rglob("*"):
        if path.is_file() and digest_path(path).exists():
            verified(path)
    for folder in data.glob("06_models/*/*/seed_*/bundle/*/bundle"):
        load_bundle(folder)


def leftovers(project: Path) -> list[str]:
    """Return names that only a process that still writes may use."""
    files = (project / "data" / "test").rglob("*")
    return sorted(path.name for path in files if path.name.endswith((".part", ".old", ".parts")))
