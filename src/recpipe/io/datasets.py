"""Kedro datasets: stock ones with atomic writes, and those of the library's own objects and folders.

A file or folder is complete or absent. Heavy libraries (torch, plotly) are imported at the first load or save.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from kedro.io.core import AbstractDataset, AbstractVersionedDataset, DatasetError, Version
from kedro_datasets._typing import HTMLPreview, PlotlyPreview, TablePreview
from kedro_datasets.json import JSONDataset as StockJSON
from kedro_datasets.polars import EagerPolarsDataset as StockTable
from kedro_datasets.text import TextDataset as StockText

from recpipe.config.run_config import is_accelerated
from recpipe.data.atomic import atomic_file, atomic_folder, clean_versions, latest_version, record_version, recover
from recpipe.data.digests import MANIFEST, manifest, verified, verify_folder
from recpipe.evaluation.recommendations import TEST_LISTS
from recpipe.kedro_compat import LatestVersion, WholeFile, unwrapped

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from recpipe.evaluation.evaluate import Evaluation
    from recpipe.reporting.run_store import RunStore


Metadata = dict[str, Any] | None
INGEST_TABLES = ("interactions", "items", "users", "ingest_steps")
EVALUATE = "run `kedro run --pipelines=evaluate`"
Folder = Mapping[str, str]  # `{path: ...}` in the catalog, where Kedro makes this path absolute


class JSONDataset(WholeFile, StockJSON):
    """Any JSON value."""


class IngestManifestDataset(JSONDataset):
    """The JSON manifest of an ingest, its last output; ``save`` also writes the manifest of the folder ``tables``.

    By that, tables of two ingests are refused, such as a kill between two of them leaves.
    """

    def __init__(self, *, tables: Folder, **options: Any) -> None:
        super().__init__(**options)
        self._tables = Path(tables["path"])

    def save(self, data: Any) -> None:
        """Write the manifest of the ingest, then that of its tables."""
        unwrapped(super().save)(self, data)
        files = {path.name: path for name in INGEST_TABLES if (path := self._tables / f"{name}.parquet").is_file()}
        with atomic_file(self._tables / MANIFEST, digest=False) as part:
            part.write_text(manifest(files), encoding="utf-8")


class TextDataset(WholeFile, StockText):
    """A text file for people, without a digest; previewed in kedro-viz by its first lines."""

    has_digest = False

    def preview(self, lines: int = 60) -> HTMLPreview:
        """kedro-viz takes this for Markdown: as a block of code, indented since it reads # as a heading even there."""
        text = str(self.load())
        return HTMLPreview("\n".join(["```", *(f" {line}" for line in text.splitlines()[:lines]), "```"]))


class TableDataset(WholeFile, StockTable):
    """A polars DataFrame as Parquet or CSV (`file_format`)."""


