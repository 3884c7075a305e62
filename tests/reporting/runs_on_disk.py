"""Writes the runs of ``finished`` where Kedro would have left them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from tests.reporting.finished import MODELS, finished

from recpipe.reporting.run_store import RunStore

VERSION = "2026-11-20T10.00.00.000Z"


def store(folder, **results):
    """All runs of the data set in ``folder``; results as ``sasrec__42``."""
    named = {name.replace("__", "/seed_"): each for name, each in results.items()}
    layers = ("08_reporting", "07_model_output", "06_models", "04_feature")
    return RunStore(*(folder / layer / "shop" for layer in layers), results=named)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_runs(folder, make_run, models=MODELS, **options):
    """Metrics, ranks and recommendations of finished runs; returns the folder."""
    runs, on_disk = finished(make_run, models, **options)
    for metrics in runs:
        run = f"{metrics['model']}/seed_{metrics['seed']}"
        write_json(
            folder / "08_reporting" / "shop" / run / "metrics.json" / VERSION / "metrics.json", metrics
        )
        output = folder / "07_model_output" / "shop" / run
        write_table(output / "ranks.parquet", on_disk.ranks[run]())
        lists = with_titles(on_disk.recommendations[run]())
        write_table(output / "recommendations.parquet" / VERSION / "recommendations.parquet", lists)
    return folder


def with_titles(lists):
    """What evaluation writes beside the columns that ``finished`` has."""
    titles = [f"title of {item}" for item in lists["item_id"].to_pylist()]
    logits = [float(-rank) for rank in lists["rank"].to_pylist()]
    return lists.append_column("title", pa.array(titles)).append_column("logit", pa.array(logits))
