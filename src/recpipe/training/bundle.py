"""Bundle: folder of a trained model with all that is needed to recommend with it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recpipe.config import build_config
from recpipe.data.digests import MANIFEST, verify_folder, write_manifest
from recpipe.data.item_columns import current_item_columns
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.side import Side
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.bundle_folders import CONFIG

CURVE_COLUMNS = dict.fromkeys(("epoch", "step", "seconds", "loss", "lr", "gradient_norm", "gradient_norm_max"))
WEIGHTS, ITEMS = "model.safetensors", "items.parquet"
ITEM_COLUMNS = "item_columns.parquet"  # of items with columns beside their titles; older bundles have none
SEEN_EVENTS = "seen_events.parquet"  # bundles of older versions have none
FORMATS = (1, 2)  # 2 has a manifest
HINT = "run `kedro run --pipelines=train`"


@dataclass
class Bundle:
    """Trained model with its vocabulary, titles, protocol, and description of its training."""

    name: str
    type: str
    model: Recommender
    vocabulary: Vocabulary
    titles: list[str | None]  # (I,) beside vocabulary.ids
    train_events: np.ndarray  # (I,) int64, training events per item; 0 marks a cold item
    protocol: Protocol
    training: dict[str, Any] = field(default_factory=dict)  # seed, settings, versions, cost, hashes of the inputs
    curve: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch; empty in a loaded bundle
    work_folder: Path | None = None  # checkpoints of the training that the bundle comes from
    item_columns: pa.Table | None = None  # (I, columns) without item_id and title, beside vocabulary.ids
    seen_events: SeenEvents | None = None  # of the training; in a loaded bundle only if asked for

    @property
    def train_on_validation(self) -> bool:
        """Whether the model was trained on the validation events too (``train.train_on_validation``)."""
        train = (self.training.get("settings") or {}).get("train", {})
        return bool(train.get("train_on_validation") or train.get("put_back"))  # the name until November 2026

    def check_catalogue(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError unless ``vocabulary`` has the same items in the same order."""
        if not np.array_equal(self.vocabulary.ids, vocabulary.ids):
            raise ValueError(
                f"{self.name} was trained on another catalogue ({len(self.vocabulary)} items) than the data on disk "
                f"({len(vocabulary)} items); run `kedro run --pipelines=train,evaluate --params model={self.name}`"
            )

    def check_split(self, protocol: Protocol) -> None:
        """Raise ValueError unless ``protocol`` gives the training data of the model, or, without a split, more."""
        own = self.protocol if protocol.holds_out else self.protocol.without_split()
        if differing := own.data_differences(protocol):
            raise ValueError(
                f"{self.name} was trained on another split ({', '.join(differing)} differ); "
                f"run `kedro run --pipelines=train,evaluate --params model={self.name}`"
            )

    def training_runs(self) -> list[dict[str, Any]]:
        """List all training that the weights come from: its own, and that of bundles it began with or read vectors of.

        Each has ``name``, ``protocol`` and ``train_on_validation``.
        """
        own = {"name": self.name, "protocol": self.protocol.to_dict(), "train_on_validation": self.train_on_validation}
        return [own, *self.training.get("earlier_runs", [])]

    def check_held_out(self, protocol: Protocol, *, train_on_validation: bool, where: str) -> None:
        """Raise ValueError if the weights may know events that a run under ``protocol`` holds out.

        Training on another data set is allowed, and on the same one under the same split, without its validation events
        unless that run trains on them too. where: the setting that names this bundle.
        """
        check_held_out(self.training_runs(), protocol, train_on_validation=train_on_validation, where=where)

    def with_search_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return the bundle with the values of ``settings`` that only a search reads, such as ``beam``.

        Weights are shared. Raises ConfigError for values that are not allowed.
        """
        values = {name: settings[name] for name in self.model.search_settings if name in settings}
        fields = {**json.loads(json.dumps(dataclasses.asdict(self.model.config))), **values}
        config = build_config(type(self.model.config), fields, where=f"models.{self.name}")
        if config == self.model.config:
            return self
        model, training = copy.copy(self.model), dict(self.training)
        model.config = config
        if "settings" in training:
            training["settings"] = {**training["settings"], **{name: getattr(config, name) for name in values}}
        return dataclasses.replace(self, model=model, training=training)

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of the training; call it when the bundle is on disk."""
        from recpipe.training.checkpoint import remove_checkpoints  # with Lightning, which serving does not need

        if self.work_folder is not None:
            remove_checkpoints(self.work_folder)

    def title_table(self) -> pa.Table:
        """Return a table with the columns ``item_id`` and ``title`` of every item, in the order of the vocabulary."""
        ids, titles = (pa.array(values, pa.string()) for values in (self.vocabulary.ids, self.titles))
        return pa.table({"item_id": ids, "title": titles})

    def item_table(self) -> pa.Table:
        """Return a table with the columns item_id, title, train_events and those of items, in vocabulary order.

        Conditions on items read it.
        """
        table = self.title_table().append_column("train_events", pa.array(self.train_events, pa.int64()))
        columns = pa.table({}) if self.item_columns is None else self.item_columns
        for name, column in zip(columns.column_names, columns.columns, strict=True):
            table = table.append_column(name, column)
        return table

    def with_item_columns(self, items: pa.Table, *, where: str = "the table of items") -> Self:
        """Return the bundle with the current columns of ``items``, joined by item_id, in place of its own.

        Unknown items are ignored; items without a row have nulls. Weights are shared. ``where`` names the table in
        errors. Raises ValueError for a table without item_id, for ids in several rows, and where no id is known.
        """
        columns = current_item_columns(items, self.vocabulary.ids, where=where)
        return dataclasses.replace(self, item_columns=columns)


