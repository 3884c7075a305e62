"""The weight cache: computed once for equal weights, and safe under several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from recpipe.accelerate.code_transformer import WeightCache


def test_a_value_is_computed_once_for_equal_weights_and_anew_for_others():
    cache, calls = WeightCache(), []
    weight, constant = torch.ones(3), torch.ones(2)

    def compute():
        calls.append(weight.clone())
        return weight * 2

    for _ in range(3):
        assert cache.get(compute, [weight], [constant]).tolist() == [2, 2, 2]
    assert len(calls) == 1
    weight.data[0] = 5
    assert cache.get(compute, [weight], [constant]).tolist() == [10, 2, 2]
    constant += 1
    cache.get(compute, [weight], [constant])
    cache.get(compute, [weight], [torch.ones(2) * 2])  # another tensor with the same values
    cache.clear()
    cache.get(compute, [weight], [constant])
    assert len(calls) == 5


def test_threads_may_read_and_clear_at_once():
    cache, weight = WeightCache(), torch.arange(4.0)

    def read(number: int) -> bool:
        if number % 3 == 0:
            cache.clear()
        return cache.get(lambda: weight + 1, [weight], []).equal(weight + 1)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(3000)))
