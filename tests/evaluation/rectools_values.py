"""A random case with ties, and what RecTools says of it: prints EXPECTED of test_lists.py.

In an environment of its own, as RecTools wants an older numpy than recpipe:
pip install rectools==0.19.0 && python tests/evaluation/rectools_values.py
"""

import sys

import numpy as np

USERS, ITEMS, PLACES, WIDTH = 40, 25, 6, 5


def case(seed):
    """Training pairs, test targets, lists (0 is none) and vectors; few levels of popularity, cold items."""
    draw = np.random.RandomState(seed)  # whose numbers never change with numpy
    popular = np.minimum(draw.zipf(1.3, ITEMS), 6)
    train = [
        (user, item + 1)
        for user in range(USERS)
        for item in np.flatnonzero(draw.rand(ITEMS) < popular / 14)
        if item % 9 != 4
    ]
    targets = [(user, int(item) + 1) for user in range(USERS) for item in draw.permutation(ITEMS)[: 1 + user % 3]]
    liked = popular**2 * (draw.rand(ITEMS) < 0.7) + 1e-9  # some items are hardly ever recommended
    lists = np.array([np.argsort(-draw.rand(ITEMS) * liked)[:PLACES] + 1 for _ in range(USERS)])
    for user in range(0, USERS, 7):
        lists[user, 2 + user % 4 :] = 0
    return train, targets, lists, draw.randn(ITEMS, WIDTH).round(3)


def main():
    import pandas as pd
    from rectools.metrics import AvgRecPopularity, CatalogCoverage, IntraListDiversity, MeanInvUserFreq, Serendipity
    from rectools.metrics.distances import PairwiseDistanceCalculator

    class Cosine(PairwiseDistanceCalculator):
        def __init__(self, vectors):
            self.unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        def _get_distances_for_item_pairs(self, items_0, items_1):
            pairs = zip(items_0, items_1, strict=True)
            return np.array([1 - self.unit[a - 1] @ self.unit[b - 1] for a, b in pairs])

    values = {}
    for seed in (0, 1):
        train, targets, lists, vectors = case(seed)
        before = pd.DataFrame(train, columns=["user_id", "item_id"])
        after = pd.DataFrame(targets, columns=["user_id", "item_id"])
        rows = [(u, item, place + 1) for u, row in enumerate(lists) for place, item in enumerate(row) if item]
        reco = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
        catalog = range(1, ITEMS + 1)
        for k in (3, PLACES):
            values[seed, k] = {
                "coverage": float(CatalogCoverage(k, normalize=True).calc(reco, catalog)),
                "arp": float(AvgRecPopularity(k).calc(reco, before)),
                "novelty": float(MeanInvUserFreq(k).calc(reco, before)),
                "serendipity": float(Serendipity(k).calc(reco, after, before, catalog)),
                "diversity": float(IntraListDiversity(k, Cosine(vectors)).calc(reco)),
            }
    sys.stdout.write(f"EXPECTED = {values}\n")


if __name__ == "__main__":
    main()
