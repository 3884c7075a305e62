"""Training speed of SASRec, against RecTools' SASRec and against a loop without Lightning; or of all models.

    kedro run --pipelines=ingest --params dataset=ml-1m
    python benchmarks/training.py [--peer <python with rectools> --peers <copy of ../shared/peers, prepared for ml-1m>]
    python benchmarks/training.py --models all

The peer runs in its own environment, after ours, with the same allocator settings and threads. ``--models`` measures
target events per second of every model that learns by gradient, with its conf block for ml-1m, against SASRec's. A
target is an event that follows another, also for bert4rec, which learns at masked ones only. A few steps are taken
without Lightning, on random semantic ids and vectors; epochs of a model differ only in their batches.
Only rows whose `others` (cores used by other processes) is near 0 count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from harness import (
    NOT_INSTALLED,
    OtherLoad,
    command_line,
    configuration,
    generated_log,
    measure_alone,
    protocol_of,
    random_ids,
    run_alone,
)

if TYPE_CHECKING:
    from recpipe.config import RunConfig
    from recpipe.data.sequences import Sequences
    from recpipe.models.recommender import Recommender
    from recpipe.training.settings import TrainSettings

DATASET = "ml-1m"
LOG = Path(f"data/03_primary/{DATASET}/interactions.parquet")
LOOPS = ("lightning-200", "bare-200", "lightning-50", "bare-50")
NET = {"dim": 64, "layers": 2, "heads": 2, "feed_forward": 1, "dropout": 0.2, "attention_dropout": 0.2}
ID_SIZES = (256, 256, 256)  # of the random semantic ids that models of ``--models`` read
VECTOR_WIDTH = 384  # of the random item vectors


def main(argv: list[str] | None = None) -> None:
    """Run every measurement in its own process and print one table."""
    arguments = parse(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.log = generated_log(Path(folder) / "log.parquet")
            arguments.epochs, arguments.rounds, arguments.warm_up, arguments.steps = 2, 1, 0, 1
        if not arguments.log.exists():
            raise SystemExit(
                f"{arguments.log} is absent; run `kedro run --pipelines=ingest --params dataset={DATASET}` first"
            )
        if arguments.models:
            compare_models(arguments)
        else:
            compare_loops(arguments)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--peer", type=Path, help="python of an environment with rectools")
    parser.add_argument("--peers", type=Path, help="copy of the peers' folder, prepared for ml-1m")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", help="all, or names of conf blocks with commas between; sasrec is added")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of a model before the clock starts")
    parser.add_argument("--steps", type=int, default=12, help="steps of a model that are timed")
    parser.add_argument("--log", type=Path, default=LOG, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure_in_processes(arguments: argparse.Namespace, *names: str) -> list[dict]:
    """Measure loops or models, each in a fresh process; with ``--quick`` all in this one."""
    numbers = {"epochs": arguments.epochs, "warm-up": arguments.warm_up, "steps": arguments.steps}
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    words += ["--log", str(arguments.log), "--measure"]
    groups = [names] if arguments.quick else [(name,) for name in names]
    return [row for group in groups for row in measure_alone(__file__, *words, *group, quick=arguments.quick)["rows"]]


def measure(arguments: argparse.Namespace) -> dict:
    """Measure the loops and models of ``--measure``."""
    functions = [(measure_loop if name in LOOPS else measure_steps, name) for name in arguments.measure]
    return {"rows": [function(name, arguments) for function, name in functions]}


def compare_loops(arguments: argparse.Namespace) -> None:
    """Compare SASRec in Lightning's loop, in a bare loop, and in the peer."""
    rows = []
    for _ in range(arguments.rounds):
        rows += measure_in_processes(arguments, *LOOPS[:3])
        if arguments.peer:
            rows.append(measure_peer(arguments))
    report(rows)


def compare_models(arguments: argparse.Namespace) -> None:
    """Compare models with SASRec."""
    names = requested_models(arguments.models)
    report_models([row for _ in range(arguments.rounds) for row in measure_in_processes(arguments, *names)])


def measure_peer(arguments: argparse.Namespace) -> dict:
    """Measure RecTools' SASRec with the peers' own script."""
    command = [str(arguments.peer.absolute()), "rectools_sasrec.py", "--dataset", DATASET]
    _, others = run_alone([*command, "--epochs", str(arguments.epochs)], cwd=arguments.peers)
    newest = max(
        (arguments.peers / "results").glob(f"rectools_sasrec*_{DATASET}*.json"), key=lambda path: path.stat().st_mtime
    )
    result = json.loads(newest.read_text())
    return {
        "what": "RecTools SASRec, T 50",
        "epoch_s": result["epoch_s_median"],
        "targets_per_s": result["targets_per_s"],
        "parameters": result["params"],
        "others": others,
    }


