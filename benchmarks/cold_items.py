"""How often is an item found that training never saw, and what do slots for such items cost the others?

kedro run --pipelines=ingest,embed --params dataset=amazon-beauty,modality=text
kedro run --pipelines=train --params dataset=amazon-beauty,model=popular+text_knn+item_knn,protocol.held_out_items=0.03
python benchmarks/cold_items.py --dataset amazon-beauty

Recall at k of all test targets, of those that training saw (warm) and of those that it did not (cold), for every bundle
of the split on disk and every share of slots. A slot shows the unseen item nearest to the user's last ones by content.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from harness import command_line, generated_data, train_on_generated
from recpipe.content.embeddings import Embeddings
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold
from recpipe.evaluation.content_slots import ContentSlots, Vectors, nearest_unseen, with_slots
from recpipe.evaluation.metrics import metrics_from_ranks, warm_and_cold_items
from recpipe.evaluation.ranking import rank_fold
from recpipe.training.bundle import Bundle, load_bundle


def main(argv: list[str] | None = None) -> None:
    """Prints a row per model and share."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--models", nargs="*", help="default: all that have a bundle")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--modalities", nargs="+", default=["text"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--last", type=int, default=10, help="events that make the query")
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("-k", type=int, default=10)
    asked = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        if asked.quick:
            asked.data = generated_data(Path(folder), asked.dataset, held_out_items=0.1)
            for name in ("popular", "item_knn"):
                train_on_generated(asked.data, asked.dataset, name)
        compare(asked, parser)


def compare(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Reads what was trained and prints the table; what is missing ends the program with the command to run."""
    try:
        slots = [ContentSlots(share=share, last=asked.last, decay=asked.decay) for share in asked.shares]
        folder = asked.data / "05_model_input" / asked.dataset
        protocol = Protocol.from_dict(json.loads((folder / "protocol.json").read_text()))
        bundles = newest(asked.data / "06_models" / asked.dataset, asked.seed, asked.models, protocol)
        vectors = described(asked.data / "04_feature" / asked.dataset, asked.modalities, bundles[0])
        table(bundles, Fold.read(folder / "test_set.parquet"), protocol, vectors, slots, asked.k)
    except (OSError, ValueError) as error:
        parser.error(f"{error}")


def newest(folder: Path, seed: int, names: list[str] | None, protocol: Protocol) -> list[Bundle]:
    """The latest bundle of each model that was trained on the split of ``protocol``. Raises ValueError without any."""
    found = []
    for name in names or sorted(path.name for path in folder.glob("*")):
        if latest := max((folder / name / f"seed_{seed}" / "bundle").glob("*/bundle"), default=None):
            bundle = load_bundle(latest)
            if differing := bundle.protocol.data_differences(protocol):
                print(f"{name} is left out: trained under another protocol ({', '.join(differing)})")
            else:
                found.append(bundle)
    if not found:
        raise ValueError(f"{folder} has no bundle of protocol {protocol.id}; run the commands above first")
    return found


def described(folder: Path, modalities: list[str], bundle: Bundle) -> Vectors:
    """Vectors of the catalogue by modality. Raises ValueError where a data set has no such content."""
    vectors = {}
    for modality in modalities:
        path = folder / f"{modality}_embeddings.parquet"
        if not path.exists():
            raise ValueError(
                f"{path} is absent: `kedro run --pipelines=embed` makes it where there is content"
            )
        found = Embeddings.read(path)
        rows = found.rows(bundle.vocabulary.ids)
        vectors[modality] = (found.vectors[rows], np.where(rows >= 0, found.present[rows], False))
    return vectors


def table(
    bundles: list[Bundle], fold: Fold, protocol: Protocol, vectors: Vectors, slots: list[ContentSlots], k: int
) -> None:
    """One ranking per model; its lists are mixed anew for every share."""
    seen = {"exclude_seen": protocol.exclude_seen}
    print(
        f"protocol {protocol.id}, held out {protocol.held_out_items}, seen items excluded: {protocol.exclude_seen}"
    )
    print(f"{'model':<16}{'slots':>6}{'all':>8}{'warm':>8}{'cold':>8}{'NDCG':>8}{'users':>8}{'cold':>7}")
    for bundle in bundles:
        ranking = rank_fold(bundle.model, fold.with_query_times(protocol), k=k, **seen)
        near = nearest_unseen(
            fold.histories,
            vectors,
            bundle.train_events,
            2 * k,
            slots=slots[-1],
            window=protocol.history,
            **seen,
        )
        known = np.concatenate([[False], bundle.train_events > 0])
        for each in slots:
            ranks = with_slots(ranking, fold, near, each).table(fold, bundle.vocabulary, known=known)
            parts = {"all": metrics_from_ranks(ranks, cutoffs=[k]), **warm_and_cold_items(ranks, cutoffs=[k])}
            recall = "".join(
                f"{parts.get(name, {}).get(f'recall@{k}', np.nan):>8.4f}"
                for name in ("all", "warm_items", "cold_items")
            )
            counts = f"{parts['all']['users']:>8}{parts.get('cold_items', {}).get('users', 0):>7}"
            print(
                f"{bundle.name:<16}{each.share:>6.2f}{recall}{parts['all'][f'ndcg@{k}']:>8.4f}{counts}",
                flush=True,
            )


if __name__ == "__main__":
    main()
