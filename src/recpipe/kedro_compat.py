"""All uses of Kedro's private API; tests/test_kedro_compat.py fails when Kedro changes it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import AbstractConfigLoader, OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import CatalogProtocol
from kedro.io.core import VersionNotFoundError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from recpipe.data.atomic import atomic_file, latest_version
from recpipe.data.digests import verified

REGISTRY = "recpipe.pipeline_registry"


def reload_pipelines() -> None:
    """Make Kedro call ``register_pipelines`` again.

    Kedro keeps the pipelines of the first session of a process; ours are built for the models of a command.
    """
    pipelines.configure(REGISTRY)


def restore_globals(loader: OmegaConfigLoader) -> None:
    """Resolve ``${globals:...}`` by this loader: Kedro registers the latest loader of the process, once."""
    loader._register_globals_resolver()


class SessionWithOneLoader(KedroSession):
    """A session that builds its config loader once, not once per context."""

    _loader: AbstractConfigLoader | None = None

    def _get_config_loader(self) -> AbstractConfigLoader:
        if self._loader is None:
            self._loader = super()._get_config_loader()
        return self._loader

    @property
    def config_loader(self) -> AbstractConfigLoader:
        """The loader that the context will use."""
        return self._get_config_loader()

    def sibling(self, runtime_params: dict[str, Any]) -> KedroSession:
        """A new session of the same project, environment and conf: Kedro allows one run for each session."""
        return type(self).create(
            project_path=self._project_path,
            save_on_close=False,
            env=self.store.get("env"),
            conf_source=self._conf_source,
            runtime_params=runtime_params,
        )


def spawn_processes() -> None:
    """Let ParallelRunner start new processes, unless KEDRO_MP_CONTEXT says otherwise, on Linux too.

    A copy (fork) hangs where an earlier run of this process used polars, as with ``profile: auto``. Kedro calls no
    hooks in new processes.
    """
    os.environ.setdefault("KEDRO_MP_CONTEXT", "spawn")


def nodes_to_resume_from(pipeline: Pipeline, unfinished: set[Node], catalog: CatalogProtocol[Any, Any]) -> set[str]:
    """Names of the nodes for ``--from-nodes`` after an error, chosen so that all they read is on disk."""
    from kedro.runner import runner

    return runner._find_nodes_to_resume_from(pipeline, unfinished, catalog)


def file_of(dataset: Any) -> Path | None:
    """The file of a catalog entry, of a versioned one without its version; None for datasets without a file."""
    path = getattr(dataset, "_filepath", None)
    return None if path is None else Path(path)


def loaded_file(dataset: Any) -> Path:
    """The file that a versioned catalog entry loads, that of its latest version."""
    return Path(dataset._get_load_path())


def unwrapped(method: Any) -> Any:
    """``load`` or ``save`` of a stock dataset without Kedro's wrapper, which the method of the subclass has already."""
    return method.__wrapped__


class LatestVersion:
    """Mixin before a versioned dataset: the latest version is the one that was written last, whatever its name."""

    def _fetch_latest_load_version(self) -> str:
        path = file_of(self)
        file = None if path is None else latest_version(path)
        if file is None:
            raise VersionNotFoundError(f"{path} has no version")
        return file.parent.name


class WholeFile:
    """Mixin before a stock dataset: ``save`` writes a temporary file and renames it when it is complete.

    ``load`` checks the digest that ``save`` wrote, unless ``has_digest`` is false. Stock datasets
    get the path that they write to from ``_get_save_path``.
    """

    has_digest = True
    _part: Path | None = None

    def load(self) -> Any:
        """Check the digest and load. Raises DigestError for a damaged file."""
        stock: Any = super()
        if self.has_digest:
            verified(Path(stock._get_load_path()))
        return unwrapped(stock.load)(self)

    def save(self, data: Any) -> None:
        """Write a temporary file and rename it."""
        stock: Any = super()
        with atomic_file(Path(stock._get_save_path()), digest=self.has_digest) as part:
            self._part = part
            try:
                unwrapped(stock.save)(self, data)
            finally:
                self._part = None

    def _get_save_path(self) -> PurePosixPath:
        stock: Any = super()
        path: PurePosixPath = stock._get_save_path() if self._part is None else PurePosixPath(self._part)
        return path
