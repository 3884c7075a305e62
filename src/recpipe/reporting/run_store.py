"""Store of the finished runs of a data set on disk, read at their first use; damaged files are left out and reported.

A run is called ``<model>/seed_<seed>``. Files are where conf/base/catalog puts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
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
        """metrics.json of each run, which ``runs.problem`` checks."""
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
