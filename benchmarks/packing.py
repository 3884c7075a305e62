"""Training speed of packed rows, length buckets and padding to the maximum: gpt on Amazon Beauty, window 50.

    kedro run --pipelines=ingest --params dataset=amazon-beauty
    python benchmarks/packing.py

Events with a target per second of CPU time (forward, backward, optimiser), one thread, layouts in turns, the best of
the rounds. Three losses, since the output layer costs more than the network:

- body: no output layer, only what a layout can change;
- sampled: softmax over 256 shared negatives;
- full: softmax over the catalogue at positions with a target, as in training.

"max, all places": padding to the maximum with the full softmax at every position.
"""

from __future__ import annotations

import time
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
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.splits import split
from recpipe.models.registry import build
from recpipe.training.losses import make_loss

LOG = Path("data/03_primary/amazon-beauty/interactions.parquet")
WINDOW, TOKENS = 50, 12_800
NET = {"dim": 64, "layers": 2, "heads": 1, "dropout": 0.1}
ALL_POSITIONS = "all positions"  # full softmax computed at padding, too


class MaximumBatches(TrainingBatches):
    """The same steps with rows padded to ``WINDOW``, in parts of about ``TOKENS`` positions."""

    def gather(self, data: DeviceSequences, part: np.ndarray) -> Batch:
        """Assemble a part, padded to ``WINDOW`` + 1 columns."""
        batch = data.batch(part)
        return batch.pad(WINDOW + 1 - batch.items.shape[1])

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.array_split(rows, max(len(rows) * WINDOW // TOKENS, 1))


def main(argv: list[str] | None = None) -> None:
    """Print a row per layout, a column per loss."""
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
            raise SystemExit(f"{log} is absent; run `kedro run --pipelines=ingest --params dataset=amazon-beauty`")
        sequences, vocabulary = build_sequences(log)
    train = split(sequences, Protocol(dataset="amazon-beauty")).train
    model = build("gpt", NET, n_items=len(vocabulary), max_length=WINDOW).train()
    data = model.on_device(train, window=WINDOW + 1)
    layouts: dict[str, TrainingBatches] = {
        "padded to the maximum": MaximumBatches(data.lengths, tokens=TOKENS, seed=0, minimum=2),
        "buckets of like length": TrainingBatches(data.lengths, tokens=TOKENS, seed=0, minimum=2),
    }
    for size in arguments.rows:
        layouts[f"packed, rows of {size}"] = PackedBatches(data.lengths, size=size, tokens=TOKENS, seed=0)
    losses = {"body": None, "sampled": sampled(len(vocabulary)), "full": make_loss({"name": "full_softmax"}, None)}
    speeds: dict[tuple[str, str], list[float]] = {}
    for index in range(arguments.rounds):
        for loss_name, criterion in losses.items():
            for name, batches in layouts.items():
                speeds.setdefault((name, loss_name), []).append(speed(model, data, batches, criterion, index))
        first = layouts["padded to the maximum"]
        speeds.setdefault(("max, all places", "full"), []).append(speed(model, data, first, ALL_POSITIONS, index))
    report([*layouts, "max, all places"], list(losses), speeds, fills(data, layouts))


def sampled(n_items: int) -> torch.nn.Module:
    """Return the loss with 256 uniform negatives per batch."""
    settings = {"name": "sampled_softmax", "negatives": {"uniform": 256}, "log_q": False}
    return make_loss(settings, torch.ones(n_items + 1))


def speed(
    model: torch.nn.Module,
    data: DeviceSequences,
    batches: TrainingBatches,
    criterion: torch.nn.Module | str | None,
    epoch: int,
) -> float:
    """Return events with a target per second of CPU time of one step, including its batches."""
    batches.epoch = epoch
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    start = time.process_time()
    (parts,) = islice(batches, 1)
    step = [batches.gather(data, part) for part in parts]
    n_targets = sum(part.n_targets for part in step)
    for part in step:  # padded rows of a whole step would not fit the CPU cache
        (loss_of(model, part, criterion) * (part.n_targets / n_targets)).backward()
    optimiser.step()
    optimiser.zero_grad()
    return n_targets / (time.process_time() - start)


def loss_of(model: torch.nn.Module, batch: Batch, criterion: torch.nn.Module | str | None) -> Tensor:
    """Return a scalar that depends on every position with a target."""
    if isinstance(criterion, torch.nn.Module):
        return model.loss(batch, criterion)
    inputs, targets = batch.inputs_and_targets()
    if criterion is None:
        return model.hidden(inputs)[targets > 0].square().mean()
    table = model.items.table()
    parts = zip(model.hidden(inputs).flatten(0, 1).split(512), targets.flatten().split(512), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(h @ table[1:].T, t - 1, ignore_index=-1, reduction="sum") for h, t in parts
    ]
    return torch.stack(losses).sum() / batch.n_targets


def fills(data: DeviceSequences, layouts: dict[str, TrainingBatches]) -> dict[str, float]:
    """Return the share of positions with a target in one step, by layout."""
    shares = {}
    for name, batches in layouts.items():
        (parts,) = islice(batches, 1)
        step = [batches.gather(data, part).inputs_and_targets()[1] for part in parts]
        shares[name] = sum(int((targets > 0).sum()) for targets in step) / sum(t.numel() for t in step)
    return shares


def report(
    names: list[str], losses: list[str], speeds: dict[tuple[str, str], list[float]], fill: dict[str, float]
) -> None:
    """Print events per second, in brackets relative to padding to the maximum."""
    print(f"{'':<26}{'fill':>6}" + "".join(f"{loss_name:>22}" for loss_name in losses))
    for name in names:
        line = f"{name:<26}{fill.get(name, fill['padded to the maximum']):6.2f}"
        for loss_name in losses:
            if (name, loss_name) not in speeds:
                line += f"{'':>22}"
                continue
            base = max(speeds["padded to the maximum", loss_name])
            best = max(speeds[name, loss_name])
            line += f"{best:>12,.0f} ({best / base:5.2f} x)"
        print(line)


if __name__ == "__main__":
    main()
