"""Small models of every type, the same on both devices."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from tests.synthetic import SIZES, random_sequences, sequences, untrained

from recpipe.data.sequences import Sequences
from recpipe.models.generator import Generator
from recpipe.models.recommender import Recommender
from recpipe.models.registry import model_class, types

ITEMS, WINDOW = 25, 10
TRAIN = random_sequences(60, ITEMS, longest=16, seed=1)
HISTORIES = sequences([[3], [7, 7], [1, 2, 3, 4], *[TRAIN.row(u).tolist() for u in range(5)], list(range(1, 20))])
TINY = {"dim": 32, "heads": 2, "head_dim": 16, "feed_forward": 64, "layers": 1, "decoder_layers": 1}
PLAIN = {"mamba4rec": {"kernel": "torch"}}  # the Triton kernels have tests of their own
VARIANTS = [
    ("bert4rec", {"norm_first": False, "type_embedding": True, "count_from": "end"}),
    ("gpt", {"generate": 3}),
    ("hstu", {"time_mode": "last_item", "normalise": True}),
    ("lstm", {"layers": 2}),
    ("mf", {"loss": "bpr"}),
    ("parallel_tiger", {"search": "beam", "recency": True}),
    ("parallel_tiger", {"softmax": "items"}),
    ("parallel_tiger", {"aggregate": "flatten", "level_distance": True, "cross_level_distance": True}),
    ("rpg", {"softmax": "items"}),
    ("rpg", {"search": "graph", "edges": 10, "beam": 5}),
    ("sasrec", {"block": "ligr", "heads": 2}),
    ("tiger", {"recency": True, "softmax": "children", "renormalise": True}),
    ("xlstm", {"slstm_at": (1,)}),
]
CASES = [*((name, {}) for name in types()), *VARIANTS]


def fresh(name: str, config: dict, *, data: Sequences = TRAIN, n_items: int = ITEMS) -> Recommender:
    """As the registry builds it; a search is as wide as the catalogue. Skips xlstm without its package."""
    if name == "xlstm" and importlib.util.find_spec("mlstm_kernels") is None:
        pytest.skip("needs xlstm")
    cls = model_class(name)
    wide = {"beam": n_items} if issubclass(cls, Generator) else {}
    small = SIZES.get(name, TINY) if cls.reads_ids or name == "setrec" else {}
    settings = {**small, **wide, **PLAIN.get(name, {}), **config}
    return untrained(name, settings, data, n_items=n_items, max_length=WINDOW)


def pair(name: str, config: dict) -> tuple[Recommender, Recommender]:
    """A model on the CPU and its copy on the card: closed forms fitted, networks with weights that are not all tiny."""
    torch.manual_seed(0)
    model = fresh(name, config)
    if model.closed_form:
        model.fit(TRAIN)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval(), plain(copy.deepcopy(model).cuda().eval())


def plain(model: Recommender) -> Recommender:
    """xLSTM without its Triton kernels, whose products are TF32."""
    for module in model.modules():
        if hasattr(module, "on_cuda"):
            module.on_cuda = "chunkwise--native_autograd"
    return model


def scores(model: Recommender, data: Sequences, *, exclude_seen: bool) -> np.ndarray:
    """(U, I + 1) of every item, -inf for what may not be recommended."""
    whole = np.full((len(data), model.n_items + 1), -np.inf, np.float32)
    if isinstance(model, Generator):
        items, values = model.recommend(data, model.n_items, exclude_seen=exclude_seen)
        np.put_along_axis(whole, items.astype(np.int64), values, 1)
        whole[:, 0] = -np.inf
        return whole
    for rows, values in model.score_batches(data, exclude_seen=exclude_seen):
        whole[rows] = values.cpu().numpy()
    return whole
