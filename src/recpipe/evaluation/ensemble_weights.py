"""Choice of the weights of an ensemble on the validation fold. Shapes: B users, I items, M members."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recpipe.data.sequences import Fold
from recpipe.evaluation.metrics import metric_value
from recpipe.evaluation.ranking import target_positions, target_ranks

if TYPE_CHECKING:
    from recpipe.evaluation.ensembles import Ensemble

GRID_SIZE = 25  # weightings to try, about
Weights = tuple[float, ...]


def weighted_sum(weights: Weights, parts_MBI: Tensor) -> Tensor:
    """Add up the normalised scores of the members (M, B, I) to (B, I)."""
    return torch.einsum("m,mbi->bi", torch.tensor(weights, device=parts_MBI.device), parts_MBI)


def choose_weights(
    ensemble: Ensemble, valid: Fold, *, exclude_seen: bool, metric: str = "ndcg@10"
) -> tuple[Weights, dict[Weights, float]]:
    """Return the weights with the highest ``metric`` on the validation fold, the first on ties, and all values."""
    grid = weight_grid(len(ensemble.members))
    ranks = np.zeros((len(grid), len(valid.targets.items)), np.int64)
    for rows, parts_MBI, allowed_BI in ensemble.member_batches(valid.histories, exclude_seen=exclude_seen):
        positions, batch_rows = target_positions(valid.targets, rows)
        for w, weights in enumerate(grid):
            scores = weighted_sum(weights, parts_MBI).masked_fill_(~allowed_BI, -torch.inf)
            ranks[w, positions] = target_ranks(scores, batch_rows, valid.targets.items[positions])
    user = pa.array(np.repeat(np.arange(len(valid)), valid.targets.lengths))
    tables = [pa.table({"user_id": user, "rank": row, "cold": row < 0}) for row in ranks]
    values = [metric_value(table, metric, setting="ensemble.metric") for table in tables]
    return grid[int(np.argmax(values))], dict(zip(grid, values, strict=True))


def weight_grid(members: int) -> list[Weights]:
    """Return equal weights, then all multiples of 1 / n that sum to 1, with n >= 2 for about 25 weightings."""
    steps = 10
    while steps > 2 and len(list(_compositions(steps, members))) > GRID_SIZE:
        steps -= 1
    grid = [tuple(part / steps for part in parts) for parts in _compositions(steps, members)]
    return list(dict.fromkeys([(1 / members,) * members, *grid]))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = (-1, *cuts, total + parts - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(edges))
