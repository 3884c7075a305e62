"""Bundles from disk to the service: loaded, checked, tried once, with a queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recpipe.config.schema import ServeConfig
from recpipe.serving.http.answers import ListAnswers
from recpipe.serving.http.batcher import Batcher
from recpipe.serving.http.loaded_models import LoadedModel
from recpipe.serving.http.metrics import Metrics
from recpipe.serving.http.requests import RecommendRequest, UserRequest
from recpipe.serving.item_index.build import IndexConfig
from recpipe.serving.model import AUTOMATIC_INDEX, load_bundle
from recpipe.training.bundle_folders import CONFIG, newest_bundle
from recpipe.training.settings import choose_device


class ModelLoader:
    """Function from a bundle folder to a model that is ready to answer.

    ``dataset``: the only data set whose bundles are served, None for any. ``items``: function from a bundle to its
    file of item columns, which may be newer than the bundle. ``content``: function from a bundle to the folder of the
    model of type content_knn that ranks new items. ``index``: see ``load_bundle``.
    """

    def __init__(
        self,
        config: ServeConfig,
        metrics: Metrics,
        *,
        dataset: str | None,
        items: Callable[[Path], Path | None],
        content: Callable[[Path], Path | None] = lambda bundle: None,
        index: IndexConfig | None = AUTOMATIC_INDEX,
    ) -> None:
        self._config, self._metrics, self._dataset = config, metrics, dataset
        self._items, self._content, self._index = items, content, index
        self._device = choose_device(config.device, setting="serve.device")

    def files(self, folder: Path) -> list[Path]:
        """Return the files besides a bundle that it is loaded with: current item columns, and the content model."""
        try:
            items, content = self._items(folder), self._content(folder)
            files = [] if content is None else [newest_bundle(content) / CONFIG]
        except ValueError:  # ``load`` raises it again, for this bundle alone
            return []
        return files if items is None else [items, *files]

    def load(self, name: str, folder: Path) -> LoadedModel:
        """Load a bundle and answer one request with it. Raises ValueError for one that cannot be served."""
        description = read_description(folder)
        dataset, owner = description["dataset"], run_model(folder)
        if owner not in (None, description["name"]):
            raise ValueError(
                f"it is the model {description['name']} and lies in the folder of {owner}: remove it there"
            )
        if self._dataset not in (None, dataset):
            raise ValueError(
                f"it is of the data set {dataset} and lies in the folder of {self._dataset}; to serve both, name the "
                f"folders: recpipe serve {folder} …"
            )
        items = self._items(folder)
        current = items if items is not None and items.is_file() else None
        bundle = load_bundle(folder, self._device, items=current, content=self._content(folder), index=self._index)
        answers = ListAnswers(bundle, name)
        _try_once(answers, bundle.vocabulary.ids[0])
        batcher: Batcher[Any] = Batcher(
            answers.compute,
            batch_users=self._config.batch_users,
            queue_users=self._config.queue_users,
            name=name,
            on_batch=lambda users, seconds: self._metrics.batch(name, users),
        )
        return LoadedModel(name, bundle, answers, batcher, folder)


def run_model(bundle: Path) -> str | None:
    """Return the model in whose run a bundle lies, ``<model>/seed_<n>/bundle/<version>/bundle``; None elsewhere."""
    parents = bundle.parents
    return parents[3].name if len(parents) > 4 and parents[2].name.startswith("seed_") else None


def read_description(folder: Path) -> dict[str, str]:
    """Return name and data set of a bundle. Raises ValueError where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return {"name": config["name"], "dataset": config["protocol"]["dataset"]}
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is missing or damaged ({error!r})") from error


def _try_once(answers: ListAnswers, item: str) -> None:
    """Answer a request for a new user and for one with a history, so that unusable weights show before any request."""
    users = [UserRequest(user_id="new"), UserRequest(user_id="known", items=[str(item)])]
    key, payload = answers.prepare(RecommendRequest(k=1, users=users))
    answers.compute(key, [payload])
