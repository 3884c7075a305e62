"""Parts of a batch on threads of their own."""

from __future__ import annotations

import threading

import pytest
import torch

from recpipe.decoding.threads import in_threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def state(part):
    return part, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def test_parts_are_answered_in_their_order_with_one_thread_each():
    assert in_threads(state, range(5)) == [(part, 1, True, False) for part in range(5)]
    with torch.no_grad():
        assert in_threads(state, [7, 8]) == [(7, 1, False, False), (8, 1, False, False)]
    with torch.inference_mode():
        assert in_threads(state, [7, 8]) == [(7, 1, False, True), (8, 1, False, True)]


def test_one_part_is_run_by_all_threads():
    assert in_threads(state, [1]) == [(1, 2, True, False)]
    assert in_threads(state, []) == []


def test_threads_are_as_many_as_before_also_for_those_that_come_later():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda part: 1 / part, [1, 0])
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (found, torch.get_num_threads()) == ([2], 2)


def test_parts_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=20)
    assert sorted(in_threads(lambda part: barrier.wait(), [0, 1])) == [0, 1]
