"""Kedro dataset of a tuned model: a conf file that later commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset

from recpipe.config import read_yaml


class TunedModelDataset(AbstractDataset[Any, Any]):
    """``models/<model>_tuned.yml`` of an environment: saves a TunedModel, loads plain values."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath, self.metadata = Path(filepath), metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def check(self) -> None:
        """Raise ConfigError for a file that people wrote."""
        from recpipe.training.tuning.conf_file import check_writable

        check_writable(self._filepath)

    def load(self) -> Any:
        """Return the content of the conf file."""
        return read_yaml(self._filepath.read_text(encoding="utf-8"))

    def save(self, data: Any) -> None:
        """Write the conf file. Raises ConfigError for a file that people wrote."""
        from recpipe.training.tuning.conf_file import write

        write(self._filepath, data)

    def _exists(self) -> bool:
        return self._filepath.is_file()
