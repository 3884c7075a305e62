"""How much faster is packed training? gpt on Amazon Beauty (T 50): packed, our length buckets, padded to the maximum.

    kedro run --pipelines=ingest --params dataset=amazon-beauty
    python benchmarks/packing.py

Real events (those with a target) per second of CPU time, forward, backward and step, one thread, in one process, the
layouts by turns; the best of the rounds. Three ways to end a step, since the head of a catalogue outweighs the body:

- body: the network alone, no head; what a layout can change;
- sampled: a softmax over 256 shared negatives;
- full: a softmax over the catalogue at places with a target only, as our trainer computes it in every layout.

"max, all places" is padding to the maximum as it is usually written, with the head at every place of the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from harness import command_line, generated_log
from recpipe.data.batch_samplers import PackedBatches, TrainingBatches
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import build_sequences
from recpipe.data.splits import split
from recpipe.models.registry import build as make
from recpipe.training.losses import make_loss

LOG = Path("data/03_primary/amazon-beauty/interactions.parquet")
WINDOW, TOKENS = 50, 12_800
NET = {"dim": 64, "layers": 2, "heads": 1, "dropout": 0.1}
Step = tuple[int, Callable[[], float]]


class ToTheMaximum(TrainingBatches):
    """The same steps with every row ``WINDOW`` places wide, in parts of about ``TOKENS`` places."""

    def gather(self, data: DeviceSequences, part: np.ndarray) -> Batch:
        batch = data.batch(part)
        return batch.pad(WINDOW + 1 - batch.items.shape[1])

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.array_split(rows, max(len(rows) * WINDOW // TOKENS, 1))


def main(argv: list[str] | None = None) -> None:
    """One table: a row per layout, a column per way to end a step."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="*", default=[50, 64, 75, 100])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        log = LOG
        if arguments.quick:
            log, arguments.rounds, arguments.rows = generated_log(Path(folder) / "log.parquet"), 1, [50]
        if not log.exists():
            raise SystemExit(
                f"{log} is absent; run `kedro run --pipelines=ingest --params dataset=amazon-beauty`"
            )
        sequences, vocabulary = build_sequences(log)
    train = split(sequences, Protocol(dataset="amazon-beauty")).train
    model = make("gpt", NET, n_items=len(vocabulary), max_length=WINDOW).train()
    data = model.on_device(train, window=WINDOW + 1)
    layouts: dict[str, TrainingBatches] = {
        "padded to the maximum": ToTheMaximum(data.lengths, tokens=TOKENS, seed=0, minimum=2),
        "buckets of like length": TrainingBatches(data.lengths, tokens=TOKENS, seed=0, minimum=2),
    }
    for size in arguments.rows:
        layouts[f"packed, rows of {size}"] = PackedBatches(data.lengths, size=size, tokens=TOKENS, seed=0)
    endings = {
        "body": None,
        "sampled": sampled(len(vocabulary)),
        "full": make_loss({"name": "full_softmax"}, None),
    }
    everywhere = Everywhere(endings["full"])
    speeds: dict[tuple[str, str], list[float]] = {}
    for index in range(arguments.rounds):
        for ending, criterion in endings.items():
            for name, batches in layouts.items():
                speeds.setdefault((name, ending), []).append(speed(model, data, batches, criterion, index))
        first = layouts["padded to the maximum"]
        speeds.setdefault(("max, all places", "full"), []).append(
            speed(model, data, first, everywhere, index)
        )
    report([*layouts, "max, all places"], list(endings), speeds, fills(data, layouts))


def sampled(n_items: int) -> torch.nn.Module:
    """256 uniform negatives for a batch."""
    settings = {"name": "sampled_softmax", "negatives": {"uniform": 256}, "log_q": False}
    return make_loss(settings, torch.ones(n_items + 1))


class Everywhere:
    """The loss with the head at padding too; places without a target add nothing."""

    def __init__(self, criterion: torch.nn.Module) -> None:
        self.criterion = criterion

    def of(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch.inputs_and_targets()
        table = model.items.table()
        hidden = model.encode(model.items.embed(inputs, table), inputs).flatten(0, 1)
        parts = zip(hidden.split(512), targets.flatten().split(512), strict=True)
        ignored = [
            torch.nn.functional.cross_entropy(h @ table[1:].T, t - 1, ignore_index=-1, reduction="sum")
            for h, t in parts
        ]
        return torch.stack(ignored).sum() / batch.n_targets


def speed(
    model: torch.nn.Module,
    data: DeviceSequences,
    batches: TrainingBatches,
    criterion: torch.nn.Module | Everywhere | None,
    epoch: int,
) -> float:
    """Real events per second of CPU time of one step; batches are made within it."""
    batches.epoch = epoch
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    started = time.process_time()
    (parts,) = islice(batches, 1)
    step = [batches.gather(data, part) for part in parts]
    whole = sum(part.n_targets for part in step)
    for part in step:  # one after the other: padded rows of a whole step would not fit the caches
        (loss_of(model, part, criterion) * (part.n_targets / whole)).backward()
    optimiser.step()
    optimiser.zero_grad()
    return whole / (time.process_time() - started)


def loss_of(model: torch.nn.Module, batch: Batch, criterion: torch.nn.Module | Everywhere | None) -> Tensor:
    """A scalar of every real place."""
    if isinstance(criterion, Everywhere):
        return criterion.of(model, batch)
    if criterion is not None:
        return model.loss(batch, criterion)
    inputs, targets = batch.inputs_and_targets()
    return model.hidden(inputs)[targets > 0].square().mean()


def fills(data: DeviceSequences, layouts: dict[str, TrainingBatches]) -> dict[str, float]:
    """Share of places that hold an event with a target, over one step."""
    found = {}
    for name, batches in layouts.items():
        (parts,) = islice(batches, 1)
        step = [batches.gather(data, part).inputs_and_targets()[1] for part in parts]
        found[name] = sum(int((targets > 0).sum()) for targets in step) / sum(t.numel() for t in step)
    return found


def report(
    names: list[str], endings: list[str], speeds: dict[tuple[str, str], list[float]], fill: dict[str, float]
) -> None:
    """Events per second, and in brackets how many times those of padding to the maximum."""
    print(f"{'':<26}{'fill':>6}" + "".join(f"{ending:>22}" for ending in endings))
    for name in names:
        line = f"{name:<26}{fill.get(name, fill['padded to the maximum']):6.2f}"
        for ending in endings:
            if (name, ending) not in speeds:
                line += f"{'':>22}"
                continue
            base = max(speeds["padded to the maximum", ending])
            best = max(speeds[name, ending])
            line += f"{best:>12,.0f} ({best / base:5.2f} x)"
        print(line)


if __name__ == "__main__":
    main()
