"""What lists are like besides accurate: how popular, new, varied and surprising their items are, and whom they serve.

The definitions of ARP, novelty, diversity and serendipity are those of RecTools, which has the same values.
U users, K places, I items, D width; item indices count from 1, 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences
from recpipe.evaluation.segments import POPULARITY, popularity_groups

AT_ONCE = 1 << 22  # elements of the vectors of a chunk of lists
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Popularity:
    """How often training has every item; item index i stands at i - 1."""

    events: NDArray[np.int64]  # (I,)
    users: NDArray[np.int64]  # (I,), who had it at least once
    n_users: int

    @classmethod
    def of(cls, train: Sequences, n_items: int) -> Popularity:
        """From the training sequences."""
        owner = np.repeat(np.arange(len(train)), train.lengths)
        pairs = np.unique(owner * (n_items + 1) + train.items)
        events, users = (
            np.bincount(items, minlength=n_items + 1)[1:] for items in (train.items, pairs % (n_items + 1))
        )
        return cls(events, users, len(np.unique(owner)))


@dataclass(frozen=True)
class Lists:
    """The first K recommendations of every user who got any."""

    users: NDArray[np.object_]  # (U,)
    items_UK: NDArray[np.int64]

    @classmethod
    def of(cls, recommendations: pa.Table, item_ids: NDArray[np.object_], k: int) -> Lists:
        """From a table with user_id, rank and item_id. Raises ValueError for items of another catalogue."""
        table = recommendations.filter(pc.less_equal(recommendations["rank"], k))
        users = table["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        place = pc.index_in(table["item_id"].cast(pa.string()), pa.array(item_ids, pa.string()))
        if place.null_count:
            raise ValueError(
                f"{place.null_count} recommended items are not among the {len(item_ids)} known ones"
            )
        items_UK = np.zeros((len(users.dictionary), k), np.int64)
        items_UK[users.indices.to_numpy(), table["rank"].to_numpy() - 1] = place.to_numpy() + 1
        return cls(np.array(users.dictionary.to_pylist(), dtype=object), items_UK)


def list_metrics(
    lists: Lists,
    popularity: Popularity,
    ranks: pa.Table,
    *,
    item_ids: NDArray[np.object_],
    vectors: tuple[Floats, NDArray[np.bool_]] | None = None,
) -> dict[str, float | None]:
    """All of this file, None where it is not defined; ``vectors`` are (I, D) and which items have one (I,).

    `head`, `mid` and `tail` are shares of the recommendations (see `popularity_groups`).
    """
    if not len(lists.users):
        names = ("coverage", "gini", "arp", "novelty", "serendipity", "diversity", "divergence", *POPULARITY)
        return {"users": 0, **dict.fromkeys(names)}
    counts = np.bincount(lists.items_UK.ravel(), minlength=len(item_ids) + 1)[1:]
    groups = popularity_groups(popularity.events)
    return {
        "users": len(lists.users),
        "coverage": float((counts > 0).mean()),
        "gini": gini(counts),
        "arp": mean_popularity(lists, popularity),
        "novelty": novelty(lists, popularity),
        "serendipity": serendipity(lists, popularity, ranks, item_ids),
        "diversity": None if vectors is None else diversity(lists, *vectors),
        "divergence": divergence(counts, popularity.events),
        **{name: float(counts[groups == code].sum() / counts.sum()) for code, name in enumerate(POPULARITY)},
    }


def mean_popularity(lists: Lists, popularity: Popularity) -> float:
    """ARP: the training events of an item, averaged over each list, then over users; Yin et al., VLDB 2012."""
    return _mean_of_lists(lists, popularity.events.astype(np.float64))


def novelty(lists: Lists, popularity: Popularity) -> float:
    """Mean self-information in bits, -log2 of the share of training users who had the item; an item that none had
    counts as one of a single user. Zhou et al., PNAS 2010.
    """
    return _mean_of_lists(lists, -np.log2(np.maximum(popularity.users, 1) / popularity.n_users))


def serendipity(
    lists: Lists, popularity: Popularity, ranks: pa.Table, item_ids: NDArray[np.object_]
) -> float:
    """How much earlier hits stand than in an order by popularity, averaged over places, then over users.

    A hit at place r, whose number of training events is the q-th highest there is, brings max(0, (q - r) / I), one that
    training never saw (I + 1 - r) / I.
    """
    n_items = len(item_ids)
    levels, level = np.unique(popularity.events, return_inverse=True)
    place = len(levels) - level  # 1 for the most popular
    anyway = np.where(popularity.events > 0, (n_items + 1 - place) / n_items, 0)
    mine = (n_items + 1 - np.arange(1, lists.items_UK.shape[1] + 1)) / n_items
    gain_UK = np.maximum(mine[None] - np.concatenate([[0], anyway])[lists.items_UK], 0)
    hit_UK = hits(lists, ranks, item_ids) & (lists.items_UK > 0)
    return float(((gain_UK * hit_UK).sum(1) / (lists.items_UK > 0).sum(1)).mean())


def hits(lists: Lists, ranks: pa.Table, item_ids: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(U, K): which recommendations are targets of their user."""
    user = pc.index_in(ranks["user_id"].cast(pa.string()), pa.array(lists.users, pa.string()))
    item = pc.index_in(ranks["target"].cast(pa.string()), pa.array(item_ids, pa.string()))
    known = pc.and_(pc.is_valid(user), pc.is_valid(item))
    user, item = (column.filter(known).to_numpy().astype(np.int64) for column in (user, item))
    base = len(item_ids) + 1
    asked = np.arange(len(lists.users))[:, None] * base + lists.items_UK
    return np.isin(asked, user * base + item + 1)


