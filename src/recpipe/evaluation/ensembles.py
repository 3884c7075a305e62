"""Several models as one that ranks: their rankings or scores, weighted and added up.

B users, I items (column 0 of a score matrix is padding), M members.

Trained models put together: weights chosen on the validation fold, and a bundle that is evaluated like any other.

M members, W weightings tried.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.data.protocol import TIME_CHOICES, Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.evaluate import settings_id
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.layers.top_k import rank_of, tie_order
from recpipe.models.recommender import SCORES_AT_ONCE, Recommender, Scorer
from recpipe.training.bundle import Bundle

METHODS = ("rrf", "zscore", "softmax")
Weights = tuple[float, ...]


class Ensemble(Scorer):
    """Adds up what its members say of an item, each times its weight.

    - ``rrf``: 1 / (``constant`` + rank); Cormack, Clarke & Buettcher, SIGIR 2009, with weights. Members may be models
      that give lists only: what is not in a list brings nothing.
    - ``zscore``: the score less the mean of the user's candidates, over their standard deviation.
    - ``softmax``: the probability, of models that have one; the score is the log of the mixture, a probability again.

    Raises ValueError for fewer than two members, unequal catalogues, and members or weights that do not fit.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """``weights`` are one a member, none below 0."""

        method: str = "rrf"
        weights: Weights = ()
        constant: float = 60.0

    def __init__(self, members: Sequence[Recommender], config: Config) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble has at least two members, not {len(members)}")
        if len(sizes := {member.n_items for member in members}) > 1:
            raise ValueError(f"members know catalogues of unequal size: {sorted(sizes)} items")
        if config.method not in METHODS:
            raise ValueError(f"ensemble.method is {config.method!r}; allowed: {', '.join(METHODS)}")
        listing = [type(member).__name__ for member in members if not isinstance(member, Scorer)]
        if listing and config.method != "rrf":
            raise ValueError(
                f"{listing[0]} gives lists, which have no score for every item: use ensemble.method=rrf"
            )
        unsure = [type(member).__name__ for member in members if not member.probabilistic]
        if unsure and config.method == "softmax":
            raise ValueError(
                f"the scores of {unsure[0]} are no probabilities: use ensemble.method=rrf or zscore"
            )
        super().__init__(config, n_items=members[0].n_items, max_length=max(m.max_length for m in members))
        self.modules_of_members = nn.ModuleList(members)
        self.probabilistic = config.method == "softmax"
        fallbacks = [member.cold_users for member in members]
        self.cold_users = (
            None if None in fallbacks else fallbacks[0]
        )  # to be told of; each member has its own

    @property
    def members(self) -> list[Recommender]:
        """In the order of the weights."""
        return [member for member in self.modules_of_members if isinstance(member, Recommender)]

    def weighted(self, weights: Sequence[float]) -> Ensemble:
        """The same members with other weights. Raises ValueError for a wrong number of them, or negative ones."""
        if len(weights) != len(self.members) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"ensemble.weights are {'+'.join(f'{w:g}' for w in weights)} for {len(self.members)} members; "
                "give each one, none below 0 and not all 0"
            )
        shares = tuple(float(weight) / sum(weights) for weight in weights)
        return Ensemble(self.members, dataclasses.replace(self.config, weights=shares))

    @property
    def requires_time(self) -> str:
        return max((member.requires_time for member in self.members), key=TIME_CHOICES.index)

    def needs_fallback(self, histories: Sequences) -> np.ndarray:
        """(U,) bool: for whom every member falls back."""
        return np.logical_and.reduce([member.needs_fallback(histories) for member in self.members])

    def score(self, batch: Batch) -> Tensor:
        raise TypeError("members of an ensemble batch users in their own ways: ask `score_batches`")

    @torch.inference_mode()
    def score_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Tensor | None = None,
        tokens: int = 1 << 15,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """As `Scorer.score_batches`; what no member would recommend is -inf."""
        weights = self.weighted(self.config.weights).config.weights
        for rows, parts_MBI, allowed_BI in self.parts(
            histories, exclude_seen=exclude_seen, candidates=candidates
        ):
            scores = torch.einsum("m,mbi->bi", torch.tensor(weights, device=parts_MBI.device), parts_MBI)
            if self.config.method == "softmax":
                scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
            yield rows, scores.masked_fill(~allowed_BI, -torch.inf)

    def parts(
        self, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yields (rows (B,), what each member says (M, B, I + 1), which items any would recommend (B, I + 1))."""
        most = max(SCORES_AT_ONCE // (self.n_items + 1) // len(self.members), 1)
        by_length = np.argsort(histories.lengths, kind="stable")
        for rows in np.split(by_length, range(most, len(by_length), most)):
            if len(rows) == 0:
                continue
            chosen = histories.select(rows, np.zeros(len(rows), np.int64), histories.lengths[rows])
            scores = [
                _scores(member, chosen, exclude_seen=exclude_seen, candidates=candidates)
                for member in self.members
            ]
            allowed_BI = torch.stack([part > -torch.inf for part in scores]).any(0)
            yield rows, torch.stack([self._said(part) for part in scores]), allowed_BI

    def _said(self, scores_BI: Tensor) -> Tensor:
        finite = scores_BI > -torch.inf
        if self.config.method == "rrf":
            return torch.where(finite, 1 / (self.config.constant + _places(scores_BI)), 0)
        if self.config.method == "softmax":
            return scores_BI.softmax(1).nan_to_num(0)  # a user without candidates
        count = finite.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(finite, scores_BI, 0).sum(1, keepdim=True) / count
        centred = torch.where(finite, scores_BI - mean, 0)
        spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
        z = torch.where(spread > 0, centred / spread.clamp(min=1e-30), 0)
        return torch.where(
            finite, z, torch.where(finite, z, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0)
        )


def _scores(
    member: Recommender, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None
) -> Tensor:
    """(B, I + 1), -inf for what the member would not recommend; of lists, the scores of the items in them."""
    scores = torch.full((len(histories), member.n_items + 1), -torch.inf, device=member.device)
    if isinstance(member, Scorer):
        for rows, found in member.score_batches(histories, exclude_seen=exclude_seen, candidates=candidates):
            scores[torch.from_numpy(rows).to(scores.device)] = found
        return scores
    longest = min(getattr(member.config, "beam", member.n_items), member.n_items)
    items, values = member.recommend(histories, longest, exclude_seen=exclude_seen, candidates=candidates)
    scores.scatter_(
        1,
        torch.from_numpy(items.astype(np.int64)).to(scores.device),
        torch.from_numpy(values).to(scores.device),
    )
    scores[:, 0] = -torch.inf
    return scores


def _places(scores_BI: Tensor) -> Tensor:
    """(B, I) ranks from 1 in the strict order of `layers.top_k`."""
    by_priority = torch.argsort(tie_order(scores_BI.shape[1], scores_BI.device))
    order = by_priority[torch.argsort(scores_BI[:, by_priority], dim=1, descending=True, stable=True)]
    places = torch.arange(1, scores_BI.shape[1] + 1, device=scores_BI.device, dtype=scores_BI.dtype)
    return torch.empty_like(scores_BI).scatter_(1, order, places.expand_as(scores_BI))


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
            ensemble, valid.with_query_times(protocol), exclude_seen=protocol.exclude_seen, metric=metric
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
        if differing := bundles[0].protocol.data_differences(other.protocol):
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
