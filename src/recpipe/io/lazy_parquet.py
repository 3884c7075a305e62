"""Ibis tables as Parquet files, which are written by streaming: complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kedro.io.core import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview

from recpipe.data.digests import verified, verify_folder


class LazyParquetDataset(AbstractDataset[Any, Any]):
    """An Ibis table, never completely in memory.

    `load_as: path` loads the path of the file; `load_as: table` an unread Ibis table on a DuckDB of its own, whose
    memory_limit, threads and spill_folder are in `engine`.
    """

    def __init__(
        self,
        *,
        filepath: str,
        load_as: Literal["path", "table"] = "path",
        engine: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if load_as not in ("path", "table"):
            raise DatasetError(f"load_as is {load_as!r} in the catalog; allowed: path, table")
        self._filepath, self._load_as, self._engine, self.metadata = Path(filepath), load_as, engine, metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "load_as": self._load_as, "engine": self._engine}

    def load(self) -> Any:
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
