"""Readers of raw logs: one module per format, found by the ``source`` of a data set's configuration.

A reader module defines a dataclass ``Options`` and ``read(options, files, con) -> RawTables``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ibis

from recpipe.config import check_known
from recpipe.config.entry_points import import_by_name, module_names
from recpipe.data.files.tables import RawTables


def check(conf: Mapping[str, Any], *, where: str) -> None:
    """Raise ValueError for an unknown role, reader or option, and for a role without a file name; opens no files."""
    for role, entry in (conf.get("files") or {}).items():
        check_known(role, ("interactions", "items", "users"), what=f"role in {where}.files")
        for key in entry if isinstance(entry, Mapping) else ():
            check_known(key, ("name", "url", "checksum", "optional"), what=f"key of {where}.files.{role}")
        if not (entry.get("name") if isinstance(entry, Mapping) else entry):
            raise ValueError(f"{where}.files.{role} names no file: give its name, or {{name: ..., url: ...}}")
    _options(_reader(conf), conf)


def read(conf: Mapping[str, Any], manifest: Mapping[str, Any], con: ibis.BaseBackend) -> RawTables:
    """Read the files that ``fetch`` listed into tables on a DuckDB connection.

    A bad row raises nothing: its reason is in the column ``problem``. Raises ValueError for files that cannot be read
    at all: another format than their name says, truncated, another delimiter or encoding, missing columns.
    """
    reader = _reader(conf)
    files = {role: list(paths) for role, paths in manifest["files"].items()}
    tables: RawTables = reader.read(_options(reader, conf), files, con)
    return tables


def reader_names() -> list[str]:
    """List the reader modules, the allowed values of ``source``."""
    return sorted(module_names(__name__))


def _reader(conf: Mapping[str, Any]) -> ModuleType:
    source = str(conf.get("source"))
    check_known(source, reader_names(), what="source of a data set")
    return import_by_name(__name__, source)


def _options(reader: ModuleType, conf: Mapping[str, Any]) -> Any:
    """Create the reader's options; ``category`` belongs to file names and need not be one."""
    options = conf.get("options") or {}
    allowed = [field.name for field in dataclasses.fields(reader.Options)]
    for name in options:
        if name != "category":
            check_known(name, allowed, what=f"option of source {reader.__name__.rpartition('.')[2]}")
    return reader.Options(**{key: value for key, value in options.items() if key in allowed})