class LazyParquetDataset(AbstractDataset[Any, Any]):
    """An Ibis table as a Parquet file that is written by streaming, never completely in memory.

    `load_as: path` loads the path of the file; `load_as: table` an unread Ibis table on a DuckDB of its own, whose
    memory_limit, threads and spill_folder are in `engine`. Raises DatasetError for another `load_as`.
    """

    def __init__(
        self,
        *,
        filepath: str,
        load_as: Literal["path", "table"] = "path",
        engine: dict[str, Any] | None = None,
        metadata: Metadata = None,
    ) -> None:
        if load_as not in ("path", "table"):
            raise DatasetError(f"load_as is {load_as!r} in the catalog; allowed: path, table")
        self._filepath, self._load_as, self._engine, self.metadata = Path(filepath), load_as, engine, metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "load_as": self._load_as, "engine": self._engine}

    def load(self) -> Any:
        """Return the path or the table; DatasetError without the file, DigestError for a damaged one."""
        if not self._exists():
            command = f"kedro run --pipelines=ingest --params dataset={self._filepath.parent.name}"
            raise DatasetError(f"{self._filepath} does not exist; `{command}` writes it")
        hint = "run `kedro run --pipelines=ingest`"
        verified(self._filepath, hint)
        verify_folder(self._filepath.parent, hint, allow_others=True)
        if self._load_as == "path":
            return self._filepath
        from recpipe.data.engines import read_parquet

        return read_parquet(self._filepath, self._engine)

    def save(self, data: Any) -> None:
        """Write an Ibis table. Raises DatasetError for anything else."""
        import ibis.expr.types as ir

        from recpipe.data.engines import write_parquet

        if not isinstance(data, ir.Table):
            raise DatasetError(f"{self._filepath} takes an Ibis table, not {type(data).__name__}")
        write_parquet(data, self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def preview(self, nrows: int = 20) -> TablePreview:
        """Read only the first rows, for kedro-viz."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._filepath) as file:
            first = next(file.iter_batches(batch_size=nrows), None)
            columns = file.schema_arrow.names
        rows = [] if first is None else [list(row.values()) for row in first.to_pylist()]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})


# Values of `holds`: classes with `write(path)` and a class method `read(path)`.
CLASSES = {
    "vocabulary": "recpipe.data.sequences.Vocabulary",
    "sequences": "recpipe.data.sequences.Sequences",
    "fold": "recpipe.data.sequences.Fold",
    "training_data": "recpipe.data.splits.TrainingData",
    "embeddings": "recpipe.content.embeddings.Embeddings",
    "semantic_ids": "recpipe.semantic_ids.ids.SemanticIds",
    "prefix_tree": "recpipe.semantic_ids.prefix_tree.PrefixTree",
}


class ObjectDataset(AbstractDataset[Any, Any]):
    """One object of the library in one file: `holds: sequences` is a `recpipe.data.sequences.Sequences`.

    Raises DatasetError for a kind of object that is not in ``CLASSES``.
    """

    def __init__(self, *, filepath: str, holds: str, metadata: Metadata = None) -> None:
        if holds not in CLASSES:
            raise DatasetError(f"holds is {holds!r} in the catalog; allowed: {', '.join(sorted(CLASSES))}")
        self._filepath, self._holds, self.metadata = Path(filepath), holds, metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "holds": self._holds}

    def _class(self) -> Any:
        module, name = CLASSES[self._holds].rsplit(".", 1)
        return getattr(import_module(module), name)

    def load(self) -> Any:
        """Read the object by the class method ``read`` of its class."""
        return self._class().read(self._filepath)

    def save(self, data: Any) -> None:
        """Write the object by its method ``write``. Raises DatasetError for an object of another class."""
        if not isinstance(data, self._class()):
            raise DatasetError(f"this entry holds {CLASSES[self._holds]}, not {type(data).__name__}")
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        data.write(self._filepath)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first rows of a Parquet or Arrow file for kedro-viz, lists as text, without vectors."""
        import polars as pl

        scan: Any = {".parquet": pl.scan_parquet, ".arrow": pl.scan_ipc}.get(self._filepath.suffix)
        if scan is None:
            return TablePreview({"index": [], "columns": [], "data": []})
        table = scan(self._filepath).head(nrows).collect()
        table = table.select(pl.exclude("vector"))
        rows = [[value if value is None else str(value)[:120] for value in row] for row in table.rows()]
        return TablePreview({"index": list(range(len(rows))), "columns": table.columns, "data": rows})

    def _exists(self) -> bool:
        return self._filepath.exists()


class BundleDataset(LatestVersion, AbstractVersionedDataset[Any, Any]):
    """A trained model as a folder of safetensors and JSON, one folder per version, complete or absent.

    `optional` loads None where there is no bundle. `accelerate` is the setting of that name. `curves` is the file of
    the training curve, if any.
    """

    def __init__(
        self,
        *,
        filepath: str,
        device: str = "cpu",
        optional: bool = False,
        accelerate: str | bool = "auto",
        curves: Folder | None = None,
        version: Version | None = None,
        metadata: Metadata = None,
    ) -> None:
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._device, self._optional, self._accelerate = device, optional, is_accelerated(accelerate)
        self._curves, self.metadata = None if curves is None else Path(curves["path"]), metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "device": self._device, "version": self._version}

    def load(self) -> Any:
        """Load the bundle on its device; None if ``optional`` and absent. Raises DatasetError without a bundle."""
        from recpipe.training.bundle import load_bundle

        folder = Path(self._filepath)
        if self._optional and latest_version(folder) is None:
            return None
        if not folder.is_dir():
            dataset, model, seed = folder.parts[-4:-1]  # of <dataset>/<model>/seed_<seed>/bundle
            params = f"dataset={dataset},model={model},seed={seed.removeprefix('seed_')}"
            command = f"kedro run --pipelines=train,evaluate --params {params}"
            raise DatasetError(f"{folder} does not exist: `{command}` trains it")
        return load_bundle(Path(self._get_load_path()), device=self._device, accelerate=self._accelerate)

    def save(self, data: Any) -> None:
        """Write the curves and the bundle as a new version, then remove the checkpoints of the training."""
        from recpipe.training.bundle import curve_table, save_bundle

        if self._curves is not None:
            import pyarrow.parquet as pq

            with atomic_file(self._curves) as part:
                pq.write_table(curve_table(data), part)
        target = Path(self._get_save_path())
        clean_versions(Path(self._filepath))
        with atomic_folder(target) as folder:
            save_bundle(data, folder)
        if self._version is not None:
            record_version(Path(self._filepath), target.parent.name)
        data.remove_checkpoints()

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_dir()


