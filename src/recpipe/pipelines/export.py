"""Pipeline export: sequences of the split and semantic ids, in the layout of LC-Rec, LETTER and MQL4GRec."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import DataPaths
from recpipe.config.schema import SemanticIdsConfig
from recpipe.data.protocol import Protocol
from recpipe.pipelines.types import Fold, SemanticIds, TrainingData
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``export_sequences``, and ``export_ids`` for each kind of ids of the command."""
    inputs = node_inputs("training_data", "test_set", params=("paths", "protocol"))
    nodes = [Node(export_sequences, inputs, "sequences_export", name="export_sequences")]
    for kind in wiring.kinds:
        inputs = {"ids": f"{kind}_semantic_ids", **node_inputs("training_data", params=("paths",))}
        inputs["config"] = f"params:semantic_ids.kinds.{kind}"
        nodes.append(create_node(export_ids, inputs, f"{kind}_ids_export", kind))
    return Pipeline(nodes)


def export_sequences(
    training_data: TrainingData, test_set: Fold, paths: DataPaths, protocol: Protocol
) -> dict[str, Any]:
    """Write the sequences of users whose last two events are held out; return counts and names of the files.

    Raises ValueError where the split on disk is not that of ``protocol``.
    """
    from dataclasses import replace

    from recpipe.semantic_ids import export

    training_data.check_test_set(test_set)
    stored = training_data.protocol
    requested = replace(protocol, fingerprint=stored.fingerprint, steps=stored.steps)
    if differing := stored.data_differences(requested):
        raise ValueError(
            f"the split on disk is of another protocol ({', '.join(differing)} differ): run `kedro run "
            f"--pipelines=train,export` with the same --params"
        )
    return export.export_sequences(
        paths.export,
        paths.dataset,
        protocol=training_data.protocol,
        vocabulary=training_data.vocabulary,
        train=training_data.train_set,
        valid=training_data.valid_set,
        test=test_set,
    )


def export_ids(
    ids: SemanticIds, training_data: TrainingData, paths: DataPaths, config: SemanticIdsConfig
) -> dict[str, Any]:
    """Write the ids of one kind as tokens, integers and a table; return counts and names of the files."""
    from recpipe.semantic_ids import export

    return export.export_ids(paths.export, paths.dataset, config.kind, ids, training_data.vocabulary)
