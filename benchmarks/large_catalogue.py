"""Large catalogues on one thread: closed-form models on 50 thousand items, or every stage on a million.

    python benchmarks/large_catalogue.py [--models popular svd item_knn user_knn] [--users 200000] [--power 3]
    python benchmarks/large_catalogue.py --million [--stages step rank ids] [--items 1000000] [--width 128]

Item number items · u^power of a uniform u is drawn: 3 is a power law, as popularity is distributed; with 1 all items
are alike and many counts equal. Users have 20 events on average.

The first form fits each model to 200 thousand users and ranks all items for the first ``--ranked``.

``--million``, each stage in a process of its own:

- step: a training step of sasrec (dim 64, 12,800 events) with 4,096 shared negatives, adam
- rank: full ranking of 1,000 users, compared with a count over each user's scores in numpy, and for 20 of them with a
  sort of all items
- ids: semantic ids of generated vectors (clusters of clusters, ``--width``) that are read from their file: RQ-VAE of
  ``--steps`` steps (its default settings take 10,000), assignment with ``--policy``, quality, prefix tree

Memory is the peak of anonymous pages above that before the stage: pages of a memory map, which the system can drop, are
left out. Largest: the largest tensor or view that an operation of torch returns, also in the backward pass.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import OtherLoad, command_line, measure_alone, peak_gib
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.recommender import Scorer
from recpipe.models.registry import build

STAGES = ("step", "rank", "ids")
NEGATIVES, SORTED_USERS = 4096, 20


def main(argv: list[str] | None = None) -> None:
    """Print a row for each model, or for each stage of ``--million``."""
    parser = command_line(__doc__)
    parser.add_argument("--models", nargs="+", default=["popular", "svd", "item_knn", "user_knn"])
    parser.add_argument("--users", type=int)
    parser.add_argument("--items", type=int)
    parser.add_argument("--ranked", type=int, default=1_000)
    parser.add_argument("--power", type=float, default=3.0)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--policy", default="reallocate")
    parser.add_argument("--measure", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments)))
    elif arguments.million:
        million(arguments)
    else:
        closed_form_models(arguments)


def closed_form_models(arguments: argparse.Namespace) -> None:
    """Fit and rank with each model."""
    users, items, ranked = arguments.users or 200_000, arguments.items or 50_000, arguments.ranked
    if arguments.quick:
        users, items, ranked = 60, 50, 20
    train, fold = generated(users, items, ranked, arguments.power)
    print(f"{len(train):,} users, {items:,} items, {len(train.items):,} events; {len(fold):,} users ranked")
    for name in arguments.models:
        load, started = OtherLoad(), time.perf_counter()
        model = build(name, {}, n_items=items, max_length=200)
        model.fit(train)
        fitted = time.perf_counter() - started
        rank_fold(model, fold, exclude_seen=True, k=20)  # computes what is cached, and allocates memory
        ranking = rank_fold(model, fold, exclude_seen=True, k=20)
        print(
            f"{name:<10} fit {fitted:7.1f} s   rank {1000 * ranking.seconds / len(fold):7.2f} ms per user   "
            f"peak {peak_gib():.1f} GiB   others {load.cores():.2f}",
            flush=True,
        )


def generated(users: int, items: int, ranked: int, power: float) -> tuple[Sequences, Fold]:
    """Training events, and a fold whose targets are the last events of the first users."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(1 + rng.geometric(1 / 19, users), 200)
    drawn = (items * rng.random(int(lengths.sum())) ** power).astype(np.int32)
    flat = rng.permutation(items)[drawn].astype(np.int32) + 1
    names = np.array([f"u{user}" for user in range(users)], dtype=object)
    whole = Sequences(names, flat, None, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    rows, zero = np.arange(users), np.zeros(users, np.int64)
    train = whole.select(rows, zero, lengths - 1)
    first = rows[:ranked]
    targets = whole.select(first, lengths[:ranked] - 1, lengths[:ranked])
    return train, Fold(train.select_users(first), targets)


def million(arguments: argparse.Namespace) -> None:
    """Measure the stages one after the other."""
    items, users, ranked = arguments.items or 1_000_000, arguments.users or 5_000, arguments.ranked
    if arguments.quick:
        items, users, ranked = 300, 60, 20
    words = ["--items", items, "--users", users, "--ranked", ranked, "--width", arguments.width]
    words += ["--steps", arguments.steps, "--power", arguments.power, "--policy", arguments.policy]
    words += ["--quick"] if arguments.quick else []
    print(f"{items:,} items", flush=True)
    for stage in arguments.stages:
        rows = measure_alone(__file__, "--measure", stage, *map(str, words), quick=True)  # on one thread
        for name, row in rows["rows"].items():
            values = "   ".join(f"{key} {value:.4g}" for key, value in row.items())
            print(f"{name:<12} {values}   others {rows['others']:.2f}", flush=True)


class Memory:
    """Peak of this process's anonymous memory above that at the start, sampled every 5 ms; 0 where unknown."""

    def __enter__(self) -> Memory:
        self._start = self._peak = anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self.seconds = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.seconds
        self._over.set()
        self._thread.join()

    def row(self) -> dict[str, float]:
        """Return seconds and GiB."""
        return {"seconds": self.seconds, "GiB": (self._peak - self._start) / 2**30}

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that is no page of a file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest dense tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


def sasrec(items: int) -> Scorer:
    """An untrained model of the conf's size."""
    torch.manual_seed(0)
    model = build("sasrec", {}, n_items=items, max_length=50)
    assert isinstance(model, Scorer)
    return model


def measure_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training steps: seconds and memory of plain ones, the largest tensor of one more."""
    from recpipe.training.settings import TrainSettings
    from recpipe.training.setup import TrainingSetup

    train, _ = generated(arguments.users, arguments.items, arguments.ranked, arguments.power)
    model = sasrec(arguments.items).train()
    loss = {"name": "sampled_softmax", "negatives": {"uniform": NEGATIVES}}
    optimiser = {"name": "adam", "learning_rate": 1e-3}
    settings = TrainSettings(loss=loss, optimiser=optimiser, schedule={"name": "constant"}, batch_tokens=12_800)
    module = TrainingSetup(model=model, data=train, validate=None, settings=settings, seed=0).module()
    adam, batch = module.configure_optimizers()["optimizer"], next(iter(module.train_dataloader()))

    def step() -> None:
        adam.zero_grad()
        losses = [model.loss(part, module.criterion) * (part.n_targets / batch.n_targets) for part in batch.parts]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    with LargestTensor() as largest:
        step()
    seconds = []
    with Memory() as memory:
        for _ in range(2 if arguments.quick else 5):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
    row = {"seconds": median(seconds), "GiB": memory.row()["GiB"], "largest_GiB": largest.bytes / 2**30}
    return {"rows": {"step": {"targets": batch.n_targets, **row, "process_GiB": peak_gib()}}}


def measure_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """Full ranking, and the number of users whose rank or list is not that of brute force."""
    from recpipe.layers.top_k import tie_order

    _, fold = generated(arguments.users, arguments.items, arguments.ranked, arguments.power)
    model, k = sasrec(arguments.items), 20
    with LargestTensor() as largest:
        rank_fold(model, fold.select(np.arange(10)), exclude_seen=True, k=k)
    with Memory() as memory:
        ranking = rank_fold(model, fold, exclude_seen=True, k=k)
    order, targets, wrong, wrong_lists = tie_order(arguments.items + 1).numpy(), fold.targets.items, 0, 0
    for users, scores in model.score_batches(fold.histories, exclude_seen=True):
        for user, row in zip(users, scores.numpy(), strict=True):
            target = row[targets[user]]
            before = (row > target) | ((row == target) & (order < order[targets[user]]))
            wrong += int(ranking.rank[user] != (1 + before.sum() if target > -np.inf else 0))
            if user < SORTED_USERS:
                best = np.lexsort((order, -row))[:k]
                wrong_lists += int((ranking.items[user] != np.where(row[best] > -np.inf, best, 0)).any())
    row = {"ms_per_user": 1000 * memory.seconds / len(fold), **memory.row(), "largest_GiB": largest.bytes / 2**30}
    return {"rows": {"rank": {"users": len(fold), **row, "wrong_ranks": wrong, "wrong_lists": wrong_lists}}}


def measure_ids(arguments: argparse.Namespace) -> dict[str, Any]:
    """Semantic ids of generated vectors, stage by stage."""
    from recpipe.content.embeddings import Embeddings
    from recpipe.semantic_ids.assign import assign
    from recpipe.semantic_ids.prefix_tree import PrefixTree
    from recpipe.semantic_ids.quality import measure_quality
    from recpipe.semantic_ids.quantizer import build_quantizer

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.parquet"
        clustered(arguments.items, arguments.width).write(path)
        with Memory() as memory:
            embeddings = Embeddings.read(path)
        rows["read"] = memory.row()
    steps = {"epochs": 2, "least_steps": 40} if arguments.quick else {"most_steps": arguments.steps}
    quantizer = build_quantizer("rqvae", steps)
    with Memory() as memory:
        quantizer.fit(embeddings.vectors, seed=0)
    quantizer.about = {"space": embeddings.space}
    rows["fit"] = memory.row()
    with Memory() as memory:
        ids = assign(embeddings, quantizer, policy=arguments.policy, extra_codes=4096)
    rows["assign"] = {**memory.row(), **{name: ids.about["counts"][name] for name in ("colliding", "moved", "left")}}
    with Memory() as memory:
        quality = measure_quality(
            ids.codes, ids.quantized, ids.sizes, vectors_ND=embeddings.vectors, decode=quantizer.decode, seed=0
        )
    near = quality["neighbours"]["by_depth"][0]
    rows["quality"] = {**memory.row(), "lost_variance": quality["reconstruction"]["relative"]}
    rows["quality"] |= {"neighbours": near["overlap"], "by_chance": near["random"]}
    with Memory() as memory:
        tree = PrefixTree.build(ids.codes, ids.sizes, shared=not ids.unique)
        tree.tensors()
    rows["tree"] = {**memory.row(), "MiB": sum(array.nbytes for array in tree._arrays().values()) / 2**20}
    return {"rows": rows}


MEASURES = {"step": measure_step, "rank": measure_rank, "ids": measure_ids}


def clustered(items: int, width: int) -> Any:
    """Embeddings of items in 200 clusters, each of 50, with noise; the numbers of the clusters are of a power law."""
    from recpipe.content.embeddings import Embeddings, content_keys

    rng = np.random.default_rng(0)
    outer, inner = rng.standard_normal((200, width)), rng.standard_normal((200, 50, width)) / 2
    vectors = np.empty((items, width), np.float32)
    for part in np.array_split(np.arange(items), max(items // 50_000, 1)):
        first, second = (200 * rng.random(len(part)) ** 2).astype(int), rng.integers(50, size=len(part))
        vectors[part] = outer[first] + inner[first, second] + rng.standard_normal((len(part), width)) / 4
    ids = np.array([f"i{item:07}" for item in range(items)], dtype=object)
    return Embeddings(ids, vectors, np.ones(items, bool), content_keys("generated", ids.tolist()), "generated")


if __name__ == "__main__":
    main()
