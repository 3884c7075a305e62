"""Recall of items without training events, and the cost of content slots for the other items.

kedro run --pipelines=ingest,embed --params dataset=amazon-beauty,modality=text
kedro run --pipelines=train --params dataset=amazon-beauty,model=popular+text_knn+item_knn,protocol.held_out_items=0.03
python benchmarks/cold_items.py --dataset amazon-beauty

Recall at k of all test targets, of those with training events (warm) and without (cold), for every bundle of the split
on disk and every share of content slots, which the content model fills (see evaluation/content_slots.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from harness import command_line, generated_data, train_on_generated
from recpipe.data.atomic import latest_version
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold
from recpipe.evaluation.content_slots import ContentSlots
from recpipe.evaluation.metrics import metrics_from_ranks, warm_and_cold_items
from recpipe.evaluation.ranking import Ranking, rank_fold
from recpipe.training.bundle import Bundle, load_bundle


def main(argv: list[str] | None = None) -> None:
    """Print a row per model and share."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--models", nargs="*", help="default: all that have a bundle")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--content", default="text_knn", help="model of type content_knn that fills the slots")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("-k", type=int, default=10)
    options = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        if options.quick:
            options.data = generated_data(Path(folder), options.dataset, held_out_items=0.1)
            for name in ("popular", "item_knn", "text_knn"):
                train_on_generated(options.data, options.dataset, name)
        try:
            compare(options)
        except (OSError, ValueError) as error:
            parser.error(f"{error}")


def compare(options: argparse.Namespace) -> None:
    """Print the table. Raises ValueError, with the command to run, for missing models."""
    folder = options.data / "05_model_input" / options.dataset
    protocol = Protocol.from_dict(json.loads((folder / "protocol.json").read_text()))
    fold = Fold.read(folder / "test_set.arrow")
    models = options.data / "06_models" / options.dataset
    bundles = latest_bundles(models, options.seed, options.models, protocol)
    (content,) = latest_bundles(models, options.seed, [options.content], protocol)
    rules = {share: ContentSlots(share, content) if share else None for share in options.shares}
    print(f"protocol {protocol.id}, held out {protocol.held_out_items}, seen items excluded: {protocol.exclude_seen}")
    print(f"{'model':<16}{'slots':>6}{'all':>8}{'warm':>8}{'cold':>8}{'NDCG':>8}{'users':>8}{'cold':>7}")
    for bundle in bundles:
        ranking = rank_fold(
            bundle.model, fold.with_query_times(protocol), k=options.k, exclude_seen=protocol.exclude_seen
        )
        for share, rule in rules.items():
            print_row(bundle, fold, protocol, ranking, share, rule, options.k)


def latest_bundles(folder: Path, seed: int, names: list[str] | None, protocol: Protocol) -> list[Bundle]:
    """Load the latest bundle of each model trained on the split of ``protocol``. Raises ValueError without any."""
    bundles = []
    for name in names or sorted(path.name for path in folder.glob("*")):
        if latest := latest_version(folder / name / f"seed_{seed}" / "bundle"):
            bundle = load_bundle(latest)
            if differing := bundle.protocol.data_differences(protocol):
                print(f"{name} is left out: trained under another protocol ({', '.join(differing)})")
            else:
                bundles.append(bundle)
    if not bundles:
        models = ", ".join(names or ["any model"])
        raise ValueError(f"{folder} has no bundle of {models} of protocol {protocol.id}; run the commands above first")
    return bundles


def print_row(
    bundle: Bundle, fold: Fold, protocol: Protocol, ranking: Ranking, share: float, slots: ContentSlots | None, k: int
) -> None:
    """Print the metrics of a model with content slots."""
    if slots is not None:
        ranking = slots.apply(ranking, fold, bundle, exclude_seen=protocol.exclude_seen)
    ranks = ranking.table(fold, bundle.vocabulary, warm=np.concatenate([[False], bundle.train_events > 0]))
    parts = {"all": metrics_from_ranks(ranks, cutoffs=[k]), **warm_and_cold_items(ranks, cutoffs=[k])}
    recall = "".join(
        f"{parts.get(name, {}).get(f'recall@{k}', np.nan):>8.4f}" for name in ("all", "warm_items", "cold_items")
    )
    counts = f"{parts['all']['users']:>8}{parts.get('cold_items', {}).get('users', 0):>7}"
    print(f"{bundle.name:<16}{share:>6.2f}{recall}{parts['all'][f'ndcg@{k}']:>8.4f}{counts}", flush=True)


if __name__ == "__main__":
    main()
