"""The configuration: files read once, one order of precedence, typed blocks, errors that name key and file."""

from recpipe.config.files import parse_overrides, read_parameters, read_yaml
from recpipe.config.paths import DataPaths
from recpipe.config.resolve import (
    COLLABORATIVE,
    ID_KINDS,
    VECTORS,
    Configuration,
    ModelInfo,
    RunConfig,
    resolve,
)
from recpipe.config.suggest import ConfigError, check_known, nearest, split_names
from recpipe.config.typed import build_config

__all__ = [
    "COLLABORATIVE",
    "ID_KINDS",
    "VECTORS",
    "ConfigError",
    "Configuration",
    "DataPaths",
    "ModelInfo",
    "RunConfig",
    "build_config",
    "check_known",
    "nearest",
    "parse_overrides",
    "read_parameters",
    "read_yaml",
    "resolve",
    "split_names",
]
