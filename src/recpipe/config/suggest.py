"""Error type of the configuration, nearest spellings, and lists of names written ``a+b``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, where it stands and what is allowed."""


def nearest(name: Any, known: Iterable[Any]) -> str:
    """`` (did you mean 'x'?)`` for the closest spelling in ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(each) for each in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(name: Any, known: Iterable[Any], *, what: str, also: str = "") -> None:
    """Raises ConfigError with the nearest spelling and the whole choice unless ``known`` has ``name``."""
    known = [str(each) for each in known]
    if str(name) not in known:
        raise ConfigError(
            f"unknown {what} {str(name)!r}{nearest(name, known)}; choose {', '.join(known) or 'nothing'}{also}"
        )


def split_names(value: Any) -> tuple[str, ...]:
    """``"a+b"`` as ("a", "b") without repeats; ``none``, null and the empty string as ()."""
    return () if value in (None, "", "none") else tuple(dict.fromkeys(str(value).split("+")))