class QuantizerDataset(AbstractDataset[Any, Any]):
    """A quantizer as a folder of safetensors and JSON."""

    def __init__(self, *, filepath: str, metadata: Metadata = None) -> None:
        self._filepath, self.metadata = Path(filepath), metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def load(self) -> Any:
        """Load the quantizer."""
        from recpipe.semantic_ids.quantizer import load_quantizer

        return load_quantizer(self._filepath)

    def save(self, data: Any) -> None:
        """Write the quantizer in place of an earlier one."""
        from recpipe.semantic_ids.quantizer import save_quantizer

        with atomic_folder(self._filepath) as folder:
            save_quantizer(data, folder)

    def _exists(self) -> bool:
        recover(self._filepath)
        return self._filepath.is_dir()


OUTPUT_README = f"""\
# Lists and ranks of the test fold

{TEST_LISTS}

| file | content |
|---|---|
| test_recommendations.parquet | a folder for each evaluation, with the top-k lists of all test users |
| ranks.parquet | rank of every test target in the latest evaluation under this protocol |
| submission.csv | the lists of the latest evaluation in the layout of `evaluate.submission` |
"""


class EvaluationDataset(LatestVersion, AbstractVersionedDataset["Evaluation", dict[str, Any]]):
    """Files of an ``Evaluation``; loads its metrics.

    ``filepath`` is metrics.json, which is versioned and written last: a run is complete when it exists. ``output`` has
    a folder for each protocol id, so that evaluations of a model under several protocols stay: ranks.parquet and
    submission.csv of the latest evaluation, all versions of test_recommendations.parquet, and a README that says which
    histories the lists come from.
    """

    def __init__(
        self, *, filepath: str, output: Folder, version: Version | None = None, metadata: Metadata = None
    ) -> None:
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._output, self.metadata = Path(output["path"]), metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "output": str(self._output), "version": self._version}

    def load(self) -> dict[str, Any]:
        """Return the content of metrics.json. Raises DigestError for a damaged file."""
        return dict(json.loads(verified(Path(self._get_load_path()), EVALUATE).read_text(encoding="utf-8")))

    def save(self, data: Evaluation) -> None:
        """Write ranks, lists and the submission, then metrics.json."""
        import pyarrow.parquet as pq

        metrics, name = Path(self._get_save_path()), "test_recommendations.parquet"
        output = self._output / data.metrics["protocol"]["id"]
        recommendations = output / name / metrics.parent.name / name
        for path in (Path(self._filepath), output / name):
            clean_versions(path)
        for file, table in {output / "ranks.parquet": data.ranks, recommendations: data.recommendations}.items():
            with atomic_file(file) as part:
                pq.write_table(table, part, compression="zstd")
        for name, text in {"submission.csv": data.submission, "README.md": OUTPUT_README}.items():
            if text is None:  # one of an earlier evaluation would not fit the metrics
                (output / name).unlink(missing_ok=True)
                continue
            with atomic_file(output / name, digest=False) as part:
                part.write_text(text, encoding="utf-8")
        with atomic_file(metrics) as part:
            part.write_text(json.dumps(data.metrics, indent=4), encoding="utf-8")
        if self._version is not None:
            record_version(Path(self._filepath), metrics.parent.name)

    def preview(self) -> TablePreview:
        """The numbers of metrics.json, a row each."""
        metrics = self.load()
        numbers = [(part, *pair) for part in ("test", "valid", "cost") for pair in (metrics.get(part) or {}).items()]
        rows = [list(row) for row in numbers if isinstance(row[-1], int | float | str)]
        return TablePreview({"index": list(range(len(rows))), "columns": ["part", "name", "value"], "data": rows})

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_file()