def measure_loop(which: str, arguments: argparse.Namespace) -> dict:
    """Measure seconds per epoch of SASRec (leave-one-out), in Lightning's loop or a bare one."""
    from recpipe.data.protocol import Protocol
    from recpipe.data.sequence_builder import build_sequences
    from recpipe.data.splits import split
    from recpipe.models.registry import build
    from recpipe.training.fit import train
    from recpipe.training.settings import TrainSettings

    loop, window = which.split("-")
    epochs = arguments.epochs
    sequences, vocabulary = build_sequences(arguments.log)
    train_set = split(sequences, Protocol(dataset=DATASET)).train
    net = NET if window == "50" else {**NET, "heads": 1, "attention_dropout": 0.0}

    def model():
        return build("sasrec", net, n_items=len(vocabulary), max_length=int(window))

    load = OtherLoad()
    if loop == "bare":
        seconds, targets, parameters = time_bare_epochs(model(), train_set, epochs)
    else:
        settings = TrainSettings(max_epochs=epochs, validate_every=epochs, precision="fp32", device="cpu")
        ends: list[float] = []  # of epochs, so that all work in between counts
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                model,
                train_set,
                lambda _: {"valid_ndcg@10": 0.0},
                settings,
                seed=0,
                folder=Path(folder),
                on_epoch=lambda _: ends.append(time.perf_counter()),
            )
        seconds = [after - before for before, after in pairwise(ends)]
        targets = result.cost["tokens_per_second"] * result.cost["train_seconds"] / epochs
        parameters = result.cost["parameters"]
    return {
        "what": f"recpipe SASRec, T {window}, {loop} loop",
        "epoch_s": median(seconds),
        "targets_per_s": targets / median(seconds),
        "parameters": parameters,
        "others": load.cores(),
    }


def time_bare_epochs(model: Recommender, train: Sequences, epochs: int) -> tuple[list[float], int, int]:
    """Return seconds of epochs without Lightning after the first, which warms up; targets of an epoch; parameters."""
    from recpipe.training.settings import TrainSettings

    seconds, targets = [], 0
    for steps in bare_epochs(model, train, TrainSettings(), epochs):
        started = time.perf_counter()
        targets = sum(steps)
        seconds.append(time.perf_counter() - started)
    return seconds[1:], targets, sum(weight.numel() for weight in model.parameters())


def bare_epochs(model: Recommender, train: Sequences, settings: TrainSettings, epochs: int) -> Iterator[Iterator[int]]:
    """Train without Lightning, with the batches, loss and optimiser of ``fit.train``.

    Yields an iterator per epoch, which takes a step and yields its number of targets.
    """
    import torch

    from recpipe.training.batches import make_batches, target_counts, trained_items, training_windows
    from recpipe.training.losses import make_loss
    from recpipe.training.optimisers import make_optimiser

    torch.manual_seed(0)
    windows = training_windows(train, model, settings)
    data = model.on_device(windows, window=model.max_length + 1)
    batches = make_batches(data.lengths, settings, window=model.max_length, seed=0)
    criterion = make_loss(settings.loss, target_counts(windows, model), trained_items(windows, model))
    weights = torch.nn.ModuleList([model, criterion]).parameters()
    optimiser = make_optimiser(weights, settings.optimiser)
    model.train()

    def steps() -> Iterator[int]:
        for parts in batches:
            optimiser.zero_grad()
            step = [batches.gather(data, part) for part in parts]
            targets = sum(part.n_targets for part in step)
            losses = [model.loss(part, criterion) * (part.n_targets / targets) for part in step]
            torch.stack(losses).sum().backward()
            if settings.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimiser.step()
            yield targets

    for epoch in range(epochs):
        batches.epoch = epoch
        yield steps()


