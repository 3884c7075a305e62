"""Kedro's project settings: config loader, session and hooks.

https://docs.kedro.org/en/stable/configure/configuration_basics/ lists what may stand here.
"""

from recpipe.hooks import ChecksHooks, ConsoleHooks, SummaryHooks, TrackingHooks
from recpipe.session import RecpipeConfigLoader, RecpipeSession

SESSION_CLASS = RecpipeSession

# Kedro calls the last one first. So checks come before tracking; at the end the console's line comes before the summary
# and the summary before the address in MLflow.
HOOKS = (TrackingHooks(), SummaryHooks(), ChecksHooks(), ConsoleHooks())

# kedro-viz records runs only where no tags were given, and logs a warning otherwise.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-viz",)

CONFIG_LOADER_CLASS = RecpipeConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"]},
    # Without "soft", one key in conf/local wipes its whole block.
    "merge_strategy": {"mlflow": "soft"},
}
