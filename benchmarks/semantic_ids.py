"""How long do the quantizers take on item vectors, and how good are their codes, beside faiss' own and LETTER's?

kedro run --pipelines=ingest,embed --params dataset=amazon-beauty
python benchmarks/semantic_ids.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from harness import command_line, generated_embeddings, generated_items
from recpipe.semantic_ids.quality import leaf_categories
from recpipe.semantic_ids.quantizer import build_quantizer, quantizer_types, scaling

BITS = 8
QUICK = {"least_steps": 20, "epochs": 2, "widths": (32,), "latent": 8, "batch": 64}  # of the autoencoders
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    """Fits one after the other on the same vectors and prints a row for each as soon as it is known."""
    with TemporaryDirectory() as folder:
        _compare(_arguments(argv, Path(folder)))


def _compare(arguments: argparse.Namespace) -> None:
    table = pq.read_table(arguments.items)
    x = _vectors(arguments, table)
    categories = _categories(table, arguments.categories)
    print(
        f"{len(x):,} items x {x.shape[1]}, {arguments.levels} x {2**arguments.bits} codes, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        "name                  seconds  usage of each level   distinct prefixes        purity  error  of faiss"
    )
    against = None
    for name, codes, error, seconds in chain(_letter(table), _rows(arguments, x)):
        against = error if name == "faiss" else against
        _print(name, codes, error, seconds, categories, against, 2**arguments.bits)


def _arguments(argv: list[str] | None, folder: Path) -> argparse.Namespace:
    """The command line; data of ``--quick`` are made in ``folder``."""
    parser = command_line(__doc__)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument(
        "--vectors", type=Path, help=".npy instead of what the embed pipeline wrote, rows as --items"
    )
    parser.add_argument("--items", type=Path, help="default: data/03_primary/<dataset>/items.parquet")
    parser.add_argument(
        "--categories", default="categories", help="column of lists; its last entry is the category"
    )
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="*", choices=["faiss", *quantizer_types()])
    arguments = parser.parse_args(argv)
    arguments.bits, arguments.settings = BITS, {}
    if arguments.quick:
        arguments.bits, arguments.settings = 4, QUICK
        arguments.items = generated_items(folder / "items.parquet", items=200)
        arguments.embeddings = generated_embeddings(folder / "embeddings.parquet", items=200)
        return arguments
    arguments.items = arguments.items or Path(f"data/03_primary/{arguments.dataset}/items.parquet")
    embeddings = Path(f"data/04_feature/{arguments.dataset}/text_embeddings.parquet")
    if not arguments.items.exists():
        parser.error(
            f"{arguments.items} is absent; run `kedro run --pipelines=ingest --params dataset={arguments.dataset}`"
        )
    if arguments.vectors is None and not embeddings.exists():
        parser.error(
            f"{embeddings} is absent; run `kedro run --pipelines=embed --params dataset={arguments.dataset}` "
            "or give --vectors"
        )
    arguments.embeddings = embeddings
    return arguments


def _vectors(arguments: argparse.Namespace, table: pa.Table) -> NDArray[np.float32]:
    if arguments.vectors is not None:
        x = np.load(arguments.vectors, allow_pickle=False).astype(np.float32)
        if len(x) != len(table):
            raise SystemExit(f"{arguments.vectors} has {len(x):,} rows, {arguments.items} has {len(table):,}")
        return x
    from recpipe.content.embeddings import Embeddings

    found = Embeddings.read(arguments.embeddings)
    rows = found.rows(table["item_id"].to_pylist())
    if (rows < 0).any() or not found.present[rows].all():
        raise SystemExit("some items have no vector: give --items and --vectors of those that have")
    return found.vectors[rows]


def _rows(
    arguments: argparse.Namespace, x: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.int32], float, float]]:
    """Error: mean squared, of vectors standardised as all quantizers here do."""
    mean, scale = (part.numpy() for part in scaling(torch.from_numpy(x), True))
    wanted = arguments.only or ["faiss", *quantizer_types()]
    if "faiss" in wanted:
        yield "faiss", *_timed(lambda: _faiss((x - mean) / scale, arguments.levels, arguments.bits))
    for name in [name for name in quantizer_types() if name in wanted]:

        def fit(name: str = name) -> tuple[NDArray[np.int32], float]:
            settings = arguments.settings if name in ("rqvae", "pqvae") else {}
            quantizer = build_quantizer(
                name, {"levels": arguments.levels, "codes": 2**arguments.bits, **settings}
            )
            quantizer.fit(x, seed=arguments.seed)
            codes = quantizer.encode(x)
            return codes, float((((quantizer.decode(codes) - x) / scale) ** 2).mean())

        yield name, *_timed(fit)


def _faiss(x: NDArray[np.float32], levels: int, bits: int) -> tuple[NDArray[np.int32], float]:
    """faiss' residual quantizer with greedy choice, as the others; its beam of 5 takes longer and gained nothing."""
    import faiss

    quantizer = faiss.ResidualQuantizer(x.shape[1], levels, bits)
    quantizer.max_beam_size = 1
    quantizer.train(x)
    codes = quantizer.compute_codes(x)
    return _unpacked(codes, levels, bits), float(((quantizer.decode(codes) - x) ** 2).mean())


