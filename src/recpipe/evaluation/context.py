"""Use of history by a trained model: effective context length, attribution by position, gap to training targets.

Measured on the validation fold. Shapes: B batch, T time, D width, P positions from the end, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.metrics import metric_value
from recpipe.evaluation.ranking import fold_metric, fold_ranks
from recpipe.evaluation.segments import length_groups, length_names
from recpipe.models.next_item import NextItem
from recpipe.models.recommender import SCORES_AT_ONCE, Recommender

CONTEXT_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)
POSITIONS = 50  # from the end, with a share of their own
MIN_USERS = 20  # of a group; means of smaller groups are noise
TOKENS_PER_BATCH = 1 << 13


@dataclass(frozen=True)
class ContextStudy:
    """A model, the users to measure it on, and the metric."""

    model: Recommender
    fold: Fold
    protocol: Protocol
    metric: str

    def value(self, histories: Sequences) -> float:
        """Compute the metric of the fold with other ``histories``."""
        return fold_metric(self.model, replace(self.fold, histories=histories), self.protocol, self.metric)


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
    """Measure ``effective`` context, ``attribution`` by position and the ``gap`` between training and validation.

    Of at most ``users`` random users, the same for all models. ``train`` is the training set of the model. The
    ``attribution`` of a model without item embeddings is None. Raises ValueError for an unknown metric.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(valid))[:users])
    study = ContextStudy(model, valid.select(rows), protocol, metric)
    return {
        "metric": metric,
        "users": len(rows),
        "effective": effective_context(study, seed=seed),
        "attribution": attribution(model, study.fold, protocol) if isinstance(model, NextItem) else None,
        "gap": gap_by_length(study, train, users=users, seed=seed),
    }


def effective_context(study: ContextStudy, *, seed: int = 0) -> dict[str, Any]:
    """Measure the metric for ``whole`` histories and per number of last ``events``.

    ``truncated``: only these events are read, but all seen items stay excluded. ``shuffled``: the events before them
    are in random order, ``shuffled_all``: all events are. ``longer``: share of users with more events.
    """
    histories = study.fold.histories
    longest = min(study.model.max_length, int(histories.lengths.max(initial=0)))
    rows = []
    for events in (n for n in CONTEXT_LENGTHS if n < longest):
        with truncated_context(study.model, events):
            truncated = study.value(histories)
        shuffled = study.value(shuffle_before(histories, events, seed))
        longer = float((histories.lengths > events).mean())
        rows.append({"events": events, "truncated": truncated, "shuffled": shuffled, "longer": longer})
    shuffled_all = study.value(shuffle_before(histories, 0, seed))
    return {"whole": study.value(histories), "shuffled_all": shuffled_all, "longest": longest, "rows": rows}


@contextmanager
def truncated_context(model: Recommender, events: int) -> Iterator[None]:
    """Let the model read only the last ``events`` of a history inside the ``with`` block."""
    before = model.max_length
    model.max_length = min(events, before)
    try:
        yield
    finally:
        model.max_length = before


