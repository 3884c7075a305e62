"""How fast is MiniLM over the items of Amazon Beauty? Against sentence-transformers' own `encode`, and run again.

    kedro run --pipelines=ingest --params dataset=amazon-beauty
    OMP_NUM_THREADS=2 python benchmarks/embedding.py

Without sentence-transformers ours in float32 is what the others are compared with.
Ours includes loading, tokenising and keeping the vectors; the peer's model is loaded before its clock starts. `cpu` is
the time of all threads, `others` the cores that other processes used meanwhile: only rows where it is near 0 compare
by `seconds`. On a busy machine compare `cpu` with one thread, since two spin while one waits for its turn. `same` is
the share of an item's 10 nearest items that are so in the peer's vectors too.
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
HEADER = (
    ("seconds", 9),
    ("cpu", 8),
    ("texts/s", 9),
    ("others", 8),
    ("max diff", 10),
    ("cosine", 9),
    ("same", 7),
)


def main(argv: list[str] | None = None) -> None:
    """One row per column, encoder and round."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=Path, default=ITEMS)
    parser.add_argument("--columns", nargs="+", default=["title", "text"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sample", type=int, help="so many items, drawn at random, instead of all")
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


def compare(
    column: str, ids: list[str], texts: list[str], peer: Callable[[list[str]], np.ndarray] | None
) -> None:
    """The peer, ours in both precisions, ours again with nothing changed; without the peer ours is the reference."""
    reference = None
    if peer is None:
        print(f"{column:7}{'sentence-transformers':24}{NOT_INSTALLED:>17}")
    else:
        reference = row(column, "sentence-transformers", None, lambda: peer(texts))
    with tempfile.TemporaryDirectory() as folder:

        def ours(precision: str) -> np.ndarray:
            config = TextEncoderConfig(SOURCE, precision=precision)
            return embed_texts(ids, texts, config, cache_folder=Path(folder)).vectors

        own = row(column, "ours, fp32", reference, lambda: ours("fp32"))
        reference = own if reference is None else reference
        row(column, "ours, bf16", reference, lambda: ours("bf16"))
        load, text_embeddings.load_encoder = text_embeddings.load_encoder, _refuse
        row(column, "ours, nothing changed", reference, lambda: ours("fp32"))
        text_embeddings.load_encoder = load


def row(column: str, what: str, reference: np.ndarray | None, run: Callable[[], np.ndarray]) -> np.ndarray:
    """Times ``run`` and prints its line."""
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
    """Share of the nearest items by cosine that both agree on, the item itself left out."""
    rows = np.random.default_rng(0).permutation(len(ours))[:sample]
    found = []
    for vectors in (ours, theirs):
        scores = torch.from_numpy(vectors[rows] @ vectors.T)
        scores[torch.arange(len(rows)), torch.from_numpy(rows)] = -2
        found.append(scores.topk(nearest).indices)
    shared = (found[0][:, :, None] == found[1][:, None, :]).any(-1)
    return float(shared.float().mean())


def _peer() -> Callable[[list[str]], np.ndarray] | None:
    """sentence-transformers' encoder; None where that package is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    model = SentenceTransformer(str(model_folder(SOURCE)), device="cpu")
    model.encode(["warm", "up"], show_progress_bar=False)
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("an encoder was loaded though nothing changed")


if __name__ == "__main__":
    main()
