"""Recommendations for users without history: the most popular items of their segment.

With n_i the training events of item i, N their sum and I items, p(i) = (n_i + 1/I) / (N + 1). In segment s

    p_s(i) = (n_si + smoothing · p(i)) / (N_s + smoothing)        a Dirichlet prior of ``smoothing`` events
    score  = log p_s(i) - c(novelty) · x(i)                       x(i) = I · p(i), popularity relative to the mean

With ``hierarchy``, the segment country+age of a user is smoothed towards p_s of his country, and that towards p(i); a
user without age, or of a pair that training lacks, is in the segment of his country.

Where events have weights, counts are sums of these divided by their mean.

The penalty is the log-probability that a user has not met the item if he meets it c · x(i) times on average.
c(d) = (m^d - 1) / (m - 1), with m the largest x, is 0 at novelty d = 0 (most popular items first) and 1 at d = 1
(items of mean popularity first). The mean popularity of the first k items never rises with d, for any k.

U users, S segments, I items, V values of an encoded profile, K clusters.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recpipe.config import split_names
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.features import Column, fit_columns
from recpipe.data.sequences import Sequences

log = logging.getLogger(__name__)

DAY = 86_400
CLUSTER = "cluster"
USERS_AT_ONCE = 1 << 14  # users whose profiles are encoded together
MAX_CATEGORIES = 50  # of a column for `cluster_by: all`; columns with more are names or codes
MAX_COMBINATIONS = 1 << 60  # of the values of all columns, whose numbers are int64
ITERATIONS, RESTARTS = 100, 10  # of k-means

Profiles = Mapping[str, Any]
"""pyarrow arrays (U,) by column."""


class ColdUsers(nn.Module):
    """Popularity by segment of users. Buffers store counts, ``columns`` and ``edges`` the encoding of profiles."""

    counts: Tensor  # (I + 1,) int64, training events; float32 where they have weights
    keys: Tensor  # (S,) int64, ascending: the combination of codes, or cluster, of a segment
    offsets: Tensor  # (S + 2,) int64: items[offsets[s]:offsets[s + 1]] are those of segment s; segment S is empty
    items: Tensor  # (n,) int64
    times: Tensor  # (n,) as counts, events of the segment with the item
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
        """Learn segments, none without user profiles, and counts from training events; ``seed`` is of the clusters.

        Raises ValueError for missing columns, and for ``recent_days`` without timestamps.
        """
        self._fit_profiles(train, seed)
        user_keys = self._keys(train)
        keys = np.unique(user_keys[user_keys >= 0])
        segments = np.where(user_keys >= 0, np.searchsorted(keys, user_keys), len(keys))
        width, since, start = self.n_items + 1, self._first_time(train), 0
        mean = 1.0 if train.weights is None else self._mean_weight(train, since)
        counts, parts = np.zeros(width, np.int64 if train.weights is None else np.float64), []
        for part in train.parts():
            is_counted, rows = _counted(part, since), segments[start : start + len(part)]
            item = part.items[is_counted].astype(np.int64)
            weights = None if part.weights is None else part.weights[is_counted] / np.float64(mean)
            depths = rows.shape[1]  # an event counts in the segments of every depth
            owner = np.concatenate([np.repeat(column, part.lengths)[is_counted] for column in rows.T])
            has_segment = owner < len(keys)
            pair, place = np.unique((owner * width + np.tile(item, depths))[has_segment], return_inverse=True)
            pair_weights = None if weights is None else np.tile(weights, depths)[has_segment]
            parts.append((pair, np.bincount(place, pair_weights, minlength=len(pair))))
            counts += np.bincount(item, weights, minlength=width)
            start += len(part)
        pairs, part_times = map(np.concatenate, zip(*parts, strict=True))
        pair, place = np.unique(pairs, return_inverse=True)
        times = np.bincount(place, part_times, minlength=len(pair)).astype(counts.dtype)
        offsets = np.searchsorted(pair, np.arange(len(keys) + 1) * width)
        arrays = (counts, keys, np.append(offsets, offsets[-1]), pair % width, times)
        for name, value in zip(("counts", "keys", "offsets", "items", "times"), arrays, strict=True):
            dtype = np.int64 if value.dtype.kind == "i" else np.float32
            setattr(self, name, torch.from_numpy(value.astype(dtype)).to(self.counts.device))
        return self

    def segments(self, users: Sequences) -> np.ndarray:
        """Return the segment (U,) int64 of every user, the deepest that training has; S without one."""
        user_keys, keys = self._keys(users), self.keys.cpu().numpy()
        index = np.searchsorted(keys, user_keys)
        exists = index < len(keys)
        exists[exists] = keys[index[exists]] == user_keys[exists]
        depth = exists.sum(1)  # a segment's parents exist
        return np.where(depth > 0, index[np.arange(len(index)), np.maximum(depth - 1, 0)], len(keys))

    def scores(self, segments: np.ndarray) -> Tensor:
        """Return scores (U, I + 1) float32 of ``segments`` (U,); column 0 is -inf."""
        unique, inverse = np.unique(segments, return_inverse=True)
        popularity = (self.counts + 1 / self.n_items) / (self.counts.sum() + 1)
        rows = torch.log(self._probabilities(unique, popularity))
        relative, novelty = self.n_items * popularity, self.config.novelty
        maximum = float(relative.max())
        rows -= relative * ((maximum**novelty - 1) / (maximum - 1) if maximum > 1 else novelty)
        rows[:, 0] = -torch.inf
        return rows[torch.from_numpy(inverse).to(rows.device)]

    def _probabilities(self, segments: np.ndarray, popularity: Tensor) -> Tensor:
        """Return p_s (n, I + 1) of ``segments`` (n,)."""
        offsets, prior, m = self.offsets.tolist(), popularity, self.config.smoothing
        if self.config.hierarchy and (segments < len(self.keys)).any():
            parents, inverse = np.unique(self._parents(segments), return_inverse=True)
            prior = self._probabilities(parents, popularity)[torch.from_numpy(inverse).to(popularity.device)]
        rows = torch.zeros(len(segments), self.n_items + 1, device=self.counts.device)
        for row, segment in enumerate(segments.tolist()):
            part = slice(offsets[segment], offsets[segment + 1])
            rows[row, self.items[part]] = self.times[part].float()
        return (rows + m * prior) / (rows.sum(1, keepdim=True) + m)

    def _parents(self, segments: np.ndarray) -> np.ndarray:
        """Return the parents (n,) of ``segments`` (n,): those without the last column; S for one column."""
        keys, sizes = self.keys.cpu().numpy(), np.array(self._sizes())
        first = np.concatenate([[0], np.cumprod(sizes)[:-1].cumsum()])  # key of every depth
        segment_keys = keys[np.minimum(segments, len(keys) - 1)]
        depth = np.searchsorted(first, segment_keys, side="right") - 1
        parent_keys = first[depth - 1] + (segment_keys - first[depth]) // sizes[depth]
        return np.where((segments < len(keys)) & (depth > 0), np.searchsorted(keys, parent_keys), len(keys))

    def _sizes(self) -> list[int]:
        """Return the number of different codes of every column."""
        return [len(c.values) if c.categorical else len(self.edges[c.name]) + 1 for c in self.columns]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the tensors."""
        columns = [column.to_dict() for column in self.columns]
        return {"config": asdict(self.config), "columns": columns, "edges": self.edges}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, n_items: int) -> ColdUsers:
        """Invert ``to_dict``; the counts are loaded with the tensors."""
        columns = tuple(map(Column.from_dict, fields["columns"]))
        return cls(ColdUsersConfig(**fields["config"]), n_items=n_items, columns=columns, edges=fields["edges"])

    def _first_time(self, train: Sequences) -> int | None:
        """Return the time after which events count, None for all."""
        if self.config.recent_days is None:
            return None
        if train.timestamps is None:
            raise ValueError("cold_users.recent_days needs timestamps, and this data set has none; set it to null")
        return train.timestamps.max(initial=0) - self.config.recent_days * DAY

    def _mean_weight(self, train: Sequences, since: int | None) -> float:
        """Return the mean weight of the events that count, 1 where it is 0."""
        total, n = 0.0, 0
        for part in train.parts():
            assert part.weights is not None
            weights = part.weights[_counted(part, since)]
            total, n = total + float(weights.sum(dtype=np.float64)), n + len(weights)
        return total / n or 1.0 if n else 1.0

    def _fit_profiles(self, train: Sequences, seed: int) -> None:
        """Fit the encoding of profiles, and the clusters."""
        profiles, segments = train.profiles, self.config.segments
        self.columns, self.edges = (), {}
        if segments == "none":
            return
        if not profiles:
            log.warning("cold_users.segments is %s and nothing is known of the users: no segments", segments)
            return
        if segments == CLUSTER:
            by_all, names = self.config.cluster_by == "all", split_names(self.config.cluster_by)
            if by_all:
                names = tuple(name for name, column in profiles.items() if column.null_count < len(column))
            columns = fit_columns(names, profiles, where="cold_users.cluster_by")
            self.columns = tuple(c for c in columns if not by_all or len(c.values) <= MAX_CATEGORIES)
            if self.columns:
                generator = torch.Generator().manual_seed(seed)
                sample = torch.randperm(len(train), generator=generator)[:USERS_AT_ONCE].sort().values
                encoded = self._encode(profiles, sample.numpy())
                points = torch.from_numpy(encoded[encoded.any(1)])
                self.centres = k_means(points, self.config.clusters, generator).to(self.counts.device)
            return
        self.columns = fit_columns(split_names(segments), profiles, where="cold_users.segments")
        for column in self.columns:
            if not column.categorical:
                numbers = column.encode(profiles[column.name])
                quantiles = np.arange(1, self.config.bins) / self.config.bins
                self.edges[column.name] = np.quantile(numbers[numbers[:, 1] > 0, 0], quantiles).tolist()
        if (combinations := math.prod(self._sizes())) > MAX_COMBINATIONS:
            raise ValueError(f"cold_users.segments is {segments}, {combinations:.1e} combinations; name fewer columns")

    def _keys(self, users: Sequences) -> np.ndarray:
        """Segment keys (U, 1) int64, -1 for an incomplete profile; with ``hierarchy`` (U, columns), one per depth."""
        n, profiles = len(users), {column.name: users.profiles.get(column.name) for column in self.columns}
        lacks_column = any(values is None for values in profiles.values()) and not self.config.hierarchy
        if n == 0 or not profiles or lacks_column:
            return np.full((n, 1), -1)
        keys = self._nearest_clusters if self.config.segments == CLUSTER else self._combined_codes
        parts = (np.arange(first, min(first + USERS_AT_ONCE, n)) for first in range(0, n, USERS_AT_ONCE))
        return np.concatenate([keys(profiles, rows) for rows in parts])

    def _combined_codes(self, profiles: Profiles, rows: np.ndarray) -> np.ndarray:
        """One number for the combination of a user's values; the first value of a list counts.

        With ``hierarchy``, numbers of the first columns, of the first two and so on, each above those before.
        """
        key, is_complete = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
        keys, first, combinations = [], 0, 1
        for column, size in zip(self.columns, self._sizes(), strict=True):
            if (column_values := profiles[column.name]) is None:
                code, exists = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
            else:
                values = column.encode(column_values.take(pa.array(rows)))
                if column.categorical:
                    code, exists = values[:, 0] - 1, values[:, 0] > 0
                else:
                    code, exists = np.searchsorted(self.edges[column.name], values[:, 0]), values[:, 1] > 0
            key, is_complete = key * size + code, is_complete & exists
            keys.append(np.where(is_complete, first + key, -1))
            combinations *= size
            first += combinations if self.config.hierarchy else 0
        return np.stack(keys if self.config.hierarchy else keys[-1:], 1)

    def _nearest_clusters(self, profiles: Profiles, rows: np.ndarray) -> np.ndarray:
        encoded = self._encode(profiles, rows)
        nearest = squared_distances(torch.from_numpy(encoded), self.centres.cpu()).argmin(1).numpy()
        return np.where(encoded.any(1), nearest, -1)[:, None]

    def _encode(self, profiles: Profiles, rows: np.ndarray) -> np.ndarray:
        """Encode profiles as (n, V) float32: standardised numbers; 1 / √(2 · values in the row) for a category.

        Two different categories are then at distance 1, like numbers one deviation apart. Missing values are 0.
        """
        blocks = []
        for column in self.columns:
            block = values = column.encode(profiles[column.name].take(pa.array(rows)))
            if column.categorical:
                block = np.zeros((len(rows), len(column.values) + 1), np.float32)
                np.put_along_axis(block, values.astype(np.int64), 1.0, axis=1)
                block[:, 0] = 0.0
                block = block / np.sqrt(2 * np.maximum(block.sum(1, keepdims=True), 1))
            blocks.append(block)
        return np.concatenate(blocks, 1).astype(np.float32)