class FiguresDataset(AbstractDataset[dict[str, "Figure"], dict[str, "Figure"]]):
    """Figures by name, each in ``<name><suffix>`` of the folder ``path``; ``preview`` is shown in kedro-viz."""

    def __init__(self, *, path: str, preview: str, suffix: str = ".json", metadata: Metadata = None) -> None:
        self._path, self._preview, self._suffix, self.metadata = Path(path), preview, suffix, metadata

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "suffix": self._suffix}

    def file(self, name: str) -> Path:
        """The file of a figure."""
        return self._path / f"{name}{self._suffix}"

    def load(self) -> dict[str, Figure]:
        """Return all figures of the folder by name. Raises DigestError for a damaged file."""
        import plotly.io

        files = sorted(self._path.glob(f"*{self._suffix}"))
        return {file.name.removesuffix(self._suffix): plotly.io.read_json(verified(file)) for file in files}

    def save(self, data: dict[str, Figure]) -> None:
        """Write each figure to its file."""
        for name, figure in data.items():
            with atomic_file(self.file(name)) as part:
                part.write_text(figure.to_json(), encoding="utf-8")

    def preview(self) -> PlotlyPreview:
        """The figure that kedro-viz shows."""
        return PlotlyPreview(json.loads(self.file(self._preview).read_text(encoding="utf-8")))

    def _exists(self) -> bool:
        return self.file(self._preview).is_file()


class RunsDataset(AbstractDataset[dict[str, Any], "RunStore"]):
    """A ``RunStore``; ``save`` takes metrics by run key, which later loads prefer to files, and writes nothing."""

    def __init__(
        self, *, reporting: Folder, output: Folder, models: Folder, features: Folder, metadata: Metadata = None
    ) -> None:
        folders = {"reporting": reporting, "output": output, "models": models, "features": features}
        self._folders = {name: Path(folder["path"]) for name, folder in folders.items()}
        self._results: dict[str, Any] = {}
        self._store: RunStore | None = None
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {name: str(folder) for name, folder in self._folders.items()}

    def load(self) -> RunStore:
        """Return the store of all runs on disk and of those saved in this process."""
        from recpipe.reporting.run_store import RunStore

        if self._store is None:
            self._store = RunStore(**self._folders, results=dict(self._results))
        return self._store

    def save(self, data: dict[str, Any]) -> None:
        """Add metrics by run key."""
        self._results |= data
        self._store = None

    def _exists(self) -> bool:
        return self._folders["reporting"].is_dir()

    def _release(self) -> None:
        self._store = None
