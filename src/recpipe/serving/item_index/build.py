"""Build of an item index: the kind and the effort that are fastest at a measured recall.

Q queries, D width, I items, K results.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recpipe.config import check_at_least, check_choices
from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import Scorer
from recpipe.progress import progress
from recpipe.serving.item_index.search import INDEX_KINDS, ItemIndex, Pairs, faiss_threads
from recpipe.training.bundle import Bundle

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of scores, relative to the best: those of equal items differ by rounding
ADD_AT_ONCE = 50_000  # items between two reports of progress
LEAST_TO_TRAIN = 1024  # vectors that lists and ranges of values are learned from, at least, of ivf
LONGEST_QUEUE = 4096  # of candidates, hnsw


@dataclass(frozen=True)
class IndexConfig:
    """Settings of the index.

    ``exact_below``: catalogues with fewer items are searched exactly. ``kind``: ivf (inverted lists), hnsw (graph),
    exact, or auto: ivf, and hnsw where that is not ``auto_speedup`` times as fast as exact search. ``recall``: least
    mean recall of the first ``k`` items, measured with ``queries`` histories whose items are excluded; two standard
    errors are kept as a margin. ``speedup``: least gain over exact search, without which it stays exact. ``links``,
    ``build_effort``: neighbours per item and length of the candidate queue while building, of hnsw. ``list_size``:
    items per inverted list, of ivf; ``train_per_list``: items per list that the lists are learned from.
    ``seed`` of the sample of queries and of the lists.
    """

    exact_below: int = 200_000
    kind: str = "auto"
    recall: float = 0.99
    k: int = 10
    queries: int = 1000
    speedup: float = 2.0
    auto_speedup: float = 10.0
    links: int = 32
    build_effort: int = 80
    list_size: int = 512
    train_per_list: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, kind=("auto", "exact", *INDEX_KINDS))
        check_at_least(0, self, "exact_below", "speedup", "auto_speedup", "seed")
        check_at_least(1, self, "k", "queries", "links", "build_effort", "list_size", "train_per_list")
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall is {self.recall}; allowed: more than 0, at most 1")


@dataclass(frozen=True)
class Trial:
    """Measured search: mean recall with its standard error, and seconds per query, of an effort."""

    effort: int
    recall: float
    error: float
    seconds: float


def build_index(
    vectors: Tensor, queries: Tensor, excluded: Pairs, config: IndexConfig
) -> tuple[ItemIndex, dict[str, Any]]:
    """Build the index of ``vectors`` (I + 1, D) that searches ``queries`` (Q, D) fastest; also describe it.

    Returns exact search where no index reaches ``config.recall`` at ``config.speedup``.
    """
    exact = ItemIndex(vectors)
    started = time.perf_counter()
    truth = exact.search(queries, config.k, excluded=excluded)[1]
    exact_seconds = (time.perf_counter() - started) / len(queries)
    trials_by_kind: dict[str, Any] = {}
    best, description = exact, {"kind": "exact", "exact_seconds": exact_seconds, "trials": trials_by_kind}
    kinds = {"auto": INDEX_KINDS, "exact": ()}.get(config.kind, (config.kind,))
    fastest = exact_seconds / max(config.speedup, 1e-9)
    for kind in kinds:
        if config.kind == "auto" and exact_seconds >= config.auto_speedup * fastest and best is not exact:
            break
        started = time.perf_counter()
        index = ItemIndex(vectors, _faiss_index(exact.vectors, kind, config), kind=kind)
        seconds = time.perf_counter() - started
        trials = measure_efforts(index, queries, excluded, truth, config)
        trials_by_kind[kind] = {"build_seconds": seconds, "efforts": [asdict(trial) for trial in trials]}
        enough = [trial for trial in trials if trial.recall - 2 * trial.error >= config.recall]
        if enough and enough[-1].seconds < fastest:
            fastest, trial = enough[-1].seconds, enough[-1]
            index.settings = replace(index.settings, effort=trial.effort)
            best = index
            description |= {"kind": kind, "settings": asdict(index.settings), "build_seconds": seconds, **asdict(trial)}
        log.info("%s: built in %.1f s; %s", kind, seconds, _sentence(enough[-1] if enough else None, exact_seconds))
    if best is exact and kinds:
        log.info("no index is %g times as fast at recall %g: exact search", config.speedup, config.recall)
    return best, description


def measure_efforts(
    index: ItemIndex, queries: Tensor, excluded: Pairs, truth: np.ndarray, config: IndexConfig
) -> list[Trial]:
    """Measure growing efforts until the recall of ``truth`` (Q, K), the scores of exact search, is reached."""
    trials: list[Trial] = []
    least, most = (1, _lists(index.n_items, config)) if index.kind == "ivf" else (2 * config.k, LONGEST_QUEUE)
    efforts = np.unique(np.geomspace(least, most, 4 * int(np.log2(max(most / least, 2)))).round().astype(int))
    for effort in efforts:
        index.settings = replace(index.settings, effort=int(effort))
        started = time.perf_counter()
        scores = index.search(queries, config.k, excluded=excluded)[1]
        seconds = (time.perf_counter() - started) / len(queries)
        recall = recall_of(scores, truth)
        error = float(recall.std() / np.sqrt(len(recall)))
        trials.append(Trial(int(effort), float(recall.mean()), error, seconds))
        if trials[-1].recall - 2 * error >= config.recall:
            break
    return trials


def recall_of(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the share (Q,) of items that score at least as much as the last one of exact search (Q, K)."""
    counts = np.isfinite(truth).sum(1)
    last = np.where(np.isfinite(truth), truth, np.inf).min(1)
    slack = TOLERANCE * np.abs(truth[:, 0])
    is_hit = (scores >= (last - np.where(np.isfinite(slack), slack, 0))[:, None]) & np.isfinite(scores)
    recall: np.ndarray = np.minimum(is_hit.sum(1), counts) / np.maximum(counts, 1)
    return recall


