"""Quality of semantic ids: measurements beside their value by chance, and the gate that stops a run on bad ids.

Shape letters: N items, S sampled items, D width of a vector, L levels after resolution, Lq levels of the quantizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
ALLOWED_GROUP = 20  # items that may always share an id: in a small catalogue a large share
ITEMS_PER_NEIGHBOUR = 5  # below, most items are neighbours
MIN_PURITY_ITEMS = 1000  # items with a category; below, chance alone moves purity by the threshold
LEARNED = ("rqvae", "pqvae")  # types with an encoder, which may collapse in training
CHECKS = {
    "usage": ("used codes, least used level", "at least"),
    "perplexity": ("evenness of use, most uneven level", "at least"),
    "sharing": ("items that share their codes", "at most"),
    "largest": ("items with the same codes, largest group", "at most"),
    "sharing_after": ("items that share an id after resolution", "at most"),
    "reconstruction": ("variance lost in the codes", "at most"),
    "neighbours": ("neighbours by first code, above chance", "at least"),
    "purity": ("category by first code, above chance", "at least"),
}


@dataclass(frozen=True)
class Gate:
    """Thresholds as shares; None switches a check off. They stop collapses, not mediocre ids.

    ``usage`` and ``perplexity`` are relative to the codes that a level can use, at most the number of items; collisions
    are those before resolution; ``neighbours`` and ``purity`` are (value - chance) / (1 - chance) of the first code.
    """

    usage: float | None = 0.5  # at least: used codes of the least used level
    perplexity: float | None = 0.05  # at least: exp(entropy) of the most uneven level
    sharing: float | None = 0.9  # at most: items that share all codes with another
    largest: float | None = 0.1  # at most: items with the same codes; ALLOWED_GROUP always may
    sharing_after: float | None = None  # at most: items that share an id after resolution
    reconstruction: float | None = 0.9  # at most: lost variance; the mean vector loses 1
    neighbours: float | None = 0.05  # at least: nearest items with the same first code
    purity: float | None = 0.02  # at least: items of the main category of their first code

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"semantic_ids.gate.{field.name} is {value}; allowed: 0 to 1, or null for no check")


def measure_quality(
    codes_NL: Codes,
    quantized_NLq: Codes,
    sizes: Sequence[int],
    *,
    vectors_ND: Vectors | VectorRows,
    decode: Callable[[Codes], Vectors],
    categories: list[str | None] | None = None,
    neighbours: int = 10,
    sample: int = 2000,
    seed: int,
) -> dict[str, Any]:
    """Measure ids (``codes_NL`` after, ``quantized_NLq`` before resolution) for ``apply_gate``, as JSON.

    ``decode`` turns codes of the quantizer into vectors. All numbers are of all items, except ``neighbours``, which is
    of a ``sample`` of the items, compared with all. It is None for fewer than two items, ``purity`` for fewer than two
    categories. Raises ValueError for empty ids and inputs of different lengths.
    """
    if not (n := len(codes_NL)):
        raise ValueError("there are no semantic ids to measure: no item has content; run the embed pipeline")
    vectors_ND = VectorRows.of(vectors_ND)
    lengths = {"quantized": len(quantized_NLq), "vectors": len(vectors_ND)}
    lengths |= {} if categories is None else {"categories": len(categories)}
    if wrong := {name: length for name, length in lengths.items() if length != n}:
        raise ValueError(f"{n} items have ids, but rows are {wrong}")
    if not 1 <= quantized_NLq.shape[1] <= len(sizes) or codes_NL.shape[1] != len(sizes):
        raise ValueError(f"{len(sizes)} sizes, but codes {codes_NL.shape} and quantized {quantized_NLq.shape}")
    depths = range(1, quantized_NLq.shape[1] + 1)
    prefixes = [row_groups(quantized_NLq[:, :depth]) for depth in depths]
    generator = np.random.default_rng(seed)
    return {
        "format": 1,
        "items": n,
        "levels": [{"level": depth, **_usage(quantized_NLq[:, depth - 1], int(sizes[depth - 1]))} for depth in depths],
        "prefixes": [{"depth": depth, "distinct": int(prefixes[depth - 1].max()) + 1} for depth in depths],
        "collisions": {"before": _collisions(prefixes[-1]), "after": _collisions(row_groups(codes_NL))},
        "reconstruction": _reconstruction(vectors_ND, quantized_NLq, decode),
        "neighbours": _neighbours(vectors_ND, prefixes, neighbours, sample, generator),
        "purity": _purity(quantized_NLq[:, 0], categories, generator),
    }


def leaf_categories(column: pa.ChunkedArray | pa.Array, of_list: str = "last") -> list[str | None]:
    """Read one category per item: the ``last`` element of (the last of nested) lists, or the ``first`` one.

    Last suits paths (Beauty > Makeup > Nails), first suits sets such as genres; plain values stay as they are.
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


def apply_gate(
    quality: Mapping[str, Any],
    gate: Gate,
    *,
    quantizer: str = "<name>",
    kind: str | None = None,
    lent_by: str | None = None,
) -> dict[str, Any]:
    """Add ``checks`` and ``passed`` to the result of ``measure_quality``.

    Values that were not measured and thresholds of None make no check. The advice of a check names settings of the
    ``quantizer`` (its name in the conf) of type ``kind``, which another data set may have lent.
    """
    results, checks = _Results(quality, f"semantic_ids.quantizers.{quantizer}", kind, lent_by), []
    for name, (what, asks) in CHECKS.items():
        threshold, (value, advice) = getattr(gate, name), getattr(results, name)()
        if value is None or threshold is None:
            continue
        if name == "largest":
            threshold = max(threshold, min(1.0, ALLOWED_GROUP / quality["items"]))
        passed = value >= threshold if asks == "at least" else value <= threshold
        check = {"value": float(value), "threshold": float(threshold), "passed": bool(passed), "advice": advice}
        checks.append({"name": name, "what": what, "asks": asks, **check})
    return {**quality, "checks": checks, "passed": all(check["passed"] for check in checks)}


