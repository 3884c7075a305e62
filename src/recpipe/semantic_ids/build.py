"""Semantic ids in five steps: ``fit_quantizer``, ``assign_ids``, ``measure_ids``, ``check_ids``, ``build_tree``.

Results of an earlier run are reused where they fit.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.config import VECTORS, DataPaths, build_config, split_names
from recpipe.content.embeddings import Embeddings
from recpipe.semantic_ids.assign import alignment_targets, assign, reuse_obstacle, same_encoder, space_difference
from recpipe.semantic_ids.collisions import Vectors
from recpipe.semantic_ids.gate import ALLOWED_GROUP, Gate, apply_gate
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.quality import leaf_categories, measure_neighbours, measure_quality
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, build_quantizer, distinct_rows, load_quantizer
from recpipe.semantic_ids.vector_rows import VectorRows

if TYPE_CHECKING:
    from recpipe.config.schema import Category, SemanticIdsConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
WARN_SHARED = 0.01  # of the items
QUANTIZER, IDS = "quantizer", "semantic_ids.parquet"  # in the folder of a kind of ids


class UnreadableError(ValueError):
    """Unreadable quantizer or ids of an earlier run."""


class QualityGateError(ValueError):
    """Failed quality gate; the message names the checks and what to change."""


@dataclass(eq=False)
class EarlierResults:
    """Results for one kind of ids, read at first use; None where they do not exist.

    Unreadable files raise UnreadableError; with ``refit`` those in ``folder`` count as missing.
    """

    folder: Path | None = None  # quantizer and ids of an earlier run
    refit: bool = False
    source_dataset: str | None = None  # of ``quantizer_from``
    source_folder: Path | None = None  # with its quantizer
    joint_paths: Mapping[str, Path] = field(default_factory=dict)  # embeddings of ``quantizer_with``, by data set

    @classmethod
    def of(cls, paths: DataPaths, config: SemanticIdsConfig) -> EarlierResults:
        """Build the paths of the files that ``config`` refers to.

        Raises ValueError for its invalid names of data sets.
        """
        sources, joint = split_names(config.quantizer_from), split_names(config.quantizer_with)
        for name in (*sources, *joint):
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is no name of a data set")
        if paths.dataset in joint:
            raise ValueError(f"quantizer_with={paths.dataset} is the data set itself; name others")
        if len(sources) > 1:
            raise ValueError(f"quantizer_from={config.quantizer_from}: name one data set")
        embeddings = f"{config.kind if config.kind in VECTORS else VECTORS[0]}_embeddings.parquet"  # others are of text
        return cls(
            folder=paths.ids(config.kind),
            refit=config.refit,
            source_dataset=sources[0] if sources else None,
            source_folder=paths.for_dataset(sources[0]).ids(config.kind) if sources else None,
            joint_paths={name: paths.for_dataset(name).features / embeddings for name in joint},
        )

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """Quantizer of an earlier run."""
        return _read(load_quantizer, self.folder, QUANTIZER, refit=self.refit)

    @cached_property
    def ids(self) -> SemanticIds | None:
        """Semantic ids of an earlier run."""
        return _read(SemanticIds.read, self.folder, IDS, refit=self.refit)

    @cached_property
    def source_quantizer(self) -> Quantizer | None:
        """Quantizer of the data set that ``quantizer_from`` names."""
        return _read(load_quantizer, self.source_folder, QUANTIZER)

    @cached_property
    def joint_embeddings(self) -> dict[str, Embeddings]:
        """Embeddings of ``quantizer_with``. Raises ValueError for missing files, with the command that writes them."""
        for name, path in self.joint_paths.items():
            if not path.is_file():
                raise ValueError(
                    f"{name} has no {path.name}; run `kedro run --pipelines=ingest,embed --params dataset={name}`"
                )
        return {name: Embeddings.read(path) for name, path in self.joint_paths.items()}


def _read(read: Callable[[Path], T], folder: Path | None, name: str, *, refit: bool = False) -> T | None:
    if folder is None or not (path := folder / name).exists():
        return None
    try:
        return read(path)
    except (ValueError, OSError) as error:
        message = f"{path} cannot be read ({error})"
        if refit:
            log.warning("%s: it will be replaced", message)
            return None
        raise UnreadableError(
            f"{message}. Restore a copy, or make new ids for all items: add `--params semantic_ids.refit=true`"
        ) from error


def fit_quantizer(
    embeddings: Embeddings,
    earlier: EarlierResults,
    config: SemanticIdsConfig,
    *,
    on_epoch: OnEpoch | None = None,
    collaborative: Embeddings | None = None,
) -> Quantizer:
    """Return the quantizer of ``quantizer_from``, or that of an earlier run with the same settings, or a new one.

    A new quantizer is fitted to these embeddings and those of ``quantizer_with``, aligned with the ``collaborative``
    item vectors of a trained model where there are any. Raises ValueError if ``quantizer_from`` and ``quantizer_with``
    are both set, or if either has vectors of another encoder, and QualityGateError where too many items are alike.
    """
    if earlier.joint_paths and earlier.source_dataset is not None:
        raise ValueError("quantizer_with fits a quantizer, and quantizer_from lends one; set one of them")
    check_shared_content(embeddings, config)
    if earlier.source_dataset is not None:
        return _lent_quantizer(earlier.source_dataset, earlier.source_quantizer, embeddings)
    others, previous = earlier.joint_embeddings, earlier.quantizer
    type_, settings = config.type_and_settings()
    if previous is None:
        log.info("fitting %s: there is none yet", config.quantizer)
    elif config.refit:
        log.warning("fitting %s anew, all ids may change: semantic_ids.refit is set", config.quantizer)
    elif reason := reuse_obstacle(
        previous, embeddings, type_, settings, seed=config.seed, others=sorted(others), collaborative=collaborative
    ):
        log.warning("fitting %s anew, all ids may change: %s", config.quantizer, reason)
    else:
        log.info("reusing %s of an earlier run", config.quantizer)
        return previous
    started = time.perf_counter()
    for name, other in others.items():
        if not same_encoder(embeddings, other.about, other.space):
            raise ValueError(
                f"quantizer_with={name}: its vectors are not of one encoder with these "
                f"({other.about.get('encoder')}, here {embeddings.about.get('encoder')}); if an earlier version "
                "embedded them, run the pipeline embed once more"
            )
    vectors_ND: Vectors | VectorRows = VectorRows(embeddings.vectors, embeddings.present)
    if others:
        vectors_ND = np.concatenate([each.vectors[each.present] for each in (embeddings, *others.values())])
    quantizer = build_quantizer(type_, settings)
    targets = None if collaborative is None else alignment_targets(embeddings, collaborative, len(vectors_ND))
    quantizer.fit(vectors_ND, seed=config.seed, on_epoch=on_epoch, targets=targets)
    quantizer.about = {
        "space": embeddings.space,
        "embeddings": embeddings.hash,
        "modality": embeddings.about.get("modality"),
        "items": int(embeddings.present.sum()),
        "seed": config.seed,
        "encoder": embeddings.about.get("encoder"),
        "template": embeddings.about.get("template"),
        "seconds": time.perf_counter() - started,
        **({} if collaborative is None else {"collaborative": collaborative.about}),
        **({"with": {name: other.hash for name, other in sorted(others.items())}} if others else {}),
    }
    return quantizer


def assign_ids(
    embeddings: Embeddings, quantizer: Quantizer, earlier: EarlierResults, config: SemanticIdsConfig
) -> SemanticIds:
    """Assign ids to all items with content; earlier ids of the same quantizer and policy do not change."""
    previous = earlier.ids
    if previous is not None and (reason := _ids_obstacle(previous, quantizer, config)):
        log.warning("all %s ids are assigned anew: %s", f"{len(previous):,}", reason)
        previous = None
    return assign(embeddings, quantizer, policy=config.collisions, extra_codes=config.extra_codes, earlier=previous)


def measure_ids(
    embeddings: Embeddings,
    quantizer: Quantizer,
    ids: SemanticIds,
    items: pa.Table,
    config: SemanticIdsConfig,
    *,
    category: Category | None = None,
    collaborative: Embeddings | None = None,
) -> dict[str, Any]:
    """Measure the quality of ids and compare it with the gate, as JSON. ``check_ids`` raises for failed checks.

    ``items``: table with the column ``item_id`` and that of ``category``. ``collaborative``: item vectors of a trained
    model, whose neighbours are measured too.
    """
    rows = embeddings.rows(ids.item_ids)
    # An item that has left the catalogue, or has lost its content, keeps its id but has no vector any more.
    present = (rows >= 0) & embeddings.present[rows]
    categories = categories_of(ids, items, category)
    quality = measure_quality(
        ids.codes[present],
        ids.quantized[present],
        ids.sizes,
        vectors_ND=VectorRows(embeddings.vectors, rows[present]),
        decode=quantizer.decode,
        categories=None if categories is None else [*compress(categories, present)],
        seed=config.seed,
    )
    quality = apply_gate(
        quality,
        build_config(Gate, config.gate, where="semantic_ids.gate"),
        quantizer=config.quantizer,
        kind=config.type_and_settings()[0],
        lent_by=quantizer.about.get("lent_by"),
    )
    return {
        **quality,
        "modality": config.kind,
        "quantizer": {"name": config.quantizer, "hash": quantizer.hash, **quantizer.about},
        "policy": config.collisions,
        "ids": ids.hash,
        "sizes": list(ids.sizes),
        "without_content": ids.about["counts"]["without_content"],
        "added": int(ids.added.sum()),
        "embeddings": embeddings.about,
        **collaborative_neighbours(ids, collaborative, seed=config.seed),
    }


def collaborative_neighbours(ids: SemanticIds, collaborative: Embeddings | None, *, seed: int) -> dict[str, Any]:
    """Measure how many neighbours by item vectors share codes, as the key ``collaborative``; empty without vectors."""
    if collaborative is None:
        return {}
    rows = collaborative.rows(ids.item_ids)
    present = (rows >= 0) & collaborative.present[rows]
    vectors = collaborative.vectors[rows[present]]
    if not len(vectors):
        return {"collaborative": None}
    measured = measure_neighbours(ids.quantized[present], vectors - vectors.mean(0), seed=seed)
    return {"collaborative": None if measured is None else {"model": collaborative.about["model"], **measured}}


def categories_of(ids: SemanticIds, items: pa.Table, category: Category | None) -> list[str | None] | None:
    """Return the category of each item with an id, None for items that are gone; None without a ``category``.

    ``items`` has the columns ``item_id`` and that of ``category``. Raises ValueError without the latter.
    """
    if category is None:
        return None
    if category.column not in items.column_names:
        raise ValueError(f"content.category.column is {category.column!r}; items have {', '.join(items.column_names)}")
    return leaf_categories(column_of(ids, items, category.column), category.of_list)


def column_of(ids: SemanticIds, items: pa.Table, column: str) -> pa.ChunkedArray:
    """Return a column of ``items`` in the order of the ids, null for items that are gone."""
    item_ids = items["item_id"].cast(pa.string())
    return items[column].take(pc.index_in(pa.array(ids.item_ids, pa.string()), value_set=item_ids))


def check_ids(quality: Mapping[str, Any], dataset: str = "<data set>") -> dict[str, Any]:
    """Return the gate's result for ``build_tree``, as JSON. Raises QualityGateError for failed checks."""
    if failed := [check for check in quality["checks"] if not check["passed"]]:
        line = "  {name} is {value:.3g}, allowed is {asks} {threshold:.3g}: {advice}\n"
        raise QualityGateError(
            f"the {quality['modality']} ids did not pass the quality gate (semantic_ids.gate):\n"
            f"{''.join(line.format_map(check) for check in failed)}"
            f"  Figures and numbers: data/08_reporting/{dataset}/semantic_ids, or `kedro viz run`"
        )
    log.info(
        "%s ids passed the quality gate: codes per level %s, least used level %.1f %%, %s distinct of %s before "
        "resolution",
        quality["modality"],
        ", ".join(map(str, quality["sizes"])),
        100 * min(level["usage"] for level in quality["levels"]),
        f"{quality['collisions']['before']['distinct']:,}",
        f"{quality['items']:,}",
    )
    return {"ids": quality["ids"], "passed": True, "checks": quality["checks"]}


