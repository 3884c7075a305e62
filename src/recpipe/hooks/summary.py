"""Summary of the report on the terminal after a run, and the path of its HTML page."""

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
    """Hook that shows the summary which the report pipeline wrote."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log the summary, if this run wrote it."""
        if SUMMARY not in pipeline.all_outputs():
            return
        log.info("%s", catalog.load(SUMMARY))
        if (page := _file(catalog, PAGE)) is not None:
            log.info("Report  %s", page)


def _file(catalog: Any, name: str) -> Path | None:
    """The file of a catalog entry, relative to the working directory where it is inside."""
    path = file_of(catalog.get(name))
    if path is None:
        return None
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
