"""Dataset of all finished runs of a data set: evaluation adds to it, the report reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset

from recpipe.reporting.run_store import RunStore


class RunsDataset(AbstractDataset[dict[str, Any], RunStore]):
    """A ``RunStore`` over the folders of a data set; saves nothing to disk, where every run has its own files.

    ``save`` takes metrics of this command by run name, which later loads prefer to those on disk. Folders are written
    as ``{path: ...}`` in the catalog, where Kedro makes paths absolute.
    """

    def __init__(
        self,
        *,
        reporting: Mapping[str, str],
        output: Mapping[str, str],
        models: Mapping[str, str],
        features: Mapping[str, str],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        folders = {"reporting": reporting, "output": output, "models": models, "features": features}
        self._folders = {name: Path(folder["path"]) for name, folder in folders.items()}
        self._results: dict[str, Any] = {}
        self._store: RunStore | None = None
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {name: str(folder) for name, folder in self._folders.items()}

    def load(self) -> RunStore:
        if self._store is None:
            self._store = RunStore(**self._folders, results=dict(self._results))
        return self._store

    def save(self, data: dict[str, Any]) -> None:
        self._results |= data
        self._store = None

    def _exists(self) -> bool:
        return self._folders["reporting"].is_dir()

    def _release(self) -> None:
        self._store = None
