"""Every finished run of a data set on disk, as one Kedro dataset that evaluation writes to and the report reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset

from recpipe.reporting.run_store import RunStore


class RunsDataset(AbstractDataset[dict[str, Any], RunStore]):
    """Loads a ``RunStore``, the same one until something is saved or Kedro releases it.

    Saves metrics by run name, of the runs of this command: later loads have them before what is on disk. Nothing is
    written, since every run has its own files. Each folder is given as ``{path: ...}``, which Kedro makes absolute.
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