def shuffle_before(histories: Sequences, events: int, seed: int) -> Sequences:
    """Shuffle all but the last ``events`` of every history; timestamps stay in place."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    place, draw = np.arange(len(owner)), np.random.default_rng(seed).random(len(owner))
    is_last = histories.offsets[owner + 1] - place <= events
    order = np.lexsort((np.where(is_last, 1 + place, draw), owner))  # draws are below 1
    ratings = None if histories.ratings is None else histories.ratings[order]
    return replace(histories, items=histories.items[order], ratings=ratings)


def attribution(model: NextItem, fold: Fold, protocol: Protocol) -> list[dict[str, Any]]:
    """Attribute the log-probability of the target to events by |gradient · input| (Shrikumar et al., arXiv 1605.01713).

    Returns a row per group of history lengths: mean ``shares`` (P,) of the last events, last one first, and of all
    ``older`` ones together. Groups of fewer than 20 users are left out.
    """
    fold = fold.with_query_times(protocol)
    model.eval()
    data = model.on_device(fold.histories, window=model.max_length)
    lengths, shares = data.lengths, np.zeros((len(fold), model.max_length))
    targets = fold.targets.items[np.minimum(fold.targets.offsets[:-1], len(fold.targets.items) - 1)]
    users = np.flatnonzero((lengths > 0) & (fold.targets.lengths > 0))
    max_rows = max(SCORES_AT_ONCE // (model.n_items + 1), 1)
    for bucket in length_buckets(lengths, users, TOKENS_PER_BATCH):
        for rows in np.split(bucket, range(max_rows, len(bucket), max_rows)):
            target = torch.from_numpy(targets[rows].astype(np.int64)).to(model.device)
            saliency = _saliency(model, data.batch(rows), target).cpu().numpy()
            place = lengths[rows, None] - 1 - np.arange(saliency.shape[1])  # 0 for the last event
            row, column = np.nonzero(place >= 0)
            total = saliency.sum(1, keepdims=True)
            share = np.divide(saliency, total, out=np.zeros_like(saliency), where=total > 0)
            shares[rows[row], place[row, column]] = share[row, column]
    groups, result = length_groups(lengths), []
    for code, name in enumerate(length_names()):
        if len(members := users[groups[users] == code]) >= MIN_USERS:
            mean = shares[members].mean(0)
            counts = {"history": name, "users": len(members)}
            result.append({**counts, "shares": mean[:POSITIONS].tolist(), "older": float(mean[POSITIONS:].sum())})
    return result


def _saliency(model: NextItem, batch: Batch, target: Tensor) -> Tensor:
    """(B, T), 0 at padding."""
    with torch.enable_grad():
        table = model.items.table().detach()
        x_BTD = model.items.embed(batch, table).detach().requires_grad_()
        rows, last = torch.arange(len(target), device=target.device), batch.lengths - 1
        query = model.output_query(model.encode(x_BTD, batch)[rows, last])
        output = model.output_table(model.items.head(table).detach())
        log_probability = F.log_softmax(query @ output.T, -1)[rows, target].sum()
        (gradient,) = torch.autograd.grad(log_probability, x_BTD)
    return (gradient * x_BTD.detach()).sum(-1).abs() * batch.mask


def gap_by_length(study: ContextStudy, train: Sequences, *, users: int, seed: int) -> list[dict[str, Any]]:
    """Compare the metric for the last event of ``train``, a target of the training, with that of the validation fold.

    Returns a row per group of history lengths: ``train``, ``valid``, and the number of users of each.
    """
    last = train.target_positions(np.ones_like(train.lengths))
    several = np.flatnonzero((last > 0) & (last < train.lengths))
    rows = np.sort(several[np.random.default_rng(seed).permutation(len(several))[:users]])
    ends = last[rows] + 1
    histories, targets = train.select(rows, np.zeros(len(rows), np.int64), ends - 1), train.select(rows, ends - 1, ends)
    last_events = Fold(histories, targets)
    values = {"train": _metric_by_length(study, last_events), "valid": _metric_by_length(study, study.fold)}
    return [
        {
            "history": name,
            **{key: groups[name][0] for key, groups in values.items()},
            **{f"{key}_users": groups[name][1] for key, groups in values.items()},
        }
        for name in length_names()
        if all(name in groups for groups in values.values())
    ]


def _metric_by_length(study: ContextStudy, fold: Fold) -> dict[str, tuple[float, int]]:
    """The metric and the number of users of each group."""
    ranks = fold_ranks(study.model, fold, study.protocol)
    groups, owner, result = length_groups(fold.histories.lengths), ranks["user_id"].to_numpy(), {}
    for code, name in enumerate(length_names()):
        members = ranks.filter(groups[owner] == code)
        if (count := int((groups == code).sum())) >= MIN_USERS and len(members):
            result[name] = (metric_value(members, study.metric), count)
    return result
