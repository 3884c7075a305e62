"""Recall and NDCG corrected for the popularity of test targets: downsampling, and inverse propensity weights.

A model that recommends what is popular does well on a log in which popular items are most of the targets. Both
corrections ask how the model does where popularity counts less; neither is right or wrong, so they stand beside the
plain metrics. Shapes: N targets, I items.

- ``recall_downsampled@k``, ``ndcg_downsampled@k``: the metric on a sample of the targets. An item has c test targets,
  and q1, q3 are the quartiles of c over the items that have any. Items with more than ⌊q3 + 1.5 (q3 − q1)⌋ targets keep
  that many, drawn at random; users without targets drop out. RecTools 0.19, ``metrics/debias.py``.
- ``recall_ips@k``, ``ndcg_ips@k``: the mean over targets with weights 1/p (inverse propensity scoring), divided by the
  sum of the weights (self-normalised). The propensity of an item with n training events is p = max(n, 1)^power;
  Schnabel et al., ICML 2016, Yang et al., RecSys 2018. Power 0 gives the plain metric and power 1 about the mean over
  items rather than over events; the default 0.5 is that of Saito et al., WSDM 2020, for implicit feedback.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.segments import Targets

IQR_FACTOR = 1.5
POWER = 0.5
SEED = 0  # the same sample of targets for all models


def debiased_metrics(
    ranks: pa.Table, items: np.ndarray, train_events: np.ndarray, *, cutoffs: Sequence[int], power: float = POWER
) -> dict[str, float | int]:
    """Compute the metrics from a ranks table with the targets ``items`` (N,) and the training events (I + 1,).

    ``max_targets`` is the limit of the downsampling, ``users_downsampled`` and ``targets_downsampled`` what is left;
    ``effective_targets_ips`` is Kish's effective number of targets, (Σw)² / Σw²: few mean that some weigh most.
    """
    limit, rows = downsample(items)
    downsampled = metrics_from_ranks(ranks.take(pa.array(rows)), cutoffs=cutoffs)
    result: dict[str, float | int] = {
        "max_targets": limit,
        "users_downsampled": downsampled["users"],
        "targets_downsampled": downsampled["targets"],
    }
    weight = 1 / np.maximum(np.asarray(train_events)[items], 1).astype(np.float64) ** power
    for k in sorted(set(cutoffs)):
        targets = Targets.of(ranks, k)
        share = targets.weight * weight
        for name, values in (("recall", targets.recall), ("ndcg", targets.ndcg)):
            result[f"{name}_downsampled@{k}"] = downsampled[f"{name}@{k}"]
            result[f"{name}_ips@{k}"] = float((share * values).sum() / share.sum())
    result["effective_targets_ips"] = float(weight.sum() ** 2 / (weight**2).sum())
    return result


def downsample(items: np.ndarray, *, factor: float = IQR_FACTOR, seed: int = SEED) -> tuple[int, np.ndarray]:
    """Return the limit of targets per item and the sorted rows of ``items`` (N,) that are kept."""
    counts = np.unique(items, return_counts=True)[1]
    low, high = np.quantile(counts, [0.25, 0.75])
    limit = int(high + factor * (high - low))
    order = np.lexsort((np.random.default_rng(seed).random(len(items)), items))
    place = np.arange(len(items)) - np.searchsorted(items[order], items[order], side="left")
    return limit, np.sort(order[place < limit])
