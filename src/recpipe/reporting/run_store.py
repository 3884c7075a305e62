"""Finished runs as the report sees them: metrics.json checked, the latest per model, protocol, settings and seed.

Store of the finished runs of a data set on disk, read at their first use; damaged files are left out and reported.

A run is called ``<model>/seed_<seed>``. Files are where conf/base/catalog puts them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.config import ID_KINDS, VECTORS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from recpipe.content.embeddings import Embeddings
    from recpipe.training.bundle import Bundle

REQUIRED = ("dataset", "model", "seed", "protocol", "test")
OBJECTS = ("test", "valid", "warm_items", "cold_items", "cost", "versions", "settings", "ensemble")


@dataclass(frozen=True)
class Run:
    """One metrics.json; fields as written by `evaluate`."""

    dataset: str
    model: str
    seed: int
    protocol: Mapping[str, Any]
    test: Mapping[str, float]
    valid: Mapping[str, float] = field(default_factory=dict)
    warm_items: Mapping[str, float] = field(default_factory=dict)  # of the test targets that training saw,
    cold_items: Mapping[str, float] = field(default_factory=dict)  # and of those that it did not
    cost: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings_id: str | None = None  # None: written before settings were
    settings: Mapping[str, Any] = field(default_factory=dict)
    ensemble: Mapping[str, Any] = field(default_factory=dict)  # members and weights of one
    search: Mapping[str, Any] = field(default_factory=dict)  # what a beam would lose of exact lists
    commit: str | None = None
    finished: str = ""

    @property
    def measured(self) -> dict[str, float]:
        """``test`` with the metrics of warm and cold items beside it, as in warm_recall@10 and cold_recall@10."""
        parts = (("warm", self.warm_items), ("cold", self.cold_items))
        return {
            **self.test,
            **{f"{kind}_{name}": part[name] for kind, part in parts for name in part if "@" in name},
        }

    @property
    def protocol_id(self) -> str:
        return str(self.protocol["id"])


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seeds only: one row of the leaderboard."""

    dataset: str
    protocol: str
    model: str  # what the row is called: `name`, with the id of the settings where a protocol has several of one model
    name: str
    settings: str | None
    runs: tuple[Run, ...]


def rows(found: Iterable[Run]) -> list[Row]:
    """The runs put together by data set, protocol, model and settings, in the order in which they first come."""
    together: dict[tuple[str, str, str, str | None], list[Run]] = {}
    for run in found:
        together.setdefault((run.dataset, run.protocol_id, run.model, run.settings_id), []).append(run)
    several = Counter(key[:3] for key in together)
    made = []
    for (dataset, protocol, name, settings), runs in together.items():
        own = f" ({settings or 'settings unknown'})" if several[dataset, protocol, name] > 1 else ""
        made.append(Row(dataset, protocol, f"{name}{own}", name, settings, tuple(runs)))
    return made


def read_runs(runs: Iterable[Mapping[str, Any]]) -> tuple[list[Run], list[str]]:
    """The latest run (by `finished`) per dataset, protocol, model, settings and seed, and why others are left out.

    The order is by dataset, protocol, model, settings and seed, whatever the order of the files was.
    """
    latest: dict[tuple[str, ...], Run] = {}
    problems = []
    for number, fields in enumerate(runs, start=1):
        found = check_metrics(fields)
        if found:
            problems.append(f"run {number} ({_label(fields)}) is left out: {found}")
            continue
        run = Run(**{name: fields[name] for name in Run.__dataclass_fields__ if fields.get(name) is not None})
        key = (run.dataset, run.protocol_id, run.model, run.settings_id or "", str(run.seed))
        if key not in latest or run.finished >= latest[key].finished:
            latest[key] = run
    return [latest[key] for key in sorted(latest)], problems


def check_metrics(fields: Any) -> str | None:
    """Why `read_runs` leaves this metrics.json out; None for one that it takes."""
    if not isinstance(fields, Mapping):
        return f"it holds a {type(fields).__name__}, not an object"
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if missing:
        return f"metrics.json has no {', '.join(missing)}: written by an older version? run `evaluate` again"
    if not isinstance(fields["protocol"], Mapping) or not fields["protocol"].get("id"):
        return "its protocol has no id: run `evaluate` again"
    odd = [name for name in OBJECTS if not isinstance(fields.get(name) or {}, Mapping)]
    return f"its {odd[0]} is not an object: run `evaluate` again" if odd else None


