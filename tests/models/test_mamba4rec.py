"""Mamba4Rec's layers; the mixer is tested in tests/layers/test_ssd.py, the contract in test_models.py."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.models.registry import build


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_are_the_papers(norm_first):
    """Section 3: LN(dropout(E)), then LN(mixer(h) + h) and LN(FFN(h) + h); norm_first: the norms before."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "head_dim": 8, "state": 4, "norm_first": norm_first}
    model = build("mamba4rec", sizes, n_items=9, max_length=8).double().eval()
    items = torch.randint(1, 10, (3, 8))
    norm = lambda module, x: F.layer_norm(x, (16,), module.weight, module.bias)  # noqa: E731
    h = model.items.weight[items]
    h = h * 4 if norm_first else norm(model.norm, h)
    for block in model.blocks:
        feed = lambda x, b=block: b.down(F.gelu(b.up(x)))  # noqa: E731
        if norm_first:
            h = h + block.mixer(norm(block.norm_mixer, h))
            h = h + feed(norm(block.norm_feed, h))
        else:
            h = norm(block.norm_mixer, h + block.mixer(h))
            h = norm(block.norm_feed, h + feed(h))
    h = norm(model.norm, h) if norm_first else h
    torch.testing.assert_close(model.hidden(Batch(items, torch.full((3,), 8), None)), h)


def test_sizes_below_one_are_named():
    with pytest.raises(ValueError, match="state is 0"):
        build("mamba4rec", {"state": 0}, n_items=3, max_length=3)
