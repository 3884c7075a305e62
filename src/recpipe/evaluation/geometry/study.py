"""A measured table beside measured random ones, as JSON. D width.

The geometry of all that is on disk of a data set: models beside untrained ones, encoders beside random numbers.

What cannot be measured is named among the problems, and the rest is made. I items, D width, K neighbours.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.compare import Compared, Neighbours, matrices, stability
from recpipe.evaluation.geometry.maps import map_of, nearest_items
from recpipe.evaluation.geometry.measures import Measured, cumulative_variance, measure, nearest, plain
from recpipe.evaluation.geometry.tables import Source, Table, band, source_of
from recpipe.evaluation.segments import popularity_groups
from recpipe.training.bundle import Bundle

POINTS = 49  # of a drawn spectrum, at most


def described(own: Measured, nulls: Sequence[Measured]) -> dict[str, Any]:
    """``values`` with a band each, the same of every group of items, and curves with the mean of the random ones."""
    groups = {}
    for name, values in own.groups.items():
        bands = _bands(values, [each.groups[name] for each in nulls])
        groups[name] = {
            "values": values,
            "bands": {key: bands[key] for key in bands if key != "items"},
            "curves": _curves(own.spectra[name], [each.spectra[name] for each in nulls]),
        }
    return {
        "width": len(own.spectrum),
        "values": own.values,
        "bands": _bands(own.values, [each.values for each in nulls]),
        "groups": groups,
        "curves": _curves(own.spectrum, [each.spectrum for each in nulls]),
        "norms": {**own.norms, "chance": np.mean([each.norms["norms"] for each in nulls], axis=0)},
    }


def _bands(
    values: Mapping[str, float], nulls: Sequence[Mapping[str, float]]
) -> dict[str, tuple[float, float] | None]:
    return {name: band([each[name] for each in nulls]) for name in values}


def _curves(own_D: NDArray[np.float64], nulls: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Eigenvalues over their mean and what they add up to, at ``place`` 1 .. D, not all where D is large."""
    place = np.unique(np.linspace(0, len(own_D) - 1, min(POINTS, len(own_D))).round().astype(int))
    found: dict[str, Any] = {"place": place + 1}
    for name, spectra in (("own", [own_D]), ("chance", list(nulls))):
        relative = np.mean([each / each.mean() if each.any() else each for each in spectra], axis=0)
        found[name] = {"eigenvalues": relative[place], "cumulative": cumulative_variance(relative)[place]}
    return found


log = logging.getLogger(__name__)
Loads = Mapping[str, Callable[[], Bundle]]
UNREADABLE = (ValueError, OSError, KeyError, TypeError)  # what a folder that is no bundle of today's gives


@dataclass(frozen=True)
class Settings:
    """``k`` neighbours; ``nulls`` random tables make a band; of ``items`` so many are measured, and ``map`` drawn, at
    most; ``examples`` of each popularity with their ``nearest`` items in so many tables, ``beside`` each other.
    """

    k: int = 10
    nulls: int = 5
    items: int = 5000
    map: int = 2000
    examples: int = 2
    nearest: int = 5
    beside: int = 4


@dataclass(frozen=True)
class Items:
    """What the split on disk says of items, in the order of the vocabulary; ``events`` (I,) of training."""

    vocabulary: Vocabulary
    titles: Sequence[str]
    events: NDArray[np.int64]
    protocol: Protocol


