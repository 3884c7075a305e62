"""Datasets of objects that the library reads and writes itself: sequences, folds, ids, bundles, quantizers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractDataset, AbstractVersionedDataset, DatasetError, Version
from kedro_datasets._typing import TablePreview

from recpipe.data.atomic import replaced_file, replaced_folder

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
    """One object of the library in one file: `holds: sequences` is a `recpipe.data.sequences.Sequences`."""

    def __init__(self, *, filepath: str, holds: str, metadata: dict[str, Any] | None = None) -> None:
        if holds not in CLASSES:
            raise DatasetError(f"holds is {holds!r} in the catalog; allowed: {', '.join(sorted(CLASSES))}")
        self._filepath = Path(filepath)
        self._holds = holds
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "holds": self._holds}

    def _class(self) -> Any:
        module, name = CLASSES[self._holds].rsplit(".", 1)
        return getattr(import_module(module), name)

    def load(self) -> Any:
        return self._class().read(self._filepath)

    def save(self, data: Any) -> None:
        if not isinstance(data, self._class()):
            raise DatasetError(f"this entry holds {CLASSES[self._holds]}, not {type(data).__name__}")
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        data.write(self._filepath)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first rows of a Parquet file for kedro-viz, lists as text, without vectors."""
        import polars as pl

        if self._filepath.suffix != ".parquet":
            return TablePreview({"index": [], "columns": [], "data": []})
        table = pl.scan_parquet(self._filepath).head(nrows).collect()
        columns = [name for name in table.columns if name != "vector"]
        rows = [
            [value if value is None else str(value)[:120] for value in row]
            for row in table.select(columns).rows()
        ]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _exists(self) -> bool:
        return self._filepath.exists()


class BundleDataset(AbstractVersionedDataset[Any, Any]):
    """A trained model as a folder of safetensors and JSON, one folder per version, complete or absent.

    `optional` loads None where there is no bundle. `curves` is the file of the training curve, written as `{path: ...}`
    in the catalog, where Kedro makes paths absolute; without it the curve is not saved.
    """

    def __init__(
        self,
        *,
        filepath: str,
        device: str = "cpu",
        optional: bool = False,
        curves: dict[str, str] | None = None,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._device, self._optional = device, optional
        self._curves = None if curves is None else Path(curves["path"])
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "device": self._device, "version": self._version}

    def load(self) -> Any:
        from recpipe.training.bundle import load_bundle

        folder = Path(self._filepath)
        if not folder.is_dir():
            if self._optional:
                return None
            raise DatasetError(f"{folder} does not exist: {_training_command(folder)}")
        return load_bundle(Path(self._get_load_path()), device=self._device)

    def save(self, data: Any) -> None:
        from recpipe.training.bundle import curve_table, save_bundle

        if self._curves is not None:
            import pyarrow.parquet as pq

            with replaced_file(self._curves) as part:
                pq.write_table(curve_table(data), part)
        with replaced_folder(Path(self._get_save_path())) as folder:
            save_bundle(data, folder)

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_dir()


def _training_command(folder: Path) -> str:
    """The command that trains the bundle ``<dataset>/<model>/seed_<seed>/bundle``, as advice."""
    dataset, model, seed = folder.parts[-4:-1]
    params = f"dataset={dataset},model={model},seed={seed.removeprefix('seed_')}"
    return f"`kedro run --pipelines=train,evaluate --params {params}` trains it"


class QuantizerDataset(AbstractDataset[Any, Any]):
    """A quantizer as a folder of safetensors and JSON."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def load(self) -> Any:
        from recpipe.semantic_ids.quantizer import load

        return load(self._filepath)

    def save(self, data: Any) -> None:
        from recpipe.semantic_ids.quantizer import save

        with replaced_folder(self._filepath) as folder:
            save(data, folder)

    def _exists(self) -> bool:
        return self._filepath.is_dir()
