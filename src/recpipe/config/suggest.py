"""ConfigError, suggestions of the nearest spelling, and lists of names written ``a+b``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

VARIABLE = inspect.Parameter.VAR_KEYWORD


class ConfigError(ValueError):
    """Error in the configuration; the message has the key, its file and the allowed values.

    ``name`` is the key or name that the error is about, where it is about one.
    """

    name: str | None = None


def nearest(name: Any, choices: Iterable[Any]) -> str:
    """Suggest the closest spelling in ``choices`` as `` (did you mean 'x'?)``; an empty string without one."""
    close = difflib.get_close_matches(str(name), [str(each) for each in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(name: Any, choices: Iterable[Any], *, what: str, also: str = "") -> None:
    """Raise ConfigError with the nearest spelling and the choice, unless ``choices`` contains ``name``."""
    choices = [str(each) for each in choices]
    if str(name) not in choices:
        error = ConfigError(
            f"unknown {what} {str(name)!r}{nearest(name, choices)}; choose {', '.join(choices) or 'nothing'}{also}"
        )
        error.name = str(name)
        raise error


def check_arguments(
    function: Callable[..., Any],
    arguments: Iterable[str],
    *,
    what: str,
    internal: Iterable[str] = (),
    added: Iterable[str] = (),
) -> None:
    """Raise ConfigError with the nearest spelling for an argument that ``function``, or a class, does not take.

    ``internal``: parameters that the configuration cannot set. ``added``: further names that it can set.
    """
    names = [*added, *(name for name in _parameters(function) if name not in internal)]
    for name in arguments:
        check_known(name, names, what=f"argument of {what}")


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Names of parameters; of a class also those that its parents take as ``**options``."""
    functions = (
        [vars(cls).get("__init__") for cls in function.__mro__] if isinstance(function, type) else [function]
    )
    names: dict[str, None] = {}
    for each in filter(None, functions):
        parameters = inspect.signature(each).parameters.values()
        kinds = [parameter.kind for parameter in parameters]
        names |= dict.fromkeys(
            parameter.name
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_POSITIONAL, VARIABLE)
        )
        if VARIABLE not in kinds:
            break
    names.pop("self", None)
    return list(names)


def split_names(value: Any) -> tuple[str, ...]:
    """Split ``"a+b"`` to ("a", "b") without repeats; ``none``, null and the empty string to ()."""
    return () if value in (None, "", "none") else tuple(dict.fromkeys(str(value).split("+")))
