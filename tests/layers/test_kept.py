"""What is kept of weights: made anew when it has to be, and never lost under another thread's hands."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from recpipe.layers.kept import Kept


def test_it_is_made_once_for_equal_weights_and_anew_for_others():
    kept, made = Kept(), []
    weight, constant = torch.ones(3), torch.ones(2)

    def make():
        made.append(weight.clone())
        return weight * 2

    for _ in range(3):
        assert kept.get(make, [weight], [constant]).tolist() == [2, 2, 2]
    assert len(made) == 1
    weight.data[0] = 5
    assert kept.get(make, [weight], [constant]).tolist() == [10, 2, 2]
    constant += 1
    kept.get(make, [weight], [constant])
    kept.get(make, [weight], [torch.ones(2) * 2])  # another one, of the same values
    kept.forget()
    kept.get(make, [weight], [constant])
    assert len(made) == 5


def test_threads_may_ask_and_forget_at_once():
    kept, weight = Kept(), torch.arange(4.0)

    def ask(number: int) -> bool:
        if number % 3 == 0:
            kept.forget()
        return kept.get(lambda: weight + 1, [weight], []).equal(weight + 1)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(3000)))
