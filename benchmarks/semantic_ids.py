"""Fitting time and quality of all quantizers on item vectors, beside faiss' residual quantizer and LETTER's codes.

kedro run --pipelines=ingest,embed --params dataset=amazon-beauty
python benchmarks/semantic_ids.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from harness import command_line, generated_embeddings, generated_items
from recpipe.semantic_ids.quality import leaf_categories
from recpipe.semantic_ids.quantizer import TYPES, build_quantizer, scaling

BITS = 8
QUICK = {"least_steps": 20, "epochs": 2, "widths": (32,), "latent": 8, "batch": 64}  # of the autoencoders
Result = tuple[str, NDArray[np.int32], float | None, float | None]  # name, codes, error, seconds


def main(argv: list[str] | None = None) -> None:
    """Fit all quantizers to the same vectors and print one row each."""
    with TemporaryDirectory() as folder:
        arguments = _arguments(argv, Path(folder))
        table = pq.read_table(arguments.items)
        x = _vectors(arguments, table)
    has_categories = arguments.categories in table.column_names
    categories = leaf_categories(table[arguments.categories]) if has_categories else None
    print(
        f"{len(x):,} items x {x.shape[1]}, {arguments.levels} x {2**arguments.bits} codes, "
        f"{torch.get_num_threads()} threads"
    )
    print("name                  seconds  usage of each level   distinct prefixes        purity  error  of faiss")
    faiss_error = None
    for name, codes, error, seconds in (*_letter(table), *_fits(arguments, x)):
        faiss_error = error if name == "faiss" else faiss_error
        _print(name, codes, error, seconds, categories, faiss_error, 2**arguments.bits)


def _arguments(argv: list[str] | None, folder: Path) -> argparse.Namespace:
    """Parse the command line; ``--quick`` generates data in ``folder``."""
    parser = command_line(__doc__)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--vectors", type=Path, help=".npy instead of the embed pipeline's, rows as --items")
    parser.add_argument("--items", type=Path, help="default: data/03_primary/<dataset>/items.parquet")
    parser.add_argument("--categories", default="categories", help="column of lists, ending in the category")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="*", choices=["faiss", *TYPES])
    arguments = parser.parse_args(argv)
    arguments.bits, arguments.settings = BITS, {}
    if arguments.quick:
        arguments.bits, arguments.settings = 4, QUICK
        arguments.items = generated_items(folder / "items.parquet", items=200)
        arguments.embeddings = generated_embeddings(folder / "embeddings.parquet", items=200)
        return arguments
    name = arguments.dataset
    arguments.items = arguments.items or Path(f"data/03_primary/{name}/items.parquet")
    arguments.embeddings = Path(f"data/04_feature/{name}/text_embeddings.parquet")
    if not arguments.items.exists():
        parser.error(f"{arguments.items} is missing; run `kedro run --pipelines=ingest --params dataset={name}`")
    if arguments.vectors is None and not arguments.embeddings.exists():
        parser.error(
            f"{arguments.embeddings} is missing; run `kedro run --pipelines=embed --params dataset={name}` or give "
            "--vectors"
        )
    return arguments


def _vectors(arguments: argparse.Namespace, table: pa.Table) -> NDArray[np.float32]:
    if arguments.vectors is not None:
        x = np.load(arguments.vectors, allow_pickle=False).astype(np.float32)
        if len(x) != len(table):
            raise SystemExit(f"{arguments.vectors} has {len(x):,} rows, {arguments.items} has {len(table):,}")
        return x
    from recpipe.content.embeddings import Embeddings

    embeddings = Embeddings.read(arguments.embeddings)
    rows = embeddings.rows(table["item_id"].to_pylist())
    if (rows < 0).any() or not embeddings.present[rows].all():
        raise SystemExit("some items have no vector: give --items and --vectors of those that have")
    return embeddings.vectors[rows]


def _fits(arguments: argparse.Namespace, x: NDArray[np.float32]) -> Iterator[Result]:
    """Results of faiss and our quantizers, with the mean squared error of standardised vectors."""
    mean, scale = (part.numpy() for part in scaling(x, True))
    for name in ("faiss", *TYPES):
        if arguments.only and name not in arguments.only:
            continue
        started = time.perf_counter()
        if name == "faiss":
            codes, error = _faiss((x - mean) / scale, arguments.levels, arguments.bits)
        else:
            settings = arguments.settings if name in ("rqvae", "pqvae") else {}
            quantizer = build_quantizer(name, {"levels": arguments.levels, "codes": 2**arguments.bits, **settings})
            quantizer.fit(x, seed=arguments.seed)
            codes = quantizer.encode(x)
            error = float((((quantizer.decode(codes) - x) / scale) ** 2).mean())
        yield name, codes, error, time.perf_counter() - started


def _faiss(x: NDArray[np.float32], levels: int, bits: int) -> tuple[NDArray[np.int32], float]:
    """Codes and error of faiss' residual quantizer with greedy choice; a beam of 5 takes longer and gains nothing."""
    import faiss

    quantizer = faiss.ResidualQuantizer(x.shape[1], levels, bits)
    quantizer.max_beam_size = 1
    quantizer.train(x)
    packed = quantizer.compute_codes(x)
    unpacked = np.unpackbits(packed, axis=1, bitorder="little")[:, : levels * bits]  # lowest bit first
    codes = (unpacked.reshape(len(packed), levels, bits) @ (1 << np.arange(bits))).astype(np.int32)
    return codes, float(((quantizer.decode(packed) - x) ** 2).mean())


def _letter(table: pa.Table) -> Iterator[Result]:
    """LETTER's published ids of these items, and the same shuffled: chance."""
    if "reference_semantic_id" not in table.column_names:
        return
    ids = table["reference_semantic_id"].combine_chunks().to_pylist()
    codes = np.array([[int(token[3:-1]) for token in tokens] for tokens in ids], np.int32)
    yield "LETTER", codes, None, None
    yield "LETTER, shuffled", np.random.default_rng(0).permutation(codes), None, None


def _purity(first: NDArray[np.int32], categories: list[str | None] | None) -> float:
    """Share of items in the most frequent category of their first code."""
    if categories is None:
        return float("nan")
    has_category = np.array([category is not None for category in categories])
    _, category = np.unique([name for name in categories if name is not None], return_inverse=True)
    counts = np.zeros((int(first.max()) + 1, int(category.max()) + 1), np.int64)
    np.add.at(counts, (first[has_category], category), 1)
    return counts.max(1).sum() / has_category.sum()


def _print(
    name: str,
    codes: NDArray[np.int32],
    error: float | None,
    seconds: float | None,
    categories: list[str | None] | None,
    faiss_error: float | None,
    size: int,
) -> None:
    levels = range(1, codes.shape[1] + 1)
    usage = " ".join(f"{len(np.unique(codes[:, level - 1])) / size:6.1%}" for level in levels)
    prefixes = " ".join(f"{len(np.unique(codes[:, :level], axis=0)):6,}" for level in levels)
    print(
        f"{name:20} {'' if seconds is None else f'{seconds:.1f}':>8}  {usage:20}  {prefixes:22} "
        f"{_purity(codes[:, 0], categories):8.3f} {'' if error is None else f'{error:.4f}':>7} "
        f"{'' if error is None or faiss_error is None else f'{error / faiss_error:.3f}':>8}",
        flush=True,
    )


if __name__ == "__main__":
    main()
