"""Modules that are chosen by name: those of a package of recpipe, and those that installed packages declare.

A package declares a module as an entry point whose group is the name of our package: `recpipe.models`,
`recpipe.training.losses` or `recpipe.data.readers`. Nothing else is ever imported by a name that stands in a
configuration file or a bundle, so that neither can run code that was not installed for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from recpipe.config.checks import ConfigError


@cache
def declared_modules(group: str) -> dict[str, str]:
    """Return the modules that installed packages declare as entry points of a group, by name.

    Raises ConfigError for a name that packages declare for different modules.
    """
    modules: dict[str, str] = {}
    for point in entry_points(group=group):
        if modules.setdefault(point.name, point.value) != point.value:
            raise ConfigError(
                f"installed packages declare {point.name!r} of {group} twice, as {modules[point.name]} and as "
                f"{point.value}: uninstall one of them",
                point.name,
            )
    return modules


def module_names(package: str) -> set[str]:
    """Return the names of the modules of a package of recpipe, and of those declared for it."""
    return _own_modules(package) | set(declared_modules(package))


def import_by_name(package: str, name: str) -> ModuleType:
    """Import a module of ``module_names``; one of the package itself precedes a declared one of the same name.

    Raises ImportError for a declared module that cannot be imported.
    """
    own = name in _own_modules(package)
    return importlib.import_module(f"{package}.{name}" if own else declared_modules(package)[name])


def _own_modules(package: str) -> set[str]:
    return {module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)}
