"""How fast is an epoch of LightGCN against RecBole's, on the same pairs of ml-100k with the same net?

    kedro run --pipelines=ingest --params dataset=ml-100k
    python benchmarks/lightgcn.py [--peer <python with recbole> --peers <copy of ../shared/peers, prepared for ml-100k>]

Both: 64 wide, 2 layers, one uniform negative, 2,048 pairs a step; leave-one-out; the first epoch warms up. Each runs
in a process of its own, ours then the peer's, with the same allocator settings and threads; torch's anomaly detection,
which RecBole turns on as shipped, is off. Ours counts its fold-in tables, made after every epoch, as part of an epoch.
Only rows whose `others` (cores used by other processes) is near 0 count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from training import ALLOCATOR, THREADS, conf, cores_busy

LOG = Path("data/03_primary/ml-100k/interactions.parquet")
NET = {"dim": 64, "layers": 2, "batch": 2048}  # RecBole's defaults too


def main() -> None:
    """Runs both sides in turns and prints one table."""
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measure(arguments.epochs)))
        return
    if not LOG.exists():
        raise SystemExit(
            f"{LOG} is absent; run `kedro run --pipelines=ingest --params dataset=ml-100k` first"
        )
    if arguments.peer and not arguments.peers:
        raise SystemExit(
            "--peer needs --peers, a copy of the peers' folder where `prepare.py ml-100k` has run"
        )
    rows = []
    for _ in range(arguments.rounds):
        rows.append(own(arguments))
        if arguments.peer:
            rows.append(peer(arguments))
    report(rows)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="python of an environment with recbole")
    parser.add_argument("--peers", type=Path, help="copy of the peers' folder, prepared for ml-100k")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def own(arguments: argparse.Namespace) -> dict:
    """Our epochs in a fresh process."""
    command = [sys.executable, __file__, "--measure", "--epochs", str(arguments.epochs)]
    output, others = alone(command)
    return {**json.loads(output.splitlines()[-1]), "others": others}


def peer(arguments: argparse.Namespace) -> dict:
    """RecBole's epochs through the peers' own script."""
    command = [
        str(arguments.peer.absolute()),
        "recbole_lightgcn.py",
        "--dataset",
        "ml-100k",
        "--anomaly",
        "off",
    ]
    command += ["--epochs", str(arguments.epochs), "--batch", str(NET["batch"]), "--tag", "_recpipe"]
    _, others = alone(command, cwd=arguments.peers)
    found = json.loads(
        (arguments.peers / "results" / f"recbole_lightgcn_ml-100k_b{NET['batch']}_recpipe.json").read_text()
    )
    return {
        "what": "RecBole LightGCN",
        "epoch_s": found["epoch_s_median"],
        "pairs": found["train_rows"],
        "parameters": found["params"],
        "others": others,
    }


def alone(command: list[str], cwd: Path | None = None) -> tuple[str, float]:
    """Standard output of a program, and the cores that other processes used meanwhile."""
    started, busy, cpu = time.perf_counter(), cores_busy(), children_cpu()
    environment = {**os.environ, **ALLOCATOR, **THREADS}
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see above")
    others = (cores_busy() - busy - (children_cpu() - cpu)) / (time.perf_counter() - started)
    return done.stdout, max(others, 0.0)


def children_cpu() -> float:
    """CPU seconds of the programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(epochs: int) -> dict:
    """Seconds per epoch of ours, after one that warms up."""
    import torch

    from recpipe.data.sequences import build
    from recpipe.data.splits import split
    from recpipe.models.registry import build as make
    from recpipe.models.registry import resolve
    from recpipe.pipelines.blocks import protocol_of

    known = conf()
    protocol = protocol_of(known["protocol"], known["datasets"], "ml-100k")
    spec = resolve(known["models"]["lightgcn"], "ml-100k")
    sequences, vocabulary = build(LOG, ties=protocol.ties, seed=protocol.seed)
    train = split(sequences, protocol).train
    torch.manual_seed(0)
    config = {**spec.config, **NET, "epochs": epochs}
    model = make("lightgcn", config, n_items=len(vocabulary), max_length=protocol.history)
    ends = [time.perf_counter()]
    for _ in model.epochs(train):
        ends.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(ends)]
    return {
        "what": "recpipe LightGCN",
        "epoch_s": median(seconds[1:] or seconds),
        "pairs": int(train.lengths.sum()),
        "parameters": (len(train) + len(vocabulary)) * NET["dim"],  # a table of users is trained, and dropped
    }


def report(rows: list[dict]) -> None:
    """Every row, then the ratio of the medians."""
    for row in rows:
        print(
            f"{row['what']:<18} {row['epoch_s']:7.3f} s/epoch {row['pairs'] / row['epoch_s']:10,.0f} pairs/s "
            f"{row['pairs']:8,d} pairs {row['parameters']:8,d} parameters  others {row['others']:.2f}"
        )
    epoch = {row["what"]: median(r["epoch_s"] for r in rows if r["what"] == row["what"]) for row in rows}
    if "RecBole LightGCN" in epoch:
        ratio = epoch["RecBole LightGCN"] / epoch["recpipe LightGCN"]
        print(f"epoch of RecBole over ours: {ratio:.2f} x (bar: 3)")


if __name__ == "__main__":
    main()
