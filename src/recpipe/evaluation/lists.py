"""Beyond-accuracy metrics of top-k lists: popularity, novelty, diversity, serendipity, coverage.

ARP, novelty, diversity and serendipity equal those of RecTools.
Shapes: U users, K places, I items, D width; item indices count from 1, 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences, count_items
from recpipe.evaluation.segments import POPULARITY, popularity_groups
from recpipe.semantic_ids.vector_rows import VectorRows

ELEMENTS_PER_CHUNK = 1 << 22  # of the vectors of a chunk of lists
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Popularity:
    """Training events and users per item."""

    events: NDArray[np.int64]  # (I,)
    users: NDArray[np.int64]  # (I,), with at least one event
    n_users: int

    @classmethod
    def of(cls, train: Sequences, n_items: int) -> Popularity:
        """Count events and users of the training sequences."""
        base, users = n_items + 1, np.zeros(n_items + 1, np.int64)
        for part in train.parts():
            pairs = np.unique(np.repeat(np.arange(len(part)), part.lengths) * base + part.items)
            users += np.bincount(pairs % base, minlength=base)
        return cls(count_items(train.items, n_items)[1:], users[1:], int((train.lengths > 0).sum()))


@dataclass(frozen=True)
class Lists:
    """Top-k lists of the users who have one."""

    users: NDArray[np.object_]  # (U,) external ids
    items_UK: NDArray[np.int64]

    @classmethod
    def of(cls, recommendations: pa.Table, item_ids: NDArray[np.object_], k: int) -> Lists:
        """Read a table with user_id, rank and item_id; ``item_ids`` (I,).

        Raises ValueError for items of another catalogue.
        """
        table = recommendations.filter(pc.less_equal(recommendations["rank"], k))
        users = table["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        place = pc.index_in(table["item_id"].cast(pa.string()), pa.array(item_ids, pa.string()))
        if place.null_count:
            raise ValueError(f"{place.null_count} recommended items are not in the catalogue of {len(item_ids)} items")
        items_UK = np.zeros((len(users.dictionary), k), np.int64)
        items_UK[users.indices.to_numpy(), table["rank"].to_numpy() - 1] = place.to_numpy() + 1
        return cls(np.array(users.dictionary.to_pylist(), dtype=object), items_UK)


def list_metrics(
    lists: Lists,
    popularity: Popularity,
    ranks: pa.Table,
    *,
    item_ids: NDArray[np.object_],
    vectors: tuple[Floats | VectorRows, NDArray[np.bool_]] | None = None,
) -> dict[str, float | None]:
    """Compute all metrics of this module, None where undefined, and the shares of `head`, `mid` and `tail`.

    ``vectors`` are (I, D) and a mask (I,) of the items that have one.
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
        # average recommendation popularity: training events per item; Yin et al., VLDB 2012
        "arp": _mean_of_lists(lists, popularity.events.astype(np.float64)),
        "novelty": novelty(lists, popularity),
        "serendipity": serendipity(lists, popularity, ranks, item_ids),
        "diversity": None if vectors is None else diversity(lists, *vectors),
        "divergence": divergence(counts, popularity.events),
        **{name: float(counts[groups == code].sum() / counts.sum()) for code, name in enumerate(POPULARITY)},
    }


def novelty(lists: Lists, popularity: Popularity) -> float:
    """Compute the mean self-information in bits, -log2 of the share of training users with the item.

    An item without users counts as one of a single user. Zhou et al., PNAS 2010.
    """
    return _mean_of_lists(lists, -np.log2(np.maximum(popularity.users, 1) / popularity.n_users))


