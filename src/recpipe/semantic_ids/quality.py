"""Are semantic ids any good? Measured before a model is trained on them, each number beside what chance gives.

Shape letters: N items, D width of a vector, L levels after resolution, Lq levels of the quantizer, V codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.semantic_ids.collisions import groups
from recpipe.semantic_ids.gate import Gate, judge

__all__ = ["Gate", "judge", "leaf_categories", "measure"]

Codes = NDArray[np.int32]
BUDGET = 1 << 24  # similarities held at once
SHUFFLES = 5


def measure(
    codes_NL: Codes,
    quantized_NLq: Codes,
    sizes: Sequence[int],
    *,
    vectors_ND: NDArray[np.float32],
    reconstructed_ND: NDArray[np.float32],
    categories: list[str | None] | None = None,
    neighbours: int = 10,
    sample: int = 2000,
    seed: int,
) -> dict[str, Any]:
    """What `judge` judges, as JSON. ``codes_NL`` are the ids after resolution, the rest is about the quantizer's own.

    ``neighbours`` is None with fewer than two items, ``purity`` without two categories; neighbours are those of a
    ``sample`` of the items among all of them.
    """
    _check(codes_NL, quantized_NLq, sizes, vectors_ND, reconstructed_ND, categories)
    depths = range(1, quantized_NLq.shape[1] + 1)
    prefixes = [groups(quantized_NLq[:, :depth]) for depth in depths]
    generator = np.random.default_rng(seed)
    return {
        "format": 1,
        "items": len(codes_NL),
        "levels": [
            {"level": depth, **_usage(quantized_NLq[:, depth - 1], int(sizes[depth - 1]))} for depth in depths
        ],
        "prefixes": [{"depth": depth, "distinct": int(prefixes[depth - 1].max()) + 1} for depth in depths],
        "collisions": {"before": _collisions(prefixes[-1]), "after": _collisions(groups(codes_NL))},
        "reconstruction": _reconstruction(vectors_ND, reconstructed_ND),
        "neighbours": _neighbours(vectors_ND, prefixes, neighbours, sample, generator),
        "purity": _purity(quantized_NLq[:, 0], categories, generator),
    }


def leaf_categories(column: pa.ChunkedArray | pa.Array, of_list: str = "last") -> list[str | None]:
    """A category per item: the ``last`` element (of the last list, where lists are nested) or the ``first`` one.

    Last suits paths (Beauty > Makeup > Nails), first suits sets such as genres; plain values are taken as they are.
    """
    if of_list not in ("first", "last"):
        raise ValueError(f"content.category.of_list is {of_list!r}; allowed: first, last")
    at = 0 if of_list == "first" else -1
    return [_leaf(value, at) for value in column.to_pylist()]


def _leaf(value: Any, at: int) -> str | None:
    while isinstance(value, list):
        filled = [each for each in value if each not in (None, "", [])]
        value = filled[at] if filled else None
    return None if value is None or value == "" else str(value)


def _usage(codes: Codes, size: int) -> dict[str, Any]:
    counts = np.bincount(codes, minlength=size)
    share = counts[counts > 0] / len(codes)
    used = len(share)
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return {"size": size, "used": used, "usage": used / size, "perplexity": perplexity}


def _collisions(ids: NDArray[np.int64]) -> dict[str, Any]:
    """Of group numbers, one per item: how many items share theirs with another, and the most that share one."""
    counts = np.bincount(ids)
    sharing = int(counts[counts > 1].sum())
    return {
        "distinct": len(counts),
        "sharing": sharing,
        "share": sharing / len(ids),
        "largest": int(counts.max()),
    }


def _reconstruction(vectors_ND: NDArray[np.float32], reconstructed_ND: NDArray[np.float32]) -> dict[str, Any]:
    """Mean squared error per number, and beside that of the mean vector; None where all vectors are equal."""
    error = float(np.square(vectors_ND - reconstructed_ND).mean(dtype=np.float64))
    variance = float(vectors_ND.var(axis=0, dtype=np.float64).mean())
    constant = variance <= 1e-12 * float(np.square(vectors_ND).mean(dtype=np.float64))
    return {"mse": error, "relative": None if constant else error / variance}


def _neighbours(
    vectors_ND: NDArray[np.float32],
    prefixes: list[NDArray[np.int64]],
    k: int,
    sample: int,
    generator: np.random.Generator,
) -> dict[str, Any] | None:
    """Share of an item's k nearest by cosine that share its first d codes, and of any two items (the random one).

    The latter is what any way of handing the same codes to other items gives on average.
    """
    n = len(vectors_ND)
    k = min(k, n - 1)
    if k < 1:
        return None
    rows = generator.permutation(n)[:sample]
    near_SK = _nearest(vectors_ND, rows, k)
    by_depth = []
    for depth, prefix in enumerate(prefixes, 1):
        overlap = float((prefix[near_SK] == prefix[rows][:, None]).mean())
        counts = np.bincount(prefix).astype(np.float64)
        random = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        by_depth.append({"depth": depth, "overlap": overlap, "random": random})
    return {"k": k, "sample": len(rows), "by_depth": by_depth}


def _nearest(vectors_ND: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(S, k) the nearest other items of ``rows`` by cosine."""
    import torch

    unit_ND = torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(vectors_ND)), dim=1)
    found = []
    for part in torch.from_numpy(rows).split(max(1, BUDGET // len(vectors_ND))):
        similarity = unit_ND[part] @ unit_ND.T
        similarity[torch.arange(len(part)), part] = -torch.inf
        found.append(similarity.topk(k).indices)
    return torch.cat(found).numpy()


def _purity(
    first: Codes, categories: list[str | None] | None, generator: np.random.Generator
) -> dict[str, Any] | None:
    """Share of items that are of the main category of their first code; the mean of a few shuffles beside it."""
    known = np.array([each is not None for each in categories or ()], bool)
    names, numbers = np.unique(np.array(categories or (), object)[known].astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    first = first[known]
    shuffled = [_main_share(generator.permutation(first), numbers) for _ in range(SHUFFLES)]
    return {
        "categories": len(names),
        "items": len(first),
        "first_code": _main_share(first, numbers),
        "shuffled": float(np.mean(shuffled)),
    }


def _main_share(first: Codes, numbers: NDArray[np.int64]) -> float:
    """Items of the most frequent category of their code, as a share of all."""
    pairs, counts = np.unique(first.astype(np.int64) * (int(numbers.max()) + 1) + numbers, return_counts=True)
    most = np.zeros(int(first.max()) + 1, np.int64)
    np.maximum.at(most, pairs // (int(numbers.max()) + 1), counts)
    return float(most.sum() / len(first))


def _check(
    codes_NL: Codes,
    quantized_NLq: Codes,
    sizes: Sequence[int],
    vectors_ND: NDArray[np.float32],
    reconstructed_ND: NDArray[np.float32],
    categories: list[str | None] | None,
) -> None:
    n = len(codes_NL)
    if not n:
        raise ValueError(
            "there are no semantic ids to measure: no item has content; look at the embed pipeline"
        )
    given = {
        "quantized": len(quantized_NLq),
        "vectors": len(vectors_ND),
        "reconstructed": len(reconstructed_ND),
        "categories": n if categories is None else len(categories),
    }
    if wrong := {name: rows for name, rows in given.items() if rows != n}:
        raise ValueError(f"{n} items have ids, but rows are {wrong}")
    if vectors_ND.shape != reconstructed_ND.shape:
        raise ValueError(f"vectors are {vectors_ND.shape}, reconstructed ones {reconstructed_ND.shape}")
    if not 1 <= quantized_NLq.shape[1] <= len(sizes) or codes_NL.shape[1] != len(sizes):
        raise ValueError(
            f"{len(sizes)} sizes, but codes {codes_NL.shape} and quantized {quantized_NLq.shape}"
        )
    if not (np.isfinite(vectors_ND).all() and np.isfinite(reconstructed_ND).all()):
        raise ValueError(
            "vectors or what they are reconstructed as hold NaN or infinity; fit the quantizer anew"
        )
