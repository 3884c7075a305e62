"""Training job: one model on one data set with its settings and item inputs, with or without Kedro."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from recpipe.accelerate import keep_freed_memory
from recpipe.config import COLLABORATIVE, ID_KINDS, VECTORS, RunConfig, build_config, split_names
from recpipe.config.run_config import ColdUsersConfig
from recpipe.content.embeddings import Embeddings
from recpipe.content.item_texts import clear_placeholder_texts
from recpipe.data.features import align_rows
from recpipe.data.item_columns import item_columns
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Sequences, Vocabulary, count_items
from recpipe.data.splits import TrainingData, with_validation
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.side import Side, SideConfig
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build as build_model
from recpipe.models.registry import side_config
from recpipe.semantic_ids.ids import CatalogueIds, SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.vector_rows import VectorRows
from recpipe.training import fit
from recpipe.training.bundle import Bundle, check_held_out
from recpipe.training.fit import weights_digest
from recpipe.training.module import OnEpoch, Replay, Validate
from recpipe.training.settings import MACHINE, TrainSettings

log = logging.getLogger(__name__)

Validator = Callable[..., Validate]  # evaluation.evaluate.validator: (fold, protocol, metric, users=) -> Validate
Vectors = Mapping[str, Embeddings]  # by modality


@dataclass(frozen=True)
class ItemInputs:
    """Table of items, embeddings by modality, semantic ids and prefix tree by kind."""

    items: pa.Table
    vectors: Vectors = field(default_factory=dict)
    ids: Mapping[str, tuple[SemanticIds, PrefixTree]] = field(default_factory=dict)
    collaborative: Bundle | None = None  # a trained model whose item vectors are read

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> ItemInputs:
        """Build from arguments ``items``, ``text_embeddings``, ``text_ids``, ``text_tree``, ``collaborative``."""
        items = inputs["items"]
        return cls(
            items=items if isinstance(items, pa.Table) else items.to_arrow(),
            vectors={name: inputs[key] for name in VECTORS if (key := f"{name}_embeddings") in inputs},
            ids={kind: (inputs[key], inputs[f"{kind}_tree"]) for kind in ID_KINDS if (key := f"{kind}_ids") in inputs},
            collaborative=inputs.get(COLLABORATIVE),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One model with its data and settings; ``initial_bundle`` is that of the run ``init_from``."""

    config: RunConfig
    data: TrainingData
    inputs: ItemInputs
    work_folder: Path
    validator: Validator
    initial_bundle: Bundle | None = None

    @cached_property
    def settings(self) -> TrainSettings:
        """The ``train`` block of the model."""
        settings = build_config(TrainSettings, self.config.train, where=f"models.{self.config.name}.train")
        has_fold = self.data.protocol.holds_out
        return settings if has_fold else replace(settings, train_on_validation=False)

    def train(
        self,
        *,
        folder: Path | None = None,
        on_epoch: OnEpoch | None = None,
        keep_checkpoints: bool = False,
        replay: Replay | None = None,
    ) -> Bundle:
        """Train the model; ``folder`` is for checkpoints, by default ``work_folder``.

        Without a validation fold (``protocol.split=none``) the last state is kept, after the epochs of ``replay`` or
        ``max_epochs``.

        With ``keep_checkpoints`` they stay until ``Bundle.remove_checkpoints``, which the caller calls when the bundle
        is on disk.
        """
        folder = self.work_folder if folder is None else folder
        config, settings, data, protocol = self.config, self.settings, self.data, self.data.protocol
        fitting_set, items, vocabulary = data.train_set, self.inputs.items, data.vocabulary
        earlier = self._earlier_bundles()
        for where, bundle in earlier.items():
            bundle.check_held_out(protocol, train_on_validation=settings.train_on_validation, where=where)
        for kind, runs in self._runs_of_ids().items():
            check_held_out(
                runs,
                protocol,
                train_on_validation=settings.train_on_validation,
                where=f"item vectors that {kind} ids are aligned with",
                advice=f"train it under this protocol, then run `kedro run --pipelines=semantic_ids --params "
                f"modality={kind}`",
            )
        if settings.train_on_validation:
            fitting_set = with_validation(data.train_set, data.valid_set)
        vectors = dict(self.inputs.vectors)
        if self.inputs.collaborative is not None:
            vectors[COLLABORATIVE] = item_vectors(self.inputs.collaborative, protocol, vocabulary)
        side_settings = side_config(config.type, config.side, where=f"models.{config.name}")
        side = build_side(side_settings, fitting_set, vocabulary, items, vectors)
        ids = build_catalogue_ids(config.ids, self.inputs.ids, vocabulary)

        def build_untrained() -> Recommender:
            model = build_model(
                config.type,
                config.settings,
                n_items=len(vocabulary),
                max_length=min(protocol.history, settings.window or protocol.history),
                side=side,
                ids=ids,
                accelerate=config.accelerate,
            )
            protocol.check_time(model.requires_time, model=config.name)
            if config.accelerate and not model.closed_form:
                keep_freed_memory()
            if config.init_from != "none":
                where = f"init_from={config.init_from}"
                count = load_initial_weights(model, self.initial_bundle, vocabulary, where=where)
                log.info("%s starts from %s tensors of %s", config.name, count, config.init_from)
            return model

        trained = fit.train(
            build_untrained,
            fitting_set,
            self.validation(),
            settings,
            seed=config.seed,
            folder=folder,
            fingerprint=self._fingerprint(replay),
            on_epoch=on_epoch,
            cold_users=build_config(ColdUsersConfig, config.cold_users, where="cold_users"),
            steps_from=data.train_set,
            replay=replay,
            keep_checkpoints=keep_checkpoints,
        )
        titles_by_id = dict(zip(*(items[column].to_pylist() for column in ("item_id", "title")), strict=True))
        titles = [titles_by_id.get(item) for item in vocabulary.ids]
        train_events = count_items(fitting_set.items, len(vocabulary))[1:]
        training, curve = self._description(trained, side, ids, vectors), trained.curve
        earlier_runs = [run for bundle in earlier.values() for run in bundle.training_runs()]
        earlier_runs += [run for runs in self._runs_of_ids().values() for run in runs]
        if earlier_runs:
            training["earlier_runs"] = earlier_runs
        return Bundle(
            config.name,
            config.type,
            trained.model,
            vocabulary,
            titles,
            train_events,
            protocol,
            training,
            curve,
            work_folder=folder if keep_checkpoints else None,
            item_columns=item_columns(items, vocabulary.ids),
            seen_events=SeenEvents.of(fitting_set),
        )

    def validation(self) -> Validate | None:
        """Return the function that validates a model; None where nothing is held out."""
        protocol, settings = self.data.protocol, self.settings
        if not protocol.holds_out:
            return None
        return self.validator(self.data.valid_set, protocol, settings.metric, users=settings.validate_users)

    def _fingerprint(self, replay: Replay | None) -> str:
        """Return the identity of data, initial weights and length, by which a checkpoint is resumed."""
        parts = [self.data.protocol.id]
        if self.config.init_from != "none":
            parts.append(self.config.init_from)
        if replay is not None:
            parts.append(f"{replay.epochs} epochs")
        return " ".join(parts)

    def _earlier_bundles(self) -> dict[str, Bundle]:
        """Return the bundles that training begins with or reads item vectors of, by the setting that names them."""
        config, bundles = self.config, {}
        if self.initial_bundle is not None:
            bundles[f"init_from={config.init_from}"] = self.initial_bundle
        if self.inputs.collaborative is not None:
            bundles[f"models.{config.name}.{COLLABORATIVE}"] = self.inputs.collaborative
        return bundles

    def _runs_of_ids(self) -> dict[str, list[dict[str, Any]]]:
        """Return, by kind of ids, the training of the model whose item vectors they are aligned with."""
        about = {kind: ids.about.get(COLLABORATIVE) for kind, (ids, _) in self.inputs.ids.items()}
        return {kind: each["runs"] for kind, each in about.items() if each}

    def identity(self) -> dict[str, Any]:
        """Return the settings and content hashes that determine the result, apart from versions and hardware."""
        config = asdict(self.config)
        del config["search_space"]  # of tuning
        if config["accelerate"]:  # the default; older records lack it
            del config["accelerate"]
        config["train"] = {key: value for key, value in config["train"].items() if key not in MACHINE}
        if config["train"].pop("weights", True) and self.data.train_set.weights is not None:
            config["train"]["weights"] = weights_digest(self.data.train_set)
        hashes = {name: embeddings.hash for name, embeddings in self.inputs.vectors.items()}
        hashes |= {f"{kind} ids": ids.hash for kind, (ids, _) in self.inputs.ids.items()}
        return {**config, "protocol": self.data.protocol.id, "inputs": hashes}

    def _description(
        self, trained: fit.TrainingResult, side: Side | None, ids: Mapping[str, CatalogueIds], vectors: Vectors
    ) -> dict[str, Any]:
        """Settings in effect, cost, versions and hashes of the inputs."""
        config = self.config
        settings = {"type": config.type, **asdict(trained.model.config)}
        if side is not None:
            settings["side"] = asdict(side.config)
        if ids:
            settings["ids"] = {kind: codes.digest[:12] for kind, codes in ids.items()}
        if config.init_from != "none":
            settings["init_from"] = config.init_from
        train = asdict(self.settings) if not trained.model.closed_form else {}
        for name in MACHINE:
            train.pop(name, None)
        train.pop("weights", None)  # recorded where they were used, so that other runs have the settings of older ones
        if trained.model.closed_form and self.settings.train_on_validation:
            train["train_on_validation"] = True
        if trained.model.uses_weights:
            train["weights"] = weights_digest(self.data.train_set)
        if train:
            settings["train"] = train
        description = {"seed": config.seed, "settings": settings, "cost": trained.cost, "versions": trained.versions}
        if side is not None and side.widths:
            description["embeddings"] = {modality: vectors[modality].hash for modality in side.widths}
        if ids:
            description["semantic_ids"] = {kind: codes.source for kind, codes in ids.items()}
        return description


