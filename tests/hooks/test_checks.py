"""What the YAML files of a data set and of the engine may not say, refused before the first node runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import ibis
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node

from recpipe.hooks import ChecksHooks
from recpipe.pipelines.ingest.nodes import ingest_log

BLOCK: dict[str, Any] = {
    "source": "files",
    "files": {
        "interactions": {"name": "log.csv", "url": "https://example.org/log.csv"},
        "items": "items.csv",
    },
    "options": {"columns": {"user_id": "u", "item_id": "i"}},
    "bad_rows": "drop",
    "steps": [],
    "baselines": ["popular"],
}
ENGINE: dict[str, Any] = {"name": "duckdb", "memory_limit": "1GB", "settings": {}}


def check(block: Any, engine: dict[str, Any]) -> None:
    given = {"datasets": {"mine": block}, "dataset": "mine", "ingest": {"engine": engine}}
    catalog = DataCatalog({f"params:{name}": MemoryDataset(value) for name, value in given.items()})
    pipeline = Pipeline([node(lambda *_: None, [f"params:{name}" for name in given], "done", name="ingest")])
    ChecksHooks().before_pipeline_run(pipeline, catalog)


def test_a_right_block_passes() -> None:
    check(BLOCK, ENGINE)
    check({"source": "files", "files": {"interactions": "log.csv"}}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bad_row": "drop"}, r"unknown key of datasets\.mine: 'bad_row' \(did you mean 'bad_rows'\?\)"),
        ({"bad_rows": "dorp"}, r"datasets\.mine\.bad_rows cannot be 'dorp' \(did you mean 'drop'\?\)"),
        ({"bad_rows": None}, "bad_rows cannot be None; choose one of quarantine, drop, fail"),
        ({"source": "movielense"}, r"'movielense' \(did you mean 'movielens'\?\).*amazon, files, movielens"),
        (
            {"options": {"colums": {}}},
            r"unknown option 'colums' \(did you mean 'columns'\?\) for source files",
        ),
        (
            {"files": {"interactions": {"name": "a", "checksums": "md5:0"}}},
            r"interactions: 'checksums' .*'checksum'",
        ),
        ({"files": {"interactions": {"url": "https://example.org/a"}}}, "files.interactions names no file"),
        ({"files": {"interactions": "a", "item": "b"}}, r"role in datasets\.mine\.files: 'item' .*'items'"),
    ],
)
def test_a_wrong_block_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(copy.deepcopy(BLOCK) | change, ENGINE)


@pytest.mark.parametrize(
    ("common", "own", "message"),
    [
        ({"segment": "none"}, {}, "cold_users: unknown setting 'segment', did you mean 'segments'"),
        ({}, {"noveltie": 1}, "cold_users: unknown setting 'noveltie', did you mean 'novelty'"),
        ({"novelty": 0.5}, {"novelty": 2}, r"cold_users\.novelty is 2; give a number from 0 to 1"),
        ({"smoothing": "much"}, {}, r"cold_users\.smoothing is 'much'"),
    ],
)
def test_a_wrong_fallback_for_cold_users_is_refused(common: Any, own: Any, message: str) -> None:
    given = {"datasets": {"mine": BLOCK | {"cold_users": own}}, "dataset": "mine", "cold_users": common}
    catalog = DataCatalog({f"params:{name}": MemoryDataset(value) for name, value in given.items()})
    pipeline = Pipeline([node(lambda *_: None, [f"params:{name}" for name in given], "done", name="train")])
    with pytest.raises(ValueError, match=message):
        ChecksHooks().before_pipeline_run(pipeline, catalog)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"datasets\.mine must be a block"):
        check(None, ENGINE)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"memory_limits": "4GB"}, r"engine setting 'memory_limits' .*\(did you mean 'memory_limit'\?\)"),
        (
            {"name": "duckbd"},
            r"unknown engine 'duckbd' .*\(did you mean 'duckdb'\?\); there are: duckdb, spark",
        ),
    ],
)
def test_a_wrong_engine_is_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(BLOCK, engine)


def test_the_settings_of_the_engine_reach_the_connection_that_reads(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i\na,1\na,2\n")
    engine = {"threads": 1, "settings": {"default_null_order": "nulls_first"}}
    manifest = {"files": {"interactions": [str(path)]}}
    log = ingest_log(manifest, {"mine": BLOCK}, "mine", {"engine": engine}, tmp_path / "spill")[0]
    (found,) = ibis.get_backend(log).raw_sql("SELECT current_setting('default_null_order')").fetchall()
    assert str(found[0]).lower() == "nulls_first"


@pytest.mark.parametrize("time", ["none", "last_item", "query"])
def test_a_model_that_uses_more_of_time_than_the_protocol_allows_is_refused(time: str) -> None:
    given = {
        "datasets": {"mine": BLOCK},
        "dataset": "mine",
        "protocol": {"time": time},
        "train": {},
        "side": {},
        "models.clock": {"type": "hstu", "time_mode": "last_item"},
    }
    catalog = DataCatalog({f"params:{name}": MemoryDataset(value) for name, value in given.items()})
    pipeline = Pipeline([node(lambda *_: None, [f"params:{name}" for name in given], "done", name="train")])
    if time == "none":
        with pytest.raises(ValueError, match=r"clock uses time as last_item and protocol.time is none"):
            ChecksHooks().before_pipeline_run(pipeline, catalog)
    else:
        ChecksHooks().before_pipeline_run(pipeline, catalog)
