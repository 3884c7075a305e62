"""Seconds to fit closed-form models and to rank, on a generated log of 200 thousand users and 50 thousand items.

    python benchmarks/large_catalogue.py [--models popular svd item_knn user_knn] [--users 200000] [--power 3]

Item number items · u^power of a uniform u is drawn: 3 is a power law, as popularity is distributed; with 1 all items
are alike and many counts equal. Users have 20 events on average. Each model ranks all items for the first ``--ranked``
users. On one thread.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from harness import OtherLoad, command_line, peak_gib
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.registry import build


def main(argv: list[str] | None = None) -> None:
    """Fit and rank with each model, and print a row for it."""
    parser = command_line(__doc__)
    parser.add_argument("--models", nargs="+", default=["popular", "svd", "item_knn", "user_knn"])
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--ranked", type=int, default=1_000)
    parser.add_argument("--power", type=float, default=3.0)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.users, arguments.items, arguments.ranked = 60, 50, 20
    torch.set_num_threads(1)
    train, fold = generated(arguments.users, arguments.items, arguments.ranked, arguments.power)
    print(f"{len(train):,} users, {arguments.items:,} items, {len(train.items):,} events; {len(fold):,} users ranked")
    for name in arguments.models:
        load, started = OtherLoad(), time.perf_counter()
        model = build(name, {}, n_items=arguments.items, max_length=200)
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


if __name__ == "__main__":
    main()
