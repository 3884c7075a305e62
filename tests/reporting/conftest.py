"""A small data set with finished runs: four models, two protocols, profile, step table, curves, example users."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.data.sequences import Sequences
from recpipe.evaluation.profile import profile
from recpipe.reporting.examples import pick_examples

PROTOCOL = {
    "id": "3f9a1c02",
    "dataset": "online_retail",
    "fingerprint": "8d1f0a77c2be",
    "steps": ["duplicates keep first", "k_core users 5 items 5"],
    "split": "leave_one_out",
    "targets": "next",
    "ties": "source",
    "seed": None,
    "history": 200,
    "exclude_seen": True,
    "candidates": "full",
    "time": "none",
    "cutoffs": [1, 5, 10, 20],
}
OTHER = PROTOCOL | {"id": "c2d4e6f8", "exclude_seen": False}
QUALITY = {"sasrec": 0.062, "item_knn": 0.055, "popular_recent": 0.031, "popular": 0.018}
SECONDS = {"sasrec": 84.2, "item_knn": 0.9, "popular_recent": 0.02, "popular": 0.01}
EVIL = "<script>alert('title')</script>"
TITLES = [
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "REGENCY CAKESTAND 3 TIER",
    "JUMBO BAG RED RETROSPOT",
    "PARTY BUNTING",
    "ASSORTED COLOUR BIRD ORNAMENT",
    "LUNCH BAG  BLACK SKULL.",
    "SET OF 3 CAKE TINS PANTRY DESIGN",
    "SPOTTY BUNTING",
    "PACK OF 72 RETROSPOT CAKE CASES",
    "NATURAL SLATE HEART CHALKBOARD",
    "HEART OF WICKER SMALL",
    EVIL,
    "PAPER CHAIN KIT 50'S CHRISTMAS",
    "ALARM CLOCK BAKELIKE RED",
    "JAM MAKING SET WITH JARS",
    "和風 ティーカップ & SAUCER",
]
HOUR = 3600
START = 1_291_190_400  # 1 December 2010


def metrics_json(model, seed, protocol=PROTOCOL, quality=None, finished="2026-11-20T10:00:00"):
    best = (QUALITY.get(model, 0.01) if quality is None else quality) + (seed % 7) * 4e-4
    test = {"users": 4338, "targets": 4338, "unrankable": 3, "cold_targets": 12}
    for k in (1, 5, 10, 20):
        hit = best * (0.3 + 0.62 * np.log2(k))
        values = {
            "recall": hit,
            "hit_rate": hit,
            "precision": hit / k,
            "ndcg": hit * 0.62,
            "mrr": hit * 0.5,
            "map": hit * 0.5,
        }
        test |= {f"{name}@{k}": float(value) for name, value in values.items()}
        test[f"coverage@{k}"] = float(min(1, best * 1.4 * k**0.6))
    cost = {
        "train_seconds": SECONDS.get(model, 10.0) * (1 + seed % 3 / 20),
        "epochs": 37 if model == "sasrec" else 0,
        "seconds_per_epoch": 2.28 if model == "sasrec" else None,
        "tokens_per_second": 171_000.0 if model == "sasrec" else None,
        "peak_memory_mib": 912.0,
        "parameters": 345_664 if model == "sasrec" else 0,
        "inference_users_per_second": 9_200.0,
    }
    if model != "popular":  # older metrics have none
        cost |= {"inference_latency_ms_p50": 3.14, "inference_latency_ms_p95": 12.4}
    versions = {"recpipe": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"}
    names = {"dataset": protocol["dataset"], "model": model, "seed": seed, "protocol": protocol}
    return names | {
        "test": test,
        "valid": {},
        "cost": cost,
        "versions": versions,
        "finished": finished,
        "commit": "0a1b2c3d4e5f",
    }


@pytest.fixture(scope="session")
def make_run():
    return metrics_json


@pytest.fixture(scope="session")
def other_protocol():
    return OTHER


@pytest.fixture(scope="session")
def runs():
    seeds = [
        ("sasrec", 42),
        ("sasrec", 123),
        ("sasrec", 2023),
        ("item_knn", 42),
        ("popular", 42),
        ("popular_recent", 42),
    ]
    return [metrics_json(model, seed) for model, seed in seeds] + [metrics_json("popular", 42, OTHER)]


@pytest.fixture(scope="session")
def steps():
    rows = {
        "rows": [541_909, 397_924, 392_732, 391_150],
        "users": [4373, 4339, 4339, 4210],
        "items": [4070, 3665, 3665, 3190],
    }
    return pa.table(
        {
            "step": [0, 1, 2, 3],
            "name": ["raw", "bad_rows", "duplicates", "k_core"],
            "detail": [
                "{}",
                '{"policy": "quarantine", "reasons": {"no user": 135080, "cancellation": 8905}}',
                '{"keep": "first", "by": ["user_id", "item_id"]}',
                '{"users": 5, "items": 5}',
            ],
            **rows,
            "first_timestamp": [-START * 1000] + [START] * 3,
            "last_timestamp": [START + 373 * 86_400] * 4,
            "events_min": [1, 1, 1, 5],
            "events_mean": [123.9, 91.7, 90.5, 92.9],
            "events_median": [42.0, 41.0, 40.5, 43.5],
            "events_max": [7983, 7847, 7676, 7670],
        }
    )


@pytest.fixture(scope="session")
def data_profile(tmp_path_factory):
    generator = np.random.default_rng(5)
    users = np.sort(np.minimum(generator.zipf(1.25, 30_000), 900))
    items = generator.zipf(1.35, 30_000) % 3000
    times = START + generator.integers(0, 373 * 24, 30_000) * HOUR
    columns = {"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": times}
    path = tmp_path_factory.mktemp("log") / "interactions.parquet"
    pq.write_table(pa.table(columns), path)
    return profile(path)


@pytest.fixture(scope="session")
def curves():
    def curve(epochs, floor, seed):
        generator, epoch = np.random.default_rng(seed), np.arange(epochs)
        loss = floor + 2.1 * np.exp(-epoch / 6) + generator.normal(0, 0.01, epochs)
        valid = 0.064 * (1 - np.exp(-(epoch + 1) / 7)) + generator.normal(0, 6e-4, epochs)
        columns = {
            "epoch": epoch,
            "step": (epoch + 1) * 240,
            "seconds": (epoch + 1) * 2.28,
            "loss": loss,
            "lr": np.full(epochs, 1e-3),
        }
        return pa.table(columns | {"valid_ndcg@10": pa.array(valid, mask=epoch % 2 == 1)})

    return {f"sasrec · seed {seed}": curve(37 - seed % 5, 5.4, seed) for seed in (42, 123, 2023)}


@pytest.fixture(scope="session")
def items():
    return pa.table({"item_id": [f"i{n}" for n in range(len(TITLES))], "title": TITLES})


@pytest.fixture(scope="session")
def make_users(items):
    return partial(pick_users, items)


@pytest.fixture(scope="session")
def users(make_users):
    return make_users()


def pick_users(items, users=6, seed=1, **options):
    """Examples of 20 users with 1 to 20 events; the targets of even ones have rank 3 in the first list."""
    ids = np.array(items["item_id"].to_pylist(), dtype=object)
    lengths = np.arange(1, 21)
    flat = np.arange(lengths.sum()) % len(ids) + 1
    names = np.array([f"1{n:04d}" for n in range(20)], dtype=object)
    times = START + np.arange(len(flat)) * 31 * HOUR
    histories = Sequences(names, flat.astype(np.int32), times, np.concatenate([[0], np.cumsum(lengths)]))
    ranks = pa.table(
        {
            "user_id": names.astype(str),
            "target": [str(ids[(n + (12 if n % 2 else 2)) % 16]) for n in range(20)],
            "rank": [3, 900] * 10,
        }
    )

    def table(offset, probability):
        rows = [(u, k + 1, (u + k + offset) % len(ids)) for u in range(20) for k in range(10)]
        user, rank, item = zip(*rows, strict=True)
        chance = [0.21 / r for r in rank] if probability else pa.nulls(len(rank), pa.float32())
        ids_of, titles = [str(ids[i]) for i in item], [TITLES[i] for i in item]
        head = {"user_id": [str(names[u]) for u in user], "rank": rank, "item_id": ids_of, "title": titles}
        return pa.table(head | {"logit": [9.1 - 0.37 * r for r in rank], "probability": chance})

    lists = {"sasrec": table(0, True), "item_knn": table(5, False)}
    return pick_examples(histories, ranks, lists, items, item_ids=ids, seed=seed, users=users, **options)
