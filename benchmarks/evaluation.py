"""Time to rank the full catalogue for all users of ml-1m, including the model.

kedro run --pipelines=ingest,train --params dataset=ml-1m,model=sasrec
python benchmarks/evaluation.py
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from harness import command_line, generated_data, train_on_generated
from recpipe.data.sequences import Fold
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.recommender import Scorer
from recpipe.training.bundle import load_bundle

DATASET = "ml-1m"
BUNDLE = Path(f"06_models/{DATASET}/sasrec/seed_42/bundle")
FOLD = Path(f"05_model_input/{DATASET}/test_set.arrow")


def main(argv: list[str] | None = None) -> None:
    """Rank the test fold a few times and print the seconds."""
    parser = command_line(__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("data") / BUNDLE)
    parser.add_argument("--fold", type=Path, default=Path("data") / FOLD)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        with TemporaryDirectory() as folder:
            data = generated_data(Path(folder), DATASET)
            train_on_generated(data, DATASET, "sasrec", {"dim": 16, "train": {"max_epochs": 1}})
            measure(data / BUNDLE, data / FOLD, 2)
        return
    if not (any(arguments.bundle.glob("*/bundle")) and arguments.fold.exists()):
        parser.error(f"{arguments.bundle} or {arguments.fold} is absent; run the command above first")
    measure(arguments.bundle, arguments.fold, arguments.rounds)


def measure(bundle: Path, fold_file: Path, rounds: int) -> None:
    """Rank the fold with the latest bundle ``rounds`` times."""
    model, fold = load_bundle(max(bundle.glob("*/bundle"))).model, Fold.read(fold_file)
    assert isinstance(model, Scorer)
    seconds = [rank_fold(model, fold, exclude_seen=True, k=20).seconds for _ in range(rounds)]
    print(
        f"{len(fold):,} users x {model.n_items:,} items: median {median(seconds):.2f} s, "
        f"least {min(seconds):.2f} s, {len(fold) / median(seconds):,.0f} users/s, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
