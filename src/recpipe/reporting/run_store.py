"""Files of the finished runs of a data set on disk, see conf/base/catalog.

Files of a training, such as bundle and curve, are by name ``<model>/seed_<n>``. Those of an evaluation, metrics, ranks
and lists, are by key ``<model>/seed_<n>/<protocol id>``, as a training may be evaluated under several protocols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.config import ID_KINDS, VECTORS
from recpipe.data.atomic import latest_version, versions_newest_first
from recpipe.data.digests import verified
from recpipe.reporting.runs import check_metrics, run_key

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
    """A file of a run cannot be read or lacks columns; the message names kind and run."""


class RunFiles(Mapping[str, T]):
    """Files of one kind by name or key of a run, read at access. Access to a damaged file raises DamagedFileError.

    ``kind`` names the content in messages. ``columns`` are required of a table. ``values`` replace files on disk. With
    ``cache`` a file is read once, otherwise at each access.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        read: Callable[[Path], T],
        kind: str,
        *,
        columns: tuple[str, ...] = (),
        values: Mapping[str, T] | None = None,
        cache: bool = True,
    ) -> None:
        self._paths, self._read, self._kind, self._columns, self._cache = paths, read, kind, columns, cache
        self._values = dict(values or {})
        self._errors: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._paths, *self._values}))

    def __len__(self) -> int:
        return len({*self._paths, *self._values})

    def __contains__(self, name: object) -> bool:
        return name in self._paths or name in self._values

    def __getitem__(self, name: str) -> T:
        if name in self._values:
            return self._values[name]
        path = self._paths[name]
        if name not in self._errors:
            try:
                value: Any = self._read(path)
                missing = [column for column in self._columns if column not in value.column_names]
            except READ_ERRORS as error:
                reason = " ".join(str(error).split())[:500] or type(error).__name__
                self._errors[name] = f"the {self._kind} of {name} cannot be read: {reason}"
            else:
                if not missing:
                    if self._cache:
                        self._values[name] = value
                    return value
                self._errors[name] = f"the {self._kind} of {name} have no {', '.join(missing)}: run it again"
        raise DamagedFileError(self._errors[name])

    @property
    def problems(self) -> list[str]:
        """Messages of damaged files accessed so far."""
        return [self._errors[name] for name in sorted(self._errors)]

    def readable(self) -> dict[str, T]:
        """Read all files; damaged ones are left out and named in ``problems``."""
        values = {}
        for name in self:
            with suppress(DamagedFileError):
                values[name] = self[name]
        return values

    def loaders(self) -> dict[str, Callable[[], T]]:
        """Functions by run name that read its file."""
        return {name: partial(self.__getitem__, name) for name in self}


