"""RPG's long ids: a training step with and without its CPU fast path, and exact scores beside graph search.

    python benchmarks/parallel_codes.py

CPU seconds of this process, which other programs disturb less than the clock. Ids and weights are random. Of random
ids similar items are not alike for a user: the error of a graph search stands in the report of a trained model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from harness import command_line
from recpipe.data.batches import Batch
from recpipe.decoding import exact_scores
from recpipe.decoding.graph import graph_search, item_graph
from recpipe.layers.top_k import top_k
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.losses.full_softmax import FullSoftmax

WINDOW, CODES, BEAM, EDGES, STEPS = 20, 256, 10, 100, 3
MAX_GRAPH = 20_000  # items of a graph by similarity; edges of larger ones are random


class Sizes(NamedTuple):
    """Sizes of the tables."""

    items: int  # of the training step
    rows: int  # users of a batch
    nets: tuple[tuple[int, int], ...]  # codes and width
    catalogues: tuple[int, ...]  # items of the search
    codes: int  # of the search


FULL = Sizes(12_101, 256, ((16, 256), (32, 256), (32, 448)), (12_101, 100_000, 1_000_000), 32)
QUICK = Sizes(500, 8, ((4, 16),), (500,), 4)


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--users", type=int, default=16, help="users of a search")
    arguments = parser.parse_args(argv)
    sizes = QUICK if arguments.quick else FULL
    training_table(sizes, arguments)
    search_table(sizes, arguments)


def training_table(sizes: Sizes, arguments: argparse.Namespace) -> None:
    """Print the seconds of a step, forward and backward, by softmax."""
    print(f"{'codes':>6} {'width':>6} {'targets':>8} {'clear, s':>9} {'fast, s':>9} {'items, s':>9}")
    rng = np.random.default_rng(0)
    for levels, width in sizes.nets:
        items = torch.from_numpy(rng.integers(1, sizes.items + 1, (sizes.rows, 9)))
        batch, seconds = Batch(items, torch.full((sizes.rows,), 9), None), []
        for options in ({"accelerate": False}, {}, {"softmax": "items"}):
            model = network(sizes.items, levels, width, **options).train()

            def step(model: Any = model, batch: Batch = batch) -> None:
                model.loss(batch, FullSoftmax()).backward()

            seconds.append(cpu_seconds(step, arguments))
        numbers = " ".join(f"{each:9.2f}" for each in seconds)
        print(f"{levels:6} {width:6} {sizes.rows * 8:8,} {numbers}", flush=True)


def network(items: int, levels: int, width: int, *, accelerate: bool = True, **settings: Any) -> Any:
    """Build an untrained RPG of random ids."""
    codes = np.full((items + 1, levels), -1)
    codes[1:] = random_codes(items, levels)
    ids = {"text": CatalogueIds(codes, (CODES,) * levels, "random", "random")}
    config = {"dim": width, "feed_forward": 2 * width, "attention_dropout": 0.0, **settings}
    return build("rpg", config, n_items=items, max_length=WINDOW, ids=ids, accelerate=accelerate)


def random_codes(items: int, levels: int) -> np.ndarray:
    """Draw independent codes (N, L)."""
    return np.random.default_rng(0).integers(0, CODES, (items, levels))


def search_table(sizes: Sizes, arguments: argparse.Namespace) -> None:
    """Print milliseconds per user of the best 20 by all scores and by graph search."""
    print(f"\n{'items':>10} {'exact, ms':>10} {'graph, ms':>10} {'scored':>8} {'graph built, s':>15}")
    for items in sizes.catalogues:
        codes = torch.from_numpy(random_codes(items, sizes.codes))
        generator = torch.Generator().manual_seed(0)
        shape = (arguments.users, CODES)
        log_probs = [torch.randn(shape, generator=generator).log_softmax(1) for _ in range(sizes.codes)]
        tables = [torch.randn(CODES, 16, generator=generator) for _ in range(sizes.codes)]
        started = time.process_time()
        if items <= MAX_GRAPH:
            neighbours = item_graph(codes, tables, EDGES)
        else:
            neighbours = torch.randint(items, (items, EDGES), generator=generator)
        built = f"{time.process_time() - started:15.1f}" if items <= MAX_GRAPH else f"{'random edges':>15}"

        def exact(codes: torch.Tensor = codes, log_probs: list[torch.Tensor] = log_probs) -> None:
            top_k(exact_scores(log_probs, codes), 20)

        def graph(
            codes: torch.Tensor = codes,
            log_probs: list[torch.Tensor] = log_probs,
            neighbours: torch.Tensor = neighbours,
        ) -> torch.Tensor:
            rows, scores = graph_search(log_probs, codes, neighbours, beam=BEAM, steps=STEPS)
            top_k(scores, min(20, scores.shape[1]))
            return rows

        scored = float((graph() >= 0).sum(1).float().mean())
        times = [1000 * cpu_seconds(search, arguments) / arguments.users for search in (exact, graph)]
        print(f"{items:10,} {times[0]:10.2f} {times[1]:10.2f} {scored:8,.0f} {built}", flush=True)


def cpu_seconds(function: Callable[[], object], arguments: argparse.Namespace) -> float:
    """Return the least CPU seconds of a call, after one to warm up."""
    function()
    seconds = []
    for _ in range(1 if arguments.quick else arguments.repeats):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
