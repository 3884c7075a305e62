"""Time of 10,000 bootstrap resamples and as many sign flips for 6,040 users and 8 models.

OMP_NUM_THREADS=2 python benchmarks/significance.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from harness import command_line
from recpipe.evaluation.significance import UserMetric, bootstrap_means, compare, sign_flip


def main(argv: list[str] | None = None) -> None:
    """Print seconds for values distributed like ndcg@10: mostly zero, else a discount."""
    parser = command_line(__doc__)
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.users, arguments.models, arguments.resamples = 50, 3, 100
    rng = np.random.default_rng(0)
    ranks = rng.geometric(0.004, (arguments.users, arguments.models))
    values = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
    names = tuple(f"model {m}" for m in range(arguments.models))
    users = np.array([str(u) for u in range(arguments.users)], dtype=object)
    differences = values[:, 1:] - values[:, :1]
    dense = rng.normal(0, 1, differences.shape)  # no ties between models: the slowest case
    options = {"resamples": arguments.resamples, "seed": 1}
    cases: dict[str, Callable[[], Any]] = {
        "bootstrap means": lambda: bootstrap_means(values, **options),
        "sign flips": lambda: sign_flip(differences, **options),
        "sign flips, all differ": lambda: sign_flip(dense, **options),
        "all of compare()": lambda: compare(UserMetric(names, users, values), resamples=arguments.resamples),
    }
    print(f"{arguments.resamples:,} resamples of {arguments.users:,} users x {arguments.models} models")
    for name, run in cases.items():
        started = time.perf_counter()
        run()
        print(f"{name:<24}{time.perf_counter() - started:6.2f} s")


if __name__ == "__main__":
    main()
