"""Pipeline report: leaderboard, figures, HTML page and summary of all runs of a data set."""

from recpipe.pipelines.report.pipeline import create_pipeline

__all__ = ["create_pipeline"]