def _label(fields: Any) -> str:
    if not isinstance(fields, Mapping):
        return "?"
    return (
        ", ".join(str(fields[name]) for name in ("dataset", "model", "seed") if fields.get(name) is not None)
        or "?"
    )


T = TypeVar("T")
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)  # of damaged files
RANKS = ("user_id", "target", "rank", "history", "cold")
RECOMMENDATIONS = ("user_id", "rank", "item_id", "probability")
CURVES = ("epoch", "step", "seconds", "loss")


class DamagedFileError(ValueError):
    """A file of a run cannot be read or lacks columns; the message names content and run."""


class RunFiles(Mapping[str, T]):
    """Files of one kind by run name, read at access. Access to a damaged file raises DamagedFileError.

    ``what`` names the content in messages. ``columns`` are required of a table. ``loaded`` entries are not read
    from disk. With ``keep`` every file is read once, without it at every access.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        read: Callable[[Path], T],
        what: str,
        *,
        columns: tuple[str, ...] = (),
        loaded: Mapping[str, T] | None = None,
        keep: bool = True,
    ) -> None:
        self._paths, self._read, self._what, self._columns, self._keep = paths, read, what, columns, keep
        self._loaded = dict(loaded or {})
        self._damaged: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._paths, *self._loaded}))

    def __len__(self) -> int:
        return len({*self._paths, *self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in self._paths or name in self._loaded

    def __getitem__(self, name: str) -> T:
        if name in self._loaded:
            return self._loaded[name]
        path = self._paths[name]
        if name not in self._damaged:
            try:
                value = self._check_columns(name, self._read(path))
            except DamagedFileError as error:
                self._damaged[name] = str(error)
            except READ_ERRORS as error:
                self._damaged[name] = f"the {self._what} of {name} cannot be read: {_one_line(error)}"
            else:
                if self._keep:
                    self._loaded[name] = value
                return value
        raise DamagedFileError(self._damaged[name])

    def _check_columns(self, name: str, value: Any) -> T:
        if missing := [column for column in self._columns if column not in value.column_names]:
            raise DamagedFileError(f"the {self._what} of {name} have no {', '.join(missing)}: run it again")
        return value

    @property
    def problems(self) -> list[str]:
        """A sentence for each damaged file that was accessed."""
        return [self._damaged[name] for name in sorted(self._damaged)]

    def readable(self) -> dict[str, T]:
        """Read all files; damaged ones are left out and named in ``problems``."""
        values = {}
        for name in self:
            try:
                values[name] = self[name]
            except DamagedFileError:
                continue
        return values

    def loads(self) -> dict[str, Callable[[], T]]:
        """A function per run that reads its entry."""
        return {name: partial(self.__getitem__, name) for name in self}


@dataclass(eq=False)
class RunStore:
    """All runs of a data set, from its folders in 08_reporting, 07_model_output, 06_models and 04_feature.

    Versioned files are read in their latest version. ``results``: metrics of this command by run name, which replace
    those on disk.
    """

    reporting: Path
    output: Path
    models: Path
    features: Path
    _: KW_ONLY
    results: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> RunFiles[Any]:
        """metrics.json of each run, which ``check_metrics`` checks."""
        paths = _latest(self.reporting, "metrics.json")
        return RunFiles(paths, read_json, "metrics", loaded=self.results)

    @cached_property
    def ranks(self) -> RunFiles[pa.Table]:
        """Ranks of the test targets, a row per target."""
        return RunFiles(_runs(self.output, "ranks.parquet"), read_table, "ranks", columns=RANKS)

    @cached_property
    def recommendations(self) -> RunFiles[pa.Table]:
        """Recommended items per test user; not kept in memory, which those of many models would fill."""
        paths = _latest(self.output, "recommendations.parquet")
        return RunFiles(paths, read_table, "recommendations", columns=RECOMMENDATIONS, keep=False)

    @cached_property
    def curves(self) -> RunFiles[pa.Table]:
        """Training curves, a row per epoch; empty for models with a closed-form fit."""
        return RunFiles(_runs(self.reporting, "curves.parquet"), read_table, "curves", columns=CURVES)

    @cached_property
    def tie_sensitivity(self) -> RunFiles[Any]:
        """Results of the pipeline ties."""
        return RunFiles(_runs(self.reporting, "tie_sensitivity.json"), read_json, "tie sensitivity")

    @cached_property
    def contexts(self) -> RunFiles[Any]:
        """Results of the pipeline context."""
        return RunFiles(_runs(self.reporting, "context.json"), read_json, "context")

    @cached_property
    def studies(self) -> RunFiles[Any]:
        """Results of the pipeline study, by run and study: ``sasrec/seed_42/studies/length``."""
        paths = self.reporting.glob("*/seed_*/studies/*_study.json")
        names = {_name(self.reporting, path).removesuffix("_study.json"): path for path in paths}
        return RunFiles(names, read_json, "study")

    @cached_property
    def bundles(self) -> RunFiles[Bundle]:
        """Trained models, on the CPU; not kept in memory."""
        folders = sorted(self.models.glob("*/seed_*/bundle/*/bundle"))  # the latest version comes last
        paths = {_name(self.models, folder.parents[2]): folder for folder in folders}
        return RunFiles(paths, read_bundle, "bundle", keep=False)

    @cached_property
    def qualities(self) -> RunFiles[Any]:
        """Quality of semantic ids by kind."""
        paths = {kind: self.reporting / "semantic_ids" / f"{kind}_ids" / "quality.json" for kind in ID_KINDS}
        return RunFiles(_existing(paths), read_json, "quality of ids")

    def id_figures(self, kind: str) -> RunFiles[Figure]:
        """Figures of semantic ids by name, ``usage`` and ``sunburst``."""
        folder = self.reporting / "semantic_ids" / f"{kind}_ids"
        paths = {path.name.removesuffix("_figure.json"): path for path in folder.glob("*_figure.json")}
        return RunFiles(paths, read_figure, f"{kind}_ids figure")

    @cached_property
    def vectors(self) -> RunFiles[Embeddings]:
        """Item vectors by modality."""
        paths = {name: self.features / f"{name}_embeddings.parquet" for name in VECTORS}
        return RunFiles(_existing(paths), read_embeddings, "vectors")

    @cached_property
    def geometry(self) -> dict[str, Any] | None:
        """Results of the pipeline geometry; None where it did not run or its file is damaged."""
        paths = _existing({"geometry": self.reporting / "geometry.json"})
        return RunFiles(paths, read_json, "geometry").readable().get("geometry")

    @property
    def problems(self) -> list[str]:
        """A sentence for each damaged file that was accessed, without bundles and figures."""
        tables = (self.ranks, self.recommendations, self.curves)
        results = (self.contexts, self.studies, self.qualities, self.vectors)
        files: tuple[RunFiles[Any], ...] = (self.metrics, self.tie_sensitivity, *tables, *results)
        return [problem for each in files for problem in each.problems]


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError for other text."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file."""
    with pq.ParquetFile(path) as file:
        return file.read()


def read_figure(path: Path) -> Figure:
    """Read a plotly figure from JSON."""
    import plotly.io

    return plotly.io.from_json(path.read_text(encoding="utf-8"))


def read_bundle(folder: Path) -> Bundle:
    """Read a trained model, on the CPU."""
    from recpipe.training.bundle import load_bundle

    return load_bundle(folder)


def read_embeddings(path: Path) -> Embeddings:
    """Read item vectors."""
    from recpipe.content.embeddings import Embeddings

    return Embeddings.read(path)


def _runs(folder: Path, file: str) -> dict[str, Path]:
    return {_name(folder, path.parent): path for path in folder.glob(f"*/seed_*/{file}") if path.is_file()}


def _latest(folder: Path, file: str) -> dict[str, Path]:
    """Kedro keeps the versions of ``file`` as ``file/<version>/file``; their names sort by time."""
    versions = sorted(folder.glob(f"*/seed_*/{file}/*/{file}"))
    return {_name(folder, path.parents[2]): path for path in versions}


def _existing(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path.is_file()}


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
