"""How good is the generative family on a prepared data set, beside SASRec, with seen items allowed and excluded?

Everything is trained from the conf by `recpipe.training.fit`, selected on the validation fold, and judged once
on the test fold. One command that may be cut off at any time: the same command goes on from the last epoch, and
`--minutes` ends it by itself. It needs torch, lightning, numpy and pyarrow, and what Kedro made before:

kedro run --pipelines=ingest,embed,semantic_ids --params dataset=amazon-beauty
kedro run --pipelines=train --params dataset=amazon-beauty,model=popular     # the split
python benchmarks/generative.py --dataset amazon-beauty --models sasrec parallel_tiger tiger setrec mql4grec --minutes 9

`--set tiger.train.max_epochs=5` and the like override the conf; `--precision bf16`; `--every-prefix` trains TIGER's
family the published way, a row for every prefix and an encoder that sees both ways.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from recpipe.content.embeddings import Embeddings
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.evaluate import validator
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.side import Side, names
from recpipe.models.recommender import Recommender
from recpipe.models.registry import ModelSpec, build, configured, resolve, side_config
from recpipe.semantic_ids.catalogue import CatalogueIds
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.training import fit
from recpipe.training.bundle import Bundle, load_bundle, save_bundle

CONF = Path(__file__).parents[1] / "conf" / "base" / "parameters"
SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def main() -> None:
    """Prints a row per model and way of judging."""
    arguments = parsed()
    data = Data(arguments.data, arguments.dataset)
    ends = time.perf_counter() + 60 * arguments.minutes
    print(
        f"{arguments.dataset}, protocol {data.protocol.id}, {len(data.test)} test users, {data.items} items"
    )
    for name in arguments.models:
        done = arguments.work / arguments.dataset / name / "result.json"
        found = json.loads(done.read_text()) if done.is_file() else run(name, data, arguments, ends)
        if found is None:
            print(f"{name:16} cut off; the same command goes on")
            continue
        done.write_text(json.dumps(found))
        for way, metrics in found["test"].items():
            numbers = "  ".join(f"{shown} {metrics[shown]:.4f}" for shown in SHOWN)
            print(
                f"{name:16} {way:14} {numbers}  best epoch {found['epoch']}, {found['minutes']:.0f} min",
                flush=True,
            )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--models", nargs="+", default=["sasrec", "parallel_tiger", "tiger"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("data/benchmarks/generative"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--every-prefix", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="MODEL.KEY=VALUE")
    return parser.parse_args()


class Data:
    """What Kedro left under a data folder."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.dataset, self.root = dataset, root
        folder = root / "05_model_input" / dataset
        self.train = Sequences.read(folder / "train_set.parquet")
        self.valid, self.test = (Fold.read(folder / f"{name}_set.parquet") for name in ("valid", "test"))
        self.vocabulary = Vocabulary.read(folder / "vocabulary.parquet")
        self.protocol = Protocol.from_dict(json.loads((folder / "protocol.json").read_text()))
        self.items = len(self.vocabulary)
        self.ids_folder = folder / "semantic_ids"

    def ids(self, modality: str) -> CatalogueIds:
        """The semantic ids of the catalogue."""
        path = self.ids_folder / f"{modality}_ids" / "semantic_ids.parquet"
        return CatalogueIds.of(SemanticIds.read(path), self.vocabulary.ids)

    def vectors(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """(I, V) vectors, and which items have one."""
        found = Embeddings.read(self.root / "04_feature" / self.dataset / f"{modality}_embeddings.parquet")
        rows = found.rows(self.vocabulary.ids)
        return found.vectors[rows], np.where(rows >= 0, found.present[rows], False)


def run(name: str, data: Data, arguments: argparse.Namespace, ends: float) -> dict[str, Any] | None:
    """Trains and judges a model; None if time was up."""
    spec, train = settings_of(name, data, arguments)
    settings = configured(fit.TrainSettings, train, where=name)
    folder = arguments.work / data.dataset / name
    folder.mkdir(parents=True, exist_ok=True)
    ids = {modality: data.ids(modality) for modality in spec.ids}
    side = side_of(spec, data, folder.parent)
    length = min(data.protocol.history, settings.window or data.protocol.history)

    def made() -> Recommender:
        return build(spec.type, spec.config, n_items=data.items, max_length=length, side=side, ids=ids)

    try:
        trained = fit.train(
            made,
            data.train,
            validator(data.valid, data.protocol, settings.metric, users=settings.validate_users),
            settings,
            seed=arguments.seed,
            folder=folder / "work",
            fingerprint=data.protocol.id,
            on_epoch=told(name, ends),
        )
    except KeyboardInterrupt:
        return None
    test = {
        way: judged(trained.model, data.test, seen)
        for way, seen in (("seen allowed", False), ("seen excluded", True))
    }
    keep(name, spec, trained, data, folder / "bundle")
    cost = trained.cost
    return {
        "test": test,
        "epoch": cost.get("best_epoch"),
        "minutes": cost["train_seconds"] / 60,
        "cost": cost,
    }


def settings_of(name: str, data: Data, arguments: argparse.Namespace) -> tuple[ModelSpec, dict[str, Any]]:
    """A model's block for the data set, and how it is trained, with what was said on the command line."""
    common = yaml.safe_load((CONF / "train.yml").read_text())["train"]
    spec = resolve(yaml.safe_load((CONF / f"models/{name}.yml").read_text())["models"][name], data.dataset)
    train = {**common, **spec.train, "precision": arguments.precision}
    if arguments.every_prefix and "one_pass" in spec.config:
        spec.config["one_pass"] = False
        train |= {
            "windows": "all",
            "stride": 1,
            "batch_tokens": 7 * train["batch_tokens"],
        }  # targets as before
    for said in arguments.set:
        path, value = said.split("=", 1)
        model, *keys = path.split(".")
        if model == name:
            (train if keys[0] == "train" else spec.config)[keys[-1]] = yaml.safe_load(value)
    return spec, train


def side_of(spec: ModelSpec, data: Data, others: Path) -> Side | None:
    """Item vectors that a block asks for: those that Kedro made, and the items of a model judged before."""
    config = side_config(spec, where=spec.type)
    if config.empty:
        return None
    vectors = {}
    for modality in names(config.vectors):
        if modality != "collaborative":
            vectors[modality] = data.vectors(modality)
            continue
        bundle = load_bundle(others / "sasrec" / "bundle")
        table = bundle.model.item_vectors()[1:].detach().numpy()
        vectors[modality] = (table, bundle.train_events > 0)
    return Side.of(config, data.train, {}, vectors, n_items=data.items)


def told(name: str, ends: float) -> Callable[[Mapping[str, Any]], bool]:
    """Prints every epoch, and ends training with it when time is up."""

    def tell(row: Mapping[str, Any]) -> bool:
        print(name, "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        return time.perf_counter() > ends

    return tell


def judged(model: Recommender, fold: Fold, exclude_seen: bool) -> dict[str, float]:
    """Metrics of a fold."""
    ranks = rank_fold(model, fold, exclude_seen=exclude_seen, k=10).ranks()
    return {
        key: float(value)
        for key, value in metrics_from_ranks(ranks, cutoffs=[5, 10]).items()
        if value is not None
    }


def keep(name: str, spec: ModelSpec, trained: fit.Trained, data: Data, folder: Path) -> None:
    """The bundle, which setrec reads of sasrec and recpipe.serving of any."""
    folder.mkdir(exist_ok=True)
    events = np.bincount(data.train.items, minlength=data.items + 1)[1:]
    titles: list[str | None] = [None] * data.items
    model = trained.model.to(torch.device("cpu"))
    save_bundle(Bundle(name, spec.type, model, data.vocabulary, titles, events, data.protocol), folder)


if __name__ == "__main__":
    main()
