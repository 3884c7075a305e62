"""JSON, text and table datasets of kedro-datasets with atomic writes: a file is complete or absent.

Paths, versions and previews are those of kedro-datasets.
"""

from __future__ import annotations

import logging

from kedro_datasets._typing import HTMLPreview
from kedro_datasets.json import JSONDataset as StockJSON
from kedro_datasets.polars import EagerPolarsDataset as StockTable
from kedro_datasets.text import TextDataset as StockText

from recpipe.kedro_compat import WholeFile, unwrapped

log = logging.getLogger(__name__)


class JSONDataset(WholeFile, StockJSON):
    """Any JSON value."""


class TextDataset(WholeFile, StockText):
    """A text file, previewed in kedro-viz by its first lines."""

    def preview(self, lines: int = 60) -> HTMLPreview:
        """kedro-viz takes this for Markdown: as a block of code, indented since it reads # as a heading even there."""
        text = str(unwrapped(super().load)(self))
        return HTMLPreview("\n".join(["```", *(f" {line}" for line in text.splitlines()[:lines]), "```"]))


class TableDataset(WholeFile, StockTable):
    """A polars DataFrame as Parquet or CSV (`file_format`)."""
