"""Speed of text embeddings by MiniLM on the items of Amazon Beauty, compared with sentence-transformers.

    kedro run --pipelines=ingest --params dataset=amazon-beauty
    OMP_NUM_THREADS=2 python benchmarks/embedding.py

Ours includes loading, tokenising and caching; the peer's model is loaded before its clock starts. Without
sentence-transformers the reference is ours in float32. `cpu`: seconds of all threads. `others`: cores that other
processes used; compare `seconds` only where it is near 0, else `cpu` with one thread, as waiting threads spin.
`same`: share of an item's 10 nearest items that are also nearest in the reference.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from harness import NOT_INSTALLED, OtherLoad, command_line, generated_items, own_cpu
from recpipe.content import text_embeddings
from recpipe.content.pretrained import model_folder
from recpipe.content.text_embeddings import TextEncoderConfig, embed_texts

ITEMS = Path("data/03_primary/amazon-beauty/items.parquet")
SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
HEADER = (("seconds", 9), ("cpu", 8), ("texts/s", 9), ("others", 8), ("max diff", 10), ("cosine", 9), ("same", 7))


def main(argv: list[str] | None = None) -> None:
    """Print a row per column, encoder and round."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=Path, default=ITEMS)
    parser.add_argument("--columns", nargs="+", default=["title", "text"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sample", type=int, help="number of random items, instead of all")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.items = generated_items(Path(folder) / "items.parquet")
            arguments.columns = ["title"]
        if not arguments.items.exists():
            parser.error(f"{arguments.items} is absent; run the command above first")
        items = pq.read_table(arguments.items)
    if arguments.sample:
        items = items.take(np.random.default_rng(0).permutation(len(items))[: arguments.sample])
    print(f"{len(items):,} items, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"{'column':7}{'what':24}" + "".join(f"{name:>{width}}" for name, width in HEADER))
    peer = _peer()
    for column in arguments.columns:
        for _ in range(arguments.rounds):
            compare(column, items["item_id"].to_pylist(), items[column].to_pylist(), peer)
    print(f"load average {os.getloadavg()[0]:.1f}")


def compare(column: str, ids: list[str], texts: list[str], peer: Callable[[list[str]], np.ndarray] | None) -> None:
    """Time the peer, ours in both precisions, and ours with a full cache."""
    reference = None
    if peer is None:
        print(f"{column:7}{'sentence-transformers':24}{NOT_INSTALLED:>17}")
    else:
        reference = row(column, "sentence-transformers", None, lambda: peer(texts))
    with tempfile.TemporaryDirectory() as folder:

        def ours(precision: str) -> np.ndarray:
            config = TextEncoderConfig(SOURCE, precision=precision)
            return embed_texts(ids, texts, config, cache_folder=Path(folder)).vectors

        fp32 = row(column, "ours, fp32", reference, lambda: ours("fp32"))
        reference = fp32 if reference is None else reference
        row(column, "ours, bf16", reference, lambda: ours("bf16"))
        load_encoder, text_embeddings.load_encoder = text_embeddings.load_encoder, _fail
        row(column, "ours, nothing changed", reference, lambda: ours("fp32"))
        text_embeddings.load_encoder = load_encoder


def row(column: str, what: str, reference: np.ndarray | None, run: Callable[[], np.ndarray]) -> np.ndarray:
    """Time ``run`` and print its line."""
    load = OtherLoad()
    vectors = run()
    seconds, cpu = time.perf_counter() - load.started, own_cpu() - load.own
    line = f"{column:7}{what:24}{seconds:9.2f}{cpu:8.1f}{len(vectors) / seconds:9,.0f}{load.cores():8.1f}"
    if reference is not None:
        cosine = (vectors * reference).sum(axis=1).min()
        line += f"{np.abs(vectors - reference).max():10.1e}{cosine:9.5f}{same(vectors, reference):7.3f}"
    print(line, flush=True)
    return vectors


def same(ours: np.ndarray, theirs: np.ndarray, *, nearest: int = 10, sample: int = 2000) -> float:
    """Return the share of nearest items by cosine that both agree on, without the item itself."""
    rows = np.random.default_rng(0).permutation(len(ours))[:sample]
    neighbours = []
    for vectors in (ours, theirs):
        scores = torch.from_numpy(vectors[rows] @ vectors.T)
        scores[torch.arange(len(rows)), torch.from_numpy(rows)] = -2
        neighbours.append(scores.topk(nearest).indices)
    shared = (neighbours[0][:, :, None] == neighbours[1][:, None, :]).any(-1)
    return float(shared.float().mean())


def _peer() -> Callable[[list[str]], np.ndarray] | None:
    """Load the encoder of sentence-transformers; None where that package is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    model = SentenceTransformer(str(model_folder(SOURCE)), device="cpu")
    model.encode(["warm", "up"], show_progress_bar=False)
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def _fail(*_: object, **__: object) -> Any:
    raise AssertionError("an encoder was loaded although nothing changed")


if __name__ == "__main__":
    main()