@dataclass(eq=False)
class RunStore:
    """All runs of a data set, from its folders in 08_reporting, 07_model_output, 06_models and 04_feature."""

    reporting: Path
    output: Path
    models: Path
    features: Path
    _: KW_ONLY
    results: Mapping[str, Any] = field(default_factory=dict)  # metrics of this command by key, over those on disk

    @cached_property
    def metrics(self) -> RunFiles[Any]:
        """Newest metrics.json of each run and protocol, unchecked (see ``check_metrics``); by run if unreadable."""
        paths = {key: path for files in self._evaluations.values() for key, path in files.items()}
        return RunFiles(paths, read_json, "metrics", values=self.results)

    @cached_property
    def ranks(self) -> RunFiles[pa.Table]:
        """Ranks of the test targets, a row per target."""
        return RunFiles(self._outputs("ranks.parquet", _file), read_table, "ranks", columns=RANKS)

    @cached_property
    def recommendations(self) -> RunFiles[pa.Table]:
        """Recommended items per test user; not cached, as many models would fill the memory."""
        names = ("recommendations.parquet", "test_recommendations.parquet")  # version 0.1 wrote the first
        paths = {key: path for name in names for key, path in self._outputs(name, latest_version).items()}
        for run, files in self._evaluations.items():
            for key, metrics in files.items():  # lists of the same evaluation
                for folder, name in ((run, names[0]), (run, names[1]), (key, names[1])):
                    if (file := self.output / folder / name / metrics.parent.name / name).is_file():
                        paths[key] = file
        return RunFiles(paths, read_table, "recommendations", columns=RECOMMENDATIONS, cache=False)

    def evaluations(self, run: str) -> dict[str, Any]:
        """Return the usable metrics of the run ``<model>/seed_<n>`` by protocol id, the newest first."""
        metrics = [self.metrics[key] for key in self.metrics if key.startswith(f"{run}/")]
        usable = [values for values in metrics if check_metrics(values) is None]
        usable.sort(key=lambda values: str(values.get("finished", "")), reverse=True)
        return {values["protocol"]["id"]: values for values in usable}

    @cached_property
    def _evaluations(self) -> dict[str, dict[str, Path]]:
        """The newest metrics.json of each protocol by key, by run; newest first."""
        evaluations: dict[str, dict[str, Path]] = {}
        for folder in sorted(self.reporting.glob("*/seed_*/metrics.json")):
            run = _name(self.reporting, folder.parent)
            for file in versions_newest_first(folder):
                try:
                    key = run_key(run, read_json(file))
                except READ_ERRORS:
                    key = run  # an access has the message
                evaluations.setdefault(run, {}).setdefault(key, file)
        return evaluations

    def _outputs(self, name: str, find: Callable[[Path], Path | None]) -> dict[str, Path]:
        """Return files of evaluations by key. Those of older versions lie in the folder of the run.

        There they belong to the newest evaluation that has none of its own, or to the run alone without metrics.
        """
        folders = self.output.glob(f"*/seed_*/*/{name}") if name.startswith(("ranks", "test_")) else ()
        files = {_name(self.output, path.parent): find(path) for path in folders}
        paths = {key: path for key, path in files.items() if path is not None}
        for old in self.output.glob(f"*/seed_*/{name}"):
            run = _name(self.output, old.parent)
            key = next((key for key in self._evaluations.get(run, {run: old}) if key not in paths), None)
            if key is not None and (file := find(old)) is not None:
                paths[key] = file
        return paths

    @cached_property
    def curves(self) -> RunFiles[pa.Table]:
        """Training curves, a row per epoch; empty for closed-form models."""
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
    def tunings(self) -> RunFiles[Any]:
        """Results of the pipeline tune."""
        return RunFiles(_runs(self.reporting, "tuning.json"), read_json, "tuning")

    @cached_property
    def bundles(self) -> RunFiles[Bundle]:
        """Trained models, on the CPU; not cached."""
        from recpipe.training.bundle import load_bundle

        return RunFiles(_latest(self.models, "bundle"), load_bundle, "bundle", cache=False)

    @cached_property
    def qualities(self) -> RunFiles[Any]:
        """Quality of semantic ids by kind."""
        paths = {kind: self.reporting / "semantic_ids" / f"{kind}_ids" / "quality.json" for kind in ID_KINDS}
        return RunFiles(_existing(paths), read_json, "quality of ids")

    def id_figures(self, kind: str) -> RunFiles[Figure]:
        """Figures of semantic ids by name, ``usage`` and ``sunburst``."""
        from plotly.io import from_json

        folder = self.reporting / "semantic_ids" / f"{kind}_ids"
        paths = {path.name.removesuffix("_figure.json"): path for path in folder.glob("*_figure.json")}
        return RunFiles(paths, lambda path: from_json(verified(path).read_text(encoding="utf-8")), f"{kind}_ids figure")

    @cached_property
    def vectors(self) -> RunFiles[Embeddings]:
        """Item vectors by modality."""
        from recpipe.content.embeddings import Embeddings

        paths = {name: self.features / f"{name}_embeddings.parquet" for name in VECTORS}
        return RunFiles(_existing(paths), Embeddings.read, "vectors")

    @cached_property
    def geometry(self) -> dict[str, Any] | None:
        """Results of the pipeline geometry; None where it did not run or its file is damaged."""
        paths = _existing({"geometry": self.reporting / "geometry.json"})
        return RunFiles(paths, read_json, "geometry").readable().get("geometry")

    @property
    def problems(self) -> list[str]:
        """Messages of damaged files accessed so far, without bundles and figures."""
        kinds = (
            "metrics",
            "tie_sensitivity",
            "ranks",
            "recommendations",
            "curves",
            "contexts",
            "studies",
            "tunings",
            "qualities",
        )
        return [problem for kind in (*kinds, "vectors") for problem in getattr(self, kind).problems]


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError for other text."""
    return json.loads(verified(path).read_text(encoding="utf-8"))


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file."""
    with pq.ParquetFile(verified(path)) as file:
        return file.read()


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _runs(folder: Path, file: str) -> dict[str, Path]:
    return {_name(folder, path.parent): path for path in folder.glob(f"*/seed_*/{file}") if path.is_file()}


def _latest(folder: Path, file: str) -> dict[str, Path]:
    """Latest versions by run: Kedro writes ``file/<version>/file``."""
    versions = {_name(folder, path.parent): latest_version(path) for path in folder.glob(f"*/seed_*/{file}")}
    return {run: path for run, path in versions.items() if path is not None}


def _existing(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path.is_file()}


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
