"""Fast loss of code heads against the clear one: value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recpipe.accelerate import code_heads as module
from recpipe.layers.code_heads import CodeHeads
from recpipe.training.losses.full_softmax import FullSoftmax


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("span", [slice(0, 3), slice(1, 3)], ids=str)
def test_the_fast_loss_has_the_value_and_the_gradients_of_the_clear_one(chunk, weighted, span, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    sizes = (7, 4, 9)
    heads = CodeHeads(3, 8, temperature=0.2)
    hidden, embeddings = torch.randn(12, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    codes = torch.stack([torch.randint(size, (12,)) for size in sizes], 1)[:, span]
    weights = torch.rand(12) if weighted else None
    results = []
    for fast in (None, module.head_loss):
        heads.fast_loss = fast
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in heads.parameters():
                parameter.copy_(torch.randn_like(parameter))
        tables = F.normalize(embeddings, dim=-1).split(sizes)[span]
        loss = heads.loss(hidden, span, tables, codes, FullSoftmax(), weights)
        results.append((loss, *torch.autograd.grad(3 * loss, [hidden, embeddings, *heads.parameters()])))
    for clear, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, clear, rtol=1e-4, atol=1e-6)