def check_held_out(
    runs: Iterable[Mapping[str, Any]],
    protocol: Protocol,
    *,
    train_on_validation: bool,
    where: str,
    advice: str = "name a run that was trained under this protocol, or on another data set",
) -> None:
    """Raise ValueError if one of ``runs`` (``Bundle.training_runs``) may know events that ``protocol`` holds out."""
    if not protocol.holds_out:
        return
    for run in runs:
        other = Protocol.from_dict(run["protocol"])
        if other.dataset != protocol.dataset:
            continue
        differing = [name for name in other.data_differences(protocol) if name != "history"]
        if differing:
            saw = f"trained on {other.dataset} under another split ({', '.join(differing)} differ), so it may know"
        elif run["train_on_validation"] and not train_on_validation:
            saw = "trained with train_on_validation, so it knows"
        else:
            continue
        raise ValueError(f"{where}: {run['name']} was {saw} validation or test events of this run; {advice}")


def curve_table(bundle: Bundle) -> pa.Table:
    """Return the training curve, with a row per epoch and a column per value; without rows for a closed-form model."""
    columns = dict.fromkeys(key for row in bundle.curve or [CURVE_COLUMNS] for key in row)
    return pa.table({key: [row.get(key) for row in bundle.curve] for key in columns})


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write into the existing ``folder``; the caller makes its appearance atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    items = {
        "item_id": pa.array(bundle.vocabulary.ids, pa.string()),
        "title": pa.array(bundle.titles, pa.string()),
        "train_events": pa.array(bundle.train_events, pa.int64()),
    }
    pq.write_table(pa.table(items), folder / ITEMS, compression="zstd")
    if bundle.item_columns is not None:
        pq.write_table(bundle.item_columns, folder / ITEM_COLUMNS, compression="zstd")
    if bundle.seen_events is not None:
        pq.write_table(bundle.seen_events.to_table(), folder / SEEN_EVENTS, compression="zstd")
    model = bundle.model
    config: dict[str, Any] = {"format": FORMATS[-1], "name": bundle.name, "type": bundle.type}
    config |= {"config": dataclasses.asdict(model.config), "max_length": model.max_length}
    if model.uses_weights:
        config["uses_weights"] = True
    if model.history_bias:
        config["history_bias"] = model.history_bias
    if model.side is not None:
        config["side"] = model.side.to_dict()
    if ids := {name: codes.description() for name, codes in model.item_codes().items()}:
        config["ids"] = ids
    if model.cold_users is not None:
        config["cold_users"] = model.cold_users.to_dict()
    config |= {"protocol": {"id": bundle.protocol.id, **bundle.protocol.to_dict()}, "training": bundle.training}
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    write_manifest(folder)


def load_bundle(
    folder: Path, device: str | torch.device = "cpu", *, accelerate: bool = True, with_seen_events: bool = False
) -> Bundle:
    """Read a folder of ``save_bundle``. Raises ValueError for missing, damaged or foreign files."""
    missing = [name for name in (WEIGHTS, CONFIG, ITEMS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a bundle: {', '.join(missing)} missing; {HINT}")
    has_manifest = verify_folder(folder, HINT)
    try:
        config = json.loads((folder / CONFIG).read_text())
        format_ = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); {HINT}") from error
    if format_ not in FORMATS:
        raise ValueError(f"{folder / CONFIG} has format {format_!r}; this version reads 1 and 2; {HINT}")
    if format_ > 1 and not has_manifest:
        raise ValueError(f"{folder} has lost its {MANIFEST}, by which its files are checked; {HINT}")
    items = pq.read_table(folder / ITEMS)
    vocabulary = Vocabulary(items["item_id"].to_numpy(zero_copy_only=False))
    model = build(
        config["type"],
        config["config"],
        n_items=len(vocabulary),
        max_length=config["max_length"],
        side=Side.from_dict(config["side"]) if "side" in config else None,
        ids={name: CatalogueIds.empty(fields, len(vocabulary)) for name, fields in config.get("ids", {}).items()},
        accelerate=accelerate,
    )
    model.uses_weights = config.get("uses_weights", False)
    model.history_bias = config.get("history_bias", 0.0)
    if "cold_users" in config:  # absent in old bundles
        model.cold_users = ColdUsers.from_dict(config["cold_users"], n_items=len(vocabulary))
    try:
        model.load_tensors(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG} or is incomplete: {error}") from error
    for name, codes in model.item_codes().items():
        codes.check(config["ids"][name]["digest"])
    titles, train_events = items["title"].to_pylist(), items["train_events"].to_numpy()
    has_seen_events = with_seen_events and (folder / SEEN_EVENTS).is_file()
    return Bundle(
        config["name"],
        config["type"],
        model.to(device).eval(),
        vocabulary,
        titles,
        train_events,
        Protocol.from_dict(config["protocol"]),
        config["training"],
        item_columns=_read_item_columns(folder, len(vocabulary)),
        seen_events=SeenEvents.from_table(pq.read_table(folder / SEEN_EVENTS)) if has_seen_events else None,
    )


def _read_item_columns(folder: Path, n_items: int) -> pa.Table | None:
    if not (folder / ITEM_COLUMNS).is_file():
        return None
    table = pq.read_table(folder / ITEM_COLUMNS)
    if len(table) != n_items:
        raise ValueError(f"{folder / ITEM_COLUMNS} has {len(table)} rows for {n_items} items; {HINT}")
    return table
