"""Quality of semantic ids: measurements beside their value by chance.

Shape letters: N items, S sampled items, D width of a vector, L levels after resolution, Lq levels of the quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.semantic_ids.collisions import Codes, Rows, Vectors, row_groups
from recpipe.semantic_ids.vector_rows import VectorRows

if TYPE_CHECKING:
    from torch import Tensor

SIMILARITIES = 1 << 24  # numbers of one similarity matrix
SHUFFLES = 5


def measure_quality(
    codes_NL: Codes,
    quantized_NLq: Codes,
    sizes: Sequence[int],
    *,
    vectors_ND: Vectors | VectorRows | None,
    decode: Callable[[Codes], Vectors] | None = None,
    categories: list[str | None] | None = None,
    neighbours: int = 10,
    sample: int = 2000,
    seed: int,
) -> dict[str, Any]:
    """Measure ids (``codes_NL`` after, ``quantized_NLq`` before resolution) for ``apply_gate``, as JSON.

    ``decode`` turns codes of the quantizer into vectors. All numbers are of all items, except ``neighbours``, which is
    of a ``sample`` of the items, compared with all. It is None for fewer than two items and without vectors, ``purity``
    for fewer than two categories, ``reconstruction`` without ``decode``, as of ids from a file. Raises ValueError for
    empty ids and inputs of different lengths.
    """
    if not (n := len(codes_NL)):
        raise ValueError("there are no semantic ids to measure: no item has content; run the embed pipeline")
    vectors_ND = None if vectors_ND is None else VectorRows.of(vectors_ND)
    lengths = {"quantized": len(quantized_NLq)} | ({} if vectors_ND is None else {"vectors": len(vectors_ND)})
    lengths |= {} if categories is None else {"categories": len(categories)}
    if wrong := {name: length for name, length in lengths.items() if length != n}:
        raise ValueError(f"{n} items have ids, but rows are {wrong}")
    if not 1 <= quantized_NLq.shape[1] <= len(sizes) or codes_NL.shape[1] != len(sizes):
        raise ValueError(f"{len(sizes)} sizes, but codes {codes_NL.shape} and quantized {quantized_NLq.shape}")
    depths = range(1, quantized_NLq.shape[1] + 1)
    prefixes = [row_groups(quantized_NLq[:, :depth]) for depth in depths]
    generator, reconstruction = np.random.default_rng(seed), None
    if vectors_ND is not None and decode is not None:
        reconstruction = _reconstruction(vectors_ND, quantized_NLq, decode)
    return {
        "format": 1,
        "items": n,
        "levels": [{"level": depth, **_usage(quantized_NLq[:, depth - 1], int(sizes[depth - 1]))} for depth in depths],
        "prefixes": [{"depth": depth, "distinct": int(prefixes[depth - 1].max()) + 1} for depth in depths],
        "collisions": {"before": _collisions(prefixes[-1]), "after": _collisions(row_groups(codes_NL))},
        "reconstruction": reconstruction,
        "neighbours": None if vectors_ND is None else _neighbours(vectors_ND, prefixes, neighbours, sample, generator),
        "purity": _purity(quantized_NLq[:, 0], categories, generator),
    }


def measure_neighbours(
    codes_NL: Codes, vectors_ND: Vectors | VectorRows, *, neighbours: int = 10, sample: int = 2000, seed: int
) -> dict[str, Any] | None:
    """Measure ``neighbours`` of ``measure_quality`` for other vectors, such as item vectors of a trained model."""
    if not len(codes_NL):
        return None
    prefixes = [row_groups(codes_NL[:, :depth]) for depth in range(1, codes_NL.shape[1] + 1)]
    generator = np.random.default_rng(seed)
    return _neighbours(VectorRows.of(vectors_ND), prefixes, neighbours, sample, generator)


def leaf_categories(column: pa.ChunkedArray | pa.Array, of_list: str = "last") -> list[str | None]:
    """Read one category per item: the ``last`` element of (the last of nested) lists, or the ``first`` one.

    Last suits paths (Beauty > Makeup > Nails), first suits sets such as genres; plain values stay as they are. Raises
    ValueError for another ``of_list``.
    """
    if of_list not in ("first", "last"):
        raise ValueError(f"content.category.of_list is {of_list!r}; allowed: first, last")
    index = 0 if of_list == "first" else -1

    def leaf(value: object) -> str | None:
        while isinstance(value, list):
            filled = [each for each in value if each not in (None, "", [])]
            value = filled[index] if filled else None
        return None if value is None or value == "" else str(value)

    return [leaf(value) for value in column.to_pylist()]


def _usage(codes: Codes, size: int) -> dict[str, Any]:
    counts = np.bincount(codes, minlength=size)
    share = counts[counts > 0] / len(codes)
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return {"size": size, "used": len(share), "usage": len(share) / size, "perplexity": perplexity}


def _collisions(group_N: Rows) -> dict[str, Any]:
    """Counts of items that share their codes, from the group number of each item."""
    counts = np.bincount(group_N)
    sharing, largest = int(counts[counts > 1].sum()), int(counts.max())
    return {"distinct": len(counts), "sharing": sharing, "share": sharing / len(group_N), "largest": largest}


def _reconstruction(vectors_ND: VectorRows, quantized_NLq: Codes, decode: Callable[[Codes], Vectors]) -> dict[str, Any]:
    """Mean squared error, also relative to that of the mean vector; None where all vectors are equal."""
    shares, errors, squares, sums, blocks = [], [], [], [], [*vectors_ND.blocks()]
    for block in blocks:
        vectors, reconstructed = vectors_ND[block], decode(quantized_NLq[block])
        if vectors.shape != reconstructed.shape:
            raise ValueError(f"vectors are {vectors.shape}, reconstructed ones {reconstructed.shape}")
        if not (np.isfinite(vectors).all() and np.isfinite(reconstructed).all()):
            raise ValueError("vectors or their reconstructions have NaN or infinity; fit the quantizer anew")
        shares.append(len(vectors) / len(vectors_ND))
        errors.append(float(np.square(vectors - reconstructed).mean(dtype=np.float64)))
        squares.append(float(np.square(vectors).mean(dtype=np.float64)))
        sums.append(vectors.mean(axis=0, dtype=np.float64) * shares[-1])
    error, square = (float(np.dot(shares, means)) for means in (errors, squares))
    if len(blocks) == 1:
        variance = float(vectors_ND[blocks[0]].var(axis=0, dtype=np.float64).mean())
    else:
        parts, mean = (vectors_ND[block] for block in blocks), np.sum(sums, axis=0)
        variance = float(np.dot(shares, [_mean_square_distance(part, mean) for part in parts]))
    constant = variance <= 1e-12 * square
    return {"mse": error, "relative": None if constant else error / variance}


def _mean_square_distance(vectors_ND: Vectors, mean_D: NDArray[np.float64]) -> float:
    """Mean over rows and dimensions of the squared distance from ``mean_D``, in float64 and little memory."""
    parts = (vectors_ND[start : start + 8192] for start in range(0, len(vectors_ND), 8192))
    return float(sum(np.square(part - mean_D).sum() for part in parts)) / vectors_ND.size


def _neighbours(
    vectors_ND: VectorRows, prefixes: list[Rows], k: int, sample: int, generator: np.random.Generator
) -> dict[str, Any] | None:
    """Share of the k nearest items by cosine with the same first d codes, beside that of random pairs of items."""
    n = len(vectors_ND)
    if (k := min(k, n - 1)) < 1:
        return None
    rows = generator.permutation(n)[:sample]
    near_SK, by_depth = _nearest(vectors_ND, rows, k), []
    for depth, prefix in enumerate(prefixes, 1):
        overlap = float((prefix[near_SK] == prefix[rows][:, None]).mean())
        counts = np.bincount(prefix).astype(np.float64)
        random = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        by_depth.append({"depth": depth, "overlap": overlap, "random": random})
    return {"k": k, "sample": len(rows), "by_depth": by_depth}


def _nearest(vectors_ND: VectorRows, rows: Rows, k: int) -> Rows:
    """(S, k) nearest other items of ``rows`` by cosine, over all items in blocks."""
    import torch

    queries_SD, blocks = _unit(vectors_ND[rows]), [*vectors_ND.blocks()]
    values, items = torch.zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.int64)
    for block in blocks:
        unit_ND, found = _unit(vectors_ND[block]), []
        for part in torch.arange(len(rows)).split(max(1, SIMILARITIES // len(unit_ND))):
            similarity = queries_SD[part] @ unit_ND.T
            own = torch.from_numpy(rows[part.numpy()]) - block.start
            inside = (own >= 0) & (own < len(unit_ND))
            similarity[torch.arange(len(part))[inside], own[inside]] = -torch.inf
            found.append(similarity.topk(min(k, len(unit_ND))))
        values = torch.cat([values, torch.cat([each.values for each in found])], 1)
        items = torch.cat([items, torch.cat([each.indices for each in found]) + block.start], 1)
        if len(blocks) > 1:
            values, places = values.topk(min(k, values.shape[1]))
            items = items.gather(1, places)
    return items.numpy()


def _unit(vectors_ND: Vectors) -> Tensor:
    """Rows scaled to length one."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(vectors_ND), dim=1)


def _purity(first: Codes, categories: list[str | None] | None, generator: np.random.Generator) -> dict[str, Any] | None:
    """Share of items in the main category of their first code, beside its mean over shuffled codes."""
    present = np.array([each is not None for each in categories or ()], bool)
    names, numbers = np.unique(np.array(categories or (), object)[present].astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    first = first[present]
    shuffled = [_main_share(generator.permutation(first), numbers) for _ in range(SHUFFLES)]
    return {
        "categories": len(names),
        "items": len(first),
        "first_code": _main_share(first, numbers),
        "shuffled": float(np.mean(shuffled)),
    }


def _main_share(first: Codes, numbers: Rows) -> float:
    """Share of items in the most frequent category of their code."""
    n_categories = int(numbers.max()) + 1
    pairs, counts = np.unique(first.astype(np.int64) * n_categories + numbers, return_counts=True)
    largest = np.zeros(int(first.max()) + 1, np.int64)
    np.maximum.at(largest, pairs // n_categories, counts)
    return float(largest.sum() / len(first))
