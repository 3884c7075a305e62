"""The greatest values by blocks against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.decoding.top import ascend, top


@pytest.mark.parametrize("n", [1, 7, 160, 161, 1003, 5120, 20_000])
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("rows", [5, 70])
def test_it_is_topk(n, k, rows):
    k = min(k, n)
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(n))
    x[1, : n // 2] = -torch.inf
    x[2] = -torch.inf
    found, expected = top(x, k), x.topk(k)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(x.gather(1, found.places), expected.values)
    assert all(len(set(row)) == k for row in found.places.tolist())


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_comes_first(rows, nan):
    x = torch.randn(rows, 3000)
    x[1, 1234] = nan
    x[0, 7] = torch.inf
    assert top(x, 3).values[1, 0].isnan()
    assert not top(x, 3).values[0].isnan().any()


def test_of_equal_values_the_first_comes_first():
    x = torch.tensor([0.0, 2.0, 1.0, 2.0, -1.0, 1.0]).expand(70, -1)
    assert top(x, 4).places.tolist() == [[1, 3, 2, 5]] * 70


def test_bits_ascend_with_values():
    finite = np.sort(np.random.default_rng(0).standard_cauchy(1000).astype(np.float32))
    tiny = np.array([-1e-45, -0.0, 0.0, 1e-45], np.float32)
    known = np.unique(np.concatenate([finite, tiny, [-np.inf, np.inf]]).astype(np.float32))
    found = ascend(known).astype(np.int64)
    assert found[0] == 0 and (np.diff(found) > 0).all()
    assert (ascend(np.array([np.nan, -np.nan], np.float32)) > found[-1]).all()


@pytest.mark.parametrize("rows", [5, 70])
def test_more_than_there_are_is_refused_for_few_rows_and_many(rows):
    with pytest.raises(ValueError, match="the 9 greatest of rows of 5 are asked for"):
        top(torch.rand(rows, 5), 9)
