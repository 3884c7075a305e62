"""Overhead of a trial of tuning against a training alone; with --kills, a study whose process is killed ten times.

    kedro run --pipelines=ingest,train --params model=popular
    python benchmarks/tuning.py
    python benchmarks/tuning.py --kills 10

Each trial is followed by a training with its settings, by ``TrainingJob.train`` on the same data, without loggers. A
trial's time is that between the end of the one before and its own, with all that Optuna and its journal need. The bar
is a median ratio of at most 1.03. Kills are of generated data: kill -9 at random moments, and the same command again;
then the study must have as many finished trials as without kills, none lost between two kills, none twice.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from harness import OtherLoad, command_line, configuration, generated_data

if TYPE_CHECKING:
    from recpipe.training.job import TrainingJob

TRIALS, KILLED_TRIALS = 6, 12
SPACE = {"search_space": {"dim": None, "layers": None, "train.batch_tokens": None}}  # trials of equal cost
READY = "ready"
SMALL = {"dim": 16, "layers": 1, "train": {"max_epochs": 4, "window": None, "stride": None, "batch_tokens": 400}}


def main(argv: list[str] | None = None) -> None:
    """Print a row per trial and the ratio, or a row per kill and the totals."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="online_retail")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--epochs", type=int, default=2, help="of a trial of the overhead, at most")
    parser.add_argument("--trials", type=int, default=None, help=f"{TRIALS}; with --kills {KILLED_TRIALS}")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--storage", default=None, help="of the study that is killed, by default a journal")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--study", type=Path, default=None, help=argparse.SUPPRESS)  # a process that is killed
    options = parser.parse_args(argv)
    logging.getLogger("recpipe").setLevel(logging.WARNING)
    if options.study is not None:
        run_study(options.study, options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.quick or options.kills:
            options.data = generated_data(folder / "data", options.dataset)
        options.trials = options.trials or (2 if options.quick else KILLED_TRIALS if options.kills else TRIALS)
        try:
            if options.kills:
                kill_study(options, folder)
            else:
                compare(options, folder)
        except (OSError, ValueError) as error:
            parser.error(f"{error}")


def training_job(options: argparse.Namespace, work: Path, **settings: Any) -> TrainingJob:
    """Return the training job of the model on the split on disk."""
    from recpipe.evaluation.evaluate import validator
    from recpipe.training.standalone import DataFolder

    run = configuration(options.dataset, seed=42, models={options.model: settings}).run(options.model)
    return replace(DataFolder(options.data, options.dataset).job(run, validator), work_folder=work)


def tune(job: TrainingJob, options: argparse.Namespace, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Search without pruning, so that trials are whole trainings."""
    from recpipe.config import build_config
    from recpipe.config.schema import TuneConfig
    from recpipe.training.tuning.tune import tune as search

    pruner = {"name": "none", "startup_trials": 0, "warmup_epochs": 0}
    values = configuration(options.dataset)["tune"] | {"trials": options.trials, "pruner": pruner}
    config = build_config(TuneConfig, values | {"storage": options.storage}, where="tune")
    return search(job, config, folder, **arguments)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Let trials and trainings take turns. Raises ValueError, with the command to run, for missing data."""
    from recpipe.training.variants import with_overrides

    job = training_job(options, folder / "work", **SPACE, train={"max_epochs": options.epochs})
    job.train(folder=folder / "first")  # what a first training of a process loads
    rows: list[dict[str, float]] = []
    load, started = OtherLoad(), [time.perf_counter(), time.process_time()]

    def train_alone(trial: Mapping[str, Any]) -> None:
        nonlocal load
        row = {"trial": time.perf_counter() - started[0], "trial_cpu": time.process_time() - started[1]}
        settings = {**trial["settings"], "train.loggers": []}
        alone = replace(job, config=with_overrides(job.config, settings))
        started[:] = time.perf_counter(), time.process_time()
        alone.train(folder=folder / f"alone {trial['number']}")
        row |= {"alone": time.perf_counter() - started[0], "alone_cpu": time.process_time() - started[1]}
        rows.append(row | {"epochs": trial["epochs"], "others": load.cores()})
        load = OtherLoad()
        started[:] = time.perf_counter(), time.process_time()

    tune(job, options, folder / "study", on_trial=train_alone)
    for number, row in enumerate(rows):
        print(
            f"trial {number:<3}{row['epochs']:4} epochs {row['trial']:8.2f} s, alone {row['alone']:8.2f} s; CPU "
            f"{row['trial_cpu']:8.2f} s, alone {row['alone_cpu']:8.2f} s  others {row['others']:.2f}"
        )
    for what in ("", "_cpu"):
        name = "CPU seconds" if what else "seconds"
        totals = [sum(row[f"{part}{what}"] for row in rows) for part in ("trial", "alone")]
        ratio = median(row[f"trial{what}"] / row[f"alone{what}"] for row in rows)
        more = 1000 * median(row[f"trial{what}"] - row[f"alone{what}"] for row in rows)
        sums = f"{totals[0] / totals[1]:.3f} of the sums"
        print(f"trial / alone, {name}: {ratio:.3f} median, {sums}; a trial takes {more:.0f} ms more, median")


def run_study(folder: Path, options: argparse.Namespace) -> None:
    """Begin or continue the study in ``folder``, and write its result."""
    job = training_job(options, folder / "work", **SMALL)
    print(READY, flush=True)
    tune(job, options, folder)


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a process that works on the study in ``folder``; return it when it is about to take a trial."""
    words = ["--data", options.data, "--dataset", options.dataset, "--model", options.model, "--study", folder]
    words += ["--trials", options.trials, *(["--storage", options.storage] if options.storage else [])]
    process = subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finished_trials(folder: Path, options: argparse.Namespace) -> dict[int, tuple[Any, ...]]:
    """Return the finished trials in the storage by number, with their values and settings."""
    import optuna

    from recpipe.config import build_config
    from recpipe.config.schema import TuneConfig
    from recpipe.training.tuning.storage import JOURNAL, open_storage

    if options.storage is None and not (folder / JOURNAL).is_file():
        return {}
    values = configuration(options.dataset)["tune"] | {"storage": options.storage}
    storage = open_storage(build_config(TuneConfig, values, where="tune"), folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=names[0], storage=storage).trials if names else []
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return {
        each.number: (each.values, each.params, each.user_attrs.get("first")) for each in trials if each.state in states
    }


def kill_study(options: argparse.Namespace, folder: Path) -> None:
    """Kill the process of a study again and again; compare with a study that runs through."""
    whole, study = folder / "whole", folder / "killed"
    for each in (whole, study):
        each.mkdir()
    through = argparse.Namespace(**{**vars(options), "storage": None})
    process, begun = start(whole, through), time.perf_counter()
    if process.wait():
        raise ValueError("the study without kills failed, see above")
    seconds, expected = time.perf_counter() - begun, finished_trials(whole, through)
    moments, before, lost = random.Random(options.seed), dict[int, tuple[Any, ...]](), 0
    for number in range(1, options.kills + 1):
        process = start(study, options)
        wait = moments.uniform(0, 2) * seconds / options.kills
        try:
            process.wait(timeout=wait)
            ended = "had finished"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            ended = "killed"
        after = finished_trials(study, options)
        lost += sum(after.get(key) != value for key, value in before.items())
        print(f"kill {number:<4}after {wait:6.2f} s: {len(after):4} finished trials, {ended}")
        before = after
    if start(study, options).wait():
        raise ValueError("the study did not go on, see above")
    after = finished_trials(study, options)
    lost += sum(after.get(key) != value for key, value in before.items())
    origins = [first if first is not None else number for number, (_, _, first) in after.items()]
    print(f"finished trials: {len(after)}, without kills {len(expected)}")
    print(f"lost: {lost}; twice: {len(origins) - len(set(origins))}")


if __name__ == "__main__":
    main()
