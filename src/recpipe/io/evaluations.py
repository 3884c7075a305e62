"""Dataset of an evaluation: ranks, recommendations, submission file and metrics of a run."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from kedro.io.core import AbstractVersionedDataset, Version
from kedro_datasets._typing import TablePreview

from recpipe.data.atomic import replaced_file

if TYPE_CHECKING:
    from recpipe.evaluation.evaluate import Evaluation

PREVIEW_BLOCKS = ("test", "valid", "cost")


class EvaluationDataset(AbstractVersionedDataset["Evaluation", dict[str, Any]]):
    """Files of an ``Evaluation``; loads its metrics.

    ``filepath`` is metrics.json, which is versioned and written last: a run is complete when it exists. The folder
    ``output`` has ranks.parquet and submission.csv of the latest evaluation, and all versions of
    recommendations.parquet. It is written as ``{path: ...}`` in the catalog, where Kedro makes paths absolute.
    """

    def __init__(
        self,
        *,
        filepath: str,
        output: dict[str, str],
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=PurePosixPath(filepath), version=version)
        self._output = Path(output["path"])
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "output": str(self._output), "version": self._version}

    def load(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(Path(self._get_load_path()).read_text(encoding="utf-8"))
        return metrics

    def save(self, data: Evaluation) -> None:
        metrics = Path(self._get_save_path())
        name = "recommendations.parquet"
        for file, table in (
            (self._output / "ranks.parquet", data.ranks),
            (self._output / name / metrics.parent.name / name, data.recommendations),
        ):
            with replaced_file(file) as part:
                pq.write_table(table, part, compression="zstd")
        with replaced_file(self._output / "submission.csv") as part:
            part.write_text(data.submission, encoding="utf-8")
        with replaced_file(metrics) as part:
            part.write_text(json.dumps(data.metrics, indent=4), encoding="utf-8")

    def preview(self) -> TablePreview:
        """The numbers of metrics.json, a row each."""
        metrics = self.load()
        rows = [
            [part, name, value]
            for part in PREVIEW_BLOCKS
            for name, value in (metrics.get(part) or {}).items()
            if isinstance(value, int | float | str)
        ]
        return TablePreview(
            {"index": list(range(len(rows))), "columns": ["part", "name", "value"], "data": rows}
        )

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_file()
