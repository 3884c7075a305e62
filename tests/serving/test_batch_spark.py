"""Batch lists on Spark: the files are those that one process writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.serving.test_batch import ITEMS, USERS, VOCABULARY, file_of, serving_bundle
from tests.synthetic import random_sequences, write_log

from recpipe.data.histories import StoredHistories
from recpipe.data.requests import Requests
from recpipe.serving.batch import BatchJob
from recpipe.serving.batch_spark import BundleSource, SparkLists
from recpipe.training.bundle import save_bundle


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of a local Spark of two threads, stopped after the module."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'recpipe[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java on the PATH")
    folder = str(tmp_path_factory.mktemp("spark"))
    yield {"name": "spark", "master": "local[2]", "memory_limit": "1GB", "spill_folder": folder}
    if session := sql.SparkSession.getActiveSession():
        session.stop()


def requests(tmp_path: Path) -> Requests:
    """Users with and without history, some of them restricted to candidates."""
    data = random_sequences(USERS, ITEMS, seed=2)
    rows = [(u, VOCABULARY.ids[i - 1], t) for n, u in enumerate(data.users) for t, i in enumerate(data.row(n))]
    log = write_log(tmp_path / "interactions.parquet", rows)
    users = "".join(f"u{n:03},{'i01 i02 i03 i04' if n % 5 == 0 else ''}\n" for n in range(USERS + 4))
    return Requests(log, users=file_of(tmp_path, f"user_id,candidates\n{users}"))


@pytest.mark.parametrize(("users", "events"), [(7, 1 << 20), (100, 20), (1, 1)])
def test_ranges_are_those_of_the_batches_and_each_is_read_alone(tmp_path, users, events):
    with requests(tmp_path).stored(VOCABULARY, {"spill_folder": str(tmp_path / "spill")}) as histories:
        for name in ("users", "events", "candidates"):  # in small row groups, as files of millions of rows have several
            path = histories.folder / f"{name}.parquet"
            if path.is_file():
                pq.write_table(pq.read_table(path), path, row_group_size=8)
        expected = list(StoredHistories.batches(histories, users, events=events))
        ranges = list(histories.ranges(users, events=events))
        assert len(ranges) == len(expected)
        for each, batch in zip(ranges, expected, strict=True):
            alone = histories.read(each)
            assert alone.sequences.fingerprint() == batch.sequences.fingerprint()
            assert histories.user_ids_of(each).tolist() == batch.sequences.users.tolist()
            for name in ("has_candidates", "candidate_offsets", "candidate_items"):
                np.testing.assert_array_equal(getattr(alone, name), getattr(batch, name))


@pytest.mark.slow
def test_files_are_those_of_one_process(spark, tmp_path):
    (tmp_path / "bundle").mkdir()
    save_bundle(serving_bundle("sasrec"), tmp_path / "bundle")
    source = BundleSource(str(tmp_path / "bundle"))
    job = BatchJob(source.load(), 5, now=1_700_000_000, batch_users=7, rules={"exclude": ["i03"]}, about={"model": "m"})
    summaries = {}
    with requests(tmp_path).stored(VOCABULARY, {"spill_folder": str(tmp_path / "spill")}) as histories:
        for name, compute in (("here", None), ("there", SparkLists(source, spark))):
            (tmp_path / name).mkdir()
            summaries[name] = job.write(histories, tmp_path / name, compute)
    for file in ("recommendations.parquet", "submission.csv"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    volatile = {"seconds", "users_per_second", "finished"}
    here, there = ({k: v for k, v in each.items() if k not in volatile} for each in summaries.values())
    assert here == there and here["users"] == USERS + 4
    assert json.loads((tmp_path / "there" / "summary.json").read_text())["recommendations"] == here["recommendations"]


@pytest.mark.slow
def test_a_worker_that_fails_is_named_with_its_reason(spark, tmp_path):
    job = BatchJob(serving_bundle("popular"), 5)
    with requests(tmp_path).stored(VOCABULARY, {"spill_folder": str(tmp_path / "spill")}) as histories:
        lists = SparkLists(BundleSource(str(tmp_path / "nowhere")), spark)(job, histories)
        with pytest.raises(ValueError, match="a task of Spark failed: .*nowhere.*Every worker needs this Python"):
            list(lists)
