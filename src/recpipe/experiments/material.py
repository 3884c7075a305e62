"""All that a model may be trained on in a run, and its training: for pipelines, and for machines without Kedro."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from recpipe.layers.cold_users import ColdUsersConfig

log = logging.getLogger(__name__)

# of a model without epochs
CURVE = {"epoch": int, "step": int, "seconds": float, "loss": float, "lr": float, "gradient_norm": float}


@dataclass(frozen=True, kw_only=True)
class Material:
    """Inputs of `train_model`, by the names of its arguments."""

    train_set: Any
    valid_set: Any
    vocabulary: Any
    items: pa.Table
    protocol: dict[str, Any]
    train: dict[str, Any]
    side: dict[str, Any]
    dataset: str
    seed: int
    work_folder: Path
    cold_users: ColdUsersConfig
    init_from: str = "none"
    start: Any = None
    text_embeddings: Any = None
    image_embeddings: Any = None
    text_image_embeddings: Any = None
    text_ids: Any = None
    text_tree: Any = None
    image_ids: Any = None
    image_tree: Any = None
    text_image_ids: Any = None
    text_image_tree: Any = None
    text_parts_ids: Any = None
    text_parts_tree: Any = None
    collaborative: Any = None

    @cached_property
    def judged(self) -> Any:
        """The protocol of the split."""
        from recpipe.data.protocol import Protocol

        return Protocol.from_dict(self.protocol)

    def settings(self, name: str, spec: Any) -> Any:
        """How the model is trained."""
        from recpipe.models.registry import configured
        from recpipe.training.settings import TrainSettings

        return configured(TrainSettings, {**self.train, **spec.train}, where=f"train settings of {name}")

    def fitted_on(self, settings: Any) -> Any:
        """The training set, with the validation events where these are put back."""
        from recpipe.data.splits import with_validation

        return with_validation(self.train_set, self.valid_set) if settings.put_back else self.train_set

    def trained(
        self,
        name: str,
        spec: Any,
        *,
        folder: Path | None = None,
        on_epoch: Callable[[Mapping[str, Any]], bool | None] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """What training gives, and what a bundle says of it. Checkpoints go to ``folder``, else the work folder."""
        from recpipe.evaluation.evaluate import validator
        from recpipe.models.registry import build, side_config
        from recpipe.training import fit
        from recpipe.training.start import begin_with

        settings = self.settings(name, spec)
        fitted_on, judged = self.fitted_on(settings), self.judged
        given = self._embeddings()
        config = side_config(spec, self.side, where=f"models.{name}")
        known = side_of(config, fitted_on, self.vocabulary, self.items, given)
        ids = ids_of(spec.ids, self._ids(), self.vocabulary)

        def untrained() -> Any:
            sizes = {
                "n_items": len(self.vocabulary),
                "max_length": min(judged.history, settings.window or judged.history),
            }
            made = build(spec.type, spec.config, **sizes, side=known, ids=ids)
            judged.check_time(made.requires_time, model=name)
            if self.init_from != "none":
                count = begin_with(made, self.start, self.vocabulary, where=f"init_from={self.init_from}")
                log.info("%s begins with %s tensors of %s", name, count, self.init_from)
            return made

        trained = fit.train(
            untrained,
            fitted_on,
            validator(self.valid_set, judged, settings.metric, users=settings.validate_users),
            settings,
            seed=self.seed,
            folder=self.work_folder if folder is None else folder,
            fingerprint=judged.id if self.init_from == "none" else f"{judged.id} {self.init_from}",
            on_epoch=on_epoch,
            cold_users=self.cold_users,
            steps_of=self.train_set,
        )
        return trained, self._about(trained, spec, settings, known, ids, given)

    def bundle(self, name: str, spec: Any, trained: Any, about: dict[str, Any]) -> Any:
        """What training gave, with what is needed to recommend with it."""
        import numpy as np

        from recpipe.training.bundle import Bundle

        titles = dict(zip(*(self.items[column].to_pylist() for column in ("item_id", "title")), strict=True))
        events = self.fitted_on(self.settings(name, spec)).items
        return Bundle(
            name=name,
            type=spec.type,
            model=trained.model,
            vocabulary=self.vocabulary,
            titles=[titles.get(item) for item in self.vocabulary.ids],
            train_events=np.bincount(events, minlength=len(self.vocabulary) + 1)[1:],
            protocol=self.judged,
            training=about,
        )

    def made_of(self, spec: Any) -> dict[str, Any]:
        """All that decides what a training comes to, but for versions and the machine."""
        return {
            "spec": asdict(spec),
            "train": self.train,
            "side": self.side,
            "seed": self.seed,
            "protocol": self.judged.id,
            "sources": self.sources(),
            "cold_users": asdict(self.cold_users),
            "init_from": self.init_from,
        }

    def sources(self) -> dict[str, str]:
        """Hashes of the vectors and of the semantic ids that a model may read."""
        ids = {f"{name} ids": found[0] for name, found in self._ids().items()}
        return {name: each.hash for name, each in (self._embeddings() | ids).items() if each is not None}

    def _embeddings(self) -> dict[str, Any]:
        given = {
            "text": self.text_embeddings,
            "image": self.image_embeddings,
            "text_image": self.text_image_embeddings,
        }
        if self.collaborative is not None:
            given["collaborative"] = item_vectors(self.collaborative, self.judged, self.vocabulary)
        return given

    def _ids(self) -> dict[str, tuple[Any, Any]]:
        return {
            "text": (self.text_ids, self.text_tree),
            "image": (self.image_ids, self.image_tree),
            "text_image": (self.text_image_ids, self.text_image_tree),
            "text_parts": (self.text_parts_ids, self.text_parts_tree),
        }

    def _about(
        self, trained: Any, spec: Any, settings: Any, known: Any, ids: dict[str, Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        """Settings in force, cost, and where from."""
        in_force = {"type": spec.type, **asdict(trained.model.config)}
        if known is not None:
            in_force["side"] = asdict(known.config)
        in_force |= {"ids": {modality: each.digest[:12] for modality, each in ids.items()}} if ids else {}
        in_force |= {} if self.init_from == "none" else {"init_from": self.init_from}
        if not trained.model.closed_form:
            in_force["train"] = asdict(settings)
        elif settings.put_back:
            in_force["train"] = {"put_back": True}
        about = {
            "seed": self.seed,
            "settings": in_force,
            "cost": trained.cost,
            "versions": trained.versions,
        }
        if known is not None and known.widths:
            about["embeddings"] = {modality: given[modality].hash for modality in known.widths}
        if ids:
            about["semantic_ids"] = {modality: each.source for modality, each in ids.items()}
        return about


def side_of(config: Any, train_set: Any, vocabulary: Any, items: Any, embeddings: dict[str, Any]) -> Any:
    """The Side of a model: columns of `items` and `embeddings` by modality in the vocabulary's order; None if empty."""
    import numpy as np

    from recpipe.content.item_tables import without_stand_ins
    from recpipe.data.features import in_order
    from recpipe.layers.side import Side, names

    if config.empty:
        return None
    asked = names(config.items)
    shown = items.select(["item_id", *asked]) if set(asked) <= set(items.column_names) else items
    table = in_order(without_stand_ins(shown), "item_id", vocabulary.ids)
    vectors = {}
    for modality, found in embeddings.items():
        if found is not None:
            rows = found.rows(vocabulary.ids)
            there = np.where(rows >= 0, found.present[rows], False)
            vectors[modality] = (found.vectors[rows], there)
            log.info("%s items of %s have a vector of their %s", int(there.sum()), len(there), modality)
    columns = {name: table[name] for name in table.column_names if name != "item_id"}
    return Side.of(config, train_set, columns, vectors, n_items=len(vocabulary))


