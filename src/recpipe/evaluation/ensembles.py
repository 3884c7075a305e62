"""Ensembles: trained models combined by weighted ranks, scores or probabilities, evaluated like one model.

Weights are chosen on the validation fold; adaptive ones differ between users.
Shapes: B users, I items (column 0 of scores is padding), M members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.data.protocol import TIME_CHOICES, Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.data.user_items import Candidates, UserItems, candidates_of
from recpipe.evaluation.ensemble_weights import MemberBatch, Weights, adaptive_weights, choose_weights, weighted_sum
from recpipe.evaluation.evaluate import settings_id
from recpipe.evaluation.gate import FeatureReader, Gate
from recpipe.layers.top_k import tie_order
from recpipe.models.recommender import SCORES_AT_ONCE, Recommender, Scorer
from recpipe.training.bundle import Bundle

METHODS = ("rrf", "zscore", "softmax")
VALID, ADAPTIVE = "valid", "adaptive"  # weights chosen on the validation fold: fixed, or of every user


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
    train: Sequences | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Combine bundles to one; return it with its description: names, weights and all weightings tried.

    ``weights``: ``valid``, ``adaptive``, ``equal`` or one per member; adaptive ones read ``train``, the training set of
    the split. Raises ValueError for members of different data or catalogues, and for weights to be chosen on a fold
    that a member was trained on.
    """
    _check_same_data(bundles)
    ensemble = Ensemble([bundle.model for bundle in bundles], Ensemble.Config(method, (), constant))
    values: dict[Weights, float] = {}
    chosen: Sequence[float] = [1.0] * len(bundles) if isinstance(weights, str) else weights
    about: dict[str, Any] = {}
    if weights in (VALID, ADAPTIVE):
        if seen := [bundle.name for bundle in bundles if bundle.train_on_validation]:
            raise ValueError(f"{seen[0]} was trained on the validation fold: give ensemble.weights, or equal")
        fold = valid.with_query_times(protocol)
        options: dict[str, Any] = {"exclude_seen": protocol.exclude_seen, "metric": metric}
        if weights == VALID:
            chosen, values = choose_weights(ensemble, fold, **options)
        else:
            if train is None:
                raise ValueError("adaptive weights read the transitions of the training set: give it as train")
            reader = FeatureReader.of(train, ensemble.n_items, [bundle.name for bundle in bundles])
            adaptive = adaptive_weights(ensemble, fold, reader, **options)
            chosen, values, about = adaptive.weights, adaptive.tried, {"adaptive": adaptive.description}
            ensemble = Ensemble(ensemble.members, ensemble.config, adaptive.gate, reader)
    ensemble, first = ensemble.weighted(chosen), bundles[0]
    training = {
        "seed": first.training.get("seed"),
        "settings": _settings(bundles, ensemble, weights),
        "cost": {
            key: sum(bundle.training["cost"][key] for bundle in bundles)
            for key in ("train_seconds", "parameters")
            if all(bundle.training.get("cost", {}).get(key) is not None for bundle in bundles)
        }
        | _hardware(bundles),
        "versions": first.training.get("versions", {}),
    }
    items = (first.vocabulary, first.titles, first.train_events)
    description = {
        "members": [bundle.name for bundle in bundles],
        "weights": list(ensemble.config.weights),
        "tried": [{"weights": list(w), f"valid_{metric}": value} for w, value in values.items()],
        **about,
    }
    columns = first.item_columns
    return Bundle(name, "ensemble", ensemble, *items, first.protocol, training, item_columns=columns), description


def _hardware(bundles: Sequence[Bundle]) -> dict[str, str]:
    names = dict.fromkeys(bundle.training.get("cost", {}).get("hardware") for bundle in bundles)
    return {"hardware": " + ".join(names)} if all(names) else {}


def _check_same_data(bundles: Sequence[Bundle]) -> None:
    names = [bundle.name for bundle in bundles]
    if len(set(names)) < max(len(names), 2):
        raise ValueError(f"an ensemble has two or more different members, not {'+'.join(names) or 'none'}")
    for other in bundles[1:]:
        if differing := bundles[0].protocol.data_differences(other.protocol):
            raise ValueError(
                f"{names[0]} and {other.name} were trained under protocols that differ in {', '.join(differing)}: "
                "train them on one split"
            )
        if not np.array_equal(bundles[0].vocabulary.ids, other.vocabulary.ids):
            raise ValueError(f"{names[0]} and {other.name} were trained on different catalogues")


