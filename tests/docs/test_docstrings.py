"""Docstrings of public functions name the exceptions that they raise and the shapes of their arrays.

That each public object has a docstring is checked by ruff's rules D100 to D106 in `make lint`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "recpipe"
FILES = sorted(SOURCE.rglob("*.py"))
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
SHAPE = re.compile(  # (B, T), (N,), (I + 1, D), (..., K), (n), [T], or a shape in words
    r"\((\w|\.\.\.)[^()]*,[^()]*\)|\(\.\.\.\)|\(\w\)|\[[A-Z]\w*\]"
    r"|state dict|\bscalars?\b|\b0-d|\b[12]-d|shapes?\b|\bvectors? of\b"
)
SUFFIX = re.compile(r"_[A-Z]+\d*$")  # of names such as codes_NL
Function = ast.FunctionDef | ast.AsyncFunctionDef


class PublicFunction(NamedTuple):
    """A public function or method with the docstrings that describe it: its own, then those of its class."""

    name: str
    node: Function
    docstrings: list[str]


def public_functions(tree: ast.Module) -> Iterator[PublicFunction]:
    """Functions of the module, and methods of its public classes, whose names do not start with an underscore.

    A constructor is described by its class. Properties and methods that a decorator registers are included.
    """

    def visit(body: list[ast.stmt], prefix: str, above: list[str]) -> Iterator[PublicFunction]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body, f"{prefix}{node.name}.", [ast.get_docstring(node) or "", *above])
            elif isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__init__"):
                own = ast.get_docstring(node) or ""
                yield PublicFunction(prefix + node.name, node, [own, *above])

    yield from visit(tree.body, "", [])


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Nodes of the body without those of nested functions and classes."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def raised_exceptions(function: Function) -> set[str]:
    """Names of the exceptions that the body raises itself.

    A bare ``raise``, abstract methods and exceptions that the function catches itself are left out.
    """
    names = set()
    caught = {
        id(inner)
        for node in own_nodes(function)
        if isinstance(node, ast.Try) and node.handlers
        for part in node.body
        for inner in ast.walk(part)
        if isinstance(inner, ast.Raise) and inner.exc is not None and catches(node, inner.exc)
    }
    for node in own_nodes(function):
        if id(node) in caught:
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names.add(ast.unparse(error).rpartition(".")[2])
    return {name for name in names if name[:1].isupper() and name != "NotImplementedError"}


def catches(block: ast.Try, error: ast.expr) -> bool:
    """Whether a handler of ``block`` names the class of ``error``, or ValueError, which errors of recpipe extend."""
    name = ast.unparse(error.func if isinstance(error, ast.Call) else error)
    handled = [ast.unparse(handler.type) for handler in block.handlers if handler.type is not None]
    return any(name in types or "ValueError" in types for types in handled)


def takes_or_returns_arrays(function: Function) -> bool:
    """Whether an annotation of the signature names a tensor or an array; names with a shape suffix are left out."""
    every = function.args
    arguments = [a for a in (*every.posonlyargs, *every.args, *every.kwonlyargs) if not SUFFIX.search(a.arg)]
    annotations = [argument.annotation for argument in arguments]
    return any(ARRAYS.search(ast.unparse(part)) for part in (*annotations, function.returns) if part is not None)


def undocumented(path: Path) -> tuple[list[str], list[str]]:
    """Functions of a file with exceptions that no docstring names, and functions with arrays of unknown shape."""
    raises, shapes = [], []
    for name, function, docstrings in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(SOURCE)}:{function.lineno} {name}"
        text = "\n".join(docstrings)
        missing = sorted(error for error in raised_exceptions(function) if error not in text)
        raises += [f"{place}: {', '.join(missing)}"] if missing else []
        shapes += [place] if takes_or_returns_arrays(function) and not SHAPE.search(text) else []
    return raises, shapes


@pytest.mark.parametrize("package", sorted({p.relative_to(SOURCE).parts[0] for p in FILES}))
def test_docstrings_name_exceptions_and_shapes(package: str) -> None:
    found = [undocumented(path) for path in FILES if path.relative_to(SOURCE).parts[0] == package]
    raises = [line for lines, _ in found for line in lines]
    shapes = [line for _, lines in found for line in lines]
    findings = [f"{line} is raised, and no docstring says so" for line in raises]
    findings += [f"{line}: the docstring states no shape" for line in shapes]
    assert not findings, "\n".join(["", *findings])


def test_an_exception_without_a_word_in_the_docstring_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '''
def first(x: Tensor) -> Tensor:
    """Square."""
    raise ValueError("no")

def second(x: Tensor) -> Tensor:
    """Square of (B, D). Raises ValueError for NaN."""
    raise ValueError("no")
'''
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    (tmp_path / "module.py").write_text(text)
    assert undocumented(tmp_path / "module.py") == (["module.py:2 first: ValueError"], ["module.py:2 first"])
