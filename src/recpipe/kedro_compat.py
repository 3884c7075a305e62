"""All uses of Kedro's private API; tests/test_kedro_compat.py fails when Kedro changes it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import AbstractConfigLoader, OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from recpipe.data.atomic import atomic_file

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


class WholeFile:
    """Mixin before a stock dataset: ``save`` writes a temporary file and renames it when it is complete.

    Stock datasets get the path that they write to from ``_get_save_path``.
    """

    _part: Path | None = None

    def save(self, data: Any) -> None:
        stock: Any = super()
        with atomic_file(Path(stock._get_save_path())) as part:
            self._part = part
            try:
                unwrapped(stock.save)(self, data)
            finally:
                self._part = None

    def _get_save_path(self) -> PurePosixPath:
        stock: Any = super()
        path: PurePosixPath = stock._get_save_path() if self._part is None else PurePosixPath(self._part)
        return path