def build_tree(ids: SemanticIds, gate: Mapping[str, Any]) -> PrefixTree:
    """Build the prefix tree of ids that passed the gate. Raises ValueError for the gate of other ids."""
    if gate["ids"] != ids.hash:
        raise ValueError("the gate passed other ids than those on disk: run `kedro run --pipelines=semantic_ids` again")
    return PrefixTree.build(ids.codes, ids.sizes, source=ids.hash, shared=not ids.unique)


def check_shared_content(embeddings: Embeddings, config: SemanticIdsConfig) -> None:
    """Warn of items with equal vectors, whose codes must be equal.

    Raises QualityGateError, before anything is fitted, where they alone exceed ``sharing`` or ``largest`` of the gate,
    and ValueError where a group of them exceeds ``extra_codes`` of the policy extra_digit.
    """
    present = np.flatnonzero(embeddings.present)
    if not len(present):
        return
    first, group = distinct_rows(VectorRows(embeddings.vectors, embeddings.present))
    counts = np.bincount(group)
    shared, largest = int(counts[counts > 1].sum()), int(counts.max())
    if shared / len(present) < WARN_SHARED:
        return
    what = {"image": "image", "text_image": "text and image"}.get(config.kind, "text")
    advice = "" if what == "image" else "; add columns to content.text.template of the data set"
    largest_group = group == group[first[counts == largest].min()]  # of equal ones the first
    names = ", ".join(map(repr, embeddings.item_ids[present[largest_group][:3]]))
    message = (
        f"{shared:,} of {len(present):,} items have the same {what} as others, the largest group is {largest:,} such "
        f"as {names}: no quantizer can tell them apart"
    )
    gate = build_config(Gate, config.gate, where=f"semantic_ids.kinds.{config.kind}.gate")
    limit = len(present) if gate.largest is None else max(gate.largest * len(present), ALLOWED_GROUP)
    if config.collisions == "extra_digit" and largest > config.extra_codes:
        raise ValueError(f"{message}{advice}, or raise semantic_ids.extra_codes ({config.extra_codes})")
    if largest > limit or (gate.sharing is not None and shared > gate.sharing * len(present)):
        raise QualityGateError(f"{message}{advice}, or raise semantic_ids.gate.sharing and semantic_ids.gate.largest")
    log.warning("%s, only the resolution of collisions (%s) can%s", message, config.collisions, advice)


