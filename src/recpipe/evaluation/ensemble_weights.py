"""Choice of the weights of an ensemble on the validation fold: fixed ones from a grid, or of every user by a gate.

Shapes: B, U users, I items, F features, M members, C items of a user's set, N targets, W weightings.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recpipe.data.sequences import Fold
from recpipe.evaluation.gate import FeatureReader, Gate, ItemSets, fit_gate
from recpipe.evaluation.metrics import metric_value
from recpipe.evaluation.ranking import target_positions, target_ranks
from recpipe.layers.top_k import top_k
from recpipe.progress import progress

if TYPE_CHECKING:
    from recpipe.evaluation.ensembles import Ensemble

log = logging.getLogger(__name__)

GRID_SIZE = 25  # weightings to try, about
COMPETITORS = 50  # best items of each member, among which a gate has to find the target
FIT_USERS = 50_000  # of the validation fold, at most, that a gate is fitted to
FOLDS = 5  # of the cross-validation
L2 = (1e-4, 1e-3, 1e-2, 1e-1)
Weights = tuple[float, ...]


class MemberBatch(NamedTuple):
    """Scores of all members for some users."""

    rows: np.ndarray  # (B,)
    scores: list[Tensor]  # M of (B, I + 1), as the members give them
    parts_MBI: Tensor  # normalised by the method of the ensemble
    allowed_BI: Tensor  # bool, items that any member gives


def weighted_sum(weights: Weights | Tensor, parts_MBI: Tensor) -> Tensor:
    """Add up the normalised scores of the members (M, B, I) to (B, I), by weights (M,) or of every user (B, M)."""
    if isinstance(weights, Tensor):
        return torch.einsum("bm,mbi->bi", weights.to(parts_MBI), parts_MBI)
    return torch.einsum("m,mbi->bi", torch.tensor(weights, device=parts_MBI.device), parts_MBI)


def choose_weights(
    ensemble: Ensemble,
    valid: Fold,
    *,
    exclude_seen: bool,
    metric: str = "ndcg@10",
    observe: Callable[[MemberBatch], None] | None = None,
) -> tuple[Weights, dict[Weights, float]]:
    """Return the weights with the highest ``metric`` on the validation fold, the first on ties, and all values.

    ``observe`` gets every batch of scores.
    """
    grid = weight_grid(len(ensemble.members))
    values = _metric_of_each(ensemble, valid, grid, exclude_seen=exclude_seen, metric=metric, observe=observe)
    return grid[int(np.argmax(values))], dict(zip(grid, values, strict=True))


def _metric_of_each(
    ensemble: Ensemble,
    valid: Fold,
    weightings: Sequence[Weights | Tensor],
    *,
    exclude_seen: bool,
    metric: str,
    observe: Callable[[MemberBatch], None] | None = None,
) -> list[float]:
    """Compute the metric on the validation fold of weights (M,), or weights of every user (U, M), in one pass."""
    ranks = np.zeros((len(weightings), len(valid.targets.items)), np.int64)
    for batch in ensemble.member_batches(valid.histories, exclude_seen=exclude_seen):
        if observe is not None:
            observe(batch)
        positions, batch_rows = target_positions(valid.targets, batch.rows)
        for w, weights in enumerate(weightings):
            own = weights[batch.rows] if isinstance(weights, Tensor) else weights
            scores = weighted_sum(own, batch.parts_MBI).masked_fill_(~batch.allowed_BI, -torch.inf)
            ranks[w, positions] = target_ranks(scores, batch_rows, valid.targets.items[positions])
    user = pa.array(np.repeat(np.arange(len(valid)), valid.targets.lengths))
    tables = [pa.table({"user_id": user, "rank": row, "cold": row < 0}) for row in ranks]
    return [metric_value(table, metric, setting="ensemble.metric") for table in tables]


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


@dataclass(frozen=True)
class AdaptiveWeights:
    """A gate with the mean weights that it gives on the validation fold; without one the fixed weights are better."""

    gate: Gate | None
    weights: Weights  # means over users, or the fixed ones
    tried: dict[Weights, float]  # fixed weights and their metric
    description: dict[str, Any]


def adaptive_weights(
    ensemble: Ensemble, valid: Fold, reader: FeatureReader, *, exclude_seen: bool, metric: str = "ndcg@10"
) -> AdaptiveWeights:
    """Fit a gate to the validation fold, where cross-validation finds it better than the best fixed weights.

    The value of a gate is that of ``metric`` with the weights of every user from a gate that was fitted to the users of
    other parts, so that it can be compared with the fixed weights, whose only parameters are points of the grid. The
    strength of the L2 penalty is chosen by it. Raises ValueError for too few users with a target in a member's list.
    """
    collector = _Collector(valid, reader, len(ensemble.members))
    fixed, tried = choose_weights(ensemble, valid, exclude_seen=exclude_seen, metric=metric, observe=collector.add)
    sets, owner = collector.sets()
    if len(sets) < 2 * FOLDS:
        raise ValueError(
            f"{len(sets)} validation users have their target among the best {COMPETITORS} items of a member, too few "
            f"for adaptive weights, which need {2 * FOLDS}: use ensemble.weights=valid"
        )
    base, features = torch.tensor(fixed), torch.from_numpy(collector.features)
    settings = {"is_probability": ensemble.config.method == "softmax"}
    part = np.random.default_rng(1).permutation(len(valid)) % FOLDS
    weightings = []
    with progress(len(L2) * FOLDS, "fit gates", unit="fits") as bar:
        for l2 in L2:
            weights = torch.zeros(len(valid), len(fixed), dtype=torch.float64)
            for n in bar.over(range(FOLDS)):
                others = sets.select(torch.from_numpy(part[owner] != n))
                weights[part == n] = fit_gate(others, base, l2=l2, **settings)(features[part == n])
            weightings.append(weights.float())
    values = _metric_of_each(ensemble, valid, weightings, exclude_seen=exclude_seen, metric=metric)
    best = int(np.argmax(values))
    gate = fit_gate(sets, base, l2=L2[best], **settings) if values[best] > tried[fixed] else None
    compared = (metric, values[best], tried[fixed])
    if gate is None:
        log.warning("the weights of the ensemble stay fixed: validation %s of a gate is %.4f, of fixed %.4f", *compared)
    else:
        log.info("weights of the ensemble from a gate: validation %s is %.4f, with fixed weights %.4f", *compared)
    description = {
        "uses_gate": gate is not None,
        "fixed_weights": list(fixed),
        f"valid_{metric}_of_fixed_weights": tried[fixed],
        f"valid_{metric}_cross_validated": dict(zip(map(str, L2), values, strict=True)),
        "l2": L2[best],
        "users": len(sets),
        "coefficients": {} if gate is None else _by_name(gate, reader),
    }
    mean = fixed if gate is None else tuple(gate(features).mean(0).tolist())
    return AdaptiveWeights(gate, mean, tried, description)


def _by_name(gate: Gate, reader: FeatureReader) -> dict[str, dict[str, float]]:
    """Change of the log-odds of each member per standard deviation of a feature, the strongest feature first."""
    order = gate.coefficients.abs().amax(1).argsort(descending=True, stable=True).tolist()
    rows = {reader.names[n]: gate.coefficients[n].tolist() for n in order}
    return {name: dict(zip(reader.members, row, strict=True)) for name, row in rows.items()}


@dataclass
class _Collector:
    """Features of all users of a fold, and item sets of at most ``FIT_USERS`` of them, from batches of scores."""

    valid: Fold
    reader: FeatureReader
    n_members: int
    features: np.ndarray = field(init=False)  # (U, F)
    _parts: list[tuple[np.ndarray, Tensor, Tensor]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.features = np.zeros((len(self.valid), len(self.reader.names)))
        self._is_fitted = np.random.default_rng(0).permutation(len(self.valid)) < FIT_USERS

    def add(self, batch: MemberBatch) -> None:
        """Read the features of a batch of users, and the item sets of those whose first target is in a member's list.

        Of other users no weighting would put the target into the first places, and with a target below all others the
        most likely scores would be equal ones.
        """
        self.features[batch.rows] = self.reader(self.valid.histories.select_users(batch.rows), batch.scores).numpy()
        targets = self.valid.targets
        target = torch.from_numpy(targets.items[targets.offsets[:-1][batch.rows]].astype(np.int64))
        lists = [top_k(scores, COMPETITORS)[0] for scores in batch.scores]  # item 0 for places without an item
        first = target.to(batch.parts_MBI.device)[:, None]
        best = torch.cat(lists, dim=1)
        places = torch.nonzero((best == first).any(1).cpu() & torch.from_numpy(self._is_fitted[batch.rows])).flatten()
        on_device = places.to(first.device)
        items = torch.cat([first, best], dim=1)[on_device]  # (n, C)
        is_item = (items > 0) & ~_repeated(items)
        values = batch.parts_MBI[:, on_device].gather(2, items.expand(len(lists), -1, -1)).transpose(0, 1)
        self._parts.append((batch.rows[places.numpy()], values.cpu(), is_item.cpu()))

    def sets(self) -> tuple[ItemSets, np.ndarray]:
        """Return the item sets with their users (n,), rows of the fold."""
        rows = np.concatenate([rows for rows, _, _ in self._parts])
        parts = torch.cat([values for _, values, _ in self._parts])
        is_item = torch.cat([mask for _, _, mask in self._parts])
        return ItemSets(torch.from_numpy(self.features[rows]), parts, is_item), rows


def _repeated(items_BC: Tensor) -> Tensor:
    """Mark (B, C) the items that stand further left in the same row."""
    ordered, order = items_BC.sort(dim=1, stable=True)
    same = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] == ordered[:, :-1]], dim=1)
    return torch.zeros_like(same).scatter_(1, order, same)