def _unpacked(packed: NDArray[np.uint8], levels: int, bits: int) -> NDArray[np.int32]:
    """(N, L) codes from faiss' bytes, which hold them one after the other, lowest bit first."""
    flat = np.unpackbits(packed, axis=1, bitorder="little")[:, : levels * bits]
    return (flat.reshape(len(packed), levels, bits) @ (1 << np.arange(bits))).astype(np.int32)


def _timed(work: Callable[[], tuple[NDArray[np.int32], float]]) -> tuple[NDArray[np.int32], float, float]:
    started = time.perf_counter()
    codes, error = work()
    return codes, error, time.perf_counter() - started


def _letter(table: pa.Table) -> Iterator[tuple[str, NDArray[np.int32], None, None]]:
    """The ids that LETTER published for these items, and its first codes shuffled: chance."""
    if "reference_semantic_id" not in table.column_names:
        return
    tokens = table["reference_semantic_id"].combine_chunks()
    codes = np.array([[int(token[3:-1]) for token in tokens_] for tokens_ in tokens.to_pylist()], np.int32)
    yield "LETTER", codes, None, None
    yield "LETTER, shuffled", np.random.default_rng(0).permutation(codes), None, None


def _categories(table: pa.Table, column: str) -> list[str | None] | None:
    return leaf_categories(table[column]) if column in table.column_names else None


def _purity(first: NDArray[np.int32], categories: list[str | None] | None) -> float:
    """Share of items in the most frequent category of their first code."""
    if categories is None:
        return float("nan")
    known = np.array([category is not None for category in categories])
    _, category = np.unique([name for name in categories if name is not None], return_inverse=True)
    counts = np.zeros((int(first.max()) + 1, int(category.max()) + 1), np.int64)
    np.add.at(counts, (first[known], category), 1)
    return counts.max(1).sum() / known.sum()


def _print(
    name: str,
    codes: NDArray[np.int32],
    error: float | None,
    seconds: float | None,
    categories: list[str | None] | None,
    against: float | None,
    size: int,
) -> None:
    levels = range(1, codes.shape[1] + 1)
    usage = " ".join(f"{len(np.unique(codes[:, level - 1])) / size:6.1%}" for level in levels)
    prefixes = " ".join(f"{len(np.unique(codes[:, :level], axis=0)):6,}" for level in levels)
    print(
        f"{name:20} {'' if seconds is None else f'{seconds:.1f}':>8}  {usage:20}  {prefixes:22} "
        f"{_purity(codes[:, 0], categories):8.3f} {'' if error is None else f'{error:.4f}':>7} "
        f"{'' if error is None or against is None else f'{error / against:.3f}':>8}",
        flush=True,
    )


if __name__ == "__main__":
    main()
