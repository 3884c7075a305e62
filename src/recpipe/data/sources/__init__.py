"""Raw logs: one reader module per format, all giving the same tables.

`fetch` puts the files of a data set in place, `read` turns them into tables on a DuckDB connection. The
readers are the modules of this package that define `Options` and `read`; a data set's conf names one of
them under `source`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recpipe.data.sources.fetch import fetch
from recpipe.data.sources.tables import RawTables

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

__all__ = ["RawTables", "fetch", "read", "readers"]


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
    known = readers()
    if source not in known:
        raise ValueError(f"unknown source {source!r}: a data set's `source` is one of {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{source}")


def _options(reader: ModuleType, given: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(reader.Options)]
    unknown = sorted(set(given) - set(known) - {"category"})
    if unknown:
        name = reader.__name__.rpartition(".")[2]
        raise ValueError(
            f"unknown option {unknown[0]!r} for source {name}: there are {', '.join(known) or 'none'}"
        )
    return reader.Options(**{key: value for key, value in given.items() if key in known})
