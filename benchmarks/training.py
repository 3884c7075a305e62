"""How fast does SASRec train? Against RecTools' SASRec (same net, same data), and against a loop without Lightning.

    kedro run --pipelines=ingest --params dataset=ml-1m
    python benchmarks/training.py [--peer <python with rectools> --peers <copy of ../shared/peers, prepared for ml-1m>]
    python benchmarks/training.py --models all

The peer runs in its own environment, one after the other with ours, with the same allocator settings and threads.
``--models`` asks another question: target events per second of every model that learns by gradient, as its conf block
is for ml-1m, against SASRec's. A target is an event that follows another, also for bert4rec, which learns at masked
ones only. A few steps each, not whole epochs, since epochs of one model differ in nothing but their batches.
Only rows whose `others` (cores used by other processes) is near 0 count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

ALLOCATOR = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BENCH_THREADS"), "2")
LOG = Path("data/03_primary/ml-1m/interactions.parquet")
LOOPS = ("lightning-200", "bare-200", "lightning-50", "bare-50")
NET = {"dim": 64, "layers": 2, "heads": 2, "feed_forward": 1, "dropout": 0.2, "attention_dropout": 0.2}


def main() -> None:
    """Starts every measurement in a process of its own and prints one table."""
    arguments = parse()
    if arguments.measure:
        found = (
            measure(arguments.measure, arguments.epochs)
            if arguments.measure in LOOPS
            else measure_steps(arguments.measure, arguments.warm_up, arguments.steps)
        )
        print(json.dumps(found))
        return
    if not LOG.exists():
        raise SystemExit(f"{LOG} is absent; run `kedro run --pipelines=ingest --params dataset=ml-1m` first")
    if arguments.models:
        names = models(arguments.models)
        report_models([own(name, arguments) for _ in range(arguments.rounds) for name in names])
        return
    rows = []
    for _ in range(arguments.rounds):
        rows += [
            own("lightning-200", arguments),
            own("bare-200", arguments),
            own("lightning-50", arguments),
        ]
        if arguments.peer:
            rows.append(peer(arguments))
    report(rows)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="python of an environment with rectools")
    parser.add_argument("--peers", type=Path, help="copy of the peers' folder, prepared for ml-1m")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", help="all, or names of conf blocks with commas between; sasrec is added")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of a model before the clock starts")
    parser.add_argument("--steps", type=int, default=12, help="steps of a model that are timed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def own(what: str, arguments: argparse.Namespace) -> dict:
    """One of our measurements in a fresh process."""
    numbers = {"epochs": arguments.epochs, "warm-up": arguments.warm_up, "steps": arguments.steps}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, *options],
        env={**os.environ, **ALLOCATOR, **THREADS},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{what} failed, see above")
    return json.loads(done.stdout.splitlines()[-1])


def peer(arguments: argparse.Namespace) -> dict:
    """RecTools' SASRec through the peers' own script."""
    command = [
        arguments.peer.absolute(),
        "rectools_sasrec.py",
        "--dataset",
        "ml-1m",
        "--epochs",
        str(arguments.epochs),
    ]
    environment = {**os.environ, **ALLOCATOR, **THREADS}
    started, busy = time.perf_counter(), cores_busy()
    subprocess.run(command, cwd=arguments.peers, env=environment, check=True, capture_output=True, text=True)
    newest = max(
        (arguments.peers / "results").glob("rectools_sasrec*_ml-1m*.json"),
        key=lambda path: path.stat().st_mtime,
    )
    found = json.loads(newest.read_text())
    return {
        "what": "RecTools SASRec, T 50",
        "epoch_s": found["epoch_s_median"],
        "targets_per_s": found["targets_per_s"],
        "parameters": found["params"],
        "others": max((cores_busy() - busy) / (time.perf_counter() - started) - found["cpu_over_wall"], 0.0),
    }


def measure(which: str, epochs: int) -> dict:
    """Seconds per epoch of SASRec on ml-1m (leave-one-out), in Lightning's loop or a bare one."""
    from recpipe.data.protocol import Protocol
    from recpipe.data.sequences import build
    from recpipe.data.splits import split
    from recpipe.models.registry import build as make
    from recpipe.training import fit

    loop, window = which.split("-")
    sequences, vocabulary = build(LOG)
    train = split(sequences, Protocol(dataset="ml-1m")).train
    net = NET if window == "50" else {**NET, "heads": 1, "attention_dropout": 0.0}

    def model():
        return make("sasrec", net, n_items=len(vocabulary), max_length=int(window))

    started, cpu, busy = time.perf_counter(), time.process_time(), cores_busy()
    if loop == "bare":
        seconds, targets, parameters = bare(model(), train, epochs)
    else:
        settings = fit.TrainSettings(max_epochs=epochs, validate_every=epochs, precision="fp32", device="cpu")
        ends: list[
            float
        ] = []  # wall time at the end of every epoch: whatever the loop does in between counts
        with tempfile.TemporaryDirectory() as folder:
            trained = fit.train(
                model,
                train,
                lambda _: {"valid_ndcg@10": 0.0},
                settings,
                seed=0,
                folder=Path(folder),
                on_epoch=lambda _: ends.append(time.perf_counter()),
            )
        seconds = [after - before for before, after in pairwise(ends)]
        targets = trained.cost["tokens_per_second"] * trained.cost["train_seconds"] / epochs
        parameters = trained.cost["parameters"]
    wall = time.perf_counter() - started
    return {
        "what": f"recpipe SASRec, T {window}, {loop} loop",
        "epoch_s": median(seconds),
        "targets_per_s": targets / median(seconds),
        "parameters": parameters,
        "others": max((cores_busy() - busy - (time.process_time() - cpu)) / wall, 0.0),
    }


