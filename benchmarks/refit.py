"""Cost of a refit per training target, against the training of the same model that was measured.

    kedro run --pipelines=ingest,train --params model=popular
    python benchmarks/refit.py

Training and refit take turns in one process, each from the beginning. ``seconds`` are those of the epochs alone,
``wall`` those of the whole call, with preparation, checkpoints and, in training, validation. A target is an event that
the model learns to predict, once per epoch. The bar is a ratio of the medians of at most 1.1.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness import OtherLoad, command_line, configuration, generated_data

if TYPE_CHECKING:
    from recpipe.training.bundle import Bundle
    from recpipe.training.job import TrainingJob
    from recpipe.training.refit import MeasuredRun

ROUNDS = 3


def main(argv: list[str] | None = None) -> None:
    """Print a row per training and refit, and the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="online_retail")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(argv)
    logging.getLogger("recpipe").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.data, options.rounds = generated_data(Path(folder) / "data", options.dataset), 1
        try:
            compare(options, Path(folder))
        except (OSError, ValueError) as error:
            parser.error(f"{error}")


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Measure rounds of training and refit. Raises ValueError, with the command to run, for missing data."""
    from recpipe.training.refit import refit

    rows: dict[str, list[dict[str, float]]] = {"training": [], "refit": []}
    for number in range(options.rounds):
        job = training_job(options, folder / f"training {number}")
        bundle, row = timed(job.train)
        rows["training"].append(row)
        measured = measure(bundle, job)
        again = refit_job(options, measured, job, folder / f"refit {number}")
        _, row = timed(lambda job=again, run=measured: refit(job, run))  # type: ignore[misc]
        rows["refit"].append(row)
    for name, rounds in rows.items():
        for row in rounds:
            print(
                f"{name:<9}{row['epochs']:4.0f} epochs {row['targets']:12,.0f} targets {row['seconds']:8.2f} s "
                f"{row['wall']:8.2f} s wall {1e6 * row['seconds'] / row['targets']:8.2f} µs/target "
                f"{1e6 * row['wall'] / row['targets']:8.2f} µs/target wall  others {row['others']:.2f}"
            )
    for what in ("seconds", "wall"):
        cost = {name: median(row[what] / row["targets"] for row in rounds) for name, rounds in rows.items()}
        print(f"refit / training, {what} per target: {cost['refit'] / cost['training']:.3f}")


def training_job(options: argparse.Namespace, work: Path) -> TrainingJob:
    """Return the training job of the model on the split on disk."""
    from recpipe.evaluation.evaluate import validator
    from recpipe.training.standalone import DataFolder

    run = configuration(options.dataset, seed=42).run(options.model)
    return replace(DataFolder(options.data, options.dataset).job(run, validator), work_folder=work)


def timed(train: Callable[[], Bundle]) -> tuple[Bundle, dict[str, float]]:
    """Return the bundle, and targets, seconds and other load of its training."""
    load, started = OtherLoad(), time.perf_counter()
    bundle = train()
    wall, cost = time.perf_counter() - started, bundle.training["cost"]
    targets = cost["tokens_per_second"] * cost["train_seconds"]
    times = {"seconds": cost["train_seconds"], "wall": wall, "others": load.cores()}
    return bundle, {"targets": targets, "epochs": cost["epochs"], **times}


def measure(bundle: Bundle, job: TrainingJob) -> MeasuredRun:
    """Return the trained model as a measured run, with a description in place of its metrics, which cost nothing."""
    from recpipe.training.refit import MeasuredRun

    metrics = {"cost": bundle.training["cost"], "protocol": {"id": job.data.protocol.id}, "test": {}}
    return MeasuredRun(bundle, metrics, "benchmark")


def refit_job(options: argparse.Namespace, measured: MeasuredRun, job: TrainingJob, work: Path) -> TrainingJob:
    """Return the job that trains the same model on the whole log."""
    from recpipe.data.sequence_builder import build_sequences

    protocol = measured.bundle.protocol
    log = options.data / "03_primary" / options.dataset / "interactions.parquet"
    sequences, vocabulary = build_sequences(
        log, ties=protocol.ties, seed=protocol.seed, target_events=protocol.target_events
    )
    data = measured.data(sequences, vocabulary)
    return replace(job, config=measured.config(job.config), data=data, work_folder=work)


if __name__ == "__main__":
    main()