def _lists(n_items: int, config: IndexConfig) -> int:
    return max(n_items // config.list_size, 1)


def _faiss_index(vectors: Tensor, kind: str, config: IndexConfig) -> Any:
    """Build a faiss index of ``vectors`` (I + 1, D) without row 0."""
    faiss: Any = import_module("faiss")  # whose types lack attributes of indexes

    values = vectors[1:].numpy()
    width = values.shape[1]
    with faiss_threads(torch.get_num_threads()), progress(len(values), f"build {kind} index", unit="items") as bar:
        if kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, config.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = config.build_effort
        else:
            lists = _lists(len(values), config)
            index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
            index.cp.seed, index.cp.max_points_per_centroid = config.seed + 1, config.train_per_list
            count = max(lists * config.train_per_list, LEAST_TO_TRAIN)
            sample = np.random.default_rng(config.seed).permutation(len(values))[:count]
            index.train(values[np.sort(sample)])
        for start in range(0, len(values), ADD_AT_ONCE):
            index.add(values[start : start + ADD_AT_ONCE])
            bar.add(min(ADD_AT_ONCE, len(values) - start))
    return index


def sample_queries(bundle: Bundle, histories: Sequences | None, config: IndexConfig) -> tuple[Tensor, Pairs]:
    """Return query vectors (Q, D) of a sample of ``histories``, and the items of these histories.

    Without histories they are drawn: of random lengths, with items by their number of training events.
    """
    model, rng = bundle.model, np.random.default_rng(config.seed)
    assert isinstance(model, Scorer)
    if histories is None:
        lengths = rng.integers(1, model.max_length + 1, config.queries)
        popularity = bundle.train_events + 1.0
        drawn = rng.choice(model.n_items, int(lengths.sum()), p=popularity / popularity.sum()) + 1
        users = Ids(np.arange(config.queries).astype(str))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        times = np.zeros(len(drawn), np.int64) if model.requires_time != "none" else None
        histories = Sequences(users, drawn.astype(np.int32), times, offsets)
    rows = np.flatnonzero(~model.needs_fallback(histories) & (histories.lengths > 0))
    histories = histories.select_users(np.sort(rng.permutation(rows)[: config.queries]))
    if model.requires_time == "query" and histories.timestamps is not None:
        histories = replace(histories, query_times=histories.timestamps[histories.offsets[1:] - 1])
    queries = torch.empty(len(histories), model.output_vectors().shape[1])
    with torch.inference_mode():
        for batch_rows, batch in model.history_batches(histories, all_scores=False):
            if batch is not None:
                queries[torch.from_numpy(batch_rows)] = model.query_vectors(batch).float().cpu()
    return queries, Pairs(*histories.events(np.arange(len(histories))))


def _sentence(trial: Trial | None, exact_seconds: float) -> str:
    if trial is None:
        return "it does not reach the recall"
    gain = exact_seconds / max(trial.seconds, 1e-9)
    return f"recall {trial.recall:.4f} at effort {trial.effort}, {gain:.1f} times as fast as exact search"
