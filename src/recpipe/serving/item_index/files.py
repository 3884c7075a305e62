"""Index of a bundle's item vectors, in files beside the bundle; the command that builds it.

    python -m recpipe.serving.item_index data/06_models/online_retail/sasrec --exact-below 0

The index of ``<bundle>`` lies in ``<bundle>.index``: ``items.faiss``, ``index.json`` and a manifest with their digests.
It is built again when the weights of the bundle or the settings change. faiss reads its file in C++; it holds no code.
Below a size, and where no index is faster at the recall asked for, search stays exact.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recpipe.config import build_config
from recpipe.data.atomic import atomic_folder
from recpipe.data.digests import DigestError, file_digest, verify_folder, write_manifest
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.models.recommender import Scorer
from recpipe.serving.item_index.build import IndexConfig, build_index, sample_queries
from recpipe.serving.item_index.search import INDEX_KINDS, ItemIndex, SearchSettings
from recpipe.training.bundle import WEIGHTS, Bundle, load_bundle
from recpipe.training.bundle_folders import newest_bundle

log = logging.getLogger(__name__)

FORMAT = 1
FILE, DESCRIPTION = "items.faiss", "index.json"
MODELS, SPLITS = "06_models", "05_model_input"  # layers of a data folder
HINT = "build it again with `python -m recpipe.serving.item_index <bundle>`"


def bundle_index(bundle: Bundle, folder: Path, config: IndexConfig | None = None) -> ItemIndex | None:
    """Return the index of the bundle in ``folder``: the one on disk if it fits, else a new one, which is saved.

    None for models whose scores are no products of two vectors, and for catalogues smaller than ``exact_below``.
    """
    config, model = config or IndexConfig(), bundle.model
    if not isinstance(model, Scorer) or not model.scores_by_product or model.n_items < config.exact_below:
        return None
    with torch.inference_mode(), model.cached_weights():
        vectors = model.output_vectors().float().cpu()
    key = {"format": FORMAT, "weights": file_digest(folder / WEIGHTS), "config": asdict(config)}
    try:
        return load_index(index_folder(folder), vectors, key)
    except (DigestError, ValueError) as error:
        log.info("%s; building the index of %s", error, bundle.name)
    histories = training_histories(bundle, folder)
    queries, excluded = sample_queries(bundle, histories, config)
    index, description = build_index(vectors, queries, excluded, config)
    description["histories"] = "drawn by popularity" if histories is None else "training"
    try:
        save_index(index, index_folder(folder), {**key, **description})
    except OSError as error:
        log.warning("the index of %s stays in memory and is built again at the next start: %s", bundle.name, error)
    return index


def index_folder(bundle: Path) -> Path:
    """Return the folder of a bundle's index, which lies beside it."""
    return bundle.with_name(f"{bundle.name}.index")


def training_histories(bundle: Bundle, folder: Path) -> Sequences | None:
    """Return the training sequences of the bundle's data set; None where its data folder has none of its catalogue."""
    parents = folder.absolute().parents
    layer = next((parent for parent in parents if parent.name == MODELS), None)
    if layer is None:
        return None
    split = layer.with_name(SPLITS) / bundle.protocol.dataset
    try:
        if np.array_equal(Vocabulary.read(split / "vocabulary.parquet").ids, bundle.vocabulary.ids):
            return Sequences.read(split / "train_set.arrow")
    except (OSError, ValueError) as error:
        log.warning("no training sequences to measure the index with: %s; random histories take their place", error)
    return None


def save_index(index: ItemIndex, folder: Path, description: dict[str, Any]) -> None:
    """Write the index, unless search is exact, and its description, in one step."""
    import faiss

    with atomic_folder(folder) as temporary:
        if index.index is not None:
            faiss.write_index(index.index, str(temporary / FILE))
        description = {**description, "faiss": faiss.__version__}
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
        write_manifest(temporary)


def load_index(folder: Path, vectors: torch.Tensor, key: dict[str, Any]) -> ItemIndex:
    """Read what ``save_index`` wrote, for the item ``vectors`` (I + 1, D).

    Raises ValueError for a missing or damaged index, and for one of other weights or settings than ``key`` says.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"there is no index in {folder}; {HINT}")
    if not verify_folder(folder, HINT):
        raise ValueError(f"{folder} has lost its manifest, by which its files are checked; {HINT}")
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))  # JSONDecodeError is a ValueError
    for name, value in key.items():
        if description.get(name) != value:
            raise ValueError(f"the index in {folder} is of other {name}; {HINT}")
    if description["kind"] == "exact":
        return ItemIndex(vectors)
    import faiss

    index = faiss.read_index(str(folder / FILE))
    expected = {"ivf": faiss.IndexIVFScalarQuantizer, "hnsw": faiss.IndexHNSWFlat}[description["kind"]]
    if not isinstance(index, expected) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"{folder / FILE} is a {type(index).__name__}, not what {DESCRIPTION} says; {HINT}")
    settings = build_config(SearchSettings, description["settings"], where=str(folder / DESCRIPTION))
    return ItemIndex(vectors, index, kind=description["kind"], settings=settings)


def main(arguments: list[str] | None = None) -> int:
    """Build the index of a bundle, or say that the one on disk fits; exit status 2 for an invalid request."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("recpipe").setLevel(logging.INFO)
    names = ("kind", "recall", "k", "exact_below")
    try:
        config = IndexConfig(**{name: value for name in names if (value := getattr(options, name)) is not None})
        folder = newest_bundle(options.bundle)
        bundle = load_bundle(folder)
        index = bundle_index(bundle, folder, config)
    except ValueError as error:
        log.error("error: %s", error)
        return 2
    if index is None:
        reason = f"fewer than {config.exact_below:,}; lower --exact-below"
        if not isinstance(bundle.model, Scorer) or not bundle.model.scores_by_product:
            reason = "and scores that are no products of two vectors"
        log.info("%s has %s items, %s: no index", bundle.name, f"{bundle.model.n_items:,}", reason)
        return 0
    log.info("%s: %s search of %s items", index_folder(folder), index.kind, f"{index.n_items:,}")
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = IndexConfig()
    parser = argparse.ArgumentParser(
        "python -m recpipe.serving.item_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="folder of a model, of a run or of a bundle")
    parser.add_argument("--kind", help=f"auto, exact, {' or '.join(INDEX_KINDS)} ({defaults.kind})")
    parser.add_argument("--recall", type=float, help=f"least recall of the first k items ({defaults.recall})")
    parser.add_argument("--k", type=int, help=f"items of a list whose recall is measured ({defaults.k})")
    parser.add_argument("--exact-below", type=int, help=f"items below which there is none ({defaults.exact_below:,})")
    return parser