def geometry(
    bundles: Loads,
    encoders: Sequence[Source],
    items: Items,
    *,
    quality: Mapping[str, float] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """JSON of all tables. ``bundles`` by `model/seed_42`; of several seeds ``seed`` is measured, or else the first, and
    the others tell how stable it is. ``quality`` by the same names: the best model comes first and gets the map.

    Only items with training events count: the vectors of others were never trained.
    """
    study = _Study(items, settings or Settings(), seed)
    for model, runs in _by_model(bundles, quality or {}, seed).items():
        study.model(model, runs, bundles)
    for source in encoders:
        for name in source.tables:
            study.measured(name, "", name, source)
    made: dict[str, Any] = plain(study.told())
    return made


def _by_model(bundles: Loads, quality: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Runs of every model, that of ``seed`` first; best models first, then those of which nothing is known."""
    runs: dict[str, list[str]] = {}
    for name in sorted(bundles, key=lambda name: (not name.endswith(f"/seed_{seed}"), name)):
        runs.setdefault(name.split("/")[0], []).append(name)
    best = {model: max(quality.get(name, -1.0) for name in names) for model, names in runs.items()}
    return {model: runs[model] for model in sorted(runs, key=lambda model: (-best[model], model))}


@dataclass
class _Study:
    """What is found on the way from table to table."""

    items: Items
    settings: Settings
    seed: int
    tables: list[dict[str, Any]] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    stable: list[dict[str, Any]] = field(default_factory=list)
    whole: dict[str, Table] = field(default_factory=dict)  # not only of the sample
    without: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = popularity_groups(self.items.events)
        self.warm = self.items.events > 0
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero(self.warm))
        self.sample = np.zeros(len(self.warm), bool)
        self.sample[order[: self.settings.items]] = True

    def model(self, model: str, runs: Sequence[str], bundles: Loads) -> None:
        """Measures the first run that can be read; of the others only who is near whom."""
        seeds: dict[str, list[Compared]] = {}
        for run in runs:
            if (source := self._source(run, bundles)) is None:
                continue
            if not source.tables:
                self.without.append(model)
                return
            for name in source.tables:
                see = self.near if name in seeds else self.measured
                seeds.setdefault(name, []).extend(see(f"{model} {name}", run, name, source))
        for name, compared in seeds.items():
            if (found := stability(compared, self.groups, self.settings.k)) is not None:
                self.stable.append({"name": f"{model} {name}", "seeds": len(compared), **found})

    def _source(self, run: str, bundles: Loads) -> Source | None:
        try:
            bundle, wanted = bundles[run](), self.items.protocol
            if bundle.protocol.dataset != wanted.dataset:
                raise ValueError(f"it is a bundle of {bundle.protocol.dataset}, not of {wanted.dataset}")
            bundle.check_catalogue(self.items.vocabulary)
            if differing := bundle.protocol.same_data(wanted):
                raise ValueError(f"trained on another split ({', '.join(differing)} differ): train it again")
            return source_of(bundle)
        except UNREADABLE as error:
            self.problems.append(f"{run} is left out: {_said(error)}")
            return None

    def measured(self, title: str, run: str, name: str, source: Source) -> list[Compared]:
        """Takes a table among those that are measured and compared; none where it cannot be, which is a problem."""
        log.info("geometry of %s", title)
        try:
            table = Table.of(source.tables[name], self.sample)
            about = self.items.events[table.rows], self.groups[table.rows], self.settings.k
            own = measure(table.vectors, *about)
            chance = [
                _random(source, name, table.rows, f"{title} {run} {number}")
                for number in range(self.settings.nulls)
            ]
            nulls = [measure(each.vectors, *about) for each in chance]
        except ValueError as error:
            self.problems.append(f"{title} is left out: {error}")
            return []
        head = {"name": title, "run": run, "null": source.null, "items": len(table.rows)}
        self.tables.append({**head, **described(own, nulls)})
        random = Neighbours(chance[0], nulls[0].near)
        self.compared.append(Compared(title, Neighbours(table, own.near), random))
        self.whole[title] = Table.of(source.tables[name], self.warm)
        return [self.compared[-1]]

    def near(self, title: str, run: str, name: str, source: Source) -> list[Compared]:
        """Of a further seed."""
        try:
            table = Table.of(source.tables[name], self.sample)
            chance = _random(source, name, table.rows, f"{title} {run} 0")
            near = [Neighbours(each, nearest(each.vectors, self.settings.k)) for each in (table, chance)]
        except ValueError as error:
            self.problems.append(f"{title} of {run} is left out: {error}")
            return []
        return [Compared(title, *near)]

    def told(self) -> dict[str, Any]:
        """All of it."""
        settings, items = self.settings, self.items
        shown = dict(list(self.whole.items())[: settings.beside])
        about = items.titles, items.events, self.groups
        drawn = None
        if shown and len(next(iter(shown.values())).rows) >= 4:
            name, table = next(iter(shown.items()))
            drawn = {"name": name, **map_of(table, *about, most=settings.map, seed=self.seed)}
        return {
            "k": settings.k,
            "nulls": settings.nulls,
            "items": int(self.sample.sum()),
            "with_events": int(self.warm.sum()),
            "tables": self.tables,
            "agreement": matrices(self.compared, settings.k),
            "stability": self.stable,
            "map": drawn,
            "nearest": nearest_items(
                shown, *about, per_group=settings.examples, k=settings.nearest, seed=self.seed
            ),
            "without": self.without,
            "problems": self.problems,
        }


def _random(source: Source, name: str, rows: NDArray[np.int64], which: str) -> Table:
    """A random table for the items ``rows``; none is drawn like that of another table, model or run."""
    return Table(source.chance(zlib.crc32(which.encode()))[name][rows].astype(np.float64), rows)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else f"it cannot be read ({error!r})"
