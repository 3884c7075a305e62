"""Trained models put together: weights chosen on the validation fold, and a bundle that is evaluated like any other.

M members, W weightings tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold
from recpipe.evaluation.evaluate import settings_id
from recpipe.evaluation.fusion import Ensemble, Weights
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.models.ordering import rank_of
from recpipe.training.bundle import Bundle

TRIED = 25  # weightings, about
VALID, EQUAL = "valid", "equal"


def ensemble_bundle(
    bundles: Sequence[Bundle],
    valid: Fold,
    protocol: Protocol,
    *,
    method: str = "rrf",
    weights: str | Sequence[float] = VALID,
    constant: float = 60.0,
    metric: str = "ndcg@10",
    name: str = "ensemble",
) -> tuple[Bundle, dict[str, Any]]:
    """The members as one bundle, and what is told of them: names, weights and, where chosen, what was tried.

    ``weights``: ``valid``, ``equal`` or one a member. Raises ValueError for members of unequal data or catalogues, and
    for weights to be chosen on a fold that a member was trained on.
    """
    _check_alike(bundles)
    ensemble = Ensemble([each.model for each in bundles], Ensemble.Config(method, (), constant))
    tried: dict[Weights, float] = {}
    given = [1.0] * len(bundles) if isinstance(weights, str) else weights
    if weights == VALID:
        if seen := [each.name for each in bundles if each.put_back]:
            raise ValueError(f"{seen[0]} was trained on the validation fold: give ensemble.weights, or equal")
        given, tried = choose_weights(
            ensemble, valid.asking(protocol), exclude_seen=protocol.exclude_seen, metric=metric
        )
    ensemble, first = ensemble.weighted(given), bundles[0]
    training = {
        "seed": first.training.get("seed"),
        "settings": _settings(bundles, ensemble, weights),
        "cost": _cost(bundles),
        "versions": first.training.get("versions", {}),
    }
    items = (first.vocabulary, first.titles, first.train_events)
    about = {
        "members": [each.name for each in bundles],
        "weights": list(ensemble.config.weights),
        "tried": [{"weights": list(w), f"valid_{metric}": value} for w, value in tried.items()],
    }
    return Bundle(name, "ensemble", ensemble, *items, first.protocol, training), about


def choose_weights(
    ensemble: Ensemble, valid: Fold, *, exclude_seen: bool, metric: str = "ndcg@10"
) -> tuple[Weights, dict[Weights, float]]:
    """The weights with the highest ``metric`` on the validation fold, and its value for all that were tried.

    Tried are equal weights, which win where others are no better, and a grid, which has every member alone.
    """
    grid = weightings(len(ensemble.members))
    ranks = np.zeros((len(grid), len(valid.targets.items)), np.int64)
    for rows, parts_MBI, allowed_BI in ensemble.parts(valid.histories, exclude_seen=exclude_seen):
        place, row = _targets(valid.targets.offsets, rows)
        wanted = torch.from_numpy(valid.targets.items[place].astype(np.int64)).to(parts_MBI.device)
        for w, weights in enumerate(grid):
            scores = torch.einsum("m,mbi->bi", torch.tensor(weights, device=parts_MBI.device), parts_MBI)
            scores.masked_fill_(~allowed_BI, -torch.inf)
            ranks[w, place] = rank_of(scores, torch.from_numpy(row).to(scores.device), wanted).cpu().numpy()
    user = pa.array(np.repeat(np.arange(len(valid)), valid.targets.lengths))
    cutoffs = [int(metric.partition("@")[2])]
    values = {
        weights: float(
            metrics_from_ranks(
                pa.table({"user_id": user, "rank": found, "cold": found < 0}), cutoffs=cutoffs
            )[metric]
        )
        for weights, found in zip(grid, ranks, strict=True)
    }
    return max(values, key=lambda weights: values[weights]), values


def weightings(members: int) -> list[Weights]:
    """Equal weights, then all multiples of 1 / n that sum to 1, with n so that there are about 25, at least 2."""
    steps = 10
    while steps > 2 and len(list(_compositions(steps, members))) > TRIED:
        steps -= 1
    grid = [tuple(part / steps for part in parts) for parts in _compositions(steps, members)]
    return list(dict.fromkeys([(1 / members,) * members, *grid]))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = (-1, *cuts, total + parts - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(edges))


def _check_alike(bundles: Sequence[Bundle]) -> None:
    names = [each.name for each in bundles]
    if len(set(names)) < max(len(names), 2):
        raise ValueError(f"an ensemble has two or more different members, not {'+'.join(names) or 'none'}")
    for other in bundles[1:]:
        if differing := bundles[0].protocol.same_data(other.protocol):
            raise ValueError(
                f"{names[0]} and {other.name} were trained under protocols that differ in {', '.join(differing)}: "
                "train them on one split"
            )
        if not np.array_equal(bundles[0].vocabulary.ids, other.vocabulary.ids):
            raise ValueError(f"{names[0]} and {other.name} were trained on unequal catalogues")


def _settings(
    bundles: Sequence[Bundle], ensemble: Ensemble, weights: str | Sequence[float]
) -> dict[str, Any]:
    """The rule for the weights, not what it gave, which differs between seeds of one ensemble."""
    return {
        "type": "ensemble",
        "members": {each.name: settings_id(each.training.get("settings") or {}) for each in bundles},
        "method": ensemble.config.method,
        "weights": weights if isinstance(weights, str) else list(ensemble.config.weights),
        "constant": ensemble.config.constant,
        **({"train": {"put_back": True}} if any(each.put_back for each in bundles) else {}),
    }


def _cost(bundles: Sequence[Bundle]) -> dict[str, float]:
    """What adds up."""
    costs = [each.training.get("cost", {}) for each in bundles]
    known = [
        name for name in ("train_seconds", "parameters") if all(cost.get(name) is not None for cost in costs)
    ]
    return {name: sum(cost[name] for cost in costs) for name in known}


def _targets(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat places (n,) of the targets of ``rows``, and for each the place of its user among ``rows``."""
    place = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
    return place, np.repeat(np.arange(len(rows)), offsets[rows + 1] - offsets[rows])
