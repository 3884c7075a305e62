"""Geometry of all item tables of a data set: measures with null bands, agreement, a map, nearest items.

Tables that cannot be measured are named under ``problems``. Shapes: I items, D width, N items on the map.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.measures import Floats, Indices, measure_vectors, nearest, unit
from recpipe.evaluation.geometry.tables import (
    ItemVectors,
    TableAndNull,
    VectorSource,
    agreement_matrices,
    bundle_vectors,
    stability,
    with_null_bands,
)
from recpipe.evaluation.segments import HEAD, POPULARITY, popularity_groups
from recpipe.training.bundle import Bundle

if TYPE_CHECKING:
    from recpipe.config.schema import GeometryConfig  # pydantic, which the library does without

PERPLEXITY = 30.0
UNREADABLE = (ValueError, OSError, KeyError, TypeError)  # errors of a folder that is no bundle of this version
BundleLoaders = Mapping[str, Callable[[], Bundle]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Items:
    """Titles and training events (I,) of the catalogue, and the protocol of the split."""

    vocabulary: Vocabulary
    titles: Sequence[str]
    events: NDArray[np.int64]
    protocol: Protocol


def measure_geometry(
    bundles: BundleLoaders,
    encoders: Sequence[VectorSource],
    items: Items,
    *,
    settings: GeometryConfig,
    quality: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure all item tables as JSON, for items with training events: other vectors were never trained.

    ``bundles`` are keyed like `sasrec/seed_42`. Of several seeds of a model, ``seed`` or else the first is measured;
    the others give the stability. ``quality`` has a value per bundle; the best model comes first and gets the map.
    """
    study = _Study(items, settings, seed)
    for model, runs in _runs_by_model(bundles, quality or {}, seed).items():
        study.add_model(model, runs, bundles)
    for source in encoders:
        for name in source.tables:
            study.add_table(name, "", name, source)
    return dict(_to_json(study.result()))


