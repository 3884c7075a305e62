"""Small generative models with weights that are not all tiny, and their data."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import CatalogueIds

ITEMS, WINDOW = 25, 6
DATA = random_sequences(40, ITEMS, longest=12, seed=3)
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
BOTH = {"text": catalogue_ids(ITEMS), "image": catalogue_ids(ITEMS, seed=1)}
GENERATIVE = ("tiger", "mql4grec", "parallel_tiger", "maskgr")
BY_BEAM = ("tiger", "mql4grec")


def create(name: str, ids: dict[str, CatalogueIds] | None = None, *, accelerate=True, **config) -> Recommender:
    torch.manual_seed(0)
    ids = {"text": BOTH["text"]} if ids is None else ids
    settings = {**TINY, **config}
    model = build(name, settings, n_items=ITEMS, max_length=WINDOW, ids=ids, accelerate=accelerate)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def without(ids: CatalogueIds, items: list[int]) -> CatalogueIds:
    codes = ids.codes.copy()
    codes[items] = -1
    return replace(ids, codes=codes)