def bare(model, train, epochs: int) -> tuple[list[float], float, int]:
    """The same steps on the same batches without Lightning."""
    import torch

    from recpipe.data.batches import DeviceSequences
    from recpipe.data.steps import TrainingBatches
    from recpipe.training.losses import make_loss
    from recpipe.training.optim import make_optimiser
    from recpipe.training.settings import TrainSettings

    settings = TrainSettings()
    torch.manual_seed(0)
    data = DeviceSequences(train, window=model.max_length + 1, device="cpu")
    batches = TrainingBatches(data.lengths, tokens=settings.batch_tokens, seed=0, minimum=2)
    criterion, optimiser = make_loss(settings.loss), make_optimiser(model.parameters(), settings.optimiser)
    model.train()
    seconds = []
    for epoch in range(epochs):
        batches.epoch, started = epoch, time.perf_counter()
        for parts in batches:
            optimiser.zero_grad()
            step = [data.batch(rows) for rows in parts]
            whole = sum(part.targets for part in step)
            torch.stack(
                [model.loss(part, criterion) * (part.targets / whole) for part in step]
            ).sum().backward()
            optimiser.step()
        seconds.append(time.perf_counter() - started)
    seconds = seconds[1:]  # the first one warms up
    targets = float((data.lengths[batches.rows] - 1).sum())
    return seconds, targets, sum(weight.numel() for weight in model.parameters())


def conf() -> dict:
    """The parameters of conf/base, as `kedro run` has them without a local environment."""
    from kedro.config import OmegaConfigLoader

    return OmegaConfigLoader(conf_source="conf", base_env="base", default_run_env="base")["parameters"]


def models(asked: str) -> list[str]:
    """Names of conf blocks, SASRec first: those asked for, or one of every type that learns by gradient."""
    from recpipe.models.registry import model_class

    blocks = conf()["models"]
    names = asked.split(",")
    if asked == "all":
        learning = {b["type"]: name for name, b in blocks.items() if not model_class(b["type"]).closed_form}
        names = [type_ if type_ in blocks else name for type_, name in sorted(learning.items())]
    if unknown := set(names) - set(blocks):
        raise SystemExit(f"no conf block for {', '.join(sorted(unknown))}; there are {', '.join(blocks)}")
    return ["sasrec", *(name for name in names if name != "sasrec")]


