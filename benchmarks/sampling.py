"""Benchmark of sampling a listening log (the Music4All steps) against bare DuckDB: time, peak memory, equal rows.

    python benchmarks/sampling.py --rows 50000000 --memory 4GB

Bare DuckDB runs the steps in one hand-written statement, or copies the whole file to Parquet. It counts nothing,
whereas recpipe checks every row and fills the step table. Each contender runs in its own process.
"""

# ruff: noqa: S608 -- statements consist of constants of this file

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import command_line

USERS, TRACKS = 119_000, 56_000  # as in Music4All-Onion
STEPS = [
    {"step": "min_events", "users": 5},
    {"step": "cap_per_user", "n": 1000, "keep": "last"},
    {"step": "hash_users", "share": 0.05, "salt": "music4all"},
]
HASH = f"('0x' || substr(md5(user_id || 'music4all'), 1, 8))::BIGINT < {0.05 * 2**32}"
LATEST = 'row_number() OVER (PARTITION BY user_id ORDER BY "timestamp" DESC, "order" DESC) <= 1000'
COLUMNS = 'user_id, item_id, "timestamp", "order"'
RAW = """(SELECT user_id, track_id AS item_id, epoch("timestamp")::BIGINT AS "timestamp",
    row_number() OVER () - 1 AS "order" FROM read_csv('{path}', delim = '\\t', header = true))"""
WHOLE = "bare, whole file to Parquet"  # no steps at all
BARE = {
    "bare, step by step": f"""SELECT * FROM (SELECT {COLUMNS} FROM (SELECT * FROM {RAW}
        QUALIFY count(*) OVER (PARTITION BY user_id) >= 5) QUALIFY {LATEST}) WHERE {HASH}""",
    "bare, users by hash first": f"""SELECT {COLUMNS} FROM (SELECT * FROM {RAW} WHERE {HASH})
        QUALIFY count(*) OVER (PARTITION BY user_id) >= 5 AND {LATEST}""",
    WHOLE: f"SELECT {COLUMNS} FROM {RAW}",
}
OURS = "recpipe"


def generate(path: Path, rows: int, threads: int) -> None:
    """Write a log of plays in random order of time, with skewed users and tracks."""
    import duckdb

    con = duckdb.connect(config={"threads": threads, "memory_limit": "4GB", "preserve_insertion_order": False})
    uniform = ", ".join(f"hash(range, {n}) / 18446744073709551616.0 AS u{n}" for n in (1, 2, 3))
    con.execute(f"""COPY (
        SELECT 'user_' || substr(md5('u' || least({USERS - 1}, {USERS} * u1 ** 2.2)::INT), 1, 8) AS user_id,
            substr(md5('t' || least({TRACKS - 1}, {TRACKS} * u2 ** 2.5)::INT), 1, 16) AS track_id,
            strftime(make_timestamp((1546300800 + u3 * 7862400)::BIGINT * 1000000), '%Y-%m-%d %H:%M') AS "timestamp"
        FROM (SELECT {uniform} FROM range({rows}))) TO '{path}' (DELIMITER '\\t', HEADER)""")


def run(name: str, source: Path, target: Path, engine: dict[str, object]) -> dict[str, float]:
    """Run one contender in this process; return seconds and peak memory in MiB."""
    start = time.perf_counter()
    if name == OURS:
        from recpipe.data import engines, readers
        from recpipe.data.interactions import ingest

        con = engines.connect(engine)
        raw = readers.read({"source": "music4all"}, {"files": {"interactions": [str(source)]}}, con)
        read = time.perf_counter() - start
        engines.write_parquet(ingest(raw, STEPS).interactions, target)
    else:
        import duckdb

        settings = {k: engine[k] for k in ("memory_limit", "threads")} | {"temp_directory": engine["spill_folder"]}
        statement = BARE[name].replace("{path}", str(source))
        read = 0.0
        duckdb.connect(config=settings).execute(f"COPY ({statement}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": time.perf_counter() - start, "read": read, "peak": int(peak.split()[1]) / 1024}


def same(one: Path, other: Path) -> bool:
    """Whether two files contain the same rows."""
    import duckdb

    fields = f"{COLUMNS} FROM '{{}}'"
    query = f"SELECT count(*) FROM ((SELECT {fields}) EXCEPT ALL (SELECT {fields}))"
    both = ((one, other), (other, one))
    return all(duckdb.connect().execute(query.format(a, b)).fetchall() == [(0,)] for a, b in both)


def main(argv: list[str] | None = None) -> None:
    """Run every contender on one generated log and print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1, help="each contender so many times in turn; the best counts")
    parser.add_argument("--folder", help="where the log and the spilled data go (default: the system's)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.threads = 20_000, 1
    if args.only:
        print(json.dumps(run(**json.loads(args.only, object_hook=_paths))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Generate the log, run all contenders and print the table."""
    log = folder / "log.tsv"
    generate(log, args.rows, args.threads)
    print(f"{args.rows:,} rows, {log.stat().st_size / 2**20:,.0f} MiB, {args.threads} threads, limit {args.memory}")
    engine = {"memory_limit": args.memory, "threads": args.threads, "spill_folder": str(folder / "spill")}
    names, best = [OURS, *BARE], {}
    targets = {name: folder / f"{number}.parquet" for number, name in enumerate(names)}
    for _ in range(args.rounds):
        for name in names:
            task = {"name": name, "source": str(log), "target": str(targets[name]), "engine": engine}
            process = subprocess.run(
                [sys.executable, __file__, "--only", json.dumps(task)], check=True, stdout=subprocess.PIPE
            )
            result = json.loads(process.stdout)
            best[name] = min(best.get(name, result), result, key=lambda r: r["seconds"])
    print(f"{'':28} {'seconds':>8} {'recpipe / it':>13} {'peak MiB':>9}  same rows as recpipe")
    for name in names:
        ratio = best[OURS]["seconds"] / best[name]["seconds"]
        equal = "" if name in (OURS, WHOLE) else "yes" if same(targets[OURS], targets[name]) else "NO"
        print(f"{name:28} {best[name]['seconds']:8.1f} {ratio:13.2f} {best[name]['peak']:9,.0f}  {equal}")
    print(f"of recpipe's seconds, {best[OURS]['read']:.1f} are the reader's")


def _paths(values: dict[str, object]) -> dict[str, object]:
    return {k: Path(str(v)) if k in ("source", "target") else v for k, v in values.items()}


if __name__ == "__main__":
    main()
