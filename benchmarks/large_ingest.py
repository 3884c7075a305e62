"""Benchmark of a large log from raw file to split, against bare DuckDB sorting the same file to Parquet.

    python benchmarks/large_ingest.py --rows 100000000 --memory 3GB

recpipe runs the nodes of `kedro run --pipelines=ingest,train` up to the split, and writes what their catalog entries
write: a check of every row, interactions, items, users, step table, sequences, training set and folds, all with
digests. Bare DuckDB has the same memory limit and threads and runs one statement, `COPY (SELECT * ORDER BY user_id,
timestamp)`. Each contender runs in its own process. Where other programs use the machine, compare CPU seconds.
`--recipe music4all` runs the published steps of Music4All-Onion on a generated log of its format, and no split.
"""

# ruff: noqa: S608 -- statements consist of constants of this file

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import OtherLoad, command_line, configuration, own_cpu, peak_gib

RECIPES = ("generated", "music4all")
USERS_PER_EVENT, ITEMS_PER_EVENT = 1 / 100, 1 / 500
LISTENERS, TRACKS = 119_140, 56_512  # of Music4All-Onion
FILES_OPTIONS = {"columns": {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp"}, "timestamp": "s"}


def generate(path: Path, rows: int, engine: dict[str, Any], recipe: str) -> None:
    """Write a log in random order of users, items (Zipf) and times: Parquet, or the text file of Music4All."""
    import duckdb

    settings = {name: engine[name] for name in ("threads", "memory_limit")}
    con = duckdb.connect(config={**settings, "preserve_insertion_order": False})
    uniform = ", ".join(f"hash(range + {n} * 100000000000) / 18446744073709551616.0 AS u{n}" for n in (1, 2, 3))
    generated = recipe == "generated"
    users = max(int(rows * USERS_PER_EVENT), 2) if generated else min(LISTENERS, rows // 100)
    items = max(int(rows * ITEMS_PER_EVENT), 2) if generated else min(TRACKS, rows // 100)
    user = f"CAST(least({users} - 1, floor({users} * u1 ** 1.5)) AS INTEGER)"
    item = f"CAST(least({items} - 1, floor({items} ** u2 - 1)) AS INTEGER)"  # Zipf with exponent 1
    if generated:
        columns = f"""'user_' || lpad(CAST({user} AS VARCHAR), 8, '0') AS user_id,
            'item_' || lpad(CAST({item} AS VARCHAR), 8, '0') AS item_id,
            CAST(1546300800 + u3 * 94608000 AS BIGINT) AS "timestamp\""""
    else:
        columns = f"""'user_' || lpad(CAST({user} AS VARCHAR), 6, '0') AS user_id,
            substr(md5('t' || {item}), 1, 16) AS track_id,
            strftime(make_timestamp(CAST(1546300800 + u3 * 94608000 AS BIGINT) * 1000000), '%Y-%m-%d %H:%M')
            AS "timestamp\""""
    options = "FORMAT parquet, COMPRESSION zstd" if generated else r"FORMAT csv, DELIMITER '\t', HEADER"
    con.execute(f"COPY (SELECT {columns} FROM (SELECT {uniform} FROM range({rows}))) TO '{path}' ({options})")


class AnonymousMemory(threading.Thread):
    """Peak of anonymous memory of this process (without pages of mapped files), sampled every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kib = 0
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak_kib = max(self.peak_kib, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.02)


def bare(source: Path, folder: Path, engine: dict[str, Any], **_: Any) -> dict[str, float]:
    """Sort the file with one statement; return its seconds."""
    import duckdb

    settings = {key: engine[key] for key in ("memory_limit", "threads")} | {"temp_directory": engine["spill_folder"]}
    started = time.perf_counter()
    duckdb.connect(config=settings).execute(
        f"COPY (SELECT * FROM '{source}' ORDER BY user_id, timestamp) TO '{folder / 'bare.parquet'}' "
        "(FORMAT parquet, COMPRESSION zstd)"
    )
    return {"sort": time.perf_counter() - started}


def recpipe(source: Path, folder: Path, engine: dict[str, Any], recipe: str) -> dict[str, float]:
    """Run the nodes with their files as in the catalog; return seconds by stage."""
    import polars as pl

    from recpipe.config import DataPaths
    from recpipe.config.schema import DatasetConfig
    from recpipe.data import sequence_builder
    from recpipe.data.engines import write_parquet
    from recpipe.data.protocol import Protocol
    from recpipe.pipelines.ingest import fetch_source, ingest_log
    from recpipe.pipelines.train import split_sequences

    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[stage], started = now - started, now

    if recipe == "generated":
        conf = {"source": "files", "options": FILES_OPTIONS}
    else:
        conf = dict(configuration("music4all")["datasets"]["music4all"])
    conf["files"] = {"interactions": {"name": str(source)}}
    dataset = DatasetConfig(**conf)
    paths, ingest = DataPaths(folder / "data", folder / "raw", "generated"), {"engine": engine}
    files = fetch_source(dataset, paths)
    lap("digest of the source")
    interactions, items, users, quarantine, steps, _ = ingest_log(files, dataset, ingest, paths)
    lap("read, check, count")
    log = paths.primary / "interactions.parquet"
    write_parquet(interactions, log)
    write_parquet(quarantine, paths.intermediate / "quarantine.parquet")
    for name, table in (("items", items), ("users", users), ("ingest_steps", steps)):
        table.write_parquet(paths.primary / f"{name}.parquet")
    del interactions, quarantine
    lap("write the tables")
    if recipe != "generated":
        return seconds
    if os.environ.get("QUICK"):
        sequence_builder.ROWS_IN_MEMORY = 0
    users = pl.read_parquet(paths.primary / "users.parquet")
    data, test = split_sequences(log, users, steps, Protocol(dataset="generated"), ingest, paths)
    lap("sequences and split")
    data.write(paths.split)
    test.write(paths.split / "test_set.arrow")
    lap("write the split")
    return seconds


CONTENDERS = {"bare DuckDB": bare, "recpipe": recpipe}


def measure(name: str, **task: Any) -> None:
    """Run one contender in this process; print seconds and memory as JSON."""
    memory, load, cpu = AnonymousMemory(), OtherLoad(), own_cpu()
    seconds = CONTENDERS[name](**{key: Path(task[key]) for key in ("source", "folder")}, **task["options"])
    peaks = {"peak_gib": peak_gib(), "anonymous_gib": memory.peak_kib / 2**20}
    print(json.dumps({"seconds": seconds, "cpu": own_cpu() - cpu, **peaks, "others": load.cores()}))


def main(argv: list[str] | None = None) -> None:
    """Generate the log, run the contenders and print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--memory", default="3GB", help="memory limit of DuckDB, in both contenders")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--recipe", choices=RECIPES, default="generated")
    parser.add_argument("--log", type=Path, help="a log that this benchmark has generated before, or is to keep there")
    parser.add_argument("--folder", help="where the log and the spilled data go (default: the system's)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        measure(**json.loads(args.measure))
        return
    if args.quick:
        args.rows, args.threads, args.memory = 20_000, 1, "200MB"
        os.environ["QUICK"] = "1"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run all contenders on one log and print their stages, sums and peaks."""
    engine = {"memory_limit": args.memory, "threads": args.threads, "spill_folder": str(folder / "spill")}
    log = args.log or folder / ("log.parquet" if args.recipe == "generated" else "log.tsv")
    if not log.is_file():
        generate(log, args.rows, engine, args.recipe)
    size = log.stat().st_size / 2**20
    print(f"{args.recipe}: {args.rows:,} events, {size:,.0f} MiB, {args.threads} threads, limit {args.memory}")
    totals, cpu = {}, {}
    for name in CONTENDERS if args.recipe == "generated" else ("recpipe",):
        options = {"engine": engine, **({"recipe": args.recipe} if name == "recpipe" else {})}
        task = {"name": name, "source": str(log.absolute()), "folder": str(folder), "options": options}
        command = [sys.executable, __file__, "--measure", json.dumps(task)]
        done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        totals[name], cpu[name] = sum(done["seconds"].values()), done["cpu"]
        for stage, seconds in done["seconds"].items():
            print(f"{name:12} {stage:22} {seconds:8.1f} s")
        print(
            f"{name:12} {'all':22} {totals[name]:8.1f} s, CPU {cpu[name]:.1f} s, peak {done['peak_gib']:.2f} GiB, "
            f"without mapped files {done['anonymous_gib']:.2f} GiB, other processes {done['others']:.1f} cores"
        )
    if len(totals) == 2:
        ratio, of_cpu = (each["recpipe"] / each["bare DuckDB"] for each in (totals, cpu))
        print(f"recpipe / bare DuckDB: {ratio:.2f}, of CPU seconds {of_cpu:.2f}")


if __name__ == "__main__":
    main()
