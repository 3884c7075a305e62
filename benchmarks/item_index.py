"""Search of the best items in a large catalogue: exact products against a faiss index at a measured recall.

    python benchmarks/item_index.py [--items 1000000] [--dim 64] [--k 10] [--kinds ivf hnsw]
    python benchmarks/item_index.py --bundle data/06_models/online_retail/sasrec   # items like a trained model's

Distributions: clustered (many small clusters, sizes of a power law, norms that differ), trained (with ``--bundle``:
points between trained item vectors and their neighbours, with noise; queries are hidden states of real histories), and
uniform, where no point has near neighbours: the bad case of every index. Exact search is a product in torch and top-k,
as without an index; both exclude 20 items per query. A batch has 256 queries; single: one query per call. On two
threads, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from harness import OtherLoad, command_line, peak_gib
from recpipe.serving.item_index.build import IndexConfig, build_index, recall_of, sample_queries
from recpipe.serving.item_index.files import training_histories
from recpipe.serving.item_index.search import ItemIndex, Pairs

BATCH, SINGLE, ROUNDS, EXCLUDED = 256, 10, 3, 20


def main(argv: list[str] | None = None) -> None:
    """Print a row for every distribution and kind of index."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--kinds", nargs="+", default=["ivf", "hnsw"])
    parser.add_argument("--names", nargs="*", default=["clustered", "uniform"])
    parser.add_argument("--bundle", type=Path, help="adds the distribution of its item vectors")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.items, arguments.dim = 3000, 16
    torch.set_num_threads(1 if arguments.quick else 2)
    print("vectors    kind  build s  memory    recall  effort  batch: ms, ratio  single: ms, ratio")
    for name in [*arguments.names, *(["trained"] if arguments.bundle else [])]:
        vectors, queries = distribution(name, arguments)
        for kind in arguments.kinds:
            compare(name, kind, vectors, queries, arguments)


def compare(name: str, kind: str, vectors: Tensor, queries: Tensor, arguments: argparse.Namespace) -> None:
    """Build one index and measure it beside exact search, on queries that it was not tuned with."""
    rng = np.random.default_rng(1)
    tuned, asked = queries[:500], queries[500:]
    load, started, before = OtherLoad(), time.perf_counter(), peak_gib()
    config = IndexConfig(kind=kind, recall=arguments.recall, k=arguments.k, speedup=0.0, queries=len(tuned))
    index, description = build_index(vectors, tuned, excluded(len(tuned), len(vectors), rng), config)
    seconds, exact = time.perf_counter() - started, ItemIndex(vectors)
    if index.kind == "exact":
        trial = description["trials"][kind]["efforts"][-1]
        print(f"{name:<10} {kind:<5} {seconds:7.0f}  best recall {trial['recall']:.4f}: search stays exact", flush=True)
        return
    seen = excluded(len(asked), len(vectors), rng)
    results = [search.search(asked, arguments.k, excluded=seen)[1] for search in (index, exact)]
    batch = ratio(index, exact, asked[:BATCH], arguments.k, several)
    single = ratio(index, exact, asked[:SINGLE], arguments.k, one_by_one)
    print(
        f"{name:<10} {kind:<5} {seconds:7.0f} {peak_gib() - before:5.2f} GiB  {recall_of(*results).mean():.4f} "
        f"{description['effort']:6d}  {batch[0]:7.3f} {batch[1]:7.1f} x  {single[0]:7.3f} {single[1]:7.1f} x  "
        f"others {load.cores():.2f}",
        flush=True,
    )


def excluded(queries: int, width: int, rng: np.random.Generator) -> Pairs:
    """Items that each query must not get."""
    return Pairs(np.repeat(np.arange(queries), EXCLUDED), rng.integers(1, width, queries * EXCLUDED))


def several(index: ItemIndex, queries: Tensor, k: int) -> None:
    """One search of all queries; exact search takes blocks that fit in memory."""
    index.search(queries, k, excluded=excluded(len(queries), len(index.vectors), np.random.default_rng(2)))


def one_by_one(index: ItemIndex, queries: Tensor, k: int) -> None:
    """One search per query."""
    for query in queries:
        several(index, query[None], k)


def ratio(
    index: ItemIndex, exact: ItemIndex, queries: Tensor, k: int, run: Callable[[ItemIndex, Tensor, int], None]
) -> tuple[float, float]:
    """Return milliseconds per query of the index, and how many times as long exact search takes, measured in turns."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(ROUNDS):
        for place, search in enumerate((index, exact)):
            started = time.perf_counter()
            run(search, queries, k)
            seconds[place].append(time.perf_counter() - started)
    mine, other = median(seconds[0]), median(seconds[1])
    return 1000 * mine / len(queries), other / mine


def distribution(name: str, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return item vectors (I + 1, D) and 1,000 queries (Q, D)."""
    rng, items, dim = np.random.default_rng(0), arguments.items + 1, arguments.dim
    if name == "uniform":
        parts = [rng.uniform(-1, 1, (n, dim)) for n in (items, 1000)]
    elif name == "clustered":
        clusters = max(items // 200, 2)
        sizes = np.arange(1, clusters + 1) ** -0.7
        scale = np.arange(1, dim + 1) ** -0.25
        centres = rng.standard_normal((clusters, dim)) * scale
        noise = rng.standard_normal((items, dim)) * 0.6 * scale
        vectors = centres[rng.choice(clusters, items, p=sizes / sizes.sum())] + noise
        vectors *= np.exp(0.2 * rng.standard_normal((items, 1))) / np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors[rng.integers(1, items, 1000)]
        parts = [vectors, near + 0.7 * rng.standard_normal((1000, dim)) * scale / np.linalg.norm(scale)]
    else:
        parts = like_trained(arguments.bundle, items, rng)
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)  # type: ignore[return-value]


def like_trained(bundle: Path, items: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Points between trained item vectors and one of their five neighbours, with noise; queries of real histories."""
    from recpipe.training.bundle import load_bundle
    from recpipe.training.bundle_folders import newest_bundle

    folder = newest_bundle(bundle)
    model = load_bundle(folder)
    histories = training_histories(model, folder)
    queries, _ = sample_queries(model, histories, IndexConfig(queries=1000))
    table = model.model.output_vectors()[1:].detach().numpy()
    distances = _distances(table)
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1)[:, :5]
    first = rng.integers(0, len(table), items)
    second = neighbours[first, rng.integers(0, 5, items)]
    step = table[second] - table[first]
    noise = rng.standard_normal(step.shape).astype(np.float32) / step.shape[1] ** 0.5
    vectors = table[first] + rng.random((items, 1)) * step + 0.5 * np.linalg.norm(step, axis=1, keepdims=True) * noise
    return [vectors, rng.permutation(queries.numpy())]  # users come in the order of their ids


def _distances(table: np.ndarray) -> np.ndarray:
    squares = (table**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] - 2 * table @ table.T + squares, 0))


if __name__ == "__main__":
    main()
