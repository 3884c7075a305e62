"""Bundles in memory by name; a newer version on disk replaces the one in memory while requests go on.

A bundle that is damaged, half written or of another data set is refused: the one in memory stays, and the reason is in
the log, in `LoadedModels.errors` and in the metrics. It is tried again when its files change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recpipe.config import nearest
from recpipe.serving.http.answers import ListAnswers
from recpipe.serving.http.batcher import Batcher
from recpipe.serving.http.requests import RequestError
from recpipe.serving.model import ServingBundle
from recpipe.training.bundle_folders import KINDS, bundle_versions

log = logging.getLogger(__name__)

State = tuple[Any, ...]
"""Path of a bundle, with sizes and times of change of its files; equal states are not loaded twice."""


@dataclass
class LoadedModel:
    """One bundle in memory with its queue."""

    name: str
    bundle: ServingBundle
    answers: ListAnswers
    batcher: Batcher[Any]
    folder: Path
    state: State = ()
    loaded_at: float = field(default_factory=time.time)


class LoadedModels:
    """The models of the service.

    ``find``: model or bundle folders by name, called at each refresh. ``load``: (name, bundle folder) -> LoadedModel,
    called in a thread; whatever it raises refuses the bundle. ``files``: bundle folder -> further files that ``load``
    reads, whose change reloads the model. ``kinds``: of bundles, see ``bundle_versions``. ``default``: the model of
    requests that name none. ``on_reload``: called with name and result.
    """

    def __init__(
        self,
        find: Callable[[], dict[str, Path]],
        load: Callable[[str, Path], LoadedModel],
        *,
        files: Callable[[Path], list[Path]] = lambda folder: [],
        kinds: tuple[str, ...] = KINDS,
        default: str | None = None,
        on_reload: Callable[[str, str], None] = lambda name, result: None,
    ) -> None:
        self._find, self._load, self._files, self._on_reload = find, load, files, on_reload
        self._kinds = kinds
        self._models: dict[str, LoadedModel] = {}
        self._refused: dict[str, dict[Path, State]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._default = default
        self._names: list[str] = []
        self.errors: dict[str, str] = {}

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter([self._models[name] for name in sorted(self._models)])

    @property
    def default(self) -> str | None:
        """Name of the model that answers requests without a name."""
        if self._default in self._models or self._default in self._names:
            return self._default
        return min(self._models, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether the default model is in memory, and every other one that was found is too or was refused."""
        return self.default in self._models and all(name in self._models or name in self.errors for name in self._names)

    def get(self, name: str | None) -> LoadedModel:
        """Return a model; None names the default. Raises RequestError, 404 or, while it is loaded, 503."""
        requested = self.default if name is None else name
        if requested in self._models:
            return self._models[requested]
        if requested is None or requested in self._names:
            reason = self.errors.get(requested or "", "it is being loaded")
            what = "no model is ready" if requested is None else f"model {requested} is not ready"
            raise RequestError(503, f"{what}: {reason}", headers={"retry-after": "1"})
        names = sorted(self._models)
        raise RequestError(404, f"unknown model {requested[:80]!r}{nearest(requested[:80], names)}", allowed=names)

    async def refresh(self) -> None:
        """Load what is new. Called again and again, never twice at a time."""
        try:
            folders = await asyncio.to_thread(self._find)
        except (OSError, ValueError) as error:
            log.error("the folder of the models cannot be read: %s", error)
            return
        self._names = sorted(folders)
        for name in self.errors.keys() - folders.keys():
            del self.errors[name]
        for name, folder in folders.items():
            await self._refresh(name, folder)

    async def _refresh(self, name: str, folder: Path) -> None:
        current = self._models.get(name)
        try:
            states = await asyncio.to_thread(self._states, folder)
        except (OSError, ValueError) as error:
            self.errors[name] = str(error)
            return
        versions = list(states)
        refused = {path: state for path, state in self._refused.get(name, {}).items() if path in states}
        self._refused[name] = refused
        for version, state in states.items():  # newest first
            if current is not None and current.state == state:
                if version == versions[0]:
                    self.errors.pop(name, None)
                return
            if refused.get(version) == state:
                continue
            if await self._try(name, version, state):
                if version == versions[0]:
                    self.errors.pop(name, None)
                return
            if current is not None and current.folder not in versions:
                return  # what is in memory is gone from the disk; better than an older version

    def _states(self, folder: Path) -> dict[Path, State]:
        """Return the states of all bundles of a model, newest first."""
        return {version: _state(version, self._files(version)) for version in bundle_versions(folder, self._kinds)}

    async def _try(self, name: str, folder: Path, state: State) -> bool:
        """Load a bundle and put it in place of the present one. Return whether that worked."""
        try:
            started = time.perf_counter()
            model = await asyncio.to_thread(self._load, name, folder)
        except Exception as error:
            self.errors[name] = f"{folder} was refused: {error}"
            self._refused[name][folder] = state
            self._on_reload(name, "refused")
            present = self._models.get(name)
            log.error(
                "%s: %s; %s", name, self.errors[name], f"{present.folder} stays" if present else "trying older versions"
            )
            log.debug("traceback", exc_info=error)
            return False
        model.state = state  # of before the load, so that what changed meanwhile is loaded again
        old = self._models.get(name)
        self._models[name] = model
        self._on_reload(name, "loaded")
        log.info("%s: %s is served, loaded in %.1f s", name, folder, time.perf_counter() - started)
        if old is not None:
            self._close(old)
        return True

    def _close(self, model: LoadedModel) -> None:
        task = asyncio.create_task(model.batcher.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Finish what waits in all queues."""
        for model in self:
            self._close(model)
        await asyncio.gather(*self._closing)


def _state(folder: Path, others: list[Path]) -> State:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files += [path for path in others if path.is_file()]
    stats = [(str(path), path.stat()) for path in files]
    return (str(folder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