def _settings(bundles: Sequence[Bundle], ensemble: Ensemble, weights: str | Sequence[float]) -> dict[str, Any]:
    """Settings with the rule for the weights, as chosen weights differ between seeds of one ensemble."""
    return {
        "type": "ensemble",
        "members": {bundle.name: settings_id(bundle.training.get("settings") or {}) for bundle in bundles},
        "method": ensemble.config.method,
        "weights": weights if isinstance(weights, str) else list(ensemble.config.weights),
        "constant": ensemble.config.constant,
        **({"train": {"train_on_validation": True}} if any(bundle.train_on_validation for bundle in bundles) else {}),
    }


class Ensemble(Scorer):
    """Weighted sum of what the members give each item.

    - ``rrf``: 1 / (``constant`` + rank); Cormack, Clarke & Buettcher, SIGIR 2009, with weights. Members may be models
      that give lists only: items outside a list get nothing.
    - ``zscore``: score minus mean over the candidates of the user, divided by the standard deviation.
    - ``softmax``: probability, for probabilistic members; the score is the log of the mixture.

    With a gate the weights are those of the user, and ``weights`` of the configuration their means. Raises ValueError
    for fewer than two members, different catalogues, and members that the method cannot combine.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """``method``: rrf, zscore or softmax. ``weights``: one per member, none negative. ``constant`` of rrf."""

        method: str = "rrf"
        weights: Weights = ()  # one per member, none negative
        constant: float = 60.0

    def __init__(
        self,
        members: Sequence[Recommender],
        config: Config,
        gate: Gate | None = None,
        reader: FeatureReader | None = None,
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble has at least two members, not {len(members)}")
        if len(sizes := {member.n_items for member in members}) > 1:
            raise ValueError(f"members have catalogues of different sizes: {sorted(sizes)} items")
        if config.method not in METHODS:
            raise ValueError(f"ensemble.method is {config.method!r}; allowed: {', '.join(METHODS)}")
        for member in members:
            name = type(member).__name__
            if not isinstance(member, Scorer) and config.method != "rrf":
                raise ValueError(f"{name} gives lists, without a score for every item: use ensemble.method=rrf")
            if not member.probabilistic and config.method == "softmax":
                raise ValueError(f"the scores of {name} are no probabilities: use ensemble.method=rrf or zscore")
        super().__init__(config, n_items=members[0].n_items, max_length=max(m.max_length for m in members))
        self.modules_of_members = nn.ModuleList(members)
        self.gate, self.reader = gate, reader
        self.probabilistic = config.method == "softmax"
        fallbacks = [member.cold_users for member in members]  # for reports; every member uses its own
        self.cold_users = None if None in fallbacks else fallbacks[0]

    @property
    def members(self) -> list[Recommender]:
        """Members in the order of the weights."""
        return [member for member in self.modules_of_members if isinstance(member, Recommender)]

    @property
    def searches(self) -> bool:
        """Whether every member makes lists by a search."""
        return all(member.searches for member in self.members)

    def items_with_ids(self) -> np.ndarray:
        """Mark the items (I,) that some member can recommend."""
        return np.asarray(np.any([member.items_with_ids() for member in self.members], axis=0))

    def weighted(self, weights: Sequence[float]) -> Ensemble:
        """Return the same members with other weights. Raises ValueError for a wrong number of them or negative ones."""
        if len(weights) != len(self.members) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"ensemble.weights are {'+'.join(f'{w:g}' for w in weights)} for {len(self.members)} members; "
                "give each one, none below 0 and not all 0"
            )
        shares = tuple(float(weight) / sum(weights) for weight in weights)
        return Ensemble(self.members, dataclasses.replace(self.config, weights=shares), self.gate, self.reader)

    @property
    def requires_time(self) -> str:
        """The latest time that a member reads, of ``protocol.time``."""
        return max((member.requires_time for member in self.members), key=TIME_CHOICES.index)

    def needs_fallback(self, histories: Sequences) -> np.ndarray:
        """Mark the users (U,) for whom every member falls back."""
        masks = np.stack([member.needs_fallback(histories) for member in self.members])
        return np.asarray(masks.all(axis=0))

    def score(self, batch: Batch) -> Tensor:
        """Raise TypeError: members have different batches; use ``score_batches``, which yields scores (B, I + 1)."""
        raise TypeError("members of an ensemble have different batches: use `score_batches`")

    @torch.inference_mode()
    def score_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
        tokens: int = 1 << 15,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (rows (B,), scores (B, I + 1)) as `Scorer.score_batches`; -inf where all members have -inf."""
        fixed = self.weighted(self.config.weights).config.weights
        batches = self.member_batches(histories, exclude_seen=exclude_seen, candidates=candidates, excluded=excluded)
        for rows, member_scores, parts_MBI, allowed_BI in batches:
            weights: Weights | Tensor = fixed
            if self.gate is not None and self.reader is not None:
                weights = self.gate(self.reader(histories.select_users(rows), member_scores))
            scores = weighted_sum(weights, parts_MBI)
            if self.config.method == "softmax":
                scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
            yield rows, scores.masked_fill(~allowed_BI, -torch.inf)

    def member_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
    ) -> Iterator[MemberBatch]:
        """Yield the scores of all members for some users at a time."""
        max_rows = max(SCORES_AT_ONCE // (self.n_items + 1) // len(self.members), 1)
        by_length = np.argsort(histories.lengths, kind="stable")
        for start in range(0, len(by_length), max_rows):
            rows = by_length[start : start + max_rows]
            batch = histories.select(rows, np.zeros(len(rows), np.int64), histories.lengths[rows])
            restrictions = {
                "exclude_seen": exclude_seen,
                "candidates": candidates_of(candidates, rows),
                "excluded": None if excluded is None else excluded.select(rows),
            }
            scores = [_member_scores(member, batch, restrictions) for member in self.members]
            allowed_BI = torch.stack([part > -torch.inf for part in scores]).any(0)
            yield MemberBatch(rows, scores, torch.stack([self._normalise(part) for part in scores]), allowed_BI)

    def _normalise(self, scores_BI: Tensor) -> Tensor:
        finite = scores_BI > -torch.inf
        if self.config.method == "rrf":
            # ranks (B, I) from 1 in the strict order of `layers.top_k`
            by_tie_order = torch.argsort(tie_order(scores_BI.shape[1], scores_BI.device))
            order = by_tie_order[torch.argsort(scores_BI[:, by_tie_order], dim=1, descending=True, stable=True)]
            places = torch.arange(1, scores_BI.shape[1] + 1, device=scores_BI.device, dtype=scores_BI.dtype)
            ranks = torch.empty_like(scores_BI).scatter_(1, order, places.expand_as(scores_BI))
            return torch.where(finite, 1 / (self.config.constant + ranks), 0)
        if self.config.method == "softmax":
            return scores_BI.softmax(1).nan_to_num(0)  # NaN for a user without candidates
        count = finite.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(finite, scores_BI, 0).sum(1, keepdim=True) / count
        centred = torch.where(finite, scores_BI - mean, 0)
        deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
        z = torch.where(deviation > 0, centred / deviation.clamp(min=1e-30), 0)
        lowest = torch.where(finite, z, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0)
        return torch.where(finite, z, lowest)


def _member_scores(member: Recommender, histories: Sequences, restrictions: dict[str, Any]) -> Tensor:
    """Scores (B, I + 1), -inf for excluded items and, of a model that gives lists, for items outside them."""
    scores = torch.full((len(histories), member.n_items + 1), -torch.inf, device=member.device)
    if isinstance(member, Scorer):
        for rows, batch in member.score_batches(histories, **restrictions):
            scores[torch.from_numpy(rows).to(scores.device)] = batch
        return scores
    length = min(getattr(member.config, "beam", member.n_items), member.n_items)
    items, values = member.recommend(histories, length, **restrictions)
    index = torch.from_numpy(items.astype(np.int64)).to(scores.device)
    scores.scatter_(1, index, torch.from_numpy(values).to(scores.device))
    scores[:, 0] = -torch.inf
    return scores
