"""What of a history a trained model uses: how many of its last events, in what order, and which of them most.

All of it asks the validation fold, whose histories are the training events: the test fold chooses nothing.
B batch, T time, D width, P places from the end, U users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.evaluation.segments import LENGTHS, length_names
from recpipe.models.recommender import SCORES_AT_ONCE, NextItem, Recommender

EVENTS = (1, 2, 5, 10, 20, 50, 100, 200)
PLACES = 50  # from the end, shown one by one
LEAST = 20  # users of a group: the mean of fewer is mostly luck


@dataclass(frozen=True)
class Question:
    """Who is asked what, and how it is judged."""

    fold: Fold
    protocol: Protocol
    metric: str

    def value(self, model: Recommender, fold: Fold | None = None) -> float:
        """The metric over the users of ``fold``, by default its own."""
        return self.of(self.ranks(model, self.fold if fold is None else fold))

    def ranks(self, model: Recommender, fold: Fold) -> pa.Table:
        """Of the targets of ``fold``, by row of it."""
        asked = fold.with_query_times(self.protocol)
        return rank_fold(model, asked, exclude_seen=self.protocol.exclude_seen, k=1).ranks()

    def of(self, ranks: pa.Table) -> float:
        """The metric of these. Raises ValueError for one that is not known."""
        cutoff = self.metric.partition("@")[2]
        found = metrics_from_ranks(ranks, cutoffs=[int(cutoff)]) if cutoff.isdigit() else {}
        if self.metric not in found:
            raise ValueError(f"metric is {self.metric!r}; give one at a cut-off, such as ndcg@10")
        return float(found[self.metric])


def context_study(
    model: Recommender,
    train: Sequences,
    valid: Fold,
    protocol: Protocol,
    *,
    metric: str = "ndcg@10",
    users: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """``effective`` context, ``attribution`` by place (None for a model whose gradient cannot be had) and ``gap``
    between training and validation, for at most ``users`` users, the same of every model.

    ``train``: what the model was trained on. Raises ValueError for a metric that is not known.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(valid))[:users])
    question = Question(valid.select(rows), protocol, metric)
    return {
        "metric": metric,
        "users": len(rows),
        "effective": effective_context(model, question, seed=seed),
        "attribution": attribution(model, question) if isinstance(model, NextItem) else None,
        "gap": gap_by_length(model, train, valid, question, users=users, seed=seed),
    }


def effective_context(model: Recommender, question: Question, *, seed: int = 0) -> dict[str, Any]:
    """The metric ``whole``, and per number of last ``events`` that stay as they are: ``truncated``, where nothing else
    is read, and ``shuffled``, where the rest is read in a random order. ``shuffled_all``: nothing keeps its place.

    What a user has seen stays excluded as a whole. ``longer``: the share of users with more events than that.
    """
    histories = question.fold.histories
    longest = min(model.max_length, int(histories.lengths.max(initial=0)))
    rows = []
    for events in (n for n in EVENTS if n < longest):
        with reading(model, events):
            truncated = question.value(model)
        shuffled = question.value(model, _with(question.fold, shuffle_before(histories, events, seed)))
        longer = float((histories.lengths > events).mean())
        rows.append({"events": events, "truncated": truncated, "shuffled": shuffled, "longer": longer})
    mixed = _with(question.fold, shuffle_before(histories, 0, seed))
    whole = question.value(model)
    return {"whole": whole, "shuffled_all": question.value(model, mixed), "longest": longest, "rows": rows}


@contextmanager
def reading(model: Recommender, events: int) -> Iterator[None]:
    """Inside, ``model`` reads the last ``events`` of every history; what it must not recommend stays the whole one."""
    before = model.max_length
    model.max_length = min(events, before)
    try:
        yield
    finally:
        model.max_length = before


