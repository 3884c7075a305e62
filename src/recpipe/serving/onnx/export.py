"""Export of scorers to ONNX, to be served without torch by ``recpipe.serving.onnx.model``.

    pip install 'recpipe[onnx]'
    python -m recpipe.serving.onnx.export data/06_models/online_retail/sasrec --into sasrec.onnx

Writes ``sasrec.onnx``, a graph from histories to scores of all items, and ``sasrec.items.parquet`` with ids, titles,
the order of tied items and the scores of the fallback for users without history. The graph is compared with torch on
random histories before it appears. B batch, T time, I items.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from recpipe.config import split_names
from recpipe.data.atomic import atomic_file
from recpipe.data.batches import Batch
from recpipe.data.digests import file_digest
from recpipe.layers.inputs import TIME_CODES
from recpipe.layers.top_k import tie_order
from recpipe.models.recommender import Scorer
from recpipe.training.bundle import Bundle, load_bundle
from recpipe.training.bundle_folders import newest_bundle

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between scores of the graph and of torch, relative to 1 or to a larger score
CHECKED = ((1, 1), (2, 3), (7, 5))  # numbers of histories and longest lengths of the comparison
LARGEST = 1_900_000_000  # bytes of a graph: protobuf holds 2 GiB
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ScoreGraph(nn.Module):
    """Scores (B, I + 1) of right-padded histories (B, T) with their lengths (B,) and, for some models, timestamps."""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return float32 scores (B, I + 1)."""
        return self.model.score(Batch(items, lengths, timestamps)).float()


@dataclass(frozen=True)
class Export:
    """Result of an export: both files and the largest difference to torch."""

    graph: Path
    items: Path
    difference: float


def export_bundle(bundle: Bundle, into: Path) -> Export:
    """Write the graph of a bundle to ``into`` and its items beside it.

    Raises ValueError for models that cannot be exported, with the reason, and where the graph differs from torch.
    """
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(absent)} not installed; run `pip install 'recpipe[onnx]'`")
    if into.suffix != ".onnx":
        raise ValueError(f"--into is {into}; give a file that ends in .onnx")
    graph = ScoreGraph(exportable_scorer(bundle)).eval()
    program = _export(graph, bundle.name)
    items = into.with_suffix(".items.parquet")
    into.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(into) as temporary, atomic_file(items) as items_file:
        pq.write_table(_item_table(bundle), items_file, compression="zstd")
        metadata = {"recpipe": json.dumps({**_description(bundle), "items_sha256": file_digest(items_file)})}
        program.model.metadata_props.update(metadata)
        program.save(str(temporary))
        difference = _checked_difference(graph, temporary, bundle.name)
        if not difference <= TOLERANCE:
            raise ValueError(f"the graph of {bundle.name} differs from torch by {difference:.1e}; it was not written")
    return Export(into, items, difference)


def exportable_scorer(bundle: Bundle) -> Scorer:
    """Return the model of a bundle. Raises ValueError for one whose scores need more than histories and times."""
    model, name = bundle.model, bundle.name
    if not isinstance(model, Scorer):
        raise ValueError(f"{name} searches its lists and does not score the whole catalogue; export a scorer")
    if type(model).refine is not Scorer.refine and not model.scores_by_product:
        raise ValueError(f"{name} decodes its lists item by item; export a scorer, such as gpt with generate: 0")
    if model.history_bias:
        raise ValueError(
            f"{name} has train.history_bias, which a graph does not add; train it with 0, or serve the bundle"
        )
    if model.requires_time == "query":
        raise ValueError(f"{name} reads the time of the query, which a graph has no input for")
    if model.side is not None:
        columns = [*split_names(model.side.config.users), *split_names(model.side.config.events)]
        if others := [column for column in columns if column not in TIME_CODES]:
            raise ValueError(f"{name} reads columns of users or events ({', '.join(others)}): no input for them")
    return model