Result = tuple[float | None, str]


@dataclass(frozen=True)
class _Results:
    """Value and advice of each check in ``CHECKS``; the value is None where chance alone would decide."""

    quality: Mapping[str, Any]
    settings: str  # conf key of the quantizer's settings
    kind: str | None  # type of the quantizer, None if unknown
    lent_by: str | None

    def usage(self) -> Result:
        level, value = self._lowest_level("used")
        distinct = [1, *(prefix["distinct"] for prefix in self.quality["prefixes"])]
        if self.lent_by is not None:
            advice = (
                f"if this catalogue is a small part of what the quantizer of {self.lent_by} was fitted to, lower "
                "semantic_ids.gate.usage; if it was not fitted to this catalogue at all, fit one with quantizer_with"
            )
        elif distinct[level["level"] - 1] / self.quality["items"] > 0.9:
            advice = f"the earlier levels separate the items already, so lower {self.settings}.codes or .levels"
        else:
            advice = (
                f"keep {self.settings}.standardise on; "
                f"{self._if_learned('lower .dead_codes.every, to reset dead codes more often; ')}"
                "lower .codes if the catalogue is small or its items are alike"
            )
        return (value, f"level {level['level']} uses {level['used']:,} of its {level['size']:,} codes: {advice}")

    def perplexity(self) -> Result:
        level, value = self._lowest_level("perplexity")
        return value, (
            f"level {level['level']} is used as unevenly as if it had {level['perplexity']:.1f} codes: keep "
            f"{self.settings}.standardise on, {self._if_learned('balance the level with .sinkhorn, ')}or lower .codes"
        )

    def sharing(self) -> Result:
        before = self.quality["collisions"]["before"]
        return before["share"], (
            f"{before['sharing']:,} of {self.quality['items']:,} items have the codes of another: raise "
            f"{self.settings}.codes or .levels; items with the same text cannot differ: give content.text.template "
            "more columns"
        )

    def largest(self) -> Result:
        largest = self.quality["collisions"]["before"]["largest"]
        return largest / self.quality["items"], (
            f"{largest:,} items have the same codes: check whether their content is the same, as where a text is "
            f"missing (content.text.template); if not, the quantizer collapsed: raise {self.settings}.codes or "
            ".levels, or take another semantic_ids.seed"
        )

    def sharing_after(self) -> Result:
        after = self.quality["collisions"]["after"]
        return after["share"], (
            f"{after['sharing']:,} items share their id after resolution: set semantic_ids.collisions to extra_digit "
            "or reallocate, which leave none"
        )

    def reconstruction(self) -> Result:
        return self.quality["reconstruction"]["relative"], (
            "the codes carry little more information than the mean of all items: keep "
            f"{self.settings}.standardise on; "
            f"{self._if_learned('train longer (.epochs, .least_steps) or with another .lr; ')}raise .codes or .levels"
        )

    def neighbours(self) -> Result:
        neighbours, items = self.quality["neighbours"], self.quality["items"]
        if not neighbours or items < ITEMS_PER_NEIGHBOUR * neighbours["k"]:
            return None, ""
        first = neighbours["by_depth"][0]
        if self.quality["levels"][0]["used"] > items / 2:
            advice = f"level 1 has a code for nearly every item, so lower {self.settings}.codes"
        else:
            learned = self.kind in (None, *LEARNED)
            reason = "has no encoder to collapse" if learned else "gives the first code the whole vector"
            other = f"use semantic_ids.quantizer=residual_kmeans, which {reason}; "
            advice = (
                f"the ids do not follow the vectors; {self._if_learned('take another semantic_ids.seed; ')}"
                f"{'' if self.kind == 'residual_kmeans' else other}change {self.settings}.codes; ids of many short "
                "levels may need semantic_ids.gate.neighbours=null"
            )
        return _above_chance(first["overlap"], first["random"]), (
            f"{first['overlap']:.1%} of the nearest neighbours share the first code, by chance "
            f"{first['random']:.1%}: {advice}"
        )

    def purity(self) -> Result:
        purity = self.quality["purity"]
        if not purity or purity["items"] < MIN_PURITY_ITEMS:
            return None, ""
        return _above_chance(purity["first_code"], purity["shuffled"]), (
            f"{purity['first_code']:.1%} of items are of the main category of their first code, by chance "
            f"{purity['shuffled']:.1%}: if the check of neighbours passes, the vectors themselves do not reflect the "
            "category: put it into content.text.template, take another encoder (embed), or set "
            "semantic_ids.gate.purity=null"
        )

    def _lowest_level(self, key: str) -> tuple[Mapping[str, Any], float]:
        """Level with the lowest share of the codes that it can use, and that share."""
        items = self.quality["items"]
        shares = [level[key] / min(level["size"], items) for level in self.quality["levels"]]
        return self.quality["levels"][shares.index(min(shares))], min(shares)

    def _if_learned(self, advice: str) -> str:
        """``advice`` for types with an encoder, nothing for others."""
        if self.kind is None:
            return f"for {' and '.join(LEARNED)} {advice}"
        return advice if self.kind in LEARNED else ""


def _above_chance(value: float, chance: float) -> float:
    """0 at chance, 1 at best; 0 where chance is 1, as with one id for all items."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0