def diversity(lists: Lists, vectors_ID: Floats, present_I: NDArray[np.bool_]) -> float | None:
    """Intra-list diversity: 1 - cosine over all pairs of a list whose items have a vector, averaged over lists with at
    least two such; Ziegler et al., WWW 2005.
    """
    norms = np.linalg.norm(vectors_ID, axis=1)
    there = np.concatenate([[False], present_I & (norms > 0)])
    unit = np.zeros((len(there), vectors_ID.shape[1]))
    unit[there] = vectors_ID[there[1:]] / norms[there[1:], None]
    found = []
    for items_BK in _chunks(lists.items_UK, vectors_ID.shape[1]):
        n = there[items_BK].sum(1)
        pairs = n * (n - 1)
        cosines = (unit[items_BK].sum(1) ** 2).sum(1) - n  # of ordered pairs: the square of a sum
        found.append(1 - cosines[pairs > 0] / pairs[pairs > 0])
    every = np.concatenate(found)
    return float(every.mean()) if len(every) else None


def gini(counts: NDArray[np.integer]) -> float | None:
    """Of how often each item of the whole catalogue is recommended: 0 all equally, towards 1 all the same few."""
    n, total = len(counts), counts.sum()
    if total == 0:
        return None
    return float(2 * np.sum(np.arange(1, n + 1) * np.sort(counts)) / (n * total) - (n + 1) / n)


def divergence(counts: NDArray[np.integer], events: NDArray[np.integer]) -> float | None:
    """Jensen-Shannon divergence in bits between what is recommended and what training holds, item by item: 0 the same
    shares, 1 nothing in common; Lin 1991.
    """
    if counts.sum() == 0 or events.sum() == 0:
        return None
    p, q = counts / counts.sum(), events / events.sum()
    middle = (p + q) / 2
    return float(sum(0.5 * np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)))


def _mean_of_lists(lists: Lists, values_I: Floats) -> float:
    there = lists.items_UK > 0
    sums = np.concatenate([[0.0], values_I])[lists.items_UK].sum(1)
    return float((sums / there.sum(1)).mean())


def _chunks(items_UK: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    step = max(AT_ONCE // (items_UK.shape[1] * width), 1)
    for start in range(0, len(items_UK), step):
        yield items_UK[start : start + step]
