"""The stock JSON, text, table and figure datasets, saving whole files or nothing.

Paths, versions and kedro-viz previews stay those of kedro-datasets; only the moment of writing changes.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import VersionNotFoundError
from kedro_datasets._typing import HTMLPreview
from kedro_datasets.json import JSONDataset as StockJSON
from kedro_datasets.plotly import JSONDataset as StockFigure
from kedro_datasets.polars import EagerPolarsDataset as StockTable
from kedro_datasets.text import TextDataset as StockText

from recpipe.data.atomic import replaced_file

log = logging.getLogger(__name__)


class _Whole:
    """Goes before a stock dataset: `save` writes beside the target and renames when the file is complete."""

    _part: Path | None = None

    def save(self, data: Any) -> None:
        stock: Any = super()
        with replaced_file(Path(stock._get_save_path())) as part:
            self._part = part
            try:
                stock.save.__wrapped__(self, data)
            finally:
                self._part = None

    def _get_save_path(self) -> PurePosixPath:
        stock: Any = super()
        path: PurePosixPath = stock._get_save_path() if self._part is None else PurePosixPath(self._part)
        return path


class JSONDataset(_Whole, StockJSON):
    """Any JSON value."""


class OptionalJSONDataset(_Whole, StockJSON):
    """JSON that loads as None while there is none, for a node that runs after it but can do without.

    So does a file that holds no JSON, with a warning.
    """

    def load(self) -> Any:
        try:
            return super().load.__wrapped__(self)
        except (FileNotFoundError, VersionNotFoundError):
            return None
        except ValueError as error:
            log.warning("%s cannot be read (%s): as if it were not there", self._filepath, error)
            return None


class TextDataset(_Whole, StockText):
    """A text file, previewed in kedro-viz by its first lines."""

    def preview(self, lines: int = 60) -> HTMLPreview:
        """kedro-viz takes this for Markdown: as a block of code, indented since it reads # as a heading even there."""
        text = str(super().load.__wrapped__(self))
        return HTMLPreview("\n".join(["```", *(f" {line}" for line in text.splitlines()[:lines]), "```"]))


class TableDataset(_Whole, StockTable):
    """A polars DataFrame as Parquet or CSV (`file_format`)."""


class FigureDataset(_Whole, StockFigure):
    """A plotly figure as JSON."""