def k_means(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return centres (K, V), the best of several runs of Lloyd's algorithm (1982) from k-means++ seeds.

    Fewer than ``k`` centres if there are fewer distinct points. k-means++: Arthur & Vassilvitskii, SODA 2007.
    """
    if not len(points_nV):
        return points_nV
    runs = [_lloyd(points_nV, _k_means_plus_plus(points_nV, k, generator)) for _ in range(RESTARTS)]
    return min(runs, key=lambda centres: float(squared_distances(points_nV, centres).amin(1).sum()))


def squared_distances(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    """Return squared Euclidean distances (n, K)."""
    return points_nV.square().sum(1, keepdim=True) - 2 * (points_nV @ centres_KV.T) + centres_KV.square().sum(1)


def _lloyd(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    previous = torch.empty(0)
    for _ in range(ITERATIONS):
        nearest = squared_distances(points_nV, centres_KV).argmin(1)
        if torch.equal(nearest, previous):
            break
        sums = torch.zeros_like(centres_KV).index_add_(0, nearest, points_nV)
        sizes = torch.bincount(nearest, minlength=len(centres_KV))[:, None]
        centres_KV, previous = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres_KV), nearest
    return centres_KV


def _k_means_plus_plus(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw points one by one, with probability proportional to the squared distance to those drawn before."""
    indices = [int(torch.randint(len(points_nV), (), generator=generator))]
    distances = (points_nV - points_nV[indices[0]]).square().sum(1)
    while len(indices) < k and bool((distances > 0).any()):
        indices.append(int(torch.multinomial(distances, 1, generator=generator)))
        distances = torch.minimum(distances, (points_nV - points_nV[indices[-1]]).square().sum(1))
    return points_nV[indices]


def _counted(events: Sequences, since: int | None) -> np.ndarray:
    """Mark the events (N,) of the catalogue later than ``since``."""
    mask: np.ndarray = events.items > 0
    return mask if since is None or events.timestamps is None else mask & (events.timestamps > since)
