"""Nodes of update and add_items called as functions: which bundle they continue, and what they say it stands for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.synthetic import write_log

from recpipe.config import DataPaths, RunConfig
from recpipe.content.embeddings import Embeddings
from recpipe.data.atomic import atomic_file
from recpipe.data.protocol import Protocol
from recpipe.pipelines.add_items import add_items
from recpipe.pipelines.train import split_sequences, train_model
from recpipe.pipelines.update import update_model
from recpipe.training.bundle import Bundle, save_bundle
from recpipe.training.newest import newest_run

FAST = {"device": "cpu", "batch_tokens": 200, "max_epochs": 1, "loggers": []}
INGEST: dict[str, Any] = {"engine": {}}
STEPS = pl.DataFrame({"name": ["raw"], "detail": ["{}"]})
UPDATE = {
    "replay": 0.5, "learning_rate": 1.0, "schedule": {"name": "constant"}, "max_epochs": 1, "patience": 1,
    "tolerance": 0.9, "held_out": 0.2, "users": 50,
}  # fmt: skip


def log(path: Path, events: int, items: int) -> tuple[Path, pl.DataFrame]:
    """An interactions file of forty users with so many events each, and the users."""
    rows = [(f"u{user:02}", f"i{(user + t) % items:02}", 100 * t) for user in range(40) for t in range(events)]
    return write_log(path, rows), pl.DataFrame({"user_id": [f"u{user:02}" for user in range(40)]})


def item_tables(items: int) -> dict[str, Any]:
    ids = np.array([f"i{n:02}" for n in range(items)], object)
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)[:items]
    table = pl.DataFrame({"item_id": ids.tolist(), "title": [f"title {n}" for n in range(items)]})
    return {"items": table, "text_embeddings": Embeddings(ids, vectors, np.ones(items, bool), ids, "space")}


def config(type_: str) -> RunConfig:
    side = {"vectors": "text"} if type_ == "content_knn" else {}
    settings = {"dim": 8, "layers": 1} if type_ == "sasrec" else {}
    return RunConfig(
        name="m", dataset="shop", type=type_, settings=settings, train=FAST, side=side, seed=1, cold_users={}
    )


def save(bundle: Bundle, paths: DataPaths, kind: str, version: str) -> None:
    folder = paths.models / "m" / "seed_1" / kind / version / kind
    folder.mkdir(parents=True)
    save_bundle(bundle, folder)


@pytest.fixture(params=["sasrec", "content_knn"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[RunConfig, DataPaths, Protocol]:
    """A measured run on disk."""
    paths, run = DataPaths(tmp_path, tmp_path, "shop"), config(request.param)
    protocol = Protocol(dataset="shop", history=8, exclude_seen=False)
    data, _ = split_sequences(*log(tmp_path / "short.parquet", 7, 12), STEPS, protocol, INGEST, paths)
    save(train_model(run, data, paths, **item_tables(12)), paths, "bundle", "2026-01-01T00.00.00.000Z")
    metrics = paths.reporting / "m" / "seed_1" / "metrics.json" / "2026-01-01T00.00.00.000Z" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    with atomic_file(metrics) as part:
        part.write_text(json.dumps({"protocol": {"id": data.protocol.id}, "test": {"ndcg@10": 0.5}}))
    return run, paths, data.protocol


def test_the_newest_bundle_is_continued_and_the_measured_run_stays_named(trained, tmp_path) -> None:
    run, paths, protocol = trained
    stands_for = {
        "run": "shop/m/seed_1",
        "version": "2026-01-01T00.00.00.000Z",
        "protocol": protocol.id,
        "metrics": {"ndcg@10": 0.5},
    }
    for version, items in (("2026-01-02T00.00.00.000Z", 14), ("2026-01-03T00.00.00.000Z", 16)):
        if run.type == "sasrec":
            interactions, users = log(tmp_path / f"{items}.parquet", items, items)
            bundle = update_model(run, UPDATE, interactions, users, STEPS, INGEST, paths, **item_tables(items))
        else:
            bundle = add_items(run, paths, **item_tables(items))
        assert len(bundle.vocabulary) == items
        assert bundle.training["production"]["stands_for"] == stands_for
        save(bundle, paths, "production", version)
        newest = newest_run(paths, run)
        assert (newest.version, newest.stands_for) == (version, stands_for)
    if run.type == "sasrec":
        assert [row["of_version"][:10] for row in bundle.training["updates"]] == ["2026-01-01", "2026-01-02"]
        assert bundle.protocol.split == "none"
        with pytest.raises(ValueError, match="another split"):
            bundle.check_split(protocol)


def test_models_without_a_bundle_and_of_the_wrong_kind_are_refused(trained, tmp_path) -> None:
    run, paths, _ = trained
    interactions, users = log(tmp_path / "long.parquet", 9, 12)
    with pytest.raises(ValueError, match="no bundle of m with seed 2.*train,evaluate"):
        newest_run(paths, replace(run, seed=2))
    if run.type == "sasrec":
        with pytest.raises(ValueError, match="--pipeline=update"):
            add_items(run, paths, **item_tables(14))
    else:
        with pytest.raises(ValueError, match="--pipeline=add_items"):
            update_model(run, UPDATE, interactions, users, STEPS, INGEST, paths, **item_tables(12))
