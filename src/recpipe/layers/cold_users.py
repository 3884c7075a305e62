"""k-means for few points of few dimensions: Lloyd (1982), begun as k-means++ (Arthur & Vassilvitskii 2007).

n points, V dimensions, K clusters.

What every model recommends to users without history: the most popular items of their segment.

With n_i the training events of item i, N their sum and I items, p(i) = (n_i + 1/I) / (N + 1). In segment s

    p_s(i) = (n_si + smoothing · p(i)) / (N_s + smoothing)        a Dirichlet prior of ``smoothing`` events
    score  = log p_s(i) - c(novelty) · x(i)                       x(i) = I · p(i), as a multiple of the average item's

The second term is the log of the chance that a user has not come across the item, if that happens c · x(i) times on
average. c(d) = (m^d - 1) / (m - 1), with m the largest x, goes from 0 to 1: without segments the list begins near items
m^(1 - d) times as popular as the average one, from the most popular at d = 0 to average ones at d = 1. As d rises, the
mean popularity of the first k never does, for any k (a Lagrangian: d weighs what is to become small).

U users, S segments, I items, V values of an encoded profile, K clusters.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recpipe.config import split_names
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.features import Column, fit_columns
from recpipe.data.sequences import Sequences

ITERATIONS, STARTS = 100, 10


def k_means(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres (K, V), the best of several starts; fewer than ``k`` where there are fewer different points.

    Deterministic in ``generator``.
    """
    if not len(points_nV):
        return points_nV
    found = [_lloyd(points_nV, _spread(points_nV, k, generator)) for _ in range(STARTS)]
    return min(found, key=lambda centres: float(distances(points_nV, centres).amin(1).sum()))


def _lloyd(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    before = torch.empty(0)
    for _ in range(ITERATIONS):
        nearest = distances(points_nV, centres_KV).argmin(1)
        if torch.equal(nearest, before):
            break
        sums = torch.zeros_like(centres_KV).index_add_(0, nearest, points_nV)
        sizes = torch.bincount(nearest, minlength=len(centres_KV))[:, None]
        centres_KV, before = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres_KV), nearest
    return centres_KV


