"""Kedro's project settings: how configuration is read, which session runs, which hooks listen.

https://docs.kedro.org/en/stable/configure/configuration_basics/ lists what may stand here.
"""

from recpipe.hooks import ChecksHooks, ConsoleHooks, SummaryHooks, TrackingHooks
from recpipe.session import RecpipeConfigLoader, RecpipeSession

SESSION_CLASS = RecpipeSession

# Kedro calls the last one first: checks come before tracking, the summary before where it was tracked, and the line
# on the whole run before both.
HOOKS = (TrackingHooks(), SummaryHooks(), ChecksHooks(), ConsoleHooks())

# kedro-viz draws what a run did only where no tags were given, and warns of it otherwise.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-viz",)

CONFIG_LOADER_CLASS = RecpipeConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"]},
    # Without "soft", one key in conf/local wipes its whole block.
    "merge_strategy": {"mlflow": "soft"},
}
