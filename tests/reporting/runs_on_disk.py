"""Runs whose metrics, ranks and lists agree (150 users, 40 items, models of unequal quality), and their files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.evaluation.lists import Popularity
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.reporting.insights import Catalogue, RunOutputs
from recpipe.reporting.run_store import RunStore
from recpipe.reporting.runs import run_key

VERSION = "2026-11-20T10.00.00.000Z"
USERS, ITEMS, PLACES = 150, 40, 10
IDS = np.array([f"i{n}" for n in range(ITEMS)], dtype=object)
MODELS = {"sasrec": 0.3, "item_knn": 0.2, "popular_recent": 0.1, "popular": 0.02}  # parameter of a geometric rank


def ranks_of(model, seed):
    """Ranks of the same targets for all models; a third of the rows are cold."""
    generator = np.random.default_rng([seed, len(model)])
    shared = np.random.default_rng(0)
    targets = np.minimum(shared.geometric(0.15, USERS) - 1, ITEMS - 1)
    rank = np.minimum(generator.geometric(MODELS.get(model, 0.1), USERS), ITEMS)
    return pa.table(
        {
            "user_id": [f"u{u}" for u in range(USERS)],
            "target": IDS[targets],
            "rank": pa.array(rank, pa.int32()),
            "history": pa.array(shared.integers(1, 80, USERS), pa.int32()),
            "cold": (np.arange(USERS) % 3 == 1).tolist(),
        }
    )


def lists_of(model, seed, probabilities=True):
    """Lists with the target at its rank, filled up with popular items."""
    ranks = ranks_of(model, seed)
    rows = []
    for user, (target, rank) in enumerate(zip(*(ranks[name].to_pylist() for name in ("target", "rank")), strict=True)):
        others = [item for item in np.roll(IDS, -(user % 5)) if item != target][: PLACES - (rank <= PLACES)]
        items = [*others[: rank - 1], target, *others[rank - 1 :]] if rank <= PLACES else others
        rows += [(f"u{user}", place, item, 0.3 / place) for place, item in enumerate(items, 1)]
    columns = map(list, zip(*rows, strict=True))
    table = pa.table(dict(zip(("user_id", "rank", "item_id", "probability"), columns, strict=True)))
    return table if probabilities else table.set_column(3, "probability", pa.nulls(len(rows), pa.float32()))


def key_of(metrics):
    """Model, seed and protocol, as RunStore has evaluations."""
    return f"{metrics['model']}/seed_{metrics['seed']}/{metrics['protocol']['id']}"


def finished_runs(make_run, models=MODELS, seeds=(42,), **options):
    """metrics.json dicts and outputs of these runs; all seeds of sasrec, the first one of others."""
    runs, ranks, lists = [], {}, {}
    for model in models:
        for seed in seeds if model == "sasrec" else seeds[:1]:
            table = ranks_of(model, seed)
            test = metrics_from_ranks(table, cutoffs=(1, 5, 10, 20))
            runs.append(make_run(model, seed, **options) | {"test": test})
            key = key_of(runs[-1])
            ranks[key] = lambda table=table: table
            lists[key] = lambda model=model, seed=seed: lists_of(model, seed, probabilities=model == "sasrec")
    return runs, RunOutputs(ranks, lists)


def catalogue(vectors=True):
    """Items with popularity that falls with their number; the last ones have no event."""
    events = (100 * 0.85 ** np.arange(ITEMS)).astype(int)
    values = np.random.default_rng(1).normal(size=(ITEMS, 4))
    content = (values, np.arange(ITEMS) % 7 > 0) if vectors else None
    return Catalogue(IDS, Popularity(events, np.minimum(events, USERS), USERS), content)


def store(folder, **results):
    """A store of the data set in ``folder``; results as ``sasrec__42``."""
    layers = ("08_reporting", "07_model_output", "06_models", "04_feature")
    by_run = {run_key(name.replace("__", "/seed_"), metrics): metrics for name, metrics in results.items()}
    return RunStore(*(folder / layer / "shop" for layer in layers), results=by_run)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_runs(folder, make_run, models=MODELS, **options):
    """Write the files of finished runs where Kedro puts them; returns the folder."""
    runs, outputs = finished_runs(make_run, models, **options)
    for metrics in runs:
        run = f"{metrics['model']}/seed_{metrics['seed']}"
        write_json(folder / "08_reporting" / "shop" / run / "metrics.json" / VERSION / "metrics.json", metrics)
        key = key_of(metrics)
        output = folder / "07_model_output" / "shop" / key
        write_table(output / "ranks.parquet", outputs.ranks[key]())
        lists = outputs.recommendations[key]()
        titles = [f"title of {item}" for item in lists["item_id"].to_pylist()]
        logits = [float(-rank) for rank in lists["rank"].to_pylist()]
        lists = lists.append_column("title", pa.array(titles)).append_column("logit", pa.array(logits))
        write_table(output / "test_recommendations.parquet" / VERSION / "test_recommendations.parquet", lists)
    return folder
