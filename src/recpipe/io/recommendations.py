"""Kedro dataset of batch lists: a folder per version, complete or absent."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractVersionedDataset, Version
from kedro_datasets._typing import TablePreview

from recpipe.data.atomic import atomic_folder
from recpipe.data.digests import verify_folder, write_manifest

log = logging.getLogger(__name__)

HINT = "run `kedro run --pipelines=recommend`"


class RecommendationsDataset(AbstractVersionedDataset[Any, Any]):
    """Lists of many users: ``<folder>/<version>/recommendations.parquet``, with submission.csv and summary.json.

    Saves objects with ``write(folder)``, which compute the lists while they write; loads the path of the Parquet file.
    """

    def __init__(
        self, *, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=PurePosixPath(filepath), version=version, exists_function=_exists)
        self.metadata = metadata

    def _get_versioned_path(self, version: str) -> PurePosixPath:
        return self._filepath.parent / version / self._filepath.name

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}

    def save(self, data: Any) -> None:
        """Write a version."""
        target = Path(self._get_save_path()).parent
        with atomic_folder(target) as folder:
            data.write(folder)
            write_manifest(folder)
        log.info("lists are in %s", target)

    def load(self) -> Path:
        """Return the path of the lists of the latest version."""
        path = Path(self._get_load_path())
        verify_folder(path.parent, HINT)
        return path

    def preview(self, nrows: int = 20) -> TablePreview:
        """Read only the first rows, for kedro-viz."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(Path(self._get_load_path())) as file:
            first = next(file.iter_batches(batch_size=nrows), None)
            columns = file.schema_arrow.names
        rows = [] if first is None else [[str(value) for value in row.values()] for row in first.to_pylist()]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_file()


def _exists(path: str) -> bool:
    return Path(path).exists()
