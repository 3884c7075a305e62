"""Time of building, writing, reading and searching the prefix tree, beside a trie of nested dictionaries.

Both are built from the same random ids and must agree. The second table is one step of constrained decoding for 256
users with 20 beams each: the top 20 of all children of the beams.

python benchmarks/prefix_tree.py
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from harness import command_line, random_ids
from recpipe.semantic_ids.prefix_tree import PrefixTree, TreeTensors

SIZES = (256, 256, 256, 256)
USERS, BEAMS = 256, 20


def main(argv: list[str] | None = None) -> None:
    """Print the two tables."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 100_000, 1_000_000])
    parser.add_argument("--dictionaries-up-to", type=int, default=100_000, help="items; a million take 2 GiB")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.items, arguments.rounds = [300], 1
    print(f"{len(SIZES)} levels of {SIZES[0]} codes, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    print(f"{'items':>10} {'':14} {'build s':>9} {'write s':>9} {'read s':>9} {'find all s':>11} {'memory MiB':>11}")
    for items in arguments.items:
        codes = random_ids(items, SIZES)
        print(row(items, "arrays", *arrays(codes, arguments.rounds)))
        if items <= arguments.dictionaries_up_to:
            print(row(items, "dictionaries", *dictionaries(codes)))
    steps(random_ids(arguments.items[0], SIZES), arguments.rounds)


def arrays(codes: np.ndarray, rounds: int) -> tuple[float, ...]:
    """Seconds of build, write, read, find, and MiB of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.safetensors"
        build, tree = timed(lambda: PrefixTree.build(codes, SIZES), rounds)
        write, _ = timed(lambda: tree.write(path), rounds)
        read, loaded = timed(lambda: PrefixTree.read(path), rounds)
        find, rows = timed(lambda: loaded.find(codes), rounds)
        size = path.stat().st_size
    assert loaded.hash == tree.hash
    assert (rows == np.arange(len(codes))).all()
    return build, write, read, find, size / 2**20


def dictionaries(codes: np.ndarray) -> tuple[float, ...]:
    """Seconds of build and find, and MiB in memory, of nested dictionaries."""
    gc.collect()
    build, root = timed(lambda: trie(codes), 1)
    items = codes.tolist()
    find, rows = timed(lambda: [walk(root, item) for item in items], 1)
    assert rows == list(range(len(codes)))
    del root
    tracemalloc.start()
    root = trie(codes)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return build, float("nan"), float("nan"), find, memory / 2**20


def steps(codes: np.ndarray, rounds: int) -> None:
    """Print milliseconds of one step per level with arrays, dictionaries and a mask over all codes."""
    tree, root = PrefixTree.build(codes, SIZES), trie(codes)
    tensors, generator = tree.tensors(), torch.Generator().manual_seed(0)
    print(f"\none step of {USERS} x {BEAMS} beams over {len(codes):,} items, ms: masking and the best {BEAMS}")
    print(f"{'level':>10} {'children':>8} {'arrays':>9} {'dictionaries':>13} {'table':>11}")
    for level in range(1, tree.depth):
        nodes = torch.randint(0, tree.prefixes(level), (USERS, BEAMS), generator=generator)
        scores = torch.randn(USERS, BEAMS, generator=generator)
        logits = torch.randn(USERS, BEAMS, SIZES[level], generator=generator).log_softmax(-1)
        prefixes = tensors.prefixes(level)[nodes].tolist()
        below = [[descend(root, prefix) for prefix in user] for user in prefixes]
        closed = torch.ones(tree.prefixes(level), SIZES[level], dtype=torch.bool)
        closed[tensors.parents[level], tensors.children[level]] = False
        results = [
            timed(lambda: by_arrays(tensors, level, nodes, scores, logits), max(5, rounds)),  # noqa: B023
            timed(lambda: by_dictionaries(below, scores, logits), rounds),  # noqa: B023
            timed(lambda: by_table(closed, nodes, scores, logits), max(5, rounds)),  # noqa: B023
        ]
        for _, best in results[1:]:
            torch.testing.assert_close(best, results[0][1])
        cells = [f"{1000 * seconds:.2f}" for seconds, _ in results]
        print(f"{level + 1:>10} {tensors.max_children[level]:>8} {cells[0]:>9} {cells[1]:>13} {cells[2]:>11}")


def by_arrays(
    tree: TreeTensors, level: int, nodes: torch.Tensor, scores: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """(USERS, BEAMS) best scores by gathering the children as in the docstring of ``PrefixTree``."""
    start, end = tree.offsets[level][nodes], tree.offsets[level][nodes + 1]
    edges = start[..., None] + torch.arange(tree.max_children[level])
    live = edges < end[..., None]
    codes = tree.children[level][edges.clamp_(max=len(tree.children[level]) - 1)]
    reached = (scores[..., None] + logits.gather(-1, codes)).masked_fill_(~live, -torch.inf)
    return reached.flatten(1).topk(BEAMS).values


def by_dictionaries(below: list[list[dict[int, Any]]], scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(USERS, BEAMS) best scores with a mask filled beam by beam, as by ``prefix_allowed_tokens_fn``."""
    mask = torch.full_like(logits, -torch.inf)
    for user, beams in enumerate(below):
        for beam, node in enumerate(beams):
            mask[user, beam, [*node]] = 0
    return (scores[..., None] + logits + mask).flatten(1).topk(BEAMS).values


def by_table(closed: torch.Tensor, nodes: torch.Tensor, scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(USERS, BEAMS) best scores with a mask (P, V) over all codes of every node."""
    return (scores[..., None] + logits).masked_fill_(closed[nodes], -torch.inf).flatten(1).topk(BEAMS).values


def trie(codes: np.ndarray) -> dict[int, Any]:
    """Build nested dictionaries by code, with the row at the last level."""
    root: dict[int, Any] = {}
    for item, (*prefix, last) in enumerate(codes.tolist()):
        descend(root, prefix, grow=True)[last] = item
    return root


def descend(root: dict[int, Any], prefix: list[int], *, grow: bool = False) -> dict[int, Any]:
    """Return the dictionary of a prefix."""
    for code in prefix:
        root = root.setdefault(code, {}) if grow else root[code]
    return root


def walk(root: dict[int, Any], item: list[int]) -> int:
    """Return the row of an id, -1 for unknown ids."""
    node: Any = root
    for code in item:
        node = node.get(code)
        if node is None:
            return -1
    return int(node)


def timed(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return median seconds and the last result."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return median(seconds), result


def row(items: int, what: str, *values: float) -> str:
    """Format a line of the first table."""
    cells = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
    widths = (9, 9, 9, 11, 11)
    return f"{items:>10,} {what:14} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    main()
