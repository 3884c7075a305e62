"""Split, training and ranking of a generated log of 100 million events, against one of the size of ml-1m.

    python benchmarks/large_log.py [--events 100000000 --users 1000000 --items 200000] [--folder data/large_log]

Lengths of histories are log-normal, items of a power law. Steps are those of SASRec with 512 sampled negatives on all
windows of 200 events, taken by turns of the large and the small log; an epoch differs from them in nothing but their
number. Each stage runs in a process of its own. `anonymous` is memory that the system cannot drop, `peak` has the pages
of the mapped files too. Only rows whose `others` (cores used by other processes) is near 0 count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from harness import command_line, measure_alone, peak_gib

if TYPE_CHECKING:
    from recpipe.data.sequences import Sequences

SMALL = {"events": 1_000_000, "users": 6_040, "items": 3_706}  # ml-1m
COLUMNS = ["items", "timestamps"]
USERS_AT_ONCE = 40_000
STAGES = ("log", "split", "training", "ranking")
GIB = 2**30


def main(argv: list[str] | None = None) -> None:
    """Run every stage in a process of its own and print a row for it."""
    parser = command_line(__doc__)
    for name, value in {"events": 100_000_000, "users": 1_000_000, "items": 200_000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ranked", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, default=Path("data/large_log"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--measure", choices=STAGES)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        with Memory() as memory:
            result = globals()[f"measure_{arguments.measure}"](arguments)
        print(json.dumps({**result, "peak": peak_gib(), "anonymous": memory.anonymous}))
        return
    if arguments.quick:
        arguments.events, arguments.users, arguments.items, arguments.ranked = 4_000, 60, 50, 20
        arguments.steps = 2
    options = ("events", "users", "items", "steps", "ranked", "folder")
    words = [word for name in options for word in (f"--{name}", str(getattr(arguments, name)))]
    for stage in arguments.stages:
        row = measure_alone(__file__, "--measure", stage, *words, quick=arguments.quick)
        values = {name: value for name, value in row.items() if name not in ("others", "peak", "anonymous")}
        texts = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
        memory = f"peak {row['peak']:.2f} GiB, anonymous {row['anonymous']:.2f} GiB"
        print(f"{stage}: {texts}; {memory}; others {row['others']:.2f}", flush=True)
    if arguments.quick:
        shutil.rmtree(arguments.folder)


class Memory:
    """Peak of the anonymous memory in GiB, sampled; 0 where the system does not tell."""

    def __enter__(self) -> Memory:
        self.anonymous, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            try:
                lines = Path("/proc/self/status").read_text().splitlines()
            except OSError:
                return
            kib = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.anonymous = max(self.anonymous, kib / 2**20)


def measure_log(arguments: argparse.Namespace) -> dict[str, float]:
    """Write both logs."""
    started = time.perf_counter()
    sizes = {name: getattr(arguments, name) for name in SMALL}
    events = write_log(arguments.folder / "large.arrow", **sizes)
    seconds = time.perf_counter() - started
    write_log(arguments.folder / "small.arrow", **{name: min(size, sizes[name]) for name, size in SMALL.items()})
    size = (arguments.folder / "large.arrow").stat().st_size / GIB
    return {"events": events, "GiB": size, "seconds": seconds}


def write_log(path: Path, *, events: int, users: int, items: int) -> int:
    """Write sequences of about ``events`` events; return their number."""
    import pyarrow as pa

    from recpipe.data.sequence_files import SequenceWriter

    rng = np.random.default_rng(0)
    ids = rng.permutation(items).astype(np.int32) + 1
    lengths = rng.lognormal(np.log(events / users) - 0.5, 1.0, users).astype(np.int64).clip(5, 3000)
    with SequenceWriter(path, COLUMNS) as writer:
        for first in range(0, users, USERS_AT_ONCE):
            part = lengths[first : first + USERS_AT_ONCE]
            n = int(part.sum())
            gaps = rng.integers(1, 20_000, n)
            times = np.cumsum(gaps)
            times -= np.repeat(times[np.cumsum(part) - part] - rng.integers(0, 10**8, len(part)), part)
            writer.append(items=ids[(items * rng.random(n) ** 3).astype(np.int64)], timestamps=1_500_000_000 + times)
        names = pa.array([f"user {user:08}" for user in range(users)], pa.string())
        writer.close(names, np.concatenate([[0], np.cumsum(lengths)]))
    return int(lengths.sum())


def measure_split(arguments: argparse.Namespace) -> dict[str, float]:
    """Split both logs as the pipeline does; the numbers are those of the large one."""
    from recpipe.data.protocol import Protocol
    from recpipe.data.sequences import Sequences
    from recpipe.data.splits import split_to

    result = {}
    for name in ("small", "large"):
        sequences, folder = Sequences.read(arguments.folder / f"{name}.arrow"), arguments.folder / name
        started = time.perf_counter()
        parts = split_to(folder, sequences, Protocol(dataset="generated"))
        splitting = time.perf_counter() - started
        result = {"events": len(sequences.items), "split s": splitting}
        del sequences  # as the node does
        parts.sizes()
        parts.test.fingerprint()
        result["sizes and fingerprint s"] = time.perf_counter() - started - splitting
    return result


def measure_training(arguments: argparse.Namespace) -> dict[str, float]:
    """Take steps on both training sets by turns, after all that a training does before its first step."""
    from recpipe.config.run_config import ColdUsersConfig
    from recpipe.data.seen_events import SeenEvents
    from recpipe.data.sequences import Sequences, count_items
    from recpipe.layers.cold_users import ColdUsers

    runs = {}
    for name in ("small", "large"):
        started = time.perf_counter()
        train = Sequences.read(arguments.folder / name / "train_set.arrow")
        items = int(count_items(train.items, arguments.items).nonzero()[0][-1])
        ColdUsers(ColdUsersConfig(), n_items=items).fit(train)
        SeenEvents.of(train)
        runs[name] = training_steps(train, items)
        next(runs[name])
        before = time.perf_counter() - started
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.steps):
        for name, steps in runs.items():
            started = time.perf_counter()
            n_targets = next(steps)
            seconds[name].append((time.perf_counter() - started) / n_targets)
    small, large = (1e6 * median(seconds[name]) for name in ("small", "large"))
    return {"before the first step s": before, "small µs/event": small, "large µs/event": large, "ratio": large / small}


def training_steps(train: Sequences, items: int) -> Iterator[int]:
    """Yield the number of targets of each step."""
    from recpipe.models.registry import build
    from recpipe.training.settings import TrainSettings
    from training import bare_epochs

    loss = {"name": "sampled_softmax", "negatives": {"uniform": 512}, "log_q": True}
    optimiser = {"name": "adam", "learning_rate": 1e-3}
    settings = TrainSettings(windows="all", loss=loss, optimiser=optimiser, precision="fp32", device="cpu")
    model = build("sasrec", {"dim": 64, "layers": 2, "heads": 1, "dropout": 0.1}, n_items=items, max_length=200)
    for steps in bare_epochs(model, train, settings, 10**6):
        yield from steps


def measure_ranking(arguments: argparse.Namespace) -> dict[str, float]:
    """Read a fold, score the first batches of all its users, and rank the targets of some in the whole catalogue."""
    import torch

    from recpipe.data.sequences import Fold
    from recpipe.evaluation.ranking import rank_fold
    from recpipe.models.registry import build

    started = time.perf_counter()
    fold = Fold.read(arguments.folder / "large" / "valid_set.arrow")
    seconds = {"read s": time.perf_counter() - started}
    started = time.perf_counter()
    fold.seen_targets()
    seconds["seen targets s"] = time.perf_counter() - started
    model = build("sasrec", {"dim": 64, "layers": 2, "heads": 1}, n_items=arguments.items, max_length=200)
    torch.manual_seed(0)
    started = time.perf_counter()
    rows = islice(model.score_batches(fold.histories, exclude_seen=True), 3)
    users = sum(len(row) for row, _ in rows)
    seconds["first batches of all users s"] = time.perf_counter() - started
    some = fold.select(np.arange(min(arguments.ranked, len(fold))))
    started = time.perf_counter()
    rank_fold(model, some, exclude_seen=True, k=20)
    seconds["ms per user"] = 1000 * (time.perf_counter() - started) / len(some)
    return {"users": len(fold), "of the first batches": users, **seconds}


if __name__ == "__main__":
    main()