def measure_steps(name: str, arguments: argparse.Namespace) -> dict:
    """Measure targets per second of a model's conf block in the first steps of its training."""
    from itertools import chain, islice

    from recpipe.config import build_config
    from recpipe.data.sequence_builder import build_sequences
    from recpipe.data.splits import split
    from recpipe.training.settings import TrainSettings

    protocol, run = protocol_of(DATASET), configuration(DATASET).run(name)
    values = {**run.train, "precision": "fp32", "device": "cpu"}
    settings = build_config(TrainSettings, values, where=f"models.{name}.train")
    sequences, vocabulary = build_sequences(arguments.log, ties=protocol.ties, seed=protocol.seed)
    train = split(sequences, protocol).train
    model = untrained(run, train, len(vocabulary), min(protocol.history, settings.window or protocol.history))
    count = arguments.warm_up + arguments.steps
    steps = islice(chain.from_iterable(bare_epochs(model, train, settings, count)), count)
    for _ in range(arguments.warm_up):
        next(steps)
    load, targets, ends = OtherLoad(), [], [time.perf_counter()]
    for n_targets in steps:
        targets.append(n_targets)
        ends.append(time.perf_counter())
    return {
        "what": name,
        "step_s": median(after - before for before, after in pairwise(ends)),
        "targets_per_s": sum(targets) / (ends[-1] - ends[0]),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "others": load.cores(),
    }


def untrained(run: RunConfig, train: Sequences, n_items: int, max_length: int) -> Recommender:
    """Build the model of a conf block with random vectors and semantic ids, on which speed does not depend."""
    import torch

    from recpipe.config import split_names
    from recpipe.layers.side import Side
    from recpipe.models.registry import build, side_config
    from recpipe.semantic_ids.ids import CatalogueIds

    torch.manual_seed(0)
    config, rng = side_config(run.type, run.side, where=run.name), np.random.default_rng(0)
    vectors = {
        modality: (rng.normal(size=(n_items, VECTOR_WIDTH)).astype(np.float32), np.ones(n_items, bool))
        for modality in split_names(config.vectors)
    }
    side = None if config.empty else Side.of(config, train, {}, vectors, n_items=n_items)
    ids = {}
    for seed, modality in enumerate(run.ids):
        codes = np.full((n_items + 1, len(ID_SIZES)), -1, np.int64)
        codes[1:] = random_ids(n_items, ID_SIZES, seed=seed)
        ids[modality] = CatalogueIds(codes, ID_SIZES, f"random {seed}", "random")
    return build(run.type, run.settings, n_items=n_items, max_length=max_length, side=side, ids=ids or None)


def requested_models(models: str) -> list[str]:
    """Return names of conf blocks, SASRec first; ``all`` is one of every type that learns by gradient."""
    from recpipe.models.registry import model_class

    conf = configuration(DATASET)
    types = {name: conf.type_of(name) for name in conf.model_names}
    names = models.split(",")
    if models == "all":
        learning = {type_: name for name, type_ in types.items() if not model_class(type_).closed_form}
        names = [type_ if type_ in types else name for type_, name in sorted(learning.items())]
    if unknown := set(names) - set(types):
        raise SystemExit(f"no conf block for {', '.join(sorted(unknown))}; there are {', '.join(types)}")
    return ["sasrec", *(name for name in names if name != "sasrec")]


def report_models(rows: list[dict]) -> None:
    """Print the median of every model's rounds, and its ratio to SASRec's."""
    by_name = {row["what"]: [r for r in rows if r["what"] == row["what"]] for row in rows}
    speed = {name: median(r["targets_per_s"] for r in rounds) for name, rounds in by_name.items()}
    for name, rounds in by_name.items():
        print(
            f"{name:<20} {median(r['step_s'] for r in rounds):7.3f} s/step {speed[name]:10,.0f} targets/s "
            f"{speed[name] / speed['sasrec']:6.2f} x sasrec {rounds[0]['parameters']:9,d} parameters  "
            f"others {' '.join(format(r['others'], '.2f') for r in rounds)}"
        )


def report(rows: list[dict]) -> None:
    """Print every row, then the ratios of the medians."""
    for row in rows:
        print(
            f"{row['what']:<38} {row['epoch_s']:8.2f} s/epoch {row['targets_per_s']:10,.0f} targets/s "
            f"{row['parameters']:9,d} parameters  others {row['others']:.2f}"
        )
    speed = {row["what"]: median(r["targets_per_s"] for r in rows if r["what"] == row["what"]) for row in rows}
    cost = speed["recpipe SASRec, T 200, bare loop"] / speed["recpipe SASRec, T 200, lightning loop"] - 1
    print(f"Lightning's cost over the bare loop: {cost:+.1%}")
    if "RecTools SASRec, T 50" in speed:
        ratio = speed["recpipe SASRec, T 50, lightning loop"] / speed["RecTools SASRec, T 50"]
        print(f"targets per second, recpipe against RecTools, T 50: {ratio:.2f} x")
    else:
        print(f"{'RecTools SASRec, T 50':<38} {NOT_INSTALLED}; give --peer and --peers")


if __name__ == "__main__":
    main()
