"""Nodes of semantic_ids: short calls into recpipe.semantic_ids.build, the same for every kind of ids."""

from __future__ import annotations

from typing import Any

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig, SemanticIdsConfig
from recpipe.pipelines.types import (
    DataFrame,
    Embeddings,
    Figure,
    PrefixTree,
    Quantizer,
    SemanticIds,
)


def fit_quantizer(embeddings: Embeddings, config: SemanticIdsConfig, paths: DataPaths) -> Quantizer:
    """A quantizer, lent, of an earlier run or fitted; its training curve is in its ``history``."""
    from recpipe.pipelines.progress import tell
    from recpipe.semantic_ids import build

    return build.fit(embeddings, build.EarlierIds.of(paths, config), config, on_epoch=tell)


def assign_ids(
    embeddings: Embeddings, config: SemanticIdsConfig, paths: DataPaths, quantizer: Quantizer
) -> SemanticIds:
    """Ids of all items with content; those of an earlier run that fit stay as they are."""
    from recpipe.semantic_ids import build

    return build.assign_ids(embeddings, quantizer, build.EarlierIds.of(paths, config), config)


def measure_ids(
    embeddings: Embeddings,
    config: SemanticIdsConfig,
    quantizer: Quantizer,
    ids: SemanticIds,
    items: DataFrame,
    dataset: DatasetConfig,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures of code usage and of the first codes, and the quality that the gate judges."""
    from recpipe.reporting import id_figures
    from recpipe.semantic_ids import build

    table = items.to_arrow()
    category = None if dataset.content is None else dataset.content.category
    quality = build.measure(embeddings, quantizer, ids, table, config, category=category)
    sunburst = id_figures.sunburst(
        ids.quantized,
        build.column_of(ids, table, "title").to_pylist(),
        categories=build.categories_of(ids, table, category),
    )
    return {"usage": id_figures.usage_heatmap(ids.quantized, ids.sizes), "sunburst": sunburst}, quality


def check_ids(quality: dict[str, Any], dataset_name: str) -> dict[str, Any]:
    """The verdict of the gate. Raises QualityGateError where a check failed; figures are on disk by then."""
    from recpipe.semantic_ids import build

    return build.check(quality, dataset_name)


def build_tree(ids: SemanticIds, gate: dict[str, Any]) -> PrefixTree:
    """The prefix tree of ids that passed."""
    from recpipe.semantic_ids import build

    return build.build_tree(ids, gate)