def _lent_quantizer(name: str, quantizer: Quantizer | None, embeddings: Embeddings) -> Quantizer:
    """Adopt the quantizer of another data set; the encoder must be the same, the template may differ."""
    if quantizer is None:
        raise ValueError(
            f"quantizer_from={name}: it has no quantizer; run `kedro run --pipelines=semantic_ids --params "
            f"dataset={name}`"
        )
    if not same_encoder(embeddings, quantizer.about, str(quantizer.about.get("space"))):
        raise ValueError(
            f"quantizer_from={name}: {space_difference(quantizer, embeddings)}; both need vectors of one encoder "
            "(if an earlier version embedded them, run the pipeline embed once more)"
        )
    log.info("using the quantizer of %s", name)
    template, fitted_template = embeddings.about.get("template"), quantizer.about.get("template")
    if template != fitted_template:
        log.warning("it was fitted to texts by the template %r, these are by %r", fitted_template, template)
    quantizer = copy.copy(quantizer)
    quantizer.about = {**quantizer.about, "space": embeddings.space, "template": template, "lent_by": name}
    return quantizer


def _ids_obstacle(ids: SemanticIds, quantizer: Quantizer, config: SemanticIdsConfig) -> str | None:
    """Reason why earlier ids cannot be reused, None if they can."""
    if config.refit:
        return "semantic_ids.refit is set"
    if ids.about["quantizer"] != quantizer.hash:
        return "the quantizer is another one"
    policy = ids.about["policy"]
    return None if policy == config.collisions else f"collisions is {config.collisions}, was {policy}"
