"""Every trained model of a data set that is on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset


class BundlesDataset(AbstractDataset[None, dict[str, Callable[[], Any]]]):
    """The latest bundle of every model and seed, `{"sasrec/seed_42": load}`; empty where there is nothing.

    Read only. It gives the node that reads it no edge to those that write bundles: it needs another one.
    """

    def __init__(self, *, path: str, device: str = "cpu", metadata: dict[str, Any] | None = None) -> None:
        self._path, self._device = Path(path), device
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "device": self._device}

    def load(self) -> dict[str, Callable[[], Any]]:
        from recpipe.training.bundle import load_bundle

        versions = sorted(self._path.glob("*/seed_*/bundle/*/bundle"))  # a later version comes later
        latest = {"/".join(folder.relative_to(self._path).parts[:2]): folder for folder in versions}
        return {name: partial(load_bundle, folder, device=self._device) for name, folder in latest.items()}

    def save(self, data: None) -> None:
        raise TypeError("bundles are written one by one, by the entries of their models")

    def _exists(self) -> bool:
        return self._path.is_dir()