def serendipity(lists: Lists, popularity: Popularity, ranks: pa.Table, item_ids: NDArray[np.object_]) -> float:
    """Compute how much earlier hits stand than in an order by popularity, averaged over places, then users.

    A hit at place r gains max(0, (q - r) / I), where its number of training events is the q-th highest value, and (I +
    1 - r) / I if it has no training events. ``item_ids`` (I,) are the ids of the catalogue.
    """
    n_items = len(item_ids)
    levels, level = np.unique(popularity.events, return_inverse=True)
    place = len(levels) - level  # 1 for the most popular
    baseline = np.where(popularity.events > 0, (n_items + 1 - place) / n_items, 0)
    score = (n_items + 1 - np.arange(1, lists.items_UK.shape[1] + 1)) / n_items
    gain_UK = np.maximum(score[None] - np.concatenate([[0], baseline])[lists.items_UK], 0)
    hit_UK = hits(lists, ranks, item_ids) & (lists.items_UK > 0)
    return float(((gain_UK * hit_UK).sum(1) / (lists.items_UK > 0).sum(1)).mean())


def hits(lists: Lists, ranks: pa.Table, item_ids: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Mark the recommendations (U, K) that are targets of their user."""
    user = pc.index_in(ranks["user_id"].cast(pa.string()), pa.array(lists.users, pa.string()))
    item = pc.index_in(ranks["target"].cast(pa.string()), pa.array(item_ids, pa.string()))
    valid = pc.and_(pc.is_valid(user), pc.is_valid(item))
    user, item = (column.filter(valid).to_numpy().astype(np.int64) for column in (user, item))
    base = len(item_ids) + 1
    pairs = np.arange(len(lists.users))[:, None] * base + lists.items_UK
    return np.isin(pairs, user * base + item + 1)


def diversity(lists: Lists, vectors_ID: Floats | VectorRows, present_I: NDArray[np.bool_]) -> float | None:
    """Compute intra-list diversity: the mean of 1 - cosine over all pairs of items of a list; Ziegler et al., WWW 2005.

    Items without a vector, ``present_I``, are left out, and so are lists with fewer than two vectors. Only vectors of
    the items of a chunk of lists are read at a time.
    """
    values, width = [], vectors_ID.width if isinstance(vectors_ID, VectorRows) else vectors_ID.shape[1]
    step = max(ELEMENTS_PER_CHUNK // (lists.items_UK.shape[1] * max(width, 1)), 1)
    for items_BK in np.split(lists.items_UK, range(step, len(lists.items_UK), step)):
        items, place_BK = np.unique(items_BK, return_inverse=True)
        place_BK = place_BK.reshape(items_BK.shape)
        vectors, present = vectors_ID[np.maximum(items - 1, 0)].astype(np.float64), present_I[np.maximum(items - 1, 0)]
        norms = np.linalg.norm(vectors, axis=1)
        present = present & (items > 0) & (norms > 0)
        unit = np.where(present[:, None], vectors / np.where(norms > 0, norms, 1.0)[:, None], 0.0)
        n = present[place_BK].sum(1)
        pairs = n * (n - 1)
        cosines = (unit[place_BK].sum(1) ** 2).sum(1) - n  # of ordered pairs: the square of a sum
        values.append(1 - cosines[pairs > 0] / pairs[pairs > 0])
    per_list = np.concatenate(values)
    return float(per_list.mean()) if len(per_list) else None


def gini(counts: NDArray[np.integer]) -> float | None:
    """Compute the Gini index of counts per item (I,): 0 for equal counts, near 1 where few items have all."""
    n, total = len(counts), counts.sum()
    if total == 0:
        return None
    return float(2 * np.sum(np.arange(1, n + 1) * np.sort(counts)) / (n * total) - (n + 1) / n)


def divergence(counts: NDArray[np.integer], events: NDArray[np.integer]) -> float | None:
    """Compute the Jensen-Shannon divergence of recommendations and training events in bits, 0 to 1; Lin 1991.

    Both are counts per item (I,). None where either is empty.
    """
    if counts.sum() == 0 or events.sum() == 0:
        return None
    p, q = counts / counts.sum(), events / events.sum()
    middle = (p + q) / 2
    return float(sum(0.5 * np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)))


def _mean_of_lists(lists: Lists, values_I: Floats) -> float:
    sums = np.concatenate([[0.0], values_I])[lists.items_UK].sum(1)
    return float((sums / (lists.items_UK > 0).sum(1)).mean())
