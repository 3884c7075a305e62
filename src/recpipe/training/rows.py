"""The rows that a model is trained on, and the steps they are taken in."""

from __future__ import annotations

import numpy as np
import torch

from recpipe.data.packing import PackedBatches
from recpipe.data.sequences import Sequences
from recpipe.data.steps import TrainingBatches
from recpipe.models.recommender import Recommender
from recpipe.training.settings import TrainSettings

PARTS = {"cpu": 8, "cuda": 1}  # of a step: on a CPU padding costs time, on a GPU launches do
SHORTEST_ROW = 64  # events; attention costs the square of a row, short rows leave more places empty


def make_batches(
    lengths: np.ndarray,
    settings: TrainSettings,
    *,
    window: int,
    seed: int,
    steps: int | None = None,
    device: str = "cpu",
) -> TrainingBatches:
    """In the layout that ``settings`` ask for; packed rows hold ``row`` events, by default one window of them."""
    tokens = settings.batch_tokens
    if settings.layout == "padded":
        return TrainingBatches(lengths, tokens=tokens, seed=seed, minimum=2, steps=steps, parts=PARTS[device])
    size = settings.row or max(window, SHORTEST_ROW)
    return PackedBatches(lengths, size=size, tokens=tokens, seed=seed, steps=steps)


def windows_of(data: Sequences, model: Recommender, settings: TrainSettings) -> Sequences:
    return data.windows(model.max_length, settings.stride) if settings.windows == "all" else data


def target_counts(data: Sequences, model: Recommender) -> torch.Tensor:
    """How often each item is a target in an epoch (I + 1,): of what the model is trained on, all but the first."""
    seen = data.last(model.max_length + 1)
    context = np.ones(len(seen), np.int64) if seen.context is None else seen.context
    place = np.arange(len(seen.items)) - np.repeat(seen.offsets[:-1], seen.lengths)
    targets = seen.items[place >= np.repeat(context, seen.lengths)]
    return torch.from_numpy(np.bincount(targets, minlength=model.n_items + 1))


def trained_items(data: Sequences, model: Recommender) -> torch.Tensor:
    """(I + 1,) bool: the items of the events that the model is trained on."""
    seen = data.last(model.max_length + 1).items
    found = np.bincount(seen, minlength=model.n_items + 1) > 0
    found[0] = False
    return torch.from_numpy(found)
