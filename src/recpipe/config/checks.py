"""ConfigError with suggestions of the nearest spelling, and construction of typed objects from conf blocks."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

log = logging.getLogger(__name__)

T = TypeVar("T")
DAYS = re.compile(r"[1-9]\d*d")  # a length of time, as 14d
FileHint = Callable[[str], str]
"""Function from a dotted path to its file, `` (conf/base/parameters/train.yml)``, or to an empty string."""


class ConfigError(ValueError):
    """Error in the configuration; the message has the key, its file and the allowed values.

    ``name`` is the wrong key or name, if the error is about one.
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


def nearest(name: object, choices: Iterable[object]) -> str:
    """Suggest the closest spelling in ``choices`` as `` (did you mean 'x'?)``; an empty string without one."""
    close = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(name: object, choices: Iterable[object], *, what: str, hint: str = "") -> None:
    """Raise ConfigError with the nearest spelling and the choices, unless ``choices`` contains ``name``."""
    names = [str(choice) for choice in choices]
    if str(name) not in names:
        message = f"unknown {what} {str(name)!r}{nearest(name, names)}; choose {', '.join(names) or 'nothing'}{hint}"
        raise ConfigError(message, str(name))


def check_choices(config: object, *, where: str = "", **allowed: Iterable[str]) -> None:
    """Raise ValueError for a setting of the dataclass ``config`` that is not among the allowed values.

    ``where``: path of the block; ``build_config`` adds it otherwise.
    """
    for name, choices in allowed.items():
        if (value := getattr(config, name)) not in choices:
            path = f"{where}.{name}" if where else name
            raise ValueError(f"{path} is {value!r}; allowed: {', '.join(choices)}")


def check_at_least(minimum: float, config: object, *names: str) -> None:
    """Raise ValueError for a setting of the dataclass ``config`` below ``minimum``; None is allowed."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < minimum:
            raise ValueError(f"{name} is {value}; it must be at least {minimum}")


def check_arguments(
    function: Callable[..., object],
    arguments: Iterable[str],
    *,
    what: str,
    internal: Iterable[str] = (),
    extra: Iterable[str] = (),
) -> None:
    """Raise ConfigError with the nearest spelling for an argument that a function, or a class, does not take.

    ``internal``: parameters that the configuration cannot set. ``extra``: further names that it can set.
    """
    names = [*extra, *(name for name in _parameters(function) if name not in internal)]
    for name in arguments:
        check_known(name, names, what=f"argument of {what}")


def _parameters(function: Callable[..., object]) -> list[str]:
    """Return names of parameters; of a class also those that its parents take as ``**options``."""
    names: dict[str, None] = {}
    constructors = [vars(cls).get("__init__") for cls in function.__mro__] if isinstance(function, type) else []
    for callable_ in filter(None, constructors or [function]):
        parameters = inspect.signature(callable_).parameters.values()
        variadic = [parameter.kind for parameter in parameters if parameter.kind.name.startswith("VAR_")]
        names |= {p.name: None for p in parameters if p.kind not in variadic and p.name != "self"}
        if inspect.Parameter.VAR_KEYWORD not in variadic:
            break
    return list(names)


def split_names(value: object) -> tuple[str, ...]:
    """Split ``"a+b"`` to ("a", "b") without repeats; ``none``, null and the empty string to ()."""
    return () if value in (None, "", "none") else tuple(dict.fromkeys(str(value).split("+")))


def build_config(cls: type[T], values: object, *, where: str, file_hint: FileHint = lambda path: "") -> T:
    """Build ``cls(**values)``, a dataclass or a pydantic model; ``where`` is the dotted path of the block.

    Raises ConfigError for the first key that is unknown, missing or of the wrong type, with its file and the allowed
    values, and for ValueError of the constructor; ``where`` precedes a message that begins with a field.
    """
    fields = field_names(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}{file_hint(where)} must be a block with {', '.join(fields)}, not {values!r}")
    for key in values:
        if key not in fields:
            path = f"{where}.{key}"
            suggestion = f"{nearest(key, fields)}; there are {', '.join(fields)}"
            raise ConfigError(f"unknown setting {path!r}{file_hint(path)}{suggestion}", key)
    if not dataclasses.is_dataclass(cls):
        from pydantic import ValidationError

        try:
            config: T = cls.model_validate_json(json.dumps(values), strict=True)  # type: ignore[attr-defined]
            return config
        except ValidationError as errors:
            raise ConfigError(_first_error(errors, where, file_hint)) from errors
    _check_types(cls, values, where, file_hint)
    try:
        return cls(**values)
    except ValueError as error:
        name = str(error).split(" ")[0]
        raise (ConfigError(f"{where}.{error}", name) if name in fields else ConfigError(str(error))) from error


def field_names(cls: type) -> list[str]:
    """Return the field names of a dataclass or a pydantic model."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(cls.model_fields)  # type: ignore[attr-defined]


def _check_types(cls: type, values: Mapping[str, Any], where: str, file_hint: FileHint) -> None:
    """Check the fields of a dataclass by pydantic; without pydantic log a warning instead."""
    if not _has_pydantic():
        return
    from pydantic import ValidationError

    for name in (name for name in field_names(cls) if name in values):
        try:
            _adapter(cls, name).validate_json(json.dumps(values[name]), strict=True)
        except ValidationError as errors:
            raise ConfigError(_first_error(errors, f"{where}.{name}", file_hint), name) from errors
        except TypeError:  # not JSON, so it comes from code and not from a file
            continue


@cache
def _adapter(cls: type, name: str) -> TypeAdapter[Any]:
    from typing import get_type_hints

    from pydantic import TypeAdapter

    return TypeAdapter(get_type_hints(cls, include_extras=True)[name])


@cache
def _has_pydantic() -> bool:
    is_installed = find_spec("pydantic") is not None
    if not is_installed:
        log.warning("pydantic is not installed: types of settings are not checked before they are used")
    return is_installed


def _first_error(errors: ValidationError, where: str, file_hint: FileHint) -> str:
    error = errors.errors()[0]
    path = ".".join(str(part) for part in (where, *error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown setting {path!r}{file_hint(path)}; {where} has no such key"
    if error["type"] == "missing":
        return f"{path} is missing{file_hint(where)}"
    message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{path}{file_hint(path)} cannot be {error['input']!r}: {message}"