def load_initial_weights(model: Recommender, initial: Bundle | None, vocabulary: Vocabulary, *, where: str) -> int:
    """Load the weights of another run into ``model``, whose catalogue is ``vocabulary``; return the number of tensors.

    A model of semantic ids keeps its own codes, which need the same quantizer; other models, and those that have a row
    per item beside the codes, need the same catalogue.
    The fallback for new users is not loaded. Raises ValueError where ``initial``, of setting ``where``, does not fit.
    """
    if initial is None:
        raise ValueError(f"{where}: there is no such run; give <dataset>/<model>/seed_<seed> of a trained model")
    if type(initial.model) is not type(model):
        raise ValueError(f"{where} is a {type(initial.model).__name__}, not a {type(model).__name__}")
    codes = model.item_codes()
    _check_quantizers(codes, initial.model.item_codes(), where)
    is_same = np.array_equal(initial.vocabulary.ids, vocabulary.ids)
    if not codes and not is_same:
        raise ValueError(f"{where} has another catalogue; {type(model).__name__} needs the same one")
    own_codes = {f"{part}.codes" for part, module in model.named_modules() if module in codes.values()}

    def weights(recommender: Recommender) -> dict[str, Tensor]:
        tensors = recommender.state_dict().items()
        return {name: t for name, t in tensors if name not in own_codes and not name.startswith("cold_users.")}

    tensors = weights(initial.model)
    rows = [name for name, t in tensors.items() if t.ndim and len(t) == initial.model.n_items + 1]
    if rows and not is_same:  # vectors of items beside the codes, as in LIGER: row n would be another item here
        raise ValueError(f"{where} has another catalogue, and {rows[0]} a row per item; name a run on the same one")
    shapes, initial_shapes = ({name: tuple(t.shape) for name, t in each.items()} for each in (weights(model), tensors))
    names = shapes.keys() | initial_shapes.keys()
    if differing := [name for name in names if shapes.get(name) != initial_shapes.get(name)]:
        name = min(differing)
        sizes = f"{initial_shapes.get(name)} there and {shapes.get(name)} here"
        raise ValueError(f"{where} has other settings: {name} is {sizes}")
    model.load_state_dict(tensors, strict=False)
    return len(tensors)