def shuffle_before(histories: Sequences, events: int, seed: int) -> Sequences:
    """All but the last ``events`` of every history in a random order; timestamps stay where they are."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    place = np.arange(len(owner))
    from_end = histories.offsets[owner + 1] - place
    draw = np.random.default_rng(seed).random(len(owner))
    order = np.lexsort((np.where(from_end <= events, 1 + place, draw), owner))  # draws lie below 1
    ratings = None if histories.ratings is None else histories.ratings[order]
    return replace(histories, items=histories.items[order], ratings=ratings)


def attribution(model: NextItem, question: Question) -> list[dict[str, Any]]:
    """How much each event has to do with the log-probability of the item that came next: ``shares`` (P,) of the last
    places, the last one first, and of all ``older`` ones together, for each group of history lengths.

    |gradient · input| of an event's embedding (Shrikumar et al., arXiv 1605.01713), as a share of a user's sum; means
    of groups of 20 users or more.
    """
    fold = question.fold.with_query_times(question.protocol)
    model.eval()
    data = model.on_device(fold.histories, window=model.max_length)
    lengths = data.lengths
    shares = np.zeros((len(fold), model.max_length))
    wanted = fold.targets.items[np.minimum(fold.targets.offsets[:-1], len(fold.targets.items) - 1)]
    able = np.flatnonzero((lengths > 0) & (fold.targets.lengths > 0))
    most = max(SCORES_AT_ONCE // (model.n_items + 1), 1)
    for bucket in length_buckets(lengths, able, 1 << 13):
        for rows in np.split(bucket, range(most, len(bucket), most)):
            target = torch.from_numpy(wanted[rows].astype(np.int64)).to(model.device)
            found = _saliency(model, data.batch(rows), target).cpu().numpy()
            _from_the_end(shares, rows, found, lengths[rows])
    return _by_length(shares, lengths, able)


def _saliency(model: NextItem, batch: Any, target: Tensor) -> Tensor:
    """(B, T), 0 at padding."""
    with torch.enable_grad():
        table = model.items.table().detach()
        x_BTD = model.items.embed(batch, table).detach().requires_grad_()
        rows, last = torch.arange(len(target), device=target.device), batch.lengths - 1
        hidden, head = model.output(model.encode(x_BTD, batch)[rows, last], model.items.head(table).detach())
        known = F.log_softmax(hidden @ head.T, -1)[rows, target].sum()
        (gradient,) = torch.autograd.grad(known, x_BTD)
    return (gradient * x_BTD.detach()).sum(-1).abs() * batch.mask


def _from_the_end(shares: NDArray[np.float64], rows: NDArray[Any], found: NDArray[Any], lengths: Any) -> None:
    """Writes ``found`` (B, T) into ``shares`` (U, T), the last event first, as shares of each row's sum."""
    place = lengths[:, None] - 1 - np.arange(found.shape[1])
    row, column = np.nonzero(place >= 0)
    whole = found.sum(1, keepdims=True)
    part = np.divide(found, whole, out=np.zeros_like(found), where=whole > 0)
    shares[rows[row], place[row, column]] = part[row, column]


def _by_length(shares: NDArray[Any], lengths: NDArray[Any], able: NDArray[Any]) -> list[dict[str, Any]]:
    group = np.searchsorted(LENGTHS, lengths, side="right") - 1
    found = []
    for code, name in enumerate(length_names()):
        mine = able[group[able] == code]
        if len(mine) >= LEAST:
            mean = shares[mine].mean(0)
            row = {"history": name, "users": len(mine), "shares": mean[:PLACES].tolist()}
            found.append({**row, "older": float(mean[PLACES:].sum())})
    return found


def gap_by_length(
    model: Recommender, train: Sequences, valid: Fold, question: Question, *, users: int, seed: int
) -> list[dict[str, Any]]:
    """The metric for the last event of ``train``, which training had as a target, and for that of the validation fold,
    by length of the history: ``train``, ``valid``, and the ``users`` of each.
    """
    lengths = train.lengths
    several = np.flatnonzero(lengths > 1)
    rows = np.sort(several[np.random.default_rng(seed).permutation(len(several))[:users]])
    known = Fold(
        train.select(rows, np.zeros(len(rows), np.int64), lengths[rows] - 1),
        train.select(rows, lengths[rows] - 1, lengths[rows]),
    )
    folds: Mapping[str, Fold] = {"train": known, "valid": question.fold}
    values = {name: _per_group(model, question, fold) for name, fold in folds.items()}
    return [
        {
            "history": name,
            **{key: found[name][0] for key, found in values.items()},
            **{f"{key}_users": found[name][1] for key, found in values.items()},
        }
        for name in length_names()
        if all(name in found for found in values.values())
    ]


def _per_group(model: Recommender, question: Question, fold: Fold) -> dict[str, tuple[float, int]]:
    table, lengths = question.ranks(model, fold), fold.histories.lengths
    group = np.searchsorted(LENGTHS, lengths, side="right") - 1
    owner = table["user_id"].to_numpy()
    found = {}
    for code, name in enumerate(length_names()):
        mine = table.filter(pa.array(group[owner] == code))
        if (count := int((group == code).sum())) >= LEAST and len(mine):
            found[name] = (question.of(mine), count)
    return found


def _with(fold: Fold, histories: Sequences) -> Fold:
    return replace(fold, histories=histories)
