"""Types for signatures of nodes.

The type checker sees the real classes. At run time they are ``Any``: Kedro evaluates the hints of all nodes when it
builds pipelines, which must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ibis.expr.types import Table as IbisTable
    from plotly.graph_objects import Figure
    from polars import DataFrame

    from recpipe.content.embeddings import Embeddings
    from recpipe.data.sequences import Fold, Sequences, Vocabulary
    from recpipe.data.splits import TrainingData
    from recpipe.evaluation.evaluate import Evaluation
    from recpipe.reporting.run_store import RunStore
    from recpipe.semantic_ids.ids import SemanticIds
    from recpipe.semantic_ids.prefix_tree import PrefixTree
    from recpipe.semantic_ids.quantizer import Quantizer
    from recpipe.training.bundle import Bundle
    from recpipe.training.job import TrainingJob
else:
    Bundle = DataFrame = Embeddings = Evaluation = Figure = Fold = IbisTable = PrefixTree = Any
    Quantizer = RunStore = SemanticIds = Sequences = TrainingData = TrainingJob = Vocabulary = Any
