"""ConfigError, suggestions of the nearest spelling, and lists of names written ``a+b``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """Error in the configuration; the message has the key, its file and the allowed values."""


def nearest(name: Any, choices: Iterable[Any]) -> str:
    """Suggest the closest spelling in ``choices`` as `` (did you mean 'x'?)``; an empty string without one."""
    close = difflib.get_close_matches(str(name), [str(each) for each in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(name: Any, choices: Iterable[Any], *, what: str, also: str = "") -> None:
    """Raise ConfigError with the nearest spelling and the choice, unless ``choices`` contains ``name``."""
    choices = [str(each) for each in choices]
    if str(name) not in choices:
        raise ConfigError(
            f"unknown {what} {str(name)!r}{nearest(name, choices)}; choose {', '.join(choices) or 'nothing'}{also}"
        )


def split_names(value: Any) -> tuple[str, ...]:
    """Split ``"a+b"`` to ("a", "b") without repeats; ``none``, null and the empty string to ()."""
    return () if value in (None, "", "none") else tuple(dict.fromkeys(str(value).split("+")))
