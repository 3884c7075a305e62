"""Finished runs whose metrics, ranks and lists belong together: 150 users, 40 items, models of unequal quality."""

import numpy as np
import pyarrow as pa

from recpipe.evaluation.lists import Popularity
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.reporting.insights import Catalogue, OnDisk

USERS, ITEMS, PLACES = 150, 40, 10
IDS = np.array([f"i{n}" for n in range(ITEMS)], dtype=object)
MODELS = {
    "sasrec": 0.3,
    "item_knn": 0.2,
    "popular_recent": 0.1,
    "popular": 0.02,
}  # chance of each next rank to stop


def ranks_of(model, seed):
    """Higher quality, lower ranks; a twentieth of the targets was never seen in training."""
    draw = np.random.default_rng([seed, len(model)])
    ask = np.random.default_rng(0)  # all models are asked the same
    targets = np.minimum(ask.geometric(0.15, USERS) - 1, ITEMS - 1)
    rank = np.minimum(draw.geometric(MODELS.get(model, 0.1), USERS), ITEMS)
    return pa.table(
        {
            "user_id": [f"u{u}" for u in range(USERS)],
            "target": IDS[targets],
            "rank": pa.array(rank, pa.int32()),
            "history": pa.array(ask.integers(1, 80, USERS), pa.int32()),
            "cold": (np.arange(USERS) % 3 == 1).tolist(),
        }
    )


def lists_of(model, seed, probabilities=True):
    """The target at its rank, the rest from the popular items on."""
    ranks = ranks_of(model, seed)
    rows = []
    for user, (target, rank) in enumerate(
        zip(ranks["target"].to_pylist(), ranks["rank"].to_pylist(), strict=True)
    ):
        others = [item for item in np.roll(IDS, -(user % 5)) if item != target][: PLACES - (rank <= PLACES)]
        row = [*others[: rank - 1], target, *others[rank - 1 :]] if rank <= PLACES else others
        rows += [(f"u{user}", place, item, 0.3 / place) for place, item in enumerate(row, 1)]
    columns = dict(
        zip(("user_id", "rank", "item_id", "probability"), map(list, zip(*rows, strict=True)), strict=True)
    )
    table = pa.table(columns)
    return table if probabilities else table.set_column(3, "probability", pa.nulls(len(rows), pa.float32()))


def finished(make_run, models=MODELS, seeds=(42,), **options):
    """metrics.json dicts of these runs, and what they left on disk."""
    runs, ranks, lists = [], {}, {}
    for model in models:
        for seed in seeds if model == "sasrec" else seeds[:1]:
            name, table = f"{model}/seed_{seed}", ranks_of(model, seed)
            test = metrics_from_ranks(table, cutoffs=(1, 5, 10, 20))
            runs.append(make_run(model, seed, **options) | {"test": test})
            ranks[name] = lambda table=table: table
            lists[name] = lambda model=model, seed=seed: lists_of(
                model, seed, probabilities=model == "sasrec"
            )
    return runs, OnDisk(ranks, lists)


def catalogue(vectors=True):
    """Popularity falls with the number of the item; the last ones have no event."""
    events = (100 * 0.85 ** np.arange(ITEMS)).astype(int)
    drawn = np.random.default_rng(1).normal(size=(ITEMS, 4))
    given = (drawn, np.arange(ITEMS) % 7 > 0) if vectors else None
    return Catalogue(IDS, Popularity(events, np.minimum(events, USERS), USERS), given)
