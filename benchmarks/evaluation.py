"""How long does full ranking of all ml-1m users take, the model included?

kedro run --pipelines=ingest,train --params dataset=ml-1m,model=sasrec
python benchmarks/evaluation.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch

from recpipe.data.sequences import Fold
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.recommender import Scorer
from recpipe.training.bundle import load_bundle


def main() -> None:
    """Ranks the test fold a few times and prints the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("data/06_models/ml-1m/sasrec/seed_42/bundle"))
    parser.add_argument("--fold", type=Path, default=Path("data/05_model_input/ml-1m/test_set.parquet"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    newest = max(arguments.bundle.glob("*/bundle"), default=None)
    if newest is None or not arguments.fold.exists():
        parser.error(f"{arguments.bundle} or {arguments.fold} is absent; run the command above first")
    model, fold = load_bundle(newest).model, Fold.read(arguments.fold)
    assert isinstance(model, Scorer)
    seconds = [rank_fold(model, fold, exclude_seen=True, k=20).seconds for _ in range(arguments.rounds)]
    print(
        f"{len(fold):,} users x {model.n_items:,} items: median {median(seconds):.2f} s, "
        f"least {min(seconds):.2f} s, {len(fold) / median(seconds):,.0f} users/s, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
