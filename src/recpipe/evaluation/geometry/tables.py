"""Item vectors of models and encoders, random vectors of the same kind, and agreement between tables.

Shapes: I items, n items with a vector, D width, K neighbours, T tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from recpipe.evaluation.geometry.measures import (
    Floats,
    Indices,
    VectorMeasures,
    cumulative_variance,
    linear_cka,
    nearest,
    overlap,
)
from recpipe.evaluation.segments import POPULARITY
from recpipe.layers.inputs import ProjectedVectors
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle

LEVEL = 0.95
SPECTRUM_POINTS = 49  # of a curve, at most
UNTRAINED, RANDOM_NUMBERS = "untrained", "random numbers"
Tables = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class VectorSource:
    """Item tables (I, D) of a model or encoder by name, with a generator of random ones of the same shapes."""

    tables: Tables  # an item without a vector has a row of zeros
    null: str  # kind of the random tables: those of the model before training, or random numbers
    null_tables: Callable[[int], Tables]  # by seed


def bundle_vectors(bundle: Bundle) -> VectorSource:
    """Return the item tables of a model; empty for a model without item vectors."""
    tables = tables_of(bundle.model)
    if bundle.model.closed_form:
        return VectorSource(tables, RANDOM_NUMBERS, lambda seed: random_tables(tables, seed))
    return VectorSource(tables, UNTRAINED, lambda seed: tables_of(untrained(bundle.model, bundle.type, seed)))


def encoder_source(name: str, vectors_ID: NDArray[np.float32], present_I: NDArray[np.bool_]) -> VectorSource:
    """Return item vectors of an encoder; ``present_I`` marks the items that have one."""
    tables = {name: np.where(present_I[:, None], vectors_ID, np.float32(0))}
    return VectorSource(tables, RANDOM_NUMBERS, lambda seed: random_tables(tables, seed))


@torch.no_grad()
def tables_of(model: Recommender) -> Tables:
    """Return ``item_tables`` of a model as arrays (I, D), without the row of padding."""
    return {name: table[1:].float().cpu().numpy() for name, table in model.item_tables().items()}


@torch.no_grad()
def untrained(model: Recommender, type_: str, seed: int) -> Recommender:
    """Build ``model`` again with other random weights and the same content vectors and semantic ids.

    Content vectors that were trained on (``side.train_vectors``) are those after training, as a bundle has no others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = build(
            type_,
            dataclasses.asdict(model.config),
            n_items=model.n_items,
            max_length=model.max_length,
            side=model.side,
            ids={name: codes.ids for name, codes in model.item_codes().items()},
        )
    buffers, modules = dict(model.named_buffers()), dict(model.named_modules())
    for name, buffer in copy.named_buffers():
        buffer.copy_(buffers[name])
    for name, module in copy.named_modules():
        if isinstance(module, ProjectedVectors):
            module.given.copy_(modules[name].given)
    for codes in copy.item_codes().values():
        codes.forget()
    return copy.eval()


def random_tables(tables: Mapping[str, NDArray[np.float32]], seed: int) -> Tables:
    """Draw normal random numbers of the shape of each table; absolute values for a table without negative numbers."""
    rng = np.random.default_rng(seed)
    draws = {name: rng.standard_normal(table.shape, np.float32) for name, table in tables.items()}
    return {name: np.abs(draw) if tables[name].min() >= 0 else draw for name, draw in draws.items()}


def with_null_bands(measures: VectorMeasures, nulls: Sequence[VectorMeasures]) -> dict[str, Any]:
    """Return values with null bands, for the table and its groups, and curves with the mean of the random tables."""
    groups = {
        name: {
            "values": values,
            "bands": _bands(values, [null.groups[name] for null in nulls]),
            "curves": _curves(measures.spectra[name], [null.spectra[name] for null in nulls]),
        }
        for name, values in measures.groups.items()
    }
    return {
        "width": len(measures.spectrum),
        "values": measures.values,
        "bands": _bands(measures.values, [null.values for null in nulls]),
        "groups": groups,
        "curves": _curves(measures.spectrum, [null.spectrum for null in nulls]),
        "norms": {**measures.norms, "chance": np.mean([null.norms["norms"] for null in nulls], axis=0)},
    }


def _bands(values: Mapping[str, float], nulls: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float] | None]:
    return {name: null_band([null[name] for null in nulls]) for name in values if name != "items"}


def _curves(spectrum_D: Floats, nulls: Sequence[Floats]) -> dict[str, Any]:
    """Eigenvalues over their mean and cumulative variance at the places 1 .. D, thinned out for large D."""
    place = np.unique(np.linspace(0, len(spectrum_D) - 1, min(SPECTRUM_POINTS, len(spectrum_D))).round().astype(int))
    curves: dict[str, Any] = {"place": place + 1}
    for name, spectra in (("own", [spectrum_D]), ("chance", list(nulls))):
        relative = np.mean([x / x.mean() if x.any() else x for x in spectra], axis=0)
        curves[name] = {"eigenvalues": relative[place], "cumulative": cumulative_variance(relative)[place]}
    return curves


