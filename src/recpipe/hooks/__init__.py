"""Kedro hooks: checks before a run, lines on the console, tracking in MLflow, the summary at the end."""

from recpipe.hooks.checks import ChecksHooks
from recpipe.hooks.console import ConsoleHooks, SummaryHooks
from recpipe.hooks.tracking import TrackingHooks

__all__ = ["ChecksHooks", "ConsoleHooks", "SummaryHooks", "TrackingHooks"]
