"""Configuration: parameter files merged in one order of precedence, typed blocks, errors with key and file."""

from recpipe.config.checks import (
    DAYS,
    ConfigError,
    build_config,
    check_arguments,
    check_at_least,
    check_choices,
    check_known,
    nearest,
    split_names,
)
from recpipe.config.files import parse_overrides, read_parameters, read_yaml
from recpipe.config.resolve import Configuration, resolve
from recpipe.config.run_config import COLLABORATIVE, ID_KINDS, VECTORS, DataPaths, ModelInfo, RunConfig

__all__ = [
    "COLLABORATIVE", "DAYS", "ID_KINDS", "VECTORS", "ConfigError", "Configuration", "DataPaths", "ModelInfo",
    "RunConfig", "build_config", "check_arguments", "check_at_least", "check_choices", "check_known", "nearest",
    "parse_overrides", "read_parameters", "read_yaml", "resolve", "split_names",
]  # fmt: skip
