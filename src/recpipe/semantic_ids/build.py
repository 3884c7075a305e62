"""Quantizers, ids and vectors of earlier runs and of other data sets, for reuse.

Semantic ids in five steps: quantizer, ids, quality, gate, prefix tree; earlier results are reused where they fit.

All steps of one kind of ids::

    earlier = EarlierIds(folder)
    quantizer = fit(embeddings, earlier, config)
    ids = assign_ids(embeddings, quantizer, earlier, config)
    quality = measure(embeddings, quantizer, ids, items, config)
    tree = build_tree(ids, check(quality))
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from recpipe.config import DataPaths, build_config, split_names
from recpipe.content.embeddings import Embeddings
from recpipe.semantic_ids import quality as measurements
from recpipe.semantic_ids.assign import assign, of_one_encoder, other_space, reusable, vectors_of
from recpipe.semantic_ids.gate import Gate
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, build_quantizer, load_quantizer

if TYPE_CHECKING:
    from recpipe.config.schema import Category, SemanticIdsConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
QUANTIZER, IDS = "quantizer", "semantic_ids.parquet"  # in the folder of a kind of ids


class UnreadableError(ValueError):
    """An earlier quantizer or earlier ids on disk cannot be read."""


@dataclass(eq=False)
class EarlierIds:
    """Results that can be reused for one kind of ids, read at their first use; None for those that do not exist.

    ``folder`` has the quantizer and the ids of an earlier run. ``lender`` is the data set of ``quantizer_from``, whose
    quantizer is in ``lent_folder``. ``others``: files with the embeddings of the data sets of ``quantizer_with``, by
    name. A file that cannot be read raises UnreadableError.
    """

    folder: Path | None = None
    lender: str | None = None
    lent_folder: Path | None = None
    others: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: DataPaths, config: SemanticIdsConfig) -> EarlierIds:
        """Paths in the data folder, as ``config`` names data sets.

        Raises ValueError for a bad name, for several data sets in ``quantizer_from``, and where ``quantizer_with``
        names the data set itself.
        """
        lenders, others = split_names(config.quantizer_from), split_names(config.quantizer_with)
        for name in (*lenders, *others):
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is no name of a data set")
        if paths.dataset in others:
            raise ValueError(f"quantizer_with={paths.dataset} is the data set itself; name others")
        if len(lenders) > 1:
            raise ValueError(f"quantizer_from={config.quantizer_from}: name one data set")
        embeddings = f"{config.kind.removesuffix('_parts')}_embeddings.parquet"
        return cls(
            folder=paths.ids(config.kind),
            lender=lenders[0] if lenders else None,
            lent_folder=paths.for_dataset(lenders[0]).ids(config.kind) if lenders else None,
            others={name: paths.for_dataset(name).features / embeddings for name in others},
        )

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """The quantizer of an earlier run."""
        return _read(load_quantizer, self.folder, QUANTIZER)

    @cached_property
    def ids(self) -> SemanticIds | None:
        """The ids of an earlier run."""
        return _read(SemanticIds.read, self.folder, IDS)

    @cached_property
    def lent_quantizer(self) -> Quantizer | None:
        """The quantizer of ``lender``."""
        return _read(load_quantizer, self.lent_folder, QUANTIZER)

    @cached_property
    def other_embeddings(self) -> dict[str, Embeddings]:
        """Vectors of the other data sets. Raises ValueError for missing ones, with the command that makes them."""
        for name, path in self.others.items():
            if not path.is_file():
                raise ValueError(
                    f"{name} has no {path.name}; run `kedro run --pipelines=ingest,embed --params dataset={name}`"
                )
        return {name: Embeddings.read(path) for name, path in self.others.items()}


def unless_damaged(read: Callable[[], T | None], *, refit: bool) -> T | None:
    """Return ``read()``; for a damaged file None if ``refit`` is set, otherwise raise UnreadableError."""
    try:
        return read()
    except UnreadableError as error:
        if not refit:
            raise
        log.warning("made anew: %s", error)
        return None


def _read(read: Callable[[Path], T], folder: Path | None, name: str) -> T | None:
    if folder is None or not (path := folder / name).exists():
        return None
    try:
        return read(path)
    except (ValueError, OSError) as error:
        raise UnreadableError(
            f"{path} cannot be read ({error}). Put a copy back, or make new ids for all items: add "
            "`--params semantic_ids.refit=true`"
        ) from error


class QualityGateError(ValueError):
    """The ids failed the quality gate; the message names the checks and what to change."""


def fit(
    embeddings: Embeddings,
    earlier: EarlierIds,
    config: SemanticIdsConfig,
    *,
    on_epoch: OnEpoch | None = None,
) -> Quantizer:
    """Return the quantizer of another data set, if ``quantizer_from`` names one, else that of an earlier run with the
    same settings and vector space, else a new one.

    A new quantizer is fitted to these embeddings and those of ``quantizer_with``.
    """
    if earlier.others and earlier.lender is not None:
        raise ValueError("quantizer_with fits a quantizer, and quantizer_from lends one; say one of them")
    if earlier.lender is not None:
        return _borrow(earlier, embeddings)
    others = earlier.other_embeddings
    type_, settings = config.type_and_settings()
    previous = unless_damaged(lambda: earlier.quantizer, refit=config.refit)
    if previous is None:
        log.info("fitting %s, of which there is none yet", config.quantizer)
        return _fit_new(embeddings, others, config, on_epoch)
    reason = "semantic_ids.refit is set" if config.refit else None
    block = {"type": type_, **settings}
    if reason := reason or reusable(previous, embeddings, block, config.seed, others=sorted(others)):
        log.warning("fitting %s anew, all ids may change: %s", config.quantizer, reason)
        return _fit_new(embeddings, others, config, on_epoch)
    log.info("%s of an earlier run fits these embeddings: kept", config.quantizer)
    return previous


def assign_ids(
    embeddings: Embeddings, quantizer: Quantizer, earlier: EarlierIds, config: SemanticIdsConfig
) -> SemanticIds:
    """Assign ids to all items with content; earlier ids of the same quantizer and policy do not change."""
    previous = unless_damaged(lambda: earlier.ids, refit=config.refit)
    if previous is not None and (reason := _mismatch(previous, quantizer, config)):
        log.warning("all %s ids are given anew: %s", f"{len(previous):,}", reason)
        previous = None
    return assign(
        embeddings, quantizer, policy=config.collisions, extra_codes=config.extra_codes, earlier=previous
    )


def measure(
    embeddings: Embeddings,
    quantizer: Quantizer,
    ids: SemanticIds,
    items: pa.Table,
    config: SemanticIdsConfig,
    *,
    category: Category | None = None,
) -> dict[str, Any]:
    """Measure the quality of ids with the checks of the gate, as JSON; ``category`` of ``items`` is for purity."""
    rows = embeddings.rows(ids.item_ids)
    # An item that left the catalogue, or lost its content, keeps its id but has no vector any more.
    present = (rows >= 0) & embeddings.present[rows]
    categories = categories_of(ids, items, category)
    measurement = measurements.measure(
        ids.codes[present],
        ids.quantized[present],
        ids.sizes,
        vectors_ND=embeddings.vectors[rows[present]],
        reconstructed_ND=quantizer.decode(ids.quantized[present]),
        categories=categories and [name for name, here in zip(categories, present, strict=True) if here],
        seed=config.seed,
    )
    quality = measurements.judge(
        measurement,
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
    }


def categories_of(ids: SemanticIds, items: pa.Table, category: Category | None) -> list[str | None] | None:
    """The category of each item with an id, None for items that are gone; None without a ``category``."""
    if category is None:
        return None
    if category.column not in items.column_names:
        raise ValueError(
            f"content.category.column is {category.column!r}; items have {', '.join(items.column_names)}"
        )
    return measurements.leaf_categories(column_of(ids, items, category.column), category.of_list)


def column_of(ids: SemanticIds, items: pa.Table, column: str) -> pa.ChunkedArray:
    """A column of ``items`` in the order of the ids, null for items that are gone."""
    item_ids = items["item_id"].cast(pa.string())
    return items[column].take(pc.index_in(pa.array(ids.item_ids, pa.string()), value_set=item_ids))


def check(quality: Mapping[str, Any], dataset: str = "<data set>") -> dict[str, Any]:
    """Apply the gate to the result of ``measure``, as JSON. Raises QualityGateError where a check failed."""
    failed = [each for each in quality["checks"] if not each["passed"]]
    if failed:
        lines = [
            f"  {each['name']} is {each['value']:.3g}, asked for {each['asks']} {each['threshold']:.3g}: "
            f"{each['advice']}"
            for each in failed
        ]
        raise QualityGateError(
            f"the {quality['modality']} ids did not pass the quality gate (semantic_ids.gate):\n"
            + "\n".join(lines)
            + f"\n  Figures and numbers: data/08_reporting/{dataset}/semantic_ids, or `make viz`"
        )
    log.info("%s ids passed the quality gate: %s", quality["modality"], _in_words(quality))
    return {"ids": quality["ids"], "passed": True, "checks": quality["checks"]}


def build_tree(ids: SemanticIds, gate: Mapping[str, Any]) -> PrefixTree:
    """Build the prefix tree of ids that passed the gate. Raises ValueError if the gate is of other ids."""
    if gate["ids"] != ids.hash:
        raise ValueError(
            "the gate passed other ids than those on disk: run `kedro run --pipelines=semantic_ids` again"
        )
    return PrefixTree.build(ids.codes, ids.sizes, source=ids.hash, shared=not ids.unique)


def _fit_new(
    embeddings: Embeddings,
    others: Mapping[str, Embeddings],
    config: SemanticIdsConfig,
    on_epoch: OnEpoch | None,
) -> Quantizer:
    started = time.perf_counter()
    quantizer = build_quantizer(*config.type_and_settings())
    quantizer.fit(vectors_of(embeddings, others), seed=config.seed, on_epoch=on_epoch)
    quantizer.about = {
        "space": embeddings.space,
        "embeddings": embeddings.hash,
        "modality": embeddings.about.get("modality"),
        "items": int(embeddings.present.sum()),
        "seed": config.seed,
        "encoder": embeddings.about.get("encoder"),
        "template": embeddings.about.get("template"),
        "seconds": time.perf_counter() - started,
        **({"with": {name: each.hash for name, each in sorted(others.items())}} if others else {}),
    }
    return quantizer


def _borrow(earlier: EarlierIds, embeddings: Embeddings) -> Quantizer:
    """The quantizer of another data set for these embeddings; the encoder must be the same, the template may differ.

    Raises ValueError without such a quantizer, and for one that was fitted to vectors of another encoder.
    """
    name, quantizer = earlier.lender, unless_damaged(lambda: earlier.lent_quantizer, refit=False)
    if quantizer is None:
        raise ValueError(
            f"quantizer_from={name}: it has no quantizer; run `kedro run --pipelines=semantic_ids --params "
            f"dataset={name}`"
        )
    if not of_one_encoder(embeddings, quantizer.about, str(quantizer.about.get("space"))):
        raise ValueError(
            f"quantizer_from={name}: {other_space(quantizer, embeddings)}; both need vectors of one encoder "
            "(embedded by an earlier version, run the pipeline embed once more)"
        )
    log.info("the quantizer of %s makes these ids", name)
    own, template = embeddings.about.get("template"), quantizer.about.get("template")
    if template != own:
        log.warning("it was fitted to texts by the template %r, these are by %r", template, own)
    quantizer = copy.copy(quantizer)
    quantizer.about = {**quantizer.about, "space": embeddings.space, "template": own, "lent_by": name}
    return quantizer


def _mismatch(ids: SemanticIds, quantizer: Quantizer, config: SemanticIdsConfig) -> str | None:
    """The reason why earlier ids cannot be reused, None if they can."""
    if config.refit:
        return "semantic_ids.refit is set"
    if ids.about["quantizer"] != quantizer.hash:
        return "the quantizer is another one"
    if ids.about["policy"] != config.collisions:
        return f"collisions is {config.collisions}, was {ids.about['policy']}"
    return None


def _in_words(quality: Mapping[str, Any]) -> str:
    used = min(level["usage"] for level in quality["levels"])
    distinct = quality["collisions"]["before"]["distinct"]
    return (
        f"codes per level {', '.join(map(str, quality['sizes']))}, least used level {used:.1%}, {distinct:,} distinct "
        f"of {quality['items']:,} before resolution"
    )
