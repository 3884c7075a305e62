"""What listens to a run: the console and checks before and during it, tracking in MLflow, the summary after it."""

from recpipe.hooks.checks import ChecksHooks
from recpipe.hooks.console import ConsoleHooks
from recpipe.hooks.summary import SummaryHooks
from recpipe.hooks.tracking import TrackingHooks

__all__ = ["ChecksHooks", "ConsoleHooks", "SummaryHooks", "TrackingHooks"]
