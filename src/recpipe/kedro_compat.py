"""Every place where recpipe relies on Kedro's private side; tests/test_kedro_compat.py fails when Kedro changes it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import AbstractConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession

from recpipe.data.atomic import replaced_file

REGISTRY = "recpipe.pipeline_registry"


def reload_pipelines() -> None:
    """Makes Kedro call ``register_pipelines`` again: it keeps the pipelines of the first session of a process, and ours
    are built for the models of a session.
    """
    pipelines.configure(REGISTRY)


class SessionWithOneLoader(KedroSession):
    """A session that makes its config loader once: Kedro makes one for each context, and each reads all files."""

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


def file_of(dataset: Any) -> Path | None:
    """The file of a catalog entry without versions, None where it has none: datasets have no public path."""
    path = getattr(dataset, "_filepath", None)
    return None if path is None else Path(path)


def loaded_file(dataset: Any) -> Path:
    """The file that a versioned catalog entry would load now."""
    return Path(dataset._get_load_path())


def unwrapped(method: Any) -> Any:
    """``load`` or ``save`` of a stock dataset without the checks and messages that Kedro wraps around it: a subclass that
    calls its parent's method inside its own would run them twice.
    """
    return method.__wrapped__


class WholeFile:
    """Goes before a stock dataset: ``save`` writes beside the target and renames when the file is complete.

    The path that a stock dataset writes to is asked of ``_get_save_path``, and only there it can be changed.
    """

    _part: Path | None = None

    def save(self, data: Any) -> None:
        stock: Any = super()
        with replaced_file(Path(stock._get_save_path())) as part:
            self._part = part
            try:
                unwrapped(stock.save)(self, data)
            finally:
                self._part = None

    def _get_save_path(self) -> PurePosixPath:
        stock: Any = super()
        path: PurePosixPath = stock._get_save_path() if self._part is None else PurePosixPath(self._part)
        return path
