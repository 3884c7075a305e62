"""Batch lists on Spark: a task per batch of users, by a bundle that every Python worker loads once.

Workers read bundle and histories from, and write lists to, folders that driver and workers see under the same paths.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.atomic import atomic_file
from recpipe.data.histories import StoredHistories, UserRange
from recpipe.serving.batch import BatchJob, UserLists
from recpipe.serving.item_index.build import IndexConfig
from recpipe.serving.model import ServingBundle, load_bundle

log = logging.getLogger(__name__)

SCHEMA = "task long, counts string"  # of what a task returns; the counts are JSON


@dataclass(frozen=True)
class BundleSource:
    """A bundle and how it is loaded, on any machine that sees its folder; see ``load_bundle``.

    settings: of the search, such as ``beam``.
    """

    folder: str
    device: str = "cpu"
    items: str | None = None
    content: str | None = None
    accelerate: bool = True
    index: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> ServingBundle:
        """Load the bundle. Raises ValueError where it is missing or damaged."""
        index = None if self.index is None else IndexConfig(**self.index)
        bundle = load_bundle(
            self.folder, self.device, items=self.items, content=self.content, accelerate=self.accelerate, index=index
        )
        return bundle.with_search_settings(self.settings)


@dataclass(frozen=True)
class SparkLists:
    """Computation of the lists of a ``BatchJob`` by the workers of a Spark session; see ``BatchJob.write``.

    engine: settings of Spark, see `recpipe.data.engines.connect`. Raises ValueError where a worker fails.
    """

    source: BundleSource
    engine: Mapping[str, Any]

    def __call__(self, job: BatchJob, histories: StoredHistories) -> Iterator[UserLists]:
        """Compute all lists, then yield them in the order of the users."""
        from pyspark.errors import PySparkException

        from recpipe.data.engines import spark_session

        session = spark_session(self.engine)
        histories = replace(histories, folder=histories.folder.absolute())
        folder = histories.folder / "lists"
        folder.mkdir()
        ranges = list(histories.ranges(job.users_at_once))
        settings = {each.name: getattr(job, each.name) for each in dataclasses.fields(job) if each.name != "model"}
        task = _Task(json.dumps(asdict(self.source)), settings, histories, tuple(ranges), folder)
        log.info("Spark: %s tasks of at most %s users", f"{len(ranges):,}", f"{job.users_at_once:,}")
        try:
            rows = session.range(0, len(ranges), 1, len(ranges)).mapInArrow(partial(_run, task), SCHEMA).collect()
        except PySparkException as error:
            reasons = [line.strip() for line in str(error).splitlines() if ": " in line and "Error" in line]
            raise ValueError(
                f"a task of Spark failed: {reasons[-1] if reasons else error}. Every worker needs this Python "
                f"environment, and sees {self.source.folder} and {histories.folder}"
            ) from error
        counts = {row["task"]: json.loads(row["counts"]) for row in rows}
        for number, users in enumerate(ranges):
            yield UserLists(histories.user_ids_of(users), pq.read_table(folder / _name(number)), counts[number])
            (folder / _name(number)).unlink()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Task:
    """What the workers get. source: JSON of a BundleSource; settings: of the BatchJob besides its model."""

    source: str
    settings: Mapping[str, Any]
    histories: StoredHistories
    ranges: tuple[UserRange, ...]
    folder: Path


def _run(task: _Task, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Compute the lists of the batches of users whose numbers come in; one that is tried again replaces its file."""
    job = BatchJob(_bundle(task.source), **task.settings)
    for batch in batches:
        for number in batch.column(0).to_pylist():
            lists = job.user_lists(task.histories.read(task.ranges[number]))
            with atomic_file(task.folder / _name(number), digest=False) as part:
                pq.write_table(lists.table, part, compression="zstd")
            yield pa.RecordBatch.from_pydict({"task": [number], "counts": [json.dumps(lists.counts)]})


@lru_cache(maxsize=1)
def _bundle(source: str) -> ServingBundle:
    """Load a bundle once per process."""
    return BundleSource(**json.loads(source)).load()


def _name(number: int) -> str:
    return f"{number:08}.parquet"
