"""Pipeline ``semantic_ids``: quantizer, ids, quality gate and prefix tree, the same five nodes for every kind of ids.

Nodes of a kind are in a namespace of its name, such as text; they call ``recpipe.semantic_ids.build``. Foreign ids are
read from a file instead of quantizer and assignment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig, SemanticIdsConfig
from recpipe.pipelines.content_kinds import FOREIGN
from recpipe.pipelines.types import (
    Bundle,
    DataFrame,
    Embeddings,
    Figure,
    PrefixTree,
    Quantizer,
    SemanticIds,
    TrainingData,
)
from recpipe.pipelines.wiring import Wiring, create_node

if TYPE_CHECKING:
    from pyarrow import Table


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Build the nodes of each kind of ids of the command."""
    return Pipeline([node for kind in wiring.kinds for node in _nodes(kind, wiring)])


def _nodes(kind: str, wiring: Wiring) -> list[Node]:
    """Nodes of one kind. Datasets with a dot belong to the namespace; other namespaces read those without."""
    ids, tree, quality = f"{kind}_semantic_ids", f"{kind}_prefix_tree", f"{kind}_ids_quality"
    quantizer, gate, inputs = f"{kind}.quantizer", f"{kind}.gate", wiring.kind_inputs[kind]
    vectors = {} if inputs.embeddings is None else {"embeddings": inputs.embeddings}
    common = {**vectors, "config": f"params:semantic_ids.kinds.{kind}"}
    aligned = [name for name, each in wiring.kind_inputs.items() if each.model is not None]
    # all kinds are compared with the item vectors that one of them is aligned with
    item_vectors = {"collaborative": f"{aligned[0]}_item_vectors"} if aligned else {}
    paths, table = {"paths": "params:paths"}, {"items": "items", "dataset": f"params:datasets.{wiring.dataset}"}
    # The quality comes second: the report waits for it and then reads the figures.
    results = [f"{kind}.id_figures", quality]
    if kind == FOREIGN:
        source = {"config": common["config"], "items": "items", **paths}
        first = [
            create_node(import_ids, source, ids, kind),
            create_node(measure_foreign_ids, {**common, "ids": ids, **table, **item_vectors}, results, kind),
        ]
    else:
        fitting, first = {**common, **paths}, []
        if inputs.model is not None:
            source = {"bundle": f"{inputs.model}_bundle", "training_data": "training_data"}
            first = [create_node(read_item_vectors, source, f"{kind}_item_vectors", kind)]
            fitting["collaborative"] = f"{kind}_item_vectors"
        measuring = {**common, "quantizer": quantizer, "ids": ids, **table, **item_vectors}
        first += [
            create_node(fit_quantizer, fitting, quantizer, kind),
            create_node(assign_ids, {**common, **paths, "quantizer": quantizer}, ids, kind),
            create_node(measure_ids, measuring, results, kind),
        ]
    return [
        *first,
        create_node(check_ids, {"quality": quality, "dataset_name": "params:dataset"}, gate, kind),
        create_node(build_tree, {"ids": ids, "gate": gate}, tree, kind),
    ]


def read_item_vectors(bundle: Bundle, training_data: TrainingData) -> Embeddings:
    """Read the item vectors of a trained model, which must not know events that the protocol holds out."""
    from dataclasses import replace

    from recpipe.training.job import item_vectors

    where = "semantic_ids.quantizers.<name>.collaborative.model"
    bundle.check_held_out(training_data.protocol, train_on_validation=False, where=where)
    vectors = item_vectors(bundle, training_data.protocol, training_data.vocabulary)
    return replace(vectors, about={**vectors.about, "runs": bundle.training_runs()})


def fit_quantizer(
    embeddings: Embeddings, config: SemanticIdsConfig, paths: DataPaths, collaborative: Embeddings | None = None
) -> Quantizer:
    """Fit a quantizer, or reuse that of another data set or of an earlier run."""
    from recpipe.progress import report_epoch
    from recpipe.semantic_ids import build

    earlier = build.EarlierResults.of(paths, config)
    return build.fit_quantizer(embeddings, earlier, config, on_epoch=report_epoch, collaborative=collaborative)


def assign_ids(
    embeddings: Embeddings, config: SemanticIdsConfig, paths: DataPaths, quantizer: Quantizer
) -> SemanticIds:
    """Assign ids to all items with content; ids of an earlier run with the same quantizer do not change."""
    from recpipe.semantic_ids import build

    return build.assign_ids(embeddings, quantizer, build.EarlierResults.of(paths, config), config)


def measure_ids(
    embeddings: Embeddings,
    config: SemanticIdsConfig,
    quantizer: Quantizer,
    ids: SemanticIds,
    items: DataFrame,
    dataset: DatasetConfig,
    collaborative: Embeddings | None = None,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Measure the quality of ids for the gate; draw code usage and the first codes."""
    from recpipe.semantic_ids import build

    table = items.to_arrow()
    category = None if dataset.content is None else dataset.content.category
    quality = build.measure_ids(
        embeddings, quantizer, ids, table, config, category=category, collaborative=collaborative
    )
    return _figures(ids, table, build.categories_of(ids, table, category)), quality


def import_ids(items: DataFrame, config: SemanticIdsConfig, paths: DataPaths) -> SemanticIds:
    """Read ids that others published for the items of the data set."""
    import numpy as np

    from recpipe.semantic_ids import foreign

    return foreign.import_ids(np.array(items["item_id"].cast(str).to_list(), object), paths.raw, config)


def measure_foreign_ids(
    config: SemanticIdsConfig,
    ids: SemanticIds,
    items: DataFrame,
    dataset: DatasetConfig,
    embeddings: Embeddings | None = None,
    collaborative: Embeddings | None = None,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Measure the quality of imported ids for the gate; draw code usage and the first codes."""
    from recpipe.semantic_ids import build, foreign

    table = items.to_arrow()
    categories = build.categories_of(ids, table, None if dataset.content is None else dataset.content.category)
    quality = foreign.measure_foreign(
        ids, config, embeddings=embeddings, categories=categories, collaborative=collaborative
    )
    return _figures(ids, table, categories), quality


def _figures(ids: SemanticIds, items: Table, categories: list[str | None] | None) -> dict[str, Figure]:
    """Draw code usage and the first codes."""
    from recpipe.reporting.figures import semantic_ids as id_figures
    from recpipe.semantic_ids import build

    titles = build.column_of(ids, items, "title").to_pylist()
    sunburst = id_figures.sunburst(ids.quantized, titles, categories=categories)
    return {"usage": id_figures.usage_heatmap(ids.quantized, ids.sizes), "sunburst": sunburst}


def check_ids(quality: dict[str, Any], dataset_name: str) -> dict[str, Any]:
    """Apply the quality gate. Raises QualityGateError for a failed check, after quality and figures were written."""
    from recpipe.semantic_ids import build

    return build.check_ids(quality, dataset_name)


def build_tree(ids: SemanticIds, gate: dict[str, Any]) -> PrefixTree:
    """Build the prefix tree of ids that passed the gate."""
    from recpipe.semantic_ids import build

    return build.build_tree(ids, gate)