def null_band(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute Student's 95 % prediction interval of one more value: mean ± t s √(1 + 1/n); None for n < 2."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if (n := len(finite)) < 2:
        return None
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1) * finite.std(ddof=1) * math.sqrt(1 + 1 / n))
    return float(finite.mean()) - reach, float(finite.mean()) + reach


@dataclass(frozen=True)
class ItemVectors:
    """Vectors (n, D) of some items."""

    vectors: NDArray[Any]  # float64, of all items float32
    rows: Indices  # (n,) of 0 .. I - 1, ascending
    neighbours: Indices | None = None  # (n, K), as positions in the table

    @classmethod
    def of(
        cls, table_ID: NDArray[np.float32], subset_I: NDArray[np.bool_], dtype: type[np.floating[Any]] = np.float64
    ) -> ItemVectors:
        """Select the items of a subset that have a vector. Raises ValueError for NaN and infinity."""
        if not np.isfinite(table_ID).all():
            raise ValueError("its vectors hold NaN or infinity")
        rows = np.flatnonzero(subset_I & table_ID.any(1))
        return cls(table_ID[rows].astype(dtype, copy=False), rows)

    def select(self, rows: Indices) -> Floats:
        """Return the vectors of ``rows``, a subset of the rows of the table."""
        return self.vectors[np.searchsorted(self.rows, rows)]

    def nearest(self, rows: Indices, k: int) -> Indices:
        """Return the ``k`` neighbours of each of ``rows`` among them, as positions in ``rows``."""
        if self.neighbours is not None and len(rows) == len(self.rows):
            return self.neighbours
        return nearest(self.select(rows), k)


@dataclass(frozen=True)
class TableAndNull:
    """A table and a random one of its kind, for the same items."""

    name: str
    table: ItemVectors
    null: ItemVectors


@dataclass(frozen=True)
class Agreement:
    """Agreement of two tables on their common items ``rows``, and of their random tables."""

    rows: Indices
    overlap: Floats  # (n,)
    null_overlap: float  # K / (I - 1), or more where both are made of the same codes or vectors
    cka: float
    null_cka: float


def agreement(one: TableAndNull, other: TableAndNull, k: int) -> Agreement | None:
    """Compare two tables; None where fewer than k + 2 items have a vector in both."""
    rows = np.intersect1d(one.table.rows, other.table.rows)
    if len(rows) < k + 2:
        return None
    overlaps, ckas = [], []
    for a, b in ((one.table, other.table), (one.null, other.null)):
        overlaps.append(overlap(a.nearest(rows, k), b.nearest(rows, k)))
        ckas.append(linear_cka(a.select(rows), b.select(rows)))
    return Agreement(rows, overlaps[0], float(overlaps[1].mean()), *ckas)


def agreement_matrices(tables: Sequence[TableAndNull], k: int) -> dict[str, Any]:
    """Compare all pairs: ``overlap``, ``cka`` and both by chance, each (T, T); NaN without common items."""
    keys = ("overlap", "overlap_by_chance", "cka", "cka_by_chance")
    matrices = np.full((4, len(tables), len(tables)), np.nan)
    matrices[::2, range(len(tables)), range(len(tables))] = 1.0
    for a, b in combinations(range(len(tables)), 2):
        if (pair := agreement(tables[a], tables[b], k)) is not None:
            values = (pair.overlap.mean(), pair.null_overlap, pair.cka, pair.null_cka)
            matrices[:, a, b] = matrices[:, b, a] = values
    return {"names": [table.name for table in tables], **dict(zip(keys, matrices, strict=True))}


def stability(tables: Sequence[TableAndNull], groups_I: Indices, k: int) -> dict[str, Any] | None:
    """Average the agreement over pairs of seeds of one model, also by group; None for fewer than two seeds."""
    pairs = [pair for one, other in combinations(tables, 2) if (pair := agreement(one, other, k)) is not None]
    if not pairs:
        return None
    shares = np.concatenate([pair.overlap for pair in pairs])
    groups = groups_I[np.concatenate([pair.rows for pair in pairs])]
    return {
        "pairs": len(pairs),
        "overlap": shares.mean(),
        "by_chance": np.mean([pair.null_overlap for pair in pairs]),
        "cka": np.mean([pair.cka for pair in pairs]),
        "cka_by_chance": np.mean([pair.null_cka for pair in pairs]),
        "groups": {
            name: shares[groups == code].mean() for code, name in enumerate(POPULARITY) if (groups == code).any()
        },
    }
