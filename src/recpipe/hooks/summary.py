"""After a run that made a report: its summary on the terminal, and where the full page lies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from recpipe.kedro_compat import file_of

SUMMARY, PAGE = "summary", "report_html"
log = logging.getLogger("recpipe.summary")  # conf/logging.yml shows it without time and level


class SummaryHooks:
    """Shows the text that the report pipeline wrote."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Only where this run wrote it: an older summary would be taken for news."""
        if SUMMARY not in pipeline.all_outputs():
            return
        log.info("%s", catalog.load(SUMMARY))
        if (page := _place(catalog, PAGE)) is not None:
            log.info("Report  %s", page)


def _place(catalog: Any, name: str) -> Path | None:
    """Where a catalog entry lies, from the folder the user stands in if that is shorter."""
    path = file_of(catalog.get(name))
    if path is None:
        return None
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
