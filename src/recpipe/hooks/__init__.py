"""What listens to a run: checks before it, tracking in MLflow during it, the summary after it."""

from recpipe.hooks.checks import ChecksHooks
from recpipe.hooks.summary import SummaryHooks
from recpipe.hooks.tracking import TrackingHooks

__all__ = ["ChecksHooks", "SummaryHooks", "TrackingHooks"]
