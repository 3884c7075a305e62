"""Tables to look at: a map in two dimensions, and the nearest items of a few. I items, D width, N drawn items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.evaluation.geometry.measures import nearest, unit
from recpipe.evaluation.geometry.tables import Table
from recpipe.evaluation.segments import HEAD, POPULARITY

Places = NDArray[np.int64]
PERPLEXITY = 30.0


def tsne(x_ND: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(N, 2): t-SNE of directions, so that near means alike by cosine; van der Maaten & Hinton, JMLR 2008.

    Begins with principal components (Kobak & Berens, Nature Communications 2019). Raises ValueError for fewer than
    four items.
    """
    from sklearn.manifold import TSNE

    if len(x_ND) < 4:
        raise ValueError(f"a map of {len(x_ND)} items says nothing; it needs at least 4")
    perplexity = min(PERPLEXITY, (len(x_ND) - 1) / 3)
    init = "pca" if x_ND.shape[1] > 1 else "random"
    made: NDArray[np.float64] = TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(
        unit(x_ND).astype(np.float32)
    )
    return made


def map_of(
    table: Table, titles: Sequence[str], events_I: Places, groups_I: Places, *, most: int, seed: int
) -> dict[str, Any]:
    """Places, titles, events and group of ``most`` items: those of the head, or as many of them as fit half of that,
    and others drawn at random.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(table.rows))
    first = groups_I[table.rows[order]] == HEAD
    head = order[first][: most // 2]
    chosen = np.sort(np.concatenate([head, order[~first][: most - len(head)]]))
    rows, places = table.rows[chosen], tsne(table.vectors[chosen], seed)
    return {
        "items": len(table.rows),
        "x": np.round(places[:, 0], 2).tolist(),
        "y": np.round(places[:, 1], 2).tolist(),
        "titles": [titles[row] for row in rows],
        "events": events_I[rows].tolist(),
        "groups": [POPULARITY[code] for code in groups_I[rows]],
    }


def nearest_items(
    tables: Mapping[str, Table],
    titles: Sequence[str],
    events_I: Places,
    groups_I: Places,
    *,
    per_group: int,
    k: int,
    seed: int,
) -> list[dict[str, Any]]:
    """For ``per_group`` items of the head, the middle and the tail each, the ``k`` nearest by cosine in every table.

    Drawn among those that all ``tables`` have a vector of. A table with no other item is left out.
    """
    able = {name: table for name, table in tables.items() if len(table.rows) > 1}
    if not able:
        return []
    common = next(iter(able.values())).rows
    for table in able.values():
        common = np.intersect1d(common, table.rows)
    draw = np.random.default_rng(seed)
    by_group = [
        draw.permutation(common[groups_I[common] == code])[:per_group] for code in range(len(POPULARITY))
    ]
    chosen = np.concatenate(by_group).astype(np.int64)
    if not len(chosen):
        return []
    lists = {name: _lists(table, chosen, titles, k) for name, table in able.items()}
    return [
        {
            "title": titles[row],
            "group": POPULARITY[groups_I[row]],
            "events": int(events_I[row]),
            "nearest": {name: each[place] for name, each in lists.items()},
        }
        for place, row in enumerate(chosen)
    ]


def _lists(table: Table, rows: Places, titles: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
    directions, places = unit(table.vectors), np.searchsorted(table.rows, rows)
    near = nearest(table.vectors, min(k, len(table.rows) - 1), of=places)
    cosines = np.einsum("nd,nkd->nk", directions[places], directions[near])
    return [
        [
            {"title": titles[table.rows[other]], "cosine": round(float(cosine), 4)}
            for other, cosine in zip(row, values, strict=True)
        ]
        for row, values in zip(near, cosines, strict=True)
    ]