def _export(graph: ScoreGraph, name: str) -> Any:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time", max=max(graph.model.max_length, 2))
    arguments = graph_inputs(graph.model, users=3, longest=2)
    shapes = tuple({0: batch} | ({1: time} if argument.ndim > 1 else {}) for argument in arguments)
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if size > LARGEST:
        raise ValueError(f"{name} has {size / 2**30:.1f} GiB of weights; an ONNX file holds less than 2 GiB")
    with torch.no_grad(), warnings.catch_warnings(), graph.model.cached_weights():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                graph,
                arguments,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["items", "lengths", "timestamps"][: len(arguments)],
                output_names=["scores"],
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # of many types: torch.export, decompositions, translation to ONNX
            reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
            kind = type(graph.model).__name__
            raise ValueError(f"{name} cannot be exported: torch finds no ONNX graph of {kind} ({reason})") from error


def graph_inputs(model: Scorer, *, users: int, longest: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return random inputs of the graph: items (B, T), lengths (B,), one of them T, and timestamps if they are read."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (users,), generator=generator)
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    items = torch.randint(1, model.n_items + 1, (users, longest), generator=generator) * mask
    if model.requires_time == "none":
        return items, lengths
    gaps = torch.randint(0, 1 << 20, (users, longest), generator=generator)
    return items, lengths, (1_600_000_000 + gaps.cumsum(1)) * mask


def _checked_difference(graph: ScoreGraph, path: Path, name: str) -> float:
    """Return ``largest_difference``. Raises ValueError for a graph that does not run for other numbers of users."""
    try:
        return largest_difference(graph, path)
    except Exception as error:  # of many types, by onnxruntime
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{name} cannot be exported: its graph does not run ({reason})") from error


@torch.no_grad()
def largest_difference(graph: ScoreGraph, path: Path) -> float:
    """Return the largest difference of scores between torch and the file, relative to scores above 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names, differences = [entry.name for entry in session.get_inputs()], []
    for users, longest in (*CHECKED, (3, graph.model.max_length)):
        inputs = graph_inputs(graph.model, users=users, longest=min(longest, graph.model.max_length), seed=users)
        expected = graph(*inputs).numpy()[:, 1:]
        values = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=False)}
        scores = session.run(None, values)[0][:, 1:]
        differences.append(float((np.abs(scores - expected) / np.maximum(np.abs(expected), 1)).max()))
    return max(differences)


def _item_table(bundle: Bundle) -> pa.Table:
    """Return ``item_id``, ``title``, ``tie`` and ``fallback``, the score for users without history and profile."""
    model = bundle.model
    fallback = pa.nulls(model.n_items, pa.float32())
    if model.cold_users is not None:
        segment = np.full(1, len(model.cold_users.keys))
        fallback = pa.array(model.cold_users.scores(segment)[0, 1:].cpu().numpy(), pa.float32())
    ties = tie_order(model.n_items + 1)[1:].numpy().astype(np.int32)
    return bundle.title_table().append_column("tie", pa.array(ties)).append_column("fallback", fallback)


def _description(bundle: Bundle) -> dict[str, Any]:
    model = bundle.model
    return {
        "format": 1,
        "name": bundle.name,
        "type": bundle.type,
        "dataset": bundle.protocol.dataset,
        "protocol": bundle.protocol.id,
        "exclude_seen": bundle.protocol.exclude_seen,
        "max_length": model.max_length,
        "n_items": model.n_items,
        "reads_time": model.requires_time != "none",
        "probabilistic": model.probabilistic,
    }


def main(arguments: list[str] | None = None) -> int:
    """Export a bundle; exit status 2 for one that cannot be exported."""
    parser = argparse.ArgumentParser(
        "python -m recpipe.serving.onnx.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="folder of a model, of a run or of a bundle")
    parser.add_argument("--into", type=Path, required=True, help="file of the graph, such as sasrec.onnx")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("recpipe").setLevel(logging.INFO)
    try:
        bundle = load_bundle(newest_bundle(options.bundle), accelerate=False)
        result = export_bundle(bundle, options.into)
    except ValueError as error:
        log.error("error: %s", error)
        return 2
    log.info("%s and %s: scores differ from torch by %.1e", result.graph, result.items, result.difference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
