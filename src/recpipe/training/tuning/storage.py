"""Storage of studies: an Optuna journal file, SQLite, or a database of any URL."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from recpipe.config.schema import TuneConfig

JOURNAL = "journal.log"
CONNECT_SECONDS = 5
LOCK_SECONDS = 10  # after which the lock of a killed process is broken
CREATIONS = 4  # attempts to create tables that other processes are creating too
SQLITE_SECONDS = 60  # that a process waits for the lock of another one
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "mssql": 1433, "oracle": 1521}


class TuningError(ValueError):
    """A study that cannot begin or go on; the message says why, and how it can."""


def check_storage(config: TuneConfig) -> None:
    """Raise TuningError for a database that cannot be reached; a journal is opened by ``open_storage`` only."""
    storage = "" if config.storage is None else config.storage.get_secret_value()
    _check_slashes(storage)
    if "://" in storage:
        _open_database(storage)


def _check_slashes(storage: str) -> None:
    """Raise TuningError for a URL with one slash, which would be the path of a journal."""
    if "://" not in storage and re.search(r"(^|/)(postgresql|mysql|mariadb|mssql|oracle|sqlite)[a-z0-9+]*:/", storage):
        raise TuningError("tune.storage looks like the URL of a database and lacks a slash: write :// behind its kind")


def open_storage(config: TuneConfig, folder: Path) -> BaseStorage:
    """Open the storage: a database by its URL, a journal file by its path, or by default a journal in ``folder``.

    Raises TuningError within seconds where it cannot be reached, without the password of a URL.
    """
    storage = None if config.storage is None else config.storage.get_secret_value()
    _check_slashes(storage or "")
    if storage is not None and "://" in storage:
        return _open_database(storage)
    path = folder / JOURNAL if storage is None else Path(storage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path), grace_period=LOCK_SECONDS)
        if path.is_file():
            lock.acquire()
            try:
                repair_journal(path)
            finally:
                lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise TuningError(
            f"the journal of the study cannot be written: {error}; choose another tune.storage"
        ) from error
    except ValueError as error:
        raise TuningError(f"{path} is no journal of Optuna ({error}); choose another tune.storage") from error


def repair_journal(path: Path) -> None:
    """Remove the line that a killed process, or a full disk, left incomplete at the end of a journal."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(size - 2**20, 0)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)


def _open_database(url: str) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # with the URL in its message, or of a bad port
        raise TuningError("tune.storage is no URL of a database, such as sqlite:///studies.db") from None
    if "@" in (address.host or ""):
        raise TuningError("tune.storage has an @ in its user or password: write it as %40")
    secrets = [name for name in address.query if "pass" in name.lower() or "pwd" in name.lower()]
    hidden = address.set(query={**address.query, **dict.fromkeys(secrets, "***")})
    shown, options = hidden.render_as_string(hide_password=True), {}
    backend = address.get_backend_name()
    if backend == "sqlite":
        options = {"connect_args": {"timeout": SQLITE_SECONDS}}
        if address.database:
            with suppress(OSError):  # SQLite says it below
                Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    elif address.host:
        _check_server(address.host, address.port or PORTS.get(backend), shown)
    try:
        return _connect(url, options)
    except ImportError as error:
        raise TuningError(f"tune.storage is {shown}, whose driver is not installed: {error}") from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split()).replace(url, shown)
        for secret in filter(None, [address.password, *(address.query[name] for name in secrets)]):
            reason = reason.replace(str(secret), "***")
        raise TuningError(
            f"the storage {shown} of the study cannot be used: {reason}; no trial was started, see tune.storage"
        ) from None


def _connect(url: str, options: dict[str, Any]) -> RDBStorage:
    """Open a database; another process may create the tables at the same time, which one of the two then repeats."""
    from sqlalchemy.exc import SQLAlchemyError

    for _ in range(CREATIONS):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (SQLAlchemyError, RuntimeError) as error:
            if not re.search("already exists|UNIQUE|[Dd]uplicate", str(error)):
                raise
            time.sleep(0.5)
    return RDBStorage(url, engine_kwargs=options)


def _check_server(host: str, port: int | None, shown: str) -> None:
    """Raise TuningError where nothing listens; drivers of databases would try for minutes."""
    if port is None:
        return
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise TuningError(
            f"the storage {shown} of the study cannot be reached: nothing answers at {host}:{port} ({error}); no trial "
            "was started, see tune.storage"
        ) from None