def measure_steps(name: str, warm_up: int, steps: int) -> dict:
    """Targets per second of one model's conf block for ml-1m, in the steps that `kedro run` would begin with."""
    from itertools import islice

    import torch

    from recpipe.data.sequences import build
    from recpipe.data.splits import split
    from recpipe.models.registry import build as make
    from recpipe.models.registry import configured, resolve
    from recpipe.pipelines.blocks import protocol_of
    from recpipe.training import fit
    from recpipe.training.optim import make_optimiser

    known = conf()
    protocol = protocol_of(known["protocol"], known["datasets"], "ml-1m")
    spec = resolve(known["models"][name], "ml-1m")
    given = {**known["train"], **spec.train, "precision": "fp32", "device": "cpu"}
    settings = configured(fit.TrainSettings, given, where=name)
    sequences, vocabulary = build(LOG, ties=protocol.ties, seed=protocol.seed)
    torch.manual_seed(0)
    model = make(spec.type, spec.config, n_items=len(vocabulary), max_length=protocol.history)
    module = fit._module(model, split(sequences, protocol).train, lambda _: {}, settings, 0, None)
    optimiser = make_optimiser(module.parameters(), settings.optimiser)
    module.train()
    module.on_train_epoch_start()
    seconds, targets, busy, cpu, started = [], [], 0.0, 0.0, 0.0
    for index, batch in enumerate(islice(module.train_dataloader(), warm_up + steps)):
        if index == warm_up:
            busy, cpu, started = cores_busy(), time.process_time(), time.perf_counter()
        before = time.perf_counter()
        optimiser.zero_grad()
        module.training_step(batch, index).backward()
        optimiser.step()
        seconds.append(time.perf_counter() - before)
        targets.append(sum(part.targets for part in batch))
    wall = time.perf_counter() - started
    return {
        "what": name,
        "step_s": median(seconds[warm_up:]),
        "targets_per_s": sum(targets[warm_up:]) / wall,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "others": max((cores_busy() - busy - (time.process_time() - cpu)) / wall, 0.0),
    }


def report_models(rows: list[dict]) -> None:
    """The median of every model's rounds, and its ratio to SASRec's."""
    by_name = {row["what"]: [r for r in rows if r["what"] == row["what"]] for row in rows}
    speed = {name: median(r["targets_per_s"] for r in found) for name, found in by_name.items()}
    for name, found in by_name.items():
        print(
            f"{name:<20} {median(r['step_s'] for r in found):7.3f} s/step {speed[name]:10,.0f} targets/s "
            f"{speed[name] / speed['sasrec']:6.2f} x sasrec {found[0]['parameters']:9,d} parameters  "
            f"others {' '.join(format(r['others'], '.2f') for r in found)}"
        )


def cores_busy() -> float:
    """CPU seconds of the whole machine so far."""
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def report(rows: list[dict]) -> None:
    """Every row, then the ratios of the medians."""
    for row in rows:
        print(
            f"{row['what']:<38} {row['epoch_s']:8.2f} s/epoch {row['targets_per_s']:10,.0f} targets/s "
            f"{row['parameters']:9,d} parameters  others {row['others']:.2f}"
        )
    speed = {
        row["what"]: median(r["targets_per_s"] for r in rows if r["what"] == row["what"]) for row in rows
    }
    cost = speed["recpipe SASRec, T 200, bare loop"] / speed["recpipe SASRec, T 200, lightning loop"] - 1
    print(f"Lightning's cost over the bare loop: {cost:+.1%}")
    if "RecTools SASRec, T 50" in speed:
        ratio = speed["recpipe SASRec, T 50, lightning loop"] / speed["RecTools SASRec, T 50"]
        print(f"targets per second, recpipe against RecTools, T 50: {ratio:.2f} x")


if __name__ == "__main__":
    main()
