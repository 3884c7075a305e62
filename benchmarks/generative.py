"""How good is the generative family on a prepared data set, beside SASRec, with seen items allowed and excluded?

Models are trained from the conf by `recpipe.training.standalone`, selected on the validation fold, and evaluated once
on the test fold. The command may be interrupted at any time: the same command resumes at the last epoch, and
`--minutes` ends it. It needs torch, lightning, numpy, pyarrow and safetensors, and what Kedro wrote before:

kedro run --pipelines=ingest,embed,semantic_ids --params dataset=amazon-beauty
kedro run --pipelines=train --params dataset=amazon-beauty,model=popular     # the split
python benchmarks/generative.py --dataset amazon-beauty --models sasrec parallel_tiger tiger setrec mql4grec --minutes 9

`--params models.tiger.train.max_epochs=5` and the like override the conf. Trained models are written under `--into`, in
Kedro's layout.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import command_line, configuration, generated_data
from recpipe.config import RunConfig, parse_overrides
from recpipe.data.sequences import Fold
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.recommender import Recommender
from recpipe.training.standalone import DataFolder, epoch_logger, train

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
PROTOCOLS = {"seen allowed": False, "seen excluded": True}
SMALL = {"dim": 16, "heads": 1, "layers": 1, "train": {"max_epochs": 1, "patience": 1, "validate_every": 1}}
SMALL_T5 = {**SMALL, "head_dim": 16, "feed_forward": 32, "decoder_layers": 1}
QUICK = {"sasrec": SMALL, "tiger": SMALL_T5, "parallel_tiger": SMALL_T5}  # settings of --quick


def main(argv: list[str] | None = None) -> None:
    """Print a row per model and protocol."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("recpipe.training.module").setLevel(logging.WARNING)
    with TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.data = arguments.into = generated_data(Path(folder), arguments.dataset)
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Train and evaluate one model after the other."""
    data = DataFolder(arguments.data, arguments.dataset, arguments.seed, arguments.into)
    overrides = {"models": QUICK} if arguments.quick else parse_overrides(arguments.params)
    conf = configuration(arguments.dataset, **{**overrides, "seed": arguments.seed})
    ends = time.perf_counter() + 60 * arguments.minutes
    for name in arguments.models:
        result = run(conf.run(name), data, ends)
        if result is None:
            print(f"{name:16} interrupted; the same command resumes it")
            continue
        for protocol, metrics in result["test"].items():
            numbers = "  ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS)
            cost = result["cost"]
            print(
                f"{name:16} {protocol:14} {numbers}  best epoch {cost.get('best_epoch')}, "
                f"{cost['train_seconds'] / 60:.0f} min on {cost['device']}",
                flush=True,
            )


def run(config: RunConfig, data: DataFolder, ends: float) -> dict[str, Any] | None:
    """Train and evaluate a model, neither of them twice; None if time is up."""
    if time.perf_counter() > ends:
        return None
    try:
        bundle = train(config, data, epoch_logger(config.name, ends))
    except KeyboardInterrupt:
        if time.perf_counter() > ends:
            return None
        raise
    file, cost = data.curves_file(config.name).with_name("both_ways.json"), bundle.training["cost"]
    result = json.loads(file.read_text()) if file.is_file() else {}
    if result.get("cost") != cost:  # of another training
        test = data.test()
        metrics = {name: evaluate(bundle.model, test, seen) for name, seen in PROTOCOLS.items()}
        result = {"cost": cost, "test": metrics}
        file.write_text(json.dumps(result))
    return result


def evaluate(model: Recommender, fold: Fold, exclude_seen: bool) -> dict[str, float]:
    """Metrics of a fold."""
    ranks = rank_fold(model, fold, exclude_seen=exclude_seen, k=10).ranks()
    metrics = metrics_from_ranks(ranks, cutoffs=[5, 10])
    return {key: float(value) for key, value in metrics.items() if value is not None}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--models", nargs="+", default=["sasrec", "parallel_tiger", "tiger"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--into", type=Path, default=Path("data/benchmarks/generative"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--params", default="", metavar="KEY=VALUE,...", help="settings, as in `kedro run`")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
