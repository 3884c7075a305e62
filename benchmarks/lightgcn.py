"""Time of an epoch of LightGCN against RecBole's, on the same pairs of ml-100k with the same network.

    kedro run --pipelines=ingest --params dataset=ml-100k
    python benchmarks/lightgcn.py [--peer <python with recbole> --peers <copy of ../shared/peers, prepared for ml-100k>]

Both: 64 wide, 2 layers, one uniform negative, 2,048 pairs per step, leave-one-out; the first epoch is not timed. Each
runs in its own process with the same allocator settings and threads, without torch's anomaly detection, RecBole's
default. Our epochs include the item tables computed after each. Only rows with `others` (cores used by other processes)
near 0 are valid.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from harness import NOT_INSTALLED, command_line, configuration, generated_log, measure_alone, protocol_of, run_alone

DATASET = "ml-100k"
LOG = Path(f"data/03_primary/{DATASET}/interactions.parquet")
NET = {"dim": 64, "layers": 2, "batch": 2048}  # RecBole's defaults too


def main(argv: list[str] | None = None) -> None:
    """Run both in turns and print a table."""
    arguments = parse(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.log, arguments.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.log = generated_log(Path(folder) / "log.parquet")
            arguments.epochs, arguments.rounds = 2, 1
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run both, or only ours without ``--peer``."""
    if not arguments.log.exists():
        raise SystemExit(
            f"{arguments.log} is absent; run `kedro run --pipelines=ingest --params dataset={DATASET}` first"
        )
    if arguments.peer and not arguments.peers:
        raise SystemExit("--peer needs --peers, a copy of the peers' folder where `prepare.py ml-100k` has run")
    rows = []
    for _ in range(arguments.rounds):
        rows.append(run_recpipe(arguments))
        if arguments.peer:
            rows.append(run_recbole(arguments))
    report(rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--peer", type=Path, help="python of an environment with recbole")
    parser.add_argument("--peers", type=Path, help="copy of the peers' folder, prepared for ml-100k")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--log", type=Path, default=LOG, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run_recpipe(arguments: argparse.Namespace) -> dict:
    """Measure our epochs in a new process."""
    options = ["--epochs", str(arguments.epochs), "--log", str(arguments.log)]
    return measure_alone(__file__, "--measure", *options, quick=arguments.quick)


def run_recbole(arguments: argparse.Namespace) -> dict:
    """Measure RecBole's epochs with the script of the peers' folder."""
    command = [str(arguments.peer.absolute()), "recbole_lightgcn.py", "--dataset", "ml-100k", "--anomaly", "off"]
    command += ["--epochs", str(arguments.epochs), "--batch", str(NET["batch"]), "--tag", "_recpipe"]
    _, others = run_alone(command, cwd=arguments.peers)
    results = json.loads(
        (arguments.peers / "results" / f"recbole_lightgcn_ml-100k_b{NET['batch']}_recpipe.json").read_text()
    )
    return {
        "what": "RecBole LightGCN",
        "epoch_s": results["epoch_s_median"],
        "pairs": results["train_rows"],
        "parameters": results["params"],
        "others": others,
    }


def measure(log: Path, epochs: int) -> dict:
    """Measure seconds per epoch, without the first."""
    import torch

    from recpipe.data.sequence_builder import build_sequences
    from recpipe.data.splits import split
    from recpipe.models.registry import build

    protocol = protocol_of(DATASET)
    run = configuration(DATASET).run("lightgcn")
    sequences, vocabulary = build_sequences(log, ties=protocol.ties, seed=protocol.seed)
    train = split(sequences, protocol).train
    torch.manual_seed(0)
    config = {**run.settings, **NET, "epochs": epochs}
    model = build("lightgcn", config, n_items=len(vocabulary), max_length=protocol.history)
    ends = [time.perf_counter()]
    for _ in model.epochs(train):
        ends.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(ends)]
    return {
        "what": "recpipe LightGCN",
        "epoch_s": median(seconds[1:] or seconds),
        "pairs": int(train.lengths.sum()),
        "parameters": (len(train) + len(vocabulary)) * NET["dim"],  # users are trained, not stored
    }


def report(rows: list[dict]) -> None:
    """Print every row, then the ratio of the medians."""
    for row in rows:
        print(
            f"{row['what']:<18} {row['epoch_s']:7.3f} s/epoch {row['pairs'] / row['epoch_s']:10,.0f} pairs/s "
            f"{row['pairs']:8,d} pairs {row['parameters']:8,d} parameters  others {row['others']:.2f}"
        )
    epoch = {row["what"]: median(r["epoch_s"] for r in rows if r["what"] == row["what"]) for row in rows}
    if "RecBole LightGCN" in epoch:
        ratio = epoch["RecBole LightGCN"] / epoch["recpipe LightGCN"]
        print(f"epoch of RecBole over ours: {ratio:.2f} x (bar: 3)")
    else:
        print(f"{'RecBole LightGCN':<18} {NOT_INSTALLED}; give --peer and --peers")


if __name__ == "__main__":
    main()
