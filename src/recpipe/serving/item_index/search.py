"""Top-k items by inner product through a faiss index, with exact scores and exact search as the fallback.

The index finds candidates; their scores are computed from the model's own vectors, so that only what it misses differs
from exact search. Users for whom it finds too few items are searched exactly: a list never has fewer items than exist.

B queries, D width, I items, K results, E excluded items, F items fetched from the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recpipe.data.sequences import Sequences
from recpipe.data.user_items import UserItems
from recpipe.layers.top_k import tie_order, top_k
from recpipe.models.recommender import Lists, Scorer

if TYPE_CHECKING:
    import faiss

SCORES_AT_ONCE = 1 << 25  # elements of a block of exact scores: 128 MiB
ITEMS_AT_ONCE = 1 << 20  # items fetched from the index together
VALUES_AT_ONCE = 1 << 23  # elements of fetched vectors whose scores are computed together: 32 MiB
INDEX_KINDS = ("ivf", "hnsw")


class Pairs(NamedTuple):
    """Excluded items of users: query ``row`` (E,) must not get ``item`` (E,), both int64."""

    row: np.ndarray
    item: np.ndarray


@dataclass(frozen=True)
class SearchSettings:
    """``effort``: lists that are visited per query (ivf, nprobe) or length of the candidate queue (hnsw, efSearch).

    ``over_fetch``: items fetched for each place of a list, at least ``least`` items. ``most``: items fetched at most;
    what needs more is searched exactly. ``smallest_share``: of the catalogue, below which candidates are searched
    exactly.
    """

    effort: int = 32
    over_fetch: int = 2
    least: int = 20
    most: int = 1024
    smallest_share: float = 0.1


class ItemIndex:
    """Top-k search over ``vectors`` (I + 1, D) of items, row 0 padding, by ``index``; without one, exact.

    Position i of ``index`` is item i + 1. Scores are products in float32, ordered as by ``layers.top_k``. Raises
    ValueError for an index of another catalogue.
    """

    def __init__(
        self,
        vectors: Tensor,
        index: faiss.Index | None = None,
        *,
        kind: str = "exact",
        settings: SearchSettings | None = None,
    ) -> None:
        self.vectors, self.index, self.kind = vectors.detach().float().cpu().contiguous(), index, kind
        self.settings, self.exact_users = settings or SearchSettings(), 0
        if index is not None and (index.ntotal, index.d) != (self.n_items, self.vectors.shape[1]):
            raise ValueError(
                f"the index has {index.ntotal} items of width {index.d}, the model {self.n_items} of width "
                f"{self.vectors.shape[1]}: it is of another model; build it again"
            )

    @property
    def n_items(self) -> int:
        """Number of items I."""
        return len(self.vectors) - 1

    def search(
        self, queries: Tensor, k: int, *, excluded: Pairs | None = None, candidates: Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the top-k items (B, K) int32 of ``queries`` (B, D) and their scores (B, K) float32.

        Item 0 with score -inf where there are fewer. ``candidates`` (I + 1,) bool restricts the catalogue for all.
        Raises ValueError for k < 1 and for queries that are not finite.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        queries = queries.detach().float().cpu().contiguous()
        if not bool(torch.isfinite(queries).all()):
            raise ValueError("query vectors are NaN or infinite; the weights of the model are not usable")
        excluded, k = excluded or Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64)), min(k, self.n_items)
        items = np.zeros((len(queries), k), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        allowed = None if candidates is None else candidates.cpu()
        pending = np.arange(len(queries))
        for fetch in self._rounds(k, excluded, allowed):
            for part in _blocks(pending, ITEMS_AT_ONCE // fetch):
                pairs = _of_rows(excluded, part)
                items[part], scores[part] = self._indexed(queries[part], k, fetch, pairs, allowed)
            pending = pending[items[pending, -1] == 0]
            if not len(pending):
                return items, scores
        self.exact_users += len(pending)
        for part in _blocks(pending, SCORES_AT_ONCE // len(self.vectors)):
            pairs = _of_rows(excluded, part)
            items[part], scores[part] = self.exact(queries[part], k, excluded=pairs, candidates=allowed)
        return items, scores

    def exact(
        self, queries: Tensor, k: int, *, excluded: Pairs, candidates: Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``search`` returns from the scores of all items, or of all ``candidates``."""
        k = min(k, self.n_items)
        if candidates is None or _share(candidates) > self.settings.smallest_share:
            scores = queries @ self.vectors.T
            if candidates is not None:
                scores.masked_fill_(~candidates, -torch.inf)
        else:
            allowed = torch.nonzero(candidates).flatten()
            scores = torch.full((len(queries), len(self.vectors)), -torch.inf)
            scores[:, allowed] = queries @ self.vectors[allowed].T
        scores[:, 0] = -torch.inf
        scores[torch.from_numpy(excluded.row), torch.from_numpy(excluded.item)] = -torch.inf
        items, values = top_k(scores, k)
        return items.numpy().astype(np.int32), values.numpy()

    def _rounds(self, k: int, excluded: Pairs, candidates: Tensor | None) -> Iterator[int]:
        """Yield growing numbers of items to fetch from the index, none where it does not pay."""
        settings, share = self.settings, 1.0 if candidates is None else _share(candidates)
        fetch = max(k * settings.over_fetch, settings.least) / max(share, 1 / self.n_items)
        if self.index is None or share < settings.smallest_share or fetch > settings.most:
            return
        enough = np.inf if share < 1 else k + int(np.bincount(excluded.row).max(initial=0))
        yield min(round(fetch), self.n_items)
        while fetch < enough and fetch < settings.most:
            fetch = min(4 * fetch, settings.most)
            yield min(round(fetch), self.n_items)

    def _indexed(
        self, queries: Tensor, k: int, fetch: int, excluded: Pairs, candidates: Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k of ``fetch`` items from the index by their exact scores; item 0 where fewer are valid."""
        assert self.index is not None
        with faiss_threads(torch.get_num_threads()):
            positions = self.index.search(queries.numpy(), fetch, params=self._parameters(fetch))[1]
        if positions.max(initial=-1) >= self.n_items:
            raise ValueError("the index names items that the model does not have; build it again")
        items = torch.from_numpy(positions + 1)  # (B, F), 0 for none
        scores = self._scores(queries, items)
        is_invalid = torch.from_numpy(_contains(excluded, items.numpy(), self.n_items + 1))
        if candidates is not None:
            is_invalid |= ~candidates[items]
        scores.masked_fill_(is_invalid, -torch.inf)
        ties = tie_order(self.n_items + 1)[items]
        order = torch.from_numpy(np.lexsort((ties.numpy(), -scores.numpy()), axis=1)[:, :k].copy())
        values = scores.gather(1, order)
        best = torch.where(values > -torch.inf, items.gather(1, order), 0)
        return best.numpy().astype(np.int32), values.numpy()

    def _scores(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return exact scores (B, F) of fetched ``items`` (B, F), -inf for item 0."""
        size = max(VALUES_AT_ONCE // (items.shape[1] * queries.shape[1]), 1)
        parts = zip(queries.split(size), items.split(size), strict=True)
        scores = torch.cat([torch.bmm(self.vectors[rows], q[:, :, None])[..., 0] for q, rows in parts])
        return scores.masked_fill_(items == 0, -torch.inf)

    def _parameters(self, fetch: int) -> Any:
        faiss: Any = import_module("faiss")  # whose types lack the settings of a search
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self.settings.effort, fetch))
        return faiss.SearchParametersIVF(nprobe=self.settings.effort)