def _runs_by_model(bundles: BundleLoaders, quality: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Group runs by model, best models first, the run of ``seed`` first within each."""
    runs: dict[str, list[str]] = {}
    for name in sorted(bundles, key=lambda name: (not name.endswith(f"/seed_{seed}"), name)):
        runs.setdefault(name.split("/")[0], []).append(name)
    best = {model: max(quality.get(name, -1.0) for name in names) for model, names in runs.items()}
    return {model: runs[model] for model in sorted(runs, key=lambda model: (-best[model], model))}


@dataclass
class _Study:
    """Results of the tables so far."""

    items: Items
    settings: GeometryConfig
    seed: int
    measurements: list[dict[str, Any]] = field(default_factory=list)
    tables: list[TableAndNull] = field(default_factory=list)
    stabilities: list[dict[str, Any]] = field(default_factory=list)
    full_tables: dict[str, ItemVectors] = field(default_factory=dict)  # the first, of all items with events
    without_vectors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = popularity_groups(self.items.events)
        self.warm = self.items.events > 0
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero(self.warm))
        self.sample = np.zeros(len(self.warm), bool)
        self.sample[order[: self.settings.items]] = True

    def add_model(self, model: str, runs: Sequence[str], bundles: BundleLoaders) -> None:
        """Measure the first readable run; search only neighbours for the others."""
        seeds: dict[str, list[TableAndNull]] = {}
        for run in runs:
            if (source := self._load(run, bundles)) is None:
                continue
            if not source.tables:
                self.without_vectors.append(model)
                return
            for name in source.tables:
                add = self._neighbours if name in seeds else self.add_table
                seeds.setdefault(name, []).extend(add(f"{model} {name}", run, name, source))
        for name, tables in seeds.items():
            if (result := stability(tables, self.groups, self.settings.k)) is not None:
                self.stabilities.append({"name": f"{model} {name}", "seeds": len(tables), **result})

    def _load(self, run: str, bundles: BundleLoaders) -> VectorSource | None:
        try:
            bundle, protocol = bundles[run](), self.items.protocol
            if bundle.protocol.dataset != protocol.dataset:
                raise ValueError(f"it is a bundle of {bundle.protocol.dataset}, not of {protocol.dataset}")
            bundle.check_catalogue(self.items.vocabulary)
            bundle.check_split(protocol)
            return bundle_vectors(bundle)
        except UNREADABLE as error:
            reason = error if isinstance(error, ValueError | OSError) else f"it cannot be read ({error!r})"
            self.problems.append(f"{run} is left out: {reason}")
            return None

    def add_table(self, title: str, run: str, name: str, source: VectorSource) -> list[TableAndNull]:
        """Measure a table with its null tables; empty, with an entry in ``problems``, where that is impossible."""
        log.info("geometry of %s", title)
        try:
            table = ItemVectors.of(source.tables[name], self.sample)
            arguments = self.items.events[table.rows], self.groups[table.rows], self.settings.k
            measures = measure_vectors(table.vectors, *arguments)
            keys = [f"{title} {run} {number}" for number in range(self.settings.nulls)]
            null_tables = [_null_table(source, name, table.rows, key) for key in keys]
            nulls = [measure_vectors(null.vectors, *arguments) for null in null_tables]
        except ValueError as error:
            self.problems.append(f"{title} is left out: {error}")
            return []
        head = {"name": title, "run": run, "null": source.null, "items": len(table.rows)}
        self.measurements.append({**head, **with_null_bands(measures, nulls)})
        null = replace(null_tables[0], neighbours=nulls[0].neighbours)
        self.tables.append(TableAndNull(title, replace(table, neighbours=measures.neighbours), null))
        if len(self.full_tables) < self.settings.beside:
            self.full_tables[title] = ItemVectors.of(source.tables[name], self.warm, np.float32)
        return [self.tables[-1]]

    def _neighbours(self, title: str, run: str, name: str, source: VectorSource) -> list[TableAndNull]:
        try:
            table = ItemVectors.of(source.tables[name], self.sample)
            null = _null_table(source, name, table.rows, f"{title} {run} 0")
            pair = [replace(part, neighbours=nearest(part.vectors, self.settings.k)) for part in (table, null)]
        except ValueError as error:
            self.problems.append(f"{title} of {run} is left out: {error}")
            return []
        return [TableAndNull(title, *pair)]

    def result(self) -> dict[str, Any]:
        """Collect everything in one dictionary."""
        settings, items = self.settings, self.items
        tables = self.full_tables
        catalogue = items.titles, items.events, self.groups
        name, best = next(iter(tables.items()), ("", None))
        best_map = None
        if best is not None and len(best.rows) >= 4:
            best_map = {"name": name, **item_map(best, *catalogue, limit=settings.map, seed=self.seed)}
        lists = nearest_items(tables, *catalogue, per_group=settings.examples, k=settings.nearest, seed=self.seed)
        return {
            "k": settings.k,
            "nulls": settings.nulls,
            "items": int(self.sample.sum()),
            "with_events": int(self.warm.sum()),
            "tables": self.measurements,
            "agreement": agreement_matrices(self.tables, settings.k),
            "stability": self.stabilities,
            "map": best_map,
            "nearest": lists,
            "without": self.without_vectors,
            "problems": self.problems,
        }


def _null_table(source: VectorSource, name: str, rows: Indices, key: str) -> ItemVectors:
    """Draw a random table for the items ``rows`` with a seed that is unique to table, model and run."""
    return ItemVectors(source.null_tables(zlib.crc32(key.encode()))[name][rows].astype(np.float64), rows)


def tsne(x_ND: Floats, seed: int) -> Floats:
    """Compute a t-SNE map (N, 2); van der Maaten & Hinton 2008, from a PCA as Kobak & Berens, Nat. Commun. 2019.

    Raises ValueError for fewer than 4 items.
    """
    from sklearn.manifold import TSNE

    if len(x_ND) < 4:
        raise ValueError(f"a map of {len(x_ND)} items says nothing; it needs at least 4")
    perplexity = min(PERPLEXITY, (len(x_ND) - 1) / 3)
    init = "pca" if x_ND.shape[1] > 1 else "random"
    model = TSNE(2, perplexity=perplexity, init=init, random_state=seed)
    return np.asarray(model.fit_transform(unit(x_ND).astype(np.float32)))


def item_map(
    table: ItemVectors, titles: Sequence[str], events_I: Indices, groups_I: Indices, *, limit: int, seed: int
) -> dict[str, Any]:
    """Draw at most ``limit`` items on a map: up to half of them are of the head, the others are random."""
    order = np.random.default_rng(seed).permutation(len(table.rows))
    is_head = groups_I[table.rows[order]] == HEAD
    head = order[is_head][: limit // 2]
    positions = np.sort(np.concatenate([head, order[~is_head][: limit - len(head)]]))
    rows, map_N2 = table.rows[positions], tsne(table.vectors[positions].astype(np.float64), seed)
    return {
        "items": len(table.rows),
        "x": np.round(map_N2[:, 0], 2).tolist(),
        "y": np.round(map_N2[:, 1], 2).tolist(),
        "titles": [titles[row] for row in rows],
        "events": events_I[rows].tolist(),
        "groups": [POPULARITY[code] for code in groups_I[rows]],
    }


def nearest_items(
    tables: Mapping[str, ItemVectors],
    titles: Sequence[str],
    events_I: Indices,
    groups_I: Indices,
    *,
    per_group: int,
    k: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Find the ``k`` nearest items by cosine in every table, for ``per_group`` random items of each group.

    The items are drawn among those with a vector in all tables. Tables of a single item are left out.
    """
    tables = {name: table for name, table in tables.items() if len(table.rows) > 1}
    if not tables:
        return []
    common = functools.reduce(np.intersect1d, (table.rows for table in tables.values()))
    rng = np.random.default_rng(seed)
    groups = [common[groups_I[common] == code] for code in range(len(POPULARITY))]
    queries = np.concatenate([rng.permutation(group)[:per_group] for group in groups])
    if not len(queries):
        return []
    lists = {name: _nearest_lists(table, queries, titles, k) for name, table in tables.items()}
    return [
        {
            "title": titles[row],
            "group": POPULARITY[groups_I[row]],
            "events": int(events_I[row]),
            "nearest": {name: rows[index] for name, rows in lists.items()},
        }
        for index, row in enumerate(queries)
    ]


def _nearest_lists(table: ItemVectors, rows: Indices, titles: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
    positions = np.searchsorted(table.rows, rows)
    near = nearest(table.vectors, min(k, len(table.rows) - 1), of=positions)
    query_nD, near_MD = (unit(table.vectors[at].astype(np.float64)) for at in (positions, near.ravel()))
    cosines = np.einsum("nd,nkd->nk", query_nD, near_MD.reshape(*near.shape, -1))
    return [
        [
            {"title": titles[table.rows[other]], "cosine": round(float(cosine), 4)}
            for other, cosine in zip(row, values, strict=True)
        ]
        for row, values in zip(near, cosines, strict=True)
    ]


def _to_json(value: Any) -> Any:
    """Convert to JSON types; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_to_json(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
