"""The greatest values by blocks against torch's own."""

from __future__ import annotations

import pytest
import torch

from recpipe.decoding.top import top


@pytest.mark.parametrize("n", [1, 7, 160, 161, 1003, 5120, 20_000])
@pytest.mark.parametrize("k", [1, 20])
def test_it_is_topk(n, k):
    k = min(k, n)
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(n))
    x[1, : n // 2] = -torch.inf
    x[2] = -torch.inf
    found, expected = top(x, k), x.topk(k)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(x.gather(1, found.places), expected.values)
    assert all(len(set(row)) == k for row in found.places.tolist())


def test_nan_comes_first():
    x = torch.randn(2, 3000)
    x[1, 1234] = torch.nan
    assert top(x, 3).values[1, 0].isnan()
    assert not top(x, 3).values[0].isnan().any()
