"""Batch lists against the full ranking of evaluation, and the memory that lists of many users take.

kedro run --pipelines=ingest,train --params model=sasrec
python benchmarks/batch_lists.py
python benchmarks/batch_lists.py --users 1000000

The first ranks the same histories both ways, in turns in one process. The second makes lists for a generated log of ten
events a user, in a process of its own, and prints its peak memory above that with the bundle loaded.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness import command_line, generated_data, measure_alone, peak_gib, train_on_generated
from recpipe.data.requests import Requests
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.serving.batch import BatchJob
from recpipe.serving.model import ServingBundle, load_bundle

DATASET, MODEL = "online_retail", "sasrec"
EVENTS_PER_USER = 10
BLOCK = 100_000  # users generated at once


def main(argv: list[str] | None = None) -> None:
    """Print the ratio of users per second, or the memory for ``--users``."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, help="of a generated log, for the memory")
    parser.add_argument("--measure", nargs=2, type=Path, help="bundle and log, in a process of its own")
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(memory(*arguments.measure)))
        return
    with TemporaryDirectory() as folder:
        data = arguments.data
        if arguments.quick:
            data = generated_data(Path(folder), DATASET)
            train_on_generated(data, DATASET, MODEL, {"dim": 16, "train": {"max_epochs": 1}})
        run = data / "06_models" / DATASET / arguments.model
        if not run.is_dir():
            parser.error(f"{run} is absent; run the first command above")
        if arguments.users or arguments.quick:
            show_memory(run, Path(folder), arguments.users or 1000, quick=arguments.quick)
        if not arguments.users:
            compare(
                run, data / "03_primary" / DATASET / "interactions.parquet", 2 if arguments.quick else arguments.rounds
            )


def compare(run: Path, log: Path, rounds: int) -> None:
    """Rank all histories with ``rank_fold`` and as batch lists, in turns."""
    model = load_bundle(run)
    histories, _ = build_sequences(log)
    fold = Fold(histories, histories.last(1))
    rows = []
    for _ in range(rounds):
        started = time.process_time()
        row = {"evaluation": evaluation_seconds(model, fold), "evaluation_cpu": time.process_time() - started}
        with TemporaryDirectory() as folder:
            rows.append(row | batch_seconds(model, log, Path(folder)))
    times = {name: median(row[name] for row in rows) for name in rows[0]}
    speed = {name: len(fold) / times[name] for name in ("evaluation", "lists")}
    print(
        f"{len(fold):,} users x {len(model.vocabulary):,} items: evaluation {speed['evaluation']:,.0f} users/s, "
        f"batch lists {speed['lists']:,.0f} users/s, ratio {times['evaluation'] / times['lists']:.2f}, of CPU seconds "
        f"{times['evaluation_cpu'] / times['lists_cpu']:.2f}; sort of the log {times['sort']:.2f} s"
    )


def evaluation_seconds(model: ServingBundle, fold: Fold) -> float:
    """Seconds of the full ranking of a fold."""
    return rank_fold(model.model, fold, exclude_seen=model.protocol.exclude_seen, k=10).seconds


def batch_seconds(model: ServingBundle, log: Path, folder: Path) -> dict[str, float]:
    """Seconds to sort a log, and to rank its users and write their lists."""
    started = time.perf_counter()
    with Requests(log).stored(model.vocabulary, {"memory_limit": "1GB", "spill_folder": str(folder)}) as histories:
        sort, started_cpu = time.perf_counter() - started, time.process_time()
        summary = BatchJob(model).write(histories, folder)
        return {"sort": sort, "lists": summary["seconds"], "lists_cpu": time.process_time() - started_cpu}


def show_memory(run: Path, folder: Path, users: int, *, quick: bool) -> None:
    """Print the peak memory of lists for ``users`` users of a generated log."""
    model = load_bundle(run)
    assert model.folder is not None
    log = generated_events(folder / "log.parquet", users, model.vocabulary.ids)
    result = measure_alone(__file__, "--measure", str(model.folder), str(log), quick=quick)
    print(
        f"{users:,} users x {EVENTS_PER_USER} events, {run.name}: {result['gib']:.2f} GiB above the bundle "
        f"({result['bundle_gib']:.2f} GiB), sort {result['sort']:.1f} s, lists {result['lists']:.1f} s, "
        f"{users / result['lists']:,.0f} users/s; other load {result['others']:.1f} cores"
    )


def generated_events(path: Path, users: int, item_ids: np.ndarray) -> Path:
    """Write a log whose events of a user lie far apart, as in one that is sorted by time."""
    rng = np.random.default_rng(0)
    items = pa.array(item_ids, pa.string())
    names = ("user_id", "item_id", "timestamp", "order")
    schema = pa.schema(list(zip(names, (pa.string(), pa.string(), pa.int64(), pa.int64()), strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for turn in range(EVENTS_PER_USER):
            for start in range(0, users, BLOCK):
                owner = np.arange(start, min(start + BLOCK, users))
                order = pa.array(turn * users + owner)
                ids = pa.compute.binary_join_element_wise("user", pa.array(owner).cast(pa.string()), "")
                item = items.take(pa.array(rng.integers(0, len(items), len(owner))))
                writer.write_table(pa.table([ids, item, order, order], schema=schema))
    return path


def memory(bundle: Path, log: Path) -> dict[str, float]:
    """Peak memory above that with the bundle loaded and used once, and seconds."""
    model = load_bundle(bundle)
    one = Sequences(np.array(["u"], dtype=object), np.array([1], np.int32), None, np.array([0, 1], np.int64))
    model.lists(one, 10)  # loads what the first call of torch loads
    before = peak_gib()
    with TemporaryDirectory() as folder:
        seconds = batch_seconds(model, log, Path(folder))
    return {"bundle_gib": before, "gib": peak_gib() - before, **seconds}


if __name__ == "__main__":
    main()
