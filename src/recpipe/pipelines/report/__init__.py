"""From all runs of a data set on disk to a leaderboard, figures, one HTML page and a summary."""

from recpipe.pipelines.report.pipeline import create_pipeline

__all__ = ["create_pipeline"]