def distances(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    """Squared, (n, K)."""
    crossed = points_nV @ centres_KV.T
    return points_nV.square().sum(1, keepdim=True) - 2 * crossed + centres_KV.square().sum(1)


def _spread(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Points drawn one by one, each with a chance that grows with the squared distance to those drawn before."""
    first = int(torch.randint(len(points_nV), (), generator=generator))
    chosen = [first]
    away = (points_nV - points_nV[first]).square().sum(1)
    while len(chosen) < k and bool((away > 0).any()):
        chosen.append(int(torch.multinomial(away, 1, generator=generator)))
        away = torch.minimum(away, (points_nV - points_nV[chosen[-1]]).square().sum(1))
    return points_nV[chosen]


log = logging.getLogger(__name__)

DAY = 86_400
CLUSTER = "cluster"
USERS_AT_ONCE = 1 << 14  # whose profiles are encoded together
MOST_VALUES = (
    50  # of a column that `cluster_by: all` takes: more are names and codes, which say nothing of likeness
)


class ColdUsers(nn.Module):
    """Popularity per segment of users. What was counted is in buffers, how profiles are read in ``columns``.

    ``fit`` learns both; ``from_dict`` with the buffers of a fitted one restores it. Not every segment's scores are
    kept but its counts, so that it is never larger than the training set.
    """

    counts: Tensor  # (I + 1,) int64, training events
    keys: Tensor  # (S,) int64, ascending: the combination of codes, or number of the cluster, of a segment
    offsets: (
        Tensor  # (S + 2,) int64: segment s owns items[offsets[s]:offsets[s + 1]]; the last one knows nobody
    )
    items: Tensor  # (n,) int64
    times: Tensor  # (n,) int64, events of the segment with the item
    centres: Tensor  # (K, V) float32

    def __init__(
        self,
        config: ColdUsersConfig,
        *,
        n_items: int,
        columns: Sequence[Column] = (),
        edges: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.n_items = config, n_items
        self.columns, self.edges = tuple(columns), dict(edges or {})
        self.register_buffer("counts", torch.zeros(n_items + 1, dtype=torch.int64))
        for name in ("keys", "items", "times"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        self.register_buffer("offsets", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("centres", torch.zeros(0, 0))

    def fit(self, train: Sequences, *, seed: int = 0) -> ColdUsers:
        """Learns segments and counts from training events. ``seed`` is that of the clusters.

        Raises ValueError for columns that the users do not have, and for recent_days without timestamps. Where nothing
        at all is known of the users, there are no segments.
        """
        self._read(train, seed)
        found = self._keys(train)
        known = np.unique(found[found >= 0])
        segment = np.where(found >= 0, np.searchsorted(known, found), len(known))
        owner, item = np.repeat(segment, train.lengths), train.items.astype(np.int64)
        kept = self._recent(train) & (item > 0)
        owner, item = owner[kept], item[kept]
        width = self.n_items + 1
        named = owner < len(known)
        pair, times = np.unique(owner[named] * width + item[named], return_counts=True)
        offsets = np.searchsorted(pair, np.arange(len(known) + 1) * width)
        device = self.counts.device
        for name, value in (
            ("counts", np.bincount(item, minlength=width)),
            ("keys", known),
            ("offsets", np.append(offsets, offsets[-1])),
            ("items", pair % width),
            ("times", times),
        ):
            setattr(self, name, torch.from_numpy(value.astype(np.int64)).to(device))
        return self

    def _recent(self, train: Sequences) -> np.ndarray:
        """(N,) bool: the events that are counted."""
        if self.config.recent_days is None:
            return np.ones(len(train.items), bool)
        if train.timestamps is None:
            raise ValueError(
                "cold_users.recent_days needs timestamps and this data set has only an order; set it to null"
            )
        last = train.timestamps.max(initial=0)
        return train.timestamps > last - self.config.recent_days * DAY

    def segments(self, users: Sequences) -> np.ndarray:
        """Segment (U,) int64 of every user; S where a column is not known or no one in training was alike."""
        found, known = self._keys(users), self.keys.cpu().numpy()
        place = np.searchsorted(known, found)
        there = place < len(known)
        there[there] = known[place[there]] == found[there]
        return np.where(there, place, len(known))

    def scores(self, segments: np.ndarray) -> Tensor:
        """Scores (U, I + 1) float32 for users of ``segments`` (U,); column 0 is -inf."""
        some, place = np.unique(segments, return_inverse=True)
        offsets = self.offsets.cpu().numpy()
        start, stop = offsets[some].tolist(), offsets[some + 1].tolist()
        rows = torch.zeros(len(some), self.n_items + 1, device=self.counts.device)
        for row, (a, b) in enumerate(zip(start, stop, strict=True)):  # segments of one batch, not users
            rows[row, self.items[a:b]] = self.times[a:b].float()
        popularity = (self.counts + 1 / self.n_items) / (self.counts.sum() + 1)
        m = self.config.smoothing
        rows = torch.log((rows + m * popularity) / (rows.sum(1, keepdim=True) + m))
        rows -= self._penalty(self.n_items * popularity)
        rows[:, 0] = -torch.inf
        return rows[torch.from_numpy(place).to(rows.device)]

    def _penalty(self, times_average: Tensor) -> Tensor:
        novelty, most = self.config.novelty, float(times_average.max())
        return times_average * ((most**novelty - 1) / (most - 1) if most > 1 else novelty)

    def _read(self, train: Sequences, seed: int) -> None:
        """Learns how profiles are read, and the clusters."""
        profiles, asked = train.profiles, self.config.segments
        self.columns, self.edges = (), {}
        if asked == "none":
            return
        if not profiles:
            log.warning("cold_users.segments is %s and nothing is known of the users: no segments", asked)
            return
        clustered = asked == CLUSTER
        field = "cluster_by" if clustered else "segments"
        wanted = split_names(getattr(self.config, field))
        if clustered and wanted == ("all",):
            wanted = tuple(name for name in profiles if _has_values(profiles[name]))
        columns = fit_columns(wanted, profiles, where=f"cold_users.{field}")
        if clustered and self.config.cluster_by == "all":
            columns = tuple(column for column in columns if len(column.values) <= MOST_VALUES)
        self.columns = columns
        if clustered and columns:
            self._cluster(train, seed)
        if clustered:
            return
        for column in columns:
            if not column.categorical:
                numbers = column.encode(profiles[column.name])
                inner = np.arange(1, self.config.bins) / self.config.bins
                self.edges[column.name] = np.quantile(numbers[numbers[:, 1] > 0, 0], inner).tolist()

    def _cluster(self, train: Sequences, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(train), generator=generator)[:USERS_AT_ONCE].sort().values.numpy()
        encoded = self._encoded({column.name: train.profiles[column.name] for column in self.columns}, sample)
        described = encoded[encoded.any(1)]
        centres = k_means(torch.from_numpy(described), self.config.clusters, generator)
        self.centres = centres.to(self.counts.device)

    def _keys(self, users: Sequences) -> np.ndarray:
        """(U,) int64: the segment's key, -1 where a profile does not say it."""
        n = len(users)
        profiles = {name: users.profiles.get(name) for name in (column.name for column in self.columns)}
        if not profiles or any(values is None for values in profiles.values()):
            return np.full(n, -1)
        parts = [np.arange(at, min(at + USERS_AT_ONCE, n)) for at in range(0, n, USERS_AT_ONCE)]
        ask = self._nearest if self.config.segments == CLUSTER else self._codes
        return np.concatenate([ask(profiles, rows) for rows in parts]) if parts else np.zeros(0, np.int64)

    def _codes(self, profiles: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        """One number for the combination of the columns' values; of a list its first value."""
        key, known = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        for column in self.columns:
            values = column.encode(profiles[column.name].take(pa.array(rows)))
            if column.categorical:
                code, there, size = values[:, 0] - 1, values[:, 0] > 0, len(column.values)
            else:
                edges = self.edges[column.name]
                code, there, size = np.searchsorted(edges, values[:, 0]), values[:, 1] > 0, len(edges) + 1
            key, known = key * size + code, known & there
        return np.where(known, key, -1)

    def _nearest(self, profiles: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        encoded = self._encoded(profiles, rows)
        nearest = distances(torch.from_numpy(encoded), self.centres.cpu()).argmin(1).numpy()
        return np.where(encoded.any(1), nearest, -1)

    def _encoded(self, profiles: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        """(n, V) float32: a number standardised; of a category's value 1 / √(2 · how many of its column the row has),
        so that two different categories are as far apart, 1, as numbers one deviation apart. Nothing known is 0.
        """
        blocks = []
        for column in self.columns:
            values = column.encode(profiles[column.name].take(pa.array(rows)))
            if not column.categorical:
                blocks.append(values)
                continue
            block = np.zeros((len(rows), len(column.values) + 1), np.float32)
            np.put_along_axis(block, values.astype(np.int64), 1.0, axis=1)
            block[:, 0] = 0.0
            blocks.append(block / np.sqrt(2 * np.maximum(block.sum(1, keepdims=True), 1)))
        return np.concatenate(blocks, 1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the tensors."""
        columns = [column.to_dict() for column in self.columns]
        return {"config": dataclasses.asdict(self.config), "columns": columns, "edges": self.edges}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, n_items: int) -> ColdUsers:
        """The inverse of ``to_dict``; what was counted comes with the tensors."""
        columns = [Column.from_dict(each) for each in fields["columns"]]
        config = ColdUsersConfig(**fields["config"])
        return cls(config, n_items=n_items, columns=columns, edges=fields["edges"])


def _has_values(column: pa.Array) -> bool:
    return column.null_count < len(column)
