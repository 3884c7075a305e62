"""A random case with over-popular items, and what RecTools makes of it: prints the constants at the end.

In an environment of its own, as RecTools wants an older numpy than recpipe:
pip install rectools==0.19.0 && python tests/evaluation/rectools_debias.py
"""

import sys

import numpy as np


def case():
    """Users with one or two targets each, and the ranks that a model gives these: the more popular the better."""
    draw = np.random.RandomState(3)  # whose numbers never change with numpy
    users, items, ranks = [], [], []
    for user in range(150):
        for place, item in enumerate(np.unique(np.minimum(draw.zipf(1.4, 2), 40))):
            users.append(user)
            items.append(int(item))
            ranks.append(int(2 * draw.randint(1, 3 + item) + place))
    return users, items, ranks


def main():
    import pandas as pd
    from rectools.metrics import Recall
    from rectools.metrics.debias import DebiasConfig, debias_interactions

    users, items, ranks = case()
    targets = pd.DataFrame({"user_id": users, "item_id": items})
    lists = targets.assign(rank=ranks)
    counts = debias_interactions(targets, DebiasConfig(1.5, 0))["item_id"].value_counts()
    recalls = [Recall(5, debias_config=DebiasConfig(1.5, seed)).calc(lists, targets) for seed in range(2000)]
    sys.stdout.write(f"EXPECTED_LIMIT = {counts.max()}\n")
    sys.stdout.write(f"EXPECTED_KEPT = {dict(sorted(counts.items()))}\n")
    sys.stdout.write(f"EXPECTED_RECALL = {np.mean(recalls):.5f}  # mean over 2000 random states\n")


CASE = case()
EXPECTED_LIMIT = 14
EXPECTED_KEPT = {
    1: 14, 2: 14, 3: 14, 4: 14, 5: 13, 6: 8, 7: 9, 8: 6, 9: 3, 10: 7, 11: 4, 12: 1, 13: 2, 14: 4, 15: 2, 16:
    1, 17: 4, 18: 2, 19: 4, 21: 3, 22: 4, 23: 3, 24: 1, 26: 1, 27: 1, 28: 1, 29: 2, 30: 1, 31: 1, 32: 2, 34:
    2, 35: 2, 36: 2, 38: 1, 40: 14,
}  # fmt: skip
EXPECTED_RECALL = 0.34809  # mean over 2000 random states

if __name__ == "__main__":
    main()
