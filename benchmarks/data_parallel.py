"""Training speed of several processes against one, with the same steps: sasrec on a generated log.

    python benchmarks/data_parallel.py                 # 1 and 2 processes of one thread each
    python benchmarks/data_parallel.py --devices 4

Events per second of training, without start-up and validation, by processes of one thread each on cores of their own;
numbers of processes in turns, the best of the rounds. "per core" is the speed of a process among several over that of
a single one. The loss of the last epoch shows that the steps are the same. Run it on a machine without other work:
processes wait for the slowest of them in every step.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from harness import OtherLoad, command_line
from recpipe.data.sequences import Sequences
from recpipe.models.registry import build
from recpipe.training.fit import TrainingResult, train
from recpipe.training.settings import TrainSettings

WINDOW = 50
NET = {"dim": 64, "layers": 2, "heads": 2, "dropout": 0.0}


def main(argv: list[str] | None = None) -> None:
    """Print a row per number of processes and layout."""
    parser = command_line(__doc__)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--users", type=int, default=6000)
    parser.add_argument("--items", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.epochs, arguments.users, arguments.items = 1, 2, 60, 40
    torch.set_num_threads(1)
    data, load = generated(arguments.users, arguments.items), OtherLoad()
    print(f"{len(data.items):,} events, {arguments.users:,} users, {arguments.items:,} items")
    print(f"{'layout':8} {'processes':>9} {'events / s':>11} {'per core':>9} {'start-up s':>11} {'last loss':>10}")
    for layout in ("padded", "packed"):
        speeds: dict[int, float] = {}
        start_ups, losses = {}, {}
        for devices in (1, arguments.devices) * arguments.rounds:
            started = time.perf_counter()
            result = trained(data, arguments.items, layout, devices, arguments.epochs)
            start_ups[devices] = time.perf_counter() - started - result.cost["train_seconds"]
            losses[devices] = result.curve[-1]["loss"]
            speeds[devices] = max(speeds.get(devices, 0.0), speed(result))
        for devices, value in speeds.items():
            per_core = value / devices / speeds[1]
            numbers = f"{value:11,.0f} {per_core:9.2f} {start_ups[devices]:11.1f} {losses[devices]:10.6f}"
            print(f"{layout:8} {devices:9} {numbers}")
    print(f"cores used by others meanwhile: {load.cores():.1f}")


def generated(users: int, items: int) -> Sequences:
    """Histories of about 50 events, items by Zipf's law."""
    rng = np.random.default_rng(0)
    lengths = 3 + rng.geometric(1 / 47, users).clip(max=300)
    popularity = 1 / np.arange(1, items + 1)
    events = rng.choice(items, int(lengths.sum()), p=popularity / popularity.sum()) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences([str(user) for user in range(users)], events.astype(np.int32), None, offsets)


def trained(data: Sequences, items: int, layout: str, devices: int, epochs: int) -> TrainingResult:
    """Train without validation."""
    settings = TrainSettings(
        layout=layout, devices=devices, max_epochs=epochs, device="cpu", loggers=[], batch_tokens=min(12_800, 4 * items)
    )
    with TemporaryDirectory() as folder:
        return train(
            lambda: build("sasrec", NET, n_items=items, max_length=WINDOW),
            data,
            None,
            settings,
            seed=0,
            folder=Path(folder),
        )


def speed(result: TrainingResult) -> float:
    """Events per second after the first epoch, in which caches are filled."""
    seconds = [row["seconds"] for row in result.curve]
    events = result.cost["tokens_per_second"] * seconds[-1] * (len(seconds) - 1) / len(seconds)
    return events / (seconds[-1] - seconds[0])


if __name__ == "__main__":
    main()
