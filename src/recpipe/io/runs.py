"""Every run of a data set that is on disk, whatever this run of Kedro was about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro_datasets.partitions import PartitionedDataset


class RunsDataset(PartitionedDataset):
    """Kedro's partitions, `{"sasrec/seed_42": load}`, but empty where there is nothing, and read only.

    It gives the node that reads it no edge to those that write the partitions: it needs another one.
    """

    def load(self) -> dict[str, Callable[[], Any]]:
        if not Path(self._path).is_dir():
            return {}
        self._invalidate_caches()
        if not self._list_partitions():
            return {}
        partitions: dict[str, Callable[[], Any]] = super().load.__wrapped__(self)
        return partitions

    def save(self, data: dict[str, Any]) -> None:
        raise TypeError("runs are written one by one, by the entries of their models")