def _check_quantizers(own: Mapping[str, ItemCodes], initial: Mapping[str, ItemCodes], where: str) -> None:
    if own.keys() != initial.keys():
        raise ValueError(f"{where} reads ids of {', '.join(initial)}, this model of {', '.join(own)}")
    for kind, codes in own.items():
        ids, other = codes.ids, initial[kind].ids
        if (ids.quantizer, ids.sizes) != (other.quantizer, other.sizes):
            raise ValueError(
                f"{where}: its {kind} ids were made by another quantizer ({other.quantizer[:12]}, here "
                f"{ids.quantizer[:12]}), so that codes have another meaning; let both data sets have ids of one: "
                "quantizer_from"
            )


def build_side(
    config: SideConfig, train_set: Sequences, vocabulary: Vocabulary, items: pa.Table, embeddings: Vectors
) -> Side | None:
    """Build side information from columns of ``items`` and ``embeddings``; None if ``config`` has none."""
    if config.empty:
        return None
    names = split_names(config.items)
    selection = items.select(["item_id", *names]) if {*names} <= {*items.column_names} else items
    table = align_rows(clear_placeholder_texts(selection), "item_id", vocabulary.ids)
    vectors = {}
    for modality, content in embeddings.items():
        rows = content.rows(vocabulary.ids)
        present = np.where(rows >= 0, content.present[rows], False)
        vectors[modality] = (VectorRows(content.vectors, rows), present)
        log.info("%s items of %s have a vector of their %s", int(present.sum()), len(present), modality)
    columns = {name: table[name] for name in table.column_names if name != "item_id"}
    return Side.of(config, train_set, columns, vectors, n_items=len(vocabulary))


