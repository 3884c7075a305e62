"""Fields of settings classes in words: type, default and meaning, for the reference."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

NO_DEFAULT = ""
FIELD = re.compile(r"``([a-z_]\w*)(?:: [^`]*)?``")
ENTRY = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (.*)$")  # `name: meaning`, or `a, b: meaning`
SENTENCE = re.compile(r"(?<=[.:])\s+(?=``)|(?<=\.)\s+(?=[A-Z`])")


def fields(cls: Any) -> dict[str, tuple[str, str]]:
    """Return type and default in words of the fields of a dataclass or a pydantic model, or of a function's arguments.

    Of a class with another constructor also the arguments that its parents take as ``**options``.
    """
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            field.name: (words(hints[field.name]), _default(field.default, field.default_factory))
            for field in dataclasses.fields(cls)
            if field.init
        }
    if hasattr(cls, "model_fields"):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            name: (words(hints[name]), NO_DEFAULT if field.is_required() else f"`{show(field.default)}`")
            for name, field in cls.model_fields.items()
        }
    functions = [cls]
    if inspect.isclass(cls):
        functions = [vars(parent)["__init__"] for parent in cls.__mro__ if "__init__" in vars(parent)]
    result: dict[str, tuple[str, str]] = {}
    for function in functions:
        parameters, hints = inspect.signature(function).parameters.values(), _hints(function)
        for parameter in parameters:
            if not parameter.kind.name.startswith("VAR_") and parameter.name != "self":
                default = NO_DEFAULT if parameter.default is parameter.empty else f"`{show(parameter.default)}`"
                result.setdefault(parameter.name, (words(hints.get(parameter.name, Any)), default))
        if not any(parameter.kind.name == "VAR_KEYWORD" for parameter in parameters):
            break
    return result


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:  # a type that is imported for type checkers only
        return {}


def _default(value: Any, factory: Any) -> str:
    if value is not dataclasses.MISSING:
        return f"`{show(value)}`"
    return NO_DEFAULT if factory is dataclasses.MISSING else f"`{show(factory())}`"


def show(value: Any) -> str:
    """Write a value as in YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float) and math.isfinite(value) and value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        digits, _, exponent = f"{value:e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return json.dumps(value, ensure_ascii=False)


SIMPLE = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "any value",
}
PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "block": "blocks"}


def words(annotation: Any) -> str:
    """Return a type in words, such as ``whole number from 1 or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return f"{words(arguments[0])}{_bounds(annotation.__metadata__)}"
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        return _union(arguments)
    base = origin or annotation
    if base is Sequence or (inspect.isclass(base) and issubclass(base, list | tuple)):
        return _list_of([argument for argument in arguments if argument is not Ellipsis])
    is_secret = getattr(annotation, "__name__", "") == "SecretStr"
    return "text" if is_secret else SIMPLE.get(annotation, "block")


def _union(arguments: Sequence[Any]) -> str:
    names = list(dict.fromkeys(words(argument) for argument in arguments if argument is not type(None)))
    if "number" in names and "whole number" in names:
        names.remove("whole number")
    return _either([*names, *(["null"] if type(None) in arguments else [])])


def _list_of(inner: Sequence[Any]) -> str:
    if inner and get_origin(inner[0]) is Literal:
        return f"list, each one of {words(inner[0])}"
    name = words(inner[0]) if inner else "values"
    return f"list of {PLURALS.get(name, name)}"


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _bounds(metadata: Sequence[Any]) -> str:
    parts = []
    for entry in metadata:
        for constraint in (entry, *getattr(entry, "metadata", ())):
            for name, text in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "to")):
                if (bound := getattr(constraint, name, None)) is not None:
                    parts.append(f" {text} {bound:g}")
    return "".join(dict.fromkeys(parts))


@cache
def field_meanings(cls: Any) -> dict[str, str]:
    """Return the meaning of the fields of a dataclass, of a pydantic model, or of the arguments of a function.

    A comment beside the field comes first, then ``name: meaning`` in the docstring, then the sentences that have
    the name in double backticks. Parent classes are read too.
    """
    result: dict[str, str] = {}
    parents = [parent for parent in inspect.getmro(cls) if parent is not object] if inspect.isclass(cls) else [cls]
    for parent in parents:
        if not getattr(parent, "__module__", "").startswith("recpipe."):
            continue
        texts = [parent.__doc__ or ""]
        outer = getattr(inspect.getmodule(parent), parent.__qualname__.split(".")[0], None)
        if outer is not parent:
            texts.append(getattr(outer, "__doc__", None) or "")
        for meanings in (_beside(parent), *(_docstring_meanings(text, tuple(fields(cls))) for text in texts)):
            for name, meaning in meanings.items():
                result.setdefault(name, meaning.replace("``", "`").removeprefix(f"`{name}`: "))
    return result


def _docstring_meanings(docstring: str, names: Sequence[str]) -> dict[str, str]:
    text = inspect.cleandoc(docstring)
    entry = re.compile(rf"\b({'|'.join(names)}): ") if names else re.compile("$^")
    entries: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := ENTRY.match(line.strip()):
            current = [match.group(2)]
            entries |= dict.fromkeys(match.group(1).split(", "), current)
        elif current and line.startswith(" "):
            current.append(line.strip())
        else:
            current = []
    result = {name: entry.split(" ".join(parts))[0].rstrip("; ") for name, parts in entries.items()}
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in SENTENCE.split(" ".join(paragraph.split())):
            for name in dict.fromkeys(FIELD.findall(sentence)):
                if name not in entries:
                    result[name] = f"{result[name]} {sentence}" if name in result else sentence
            for name, part in zip(*[iter(entry.split(sentence)[1:])] * 2, strict=True):
                result.setdefault(name, part.rstrip(";, "))
    return result


def _beside(cls: Any) -> dict[str, str]:
    """Return comments beside the fields in the source of a class, empty where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    body = ast.parse(source).body[0]
    lines = source.splitlines()
    result = {}
    for node in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset or 0 :].decode()
            if "# " in rest and "type: ignore" not in rest:
                result[node.target.id] = rest.partition("# ")[2].strip()
    return result
