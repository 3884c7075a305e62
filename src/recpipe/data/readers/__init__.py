"""Raw logs: one reader module per format, all giving the same tables.

`fetch` puts the files of a data set in place, `read` turns them into tables on a DuckDB connection. The
readers are the modules of this package that define `Options` and `read`; a data set's conf names one of
them under `source`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recpipe.config import check_known
from recpipe.data.files.fetch import fetch
from recpipe.data.files.tables import RawTables

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

__all__ = ["KEYS", "RawTables", "check", "fetch", "read", "readers"]

KEYS = (
    "title", "source", "homepage", "url", "checksum", "licence", "citation", "files", "options", "bad_rows",
    "steps", "profile", "content",
)  # fmt: skip
ROLES = ("interactions", "items", "users")
FILE_KEYS = ("name", "url", "checksum", "optional")


def check(conf: Mapping[str, Any], *, where: str) -> None:
    """ValueError for a key, file, source or option that a data set's block cannot have; nothing is opened."""
    if not isinstance(conf, Mapping):
        raise ValueError(f"{where} must be a block with {', '.join(KEYS)}, not {conf!r}")
    _refuse_unknown(conf, KEYS, f"key of {where}")
    files = conf.get("files") or {}
    _refuse_unknown(files, ROLES, f"role in {where}.files")
    for role, entry in files.items():
        if isinstance(entry, Mapping):
            _refuse_unknown(entry, FILE_KEYS, f"key of {where}.files.{role}")
        if not (entry.get("name") if isinstance(entry, Mapping) else entry):
            raise ValueError(f"{where}.files.{role} names no file: give its name, or {{name: ..., url: ...}}")
    _options(_reader(str(conf.get("source"))), conf.get("options") or {})


def read(conf: Mapping[str, Any], manifest: Mapping[str, Any], con: Backend) -> RawTables:
    """The tables of a data set, from the files that `fetch` found.

    Nothing bad in a row raises: such a row carries its reason in `problem`. ValueError is for files that
    cannot be read at all: not what their name says, cut short, another delimiter or encoding, columns that
    are absent.
    """
    reader = _reader(str(conf.get("source")))
    options = _options(reader, conf.get("options") or {})
    files = {role: list(paths) for role, paths in manifest["files"].items()}
    tables: RawTables = reader.read(options, files, con)
    return tables


def readers() -> list[str]:
    """Names of the reader modules, as a data set's `source` may give them."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if hasattr(importlib.import_module(f"{__name__}.{name}"), "Options")]


def _reader(source: str) -> ModuleType:
    check_known(source, readers(), what="source of a data set")
    return importlib.import_module(f"{__name__}.{source}")


def _options(reader: ModuleType, given: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(reader.Options)]
    for name in given:
        if name != "category":
            check_known(name, known, what=f"option of source {reader.__name__.rpartition('.')[2]}")
    return reader.Options(**{key: value for key, value in given.items() if key in known})


def _refuse_unknown(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    for key in given:
        check_known(key, known, what=what)
