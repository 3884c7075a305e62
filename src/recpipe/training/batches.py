"""Batches of a training: windows of the sequences, layout of a step, statistics of the targets for the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batch_samplers import PackedBatches, Share, TrainingBatches
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.data.windows import Windows
from recpipe.models.recommender import Recommender
from recpipe.training.settings import TrainSettings

Events = Iterator[tuple[np.ndarray, np.ndarray]]
PARTS = {"cpu": 8, "cuda": 1}  # batches of a step: padding is expensive on a CPU, kernel launches on a GPU
SHORTEST_ROW = 64  # events; attention costs the square of a row, short rows leave more places empty


@dataclass(frozen=True)
class MicroBatch:
    """Part of a training step whose gradient is added to that of the step; by default the whole step.

    parts: batches on the device; none where the step has fewer parts than there are processes.
    n_targets: number of targets of the whole step, on all ranks.
    """

    parts: list[Batch]
    n_targets: int


class BatchLoader:
    """Iterable of one epoch's micro-batches, by default a step each, on the device."""

    def __init__(self, data: DeviceSequences, batches: TrainingBatches) -> None:
        self.data, self.batches = data, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        for users in self.batches.step_users():
            n_targets = int(self.data.n_targets[users].sum())
            for parts in self.batches.micro_batches(users):
                yield MicroBatch([self.batches.gather(self.data, part) for part in parts], n_targets)


def make_batches(
    lengths: np.ndarray,
    settings: TrainSettings,
    *,
    window: int,
    seed: int,
    steps: int | None = None,
    device: str = "cpu",
    share: Share | None = None,
) -> TrainingBatches:
    """Build batches in ``settings.layout`` of windows with ``lengths`` (U,) events.

    Packed rows hold ``settings.row`` events, by default one window.
    """
    options: dict[str, Any] = {"tokens": settings.batch_tokens, "seed": seed, "steps": steps, "share": share}
    if settings.layout == "padded":
        return TrainingBatches(lengths, minimum=2, parts=PARTS[device], **options)
    return PackedBatches(lengths, size=settings.row or max(window, SHORTEST_ROW), **options)


def training_windows(data: Sequences, model: Recommender, settings: TrainSettings) -> Windows:
    """Return all windows of the sequences if ``settings.windows`` is ``all``, else one of each user.

    Under ``protocol.target_events`` only those with a target. Raises ValueError if there is none.
    """
    all_windows = settings.windows == "all"
    windows = Windows.cut(data, model.max_length, settings.stride) if all_windows else Windows.of(data)
    if data.is_target is None:
        return windows
    rows = np.flatnonzero(windows.last(model.max_length + 1).target_counts())
    if len(rows) == 0:
        raise ValueError("no training event after a user's first has a type in protocol.target_events; add types to it")
    return windows.select(rows)


def target_counts(data: Sequences | Windows, model: Recommender) -> Tensor:
    """Count how often each item is a training target in an epoch (I + 1,): every event of a window but the first."""
    return _item_counts(data, model, Windows.targets)


def trained_items(data: Sequences | Windows, model: Recommender) -> Tensor:
    """Return a mask (I + 1,) of the items with events in the training windows."""
    mask = _item_counts(data, model, Windows.events) > 0
    mask[0] = False
    return mask


def _item_counts(data: Sequences | Windows, model: Recommender, events_of: Callable[[Windows], Events]) -> Tensor:
    windows = Windows.of(data).last(model.max_length + 1)
    counts = np.zeros(model.n_items + 1, np.int64)
    for _, place in events_of(windows):
        counts += np.bincount(windows.sequences.items[place], minlength=model.n_items + 1)
    return torch.from_numpy(counts)


def relative_weights(data: Sequences | Windows, model: Recommender) -> np.ndarray | None:
    """Return weights (N,) of mean 1 over the training targets; None where all targets have the same weight.

    Raises ValueError where all targets have the weight 0.
    """
    windows = Windows.of(data).last(model.max_length + 1)
    weights = windows.sequences.weights
    if weights is None:
        return None
    total, n, low, high = 0.0, 0, np.inf, -np.inf
    for _, place in windows.targets():
        targets = weights[place].astype(np.float64)
        total, n = total + targets.sum(), n + len(targets)
        low, high = min(low, targets.min(initial=np.inf)), max(high, targets.max(initial=-np.inf))
    if n and high == 0:
        raise ValueError("all training targets have the weight 0: no event after a user's first one counts")
    if n == 0 or low == high:
        return None
    relative: np.ndarray = (weights / (total / n)).astype(np.float32)
    return relative