def item_vectors(bundle: Any, protocol: Any, vocabulary: Any) -> Any:
    """The item vectors of a trained model, those that training never saw left out.

    Raises ValueError for one of another catalogue or split, or that has no such vectors.
    """
    import numpy as np

    from recpipe.content.embeddings import Embeddings
    from recpipe.evaluation.evaluate import check_catalogue

    check_catalogue(bundle, vocabulary)
    if differing := bundle.protocol.same_data(protocol):
        again = f"run `kedro run --pipelines=train --params model={bundle.name}`"
        raise ValueError(
            f"{bundle.name} was trained on another split ({', '.join(differing)} differ): {again}"
        )
    vectors, present = bundle.model.item_vectors()[1:], bundle.train_events > 0
    vectors = np.where(present[:, None], vectors.detach().cpu().float().numpy(), np.float32(0))
    keys = np.where(present, vocabulary.ids, "").astype(object)
    about = {"model": bundle.name, "seed": bundle.training.get("seed")}
    return Embeddings(vocabulary.ids, vectors, present, keys, f"{bundle.name} {bundle.protocol.id}", about)


def ids_of(modalities: tuple[str, ...], found: dict[str, tuple[Any, Any]], vocabulary: Any) -> dict[str, Any]:
    """The semantic ids of the catalogue by modality, each held against the tree that was built from them."""
    from recpipe.semantic_ids.catalogue import CatalogueIds

    catalogues = {}
    for modality in modalities:
        ids, tree = found[modality]
        catalogues[modality] = CatalogueIds.of(ids, vocabulary.ids, tree)
        count = int((catalogues[modality].codes[1:, 0] >= 0).sum())
        log.info("%s items of %s have an id of their %s", count, len(vocabulary), modality)
    return catalogues
