"""Scores of chosen items for every user, by any model. n pairs of a user and an item."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences
from recpipe.data.user_items import UserItems
from recpipe.models.generator import TreeSearcher
from recpipe.models.recommender import Scorer
from recpipe.training.bundle import Bundle

CANDIDATES_AT_ONCE = 256  # items whose ids a search scores together


@torch.inference_mode()
def candidate_scores(
    bundle: Bundle, sequences: Sequences, pairs: UserItems
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scores and probabilities (n,) of the items of every user; NaN where the model has none.

    Probabilities are among the whole catalogue.
    """
    model = bundle.model
    scores, probabilities = (np.full(len(pairs.items), np.nan, np.float32) for _ in range(2))
    if isinstance(model, Scorer):
        for rows, values in model.score_batches(sequences, exclude_seen=False):
            part = pairs.select(rows)
            index = UserItems(pairs.offsets, np.arange(len(pairs.items))).select(rows).items
            place = (torch.from_numpy(each).to(values.device) for each in (part.owner, part.items))
            scores[index] = values[tuple(place)].cpu().numpy()
            if model.probabilistic:
                normalizer = values.logsumexp(1).cpu().numpy()
                probabilities[index] = np.exp(scores[index] - normalizer[part.owner])
    else:
        for start in range(0, int(np.diff(pairs.offsets).max(initial=0)), CANDIDATES_AT_ONCE):
            _search(bundle, sequences, pairs, start, scores)
        probabilities = np.exp(scores) if model.probabilistic else probabilities
    missing = ~np.isfinite(scores) | (pairs.items == 0)
    scores[missing] = probabilities[missing] = np.nan
    return scores, probabilities


def _search(bundle: Bundle, sequences: Sequences, pairs: UserItems, start: int, scores: NDArray[np.float32]) -> None:
    """Set the scores of every user's items from place ``start`` on: a beam as wide as they are many is exact."""
    place = np.arange(len(pairs.items)) - np.repeat(pairs.offsets[:-1], np.diff(pairs.offsets))
    chosen = np.flatnonzero((place >= start) & (place < start + CANDIDATES_AT_ONCE) & (pairs.items > 0))
    part = UserItems.of_pairs(pairs.owner[chosen], pairs.items[chosen], len(pairs))
    beam = int(np.bincount(pairs.owner[chosen], minlength=1).max())
    settings: dict[str, Any] = {"beam": max(beam, 1)}
    if "stochastic" in bundle.model.search_settings:
        settings["stochastic"] = False
    model = bundle.with_search_settings(settings).model
    assert isinstance(model, TreeSearcher)  # any other model is a Scorer
    k, width = min(settings["beam"], model.n_items), model.n_items + 1
    items, values = np.zeros((len(pairs), k), np.int32), np.zeros((len(pairs), k), np.float32)
    for rows, *lists in model.top_k_batches(sequences, k, exclude_seen=False, candidates=part, whole_catalogue=True):
        items[rows], values[rows] = lists
    listed = (np.arange(len(pairs))[:, None] * width + items).ravel()
    order = np.argsort(listed, kind="stable")
    keys = pairs.owner[chosen] * width + pairs.items[chosen]
    nearest = np.searchsorted(listed[order], keys).clip(max=len(listed) - 1)
    hit = listed[order][nearest] == keys
    scores[chosen[hit]] = values.ravel()[order][nearest[hit]]