def item_vectors(bundle: Bundle, protocol: Protocol, vocabulary: Vocabulary) -> Embeddings:
    """Return the item vectors of a trained model; items without training events have none.

    Raises ValueError for a model of another catalogue or split, or without item vectors.
    """
    bundle.check_catalogue(vocabulary)
    bundle.check_split(protocol)
    weights, present = bundle.model.item_vectors()[1:].detach().cpu().float().numpy(), bundle.train_events > 0
    vectors = np.where(present[:, None], weights, np.float32(0))
    keys = np.where(present, vocabulary.ids, "").astype(object)
    about = {"model": bundle.name, "seed": bundle.training.get("seed")}
    return Embeddings(vocabulary.ids, vectors, present, keys, f"{bundle.name} {bundle.protocol.id}", about)


def build_catalogue_ids(
    kinds: tuple[str, ...], inputs: Mapping[str, tuple[SemanticIds, PrefixTree]], vocabulary: Vocabulary
) -> dict[str, CatalogueIds]:
    """Return semantic ids of the catalogue by kind. Raises ValueError where ids and prefix tree do not match."""
    catalogues = {}
    for kind in kinds:
        ids, tree = inputs[kind]
        catalogues[kind] = CatalogueIds.of(ids, vocabulary.ids, tree)
        count = int((catalogues[kind].codes[1:, 0] >= 0).sum())
        log.info("%s items of %s have an id of their %s", count, len(vocabulary), kind)
    return catalogues
