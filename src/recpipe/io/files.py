"""The stock JSON, text and table datasets, saving whole files or nothing.

Paths, versions and kedro-viz previews stay those of kedro-datasets; only the moment of writing changes.
"""

from __future__ import annotations

import logging
from typing import Any

from kedro.io.core import VersionNotFoundError
from kedro_datasets._typing import HTMLPreview
from kedro_datasets.json import JSONDataset as StockJSON
from kedro_datasets.polars import EagerPolarsDataset as StockTable
from kedro_datasets.text import TextDataset as StockText

from recpipe.kedro_compat import WholeFile, file_of, unwrapped

log = logging.getLogger(__name__)


class JSONDataset(WholeFile, StockJSON):
    """Any JSON value."""


class OptionalJSONDataset(WholeFile, StockJSON):
    """JSON that loads as None while there is none, for a node that runs after it but can do without.

    So does a file that holds no JSON, with a warning.
    """

    def load(self) -> Any:
        try:
            return unwrapped(super().load)(self)
        except (FileNotFoundError, VersionNotFoundError):
            return None
        except ValueError as error:
            log.warning("%s cannot be read (%s): as if it were not there", file_of(self), error)
            return None


class TextDataset(WholeFile, StockText):
    """A text file, previewed in kedro-viz by its first lines."""

    def preview(self, lines: int = 60) -> HTMLPreview:
        """kedro-viz takes this for Markdown: as a block of code, indented since it reads # as a heading even there."""
        text = str(unwrapped(super().load)(self))
        return HTMLPreview("\n".join(["```", *(f" {line}" for line in text.splitlines()[:lines]), "```"]))


class TableDataset(WholeFile, StockTable):
    """A polars DataFrame as Parquet or CSV (`file_format`)."""