def indexed_top_k(
    model: Scorer,
    index: ItemIndex,
    histories: Sequences,
    k: int,
    *,
    exclude_seen: bool = True,
    candidates: Tensor | None = None,
    excluded: UserItems | None = None,
) -> Lists:
    """Yield what ``model.top_k_batches`` yields, through the index of its vectors.

    ``candidates`` (I + 1,) bool restricts the catalogue. Users who need the fallback are scored exactly. There are no
    sums over the catalogue, so that no probability follows from the scores.
    """
    k, all_excluded = min(k, model.n_items), UserItems.of_histories(histories) if exclude_seen else None
    if excluded is not None:
        all_excluded = excluded.joined(all_excluded)
    with torch.inference_mode():
        for rows, batch in model.history_batches(histories, all_scores=False):
            if batch is None:
                scores = model.cold_scores(histories, rows)
                model.mask_scores(
                    scores, histories, rows, exclude_seen=exclude_seen, candidates=candidates, excluded=excluded
                )
                items, values = top_k(scores, k)
                yield rows, items.cpu().numpy(), values.cpu().numpy()
            else:
                part = None if all_excluded is None else all_excluded.select(rows)
                pairs = None if part is None else Pairs(part.owner, part.items)
                yield rows, *index.search(model.query_vectors(batch), k, excluded=pairs, candidates=candidates)


def _share(candidates: Tensor) -> float:
    """Return the share of candidates (I + 1,) among the items."""
    return float(np.count_nonzero(candidates[1:].numpy())) / max(len(candidates) - 1, 1)


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    size = max(size, 1)
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _of_rows(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """Return the pairs of ascending query ``rows``, renumbered by their position there."""
    if not len(rows) or not len(pairs.row):
        return Pairs(pairs.row[:0], pairs.item[:0])
    place = np.minimum(np.searchsorted(rows, pairs.row), len(rows) - 1)
    is_here = rows[place] == pairs.row
    return Pairs(place[is_here], pairs.item[is_here])


def _contains(pairs: Pairs, items: np.ndarray, width: int) -> np.ndarray:
    """Mark the ``items`` (B, F) that are excluded for their row."""
    excluded = np.unique(pairs.row * width + pairs.item)
    if not len(excluded):
        return np.zeros(items.shape, bool)
    keys = np.arange(len(items))[:, None] * width + items
    place = np.minimum(np.searchsorted(excluded, keys), len(excluded) - 1)
    return np.asarray(excluded[place] == keys)


@contextmanager
def faiss_threads(number: int) -> Iterator[None]:
    """Run faiss with ``number`` threads."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
