"""Objects that processes share: equal content, one copy of arrays, none of those in files, and writes of one's own."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences
from tests.training.runs import sasrec

from recpipe.data.sequences import Sequences
from recpipe.training.shared_memory import LARGE, load_shared, shared_memory


def sent(payload: object) -> tuple[object, int, int]:
    """What another process would load, and the bytes of the pipe and of the memory."""
    with shared_memory(payload) as (header, memory):
        return load_shared(io.BytesIO(header), memory), len(header), os.fstat(memory).st_size


def test_models_and_arrays_come_back_and_are_not_in_the_pipe():
    model, arrays = sasrec(dim=512), {"a": np.arange(200_000), "b": np.zeros(0), "same": [np.ones(9)] * 2}
    (other, loaded), piped, memory = sent((model, arrays))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert np.array_equal(loaded["a"], arrays["a"]) and loaded["b"].shape == (0,)
    assert loaded["same"][0] is loaded["same"][1]
    assert piped < 20_000 and memory > 1_600_000


def test_what_is_written_is_ones_own():
    weights = {"w": torch.zeros(50_000), "p": torch.nn.Parameter(torch.zeros(3))}
    with shared_memory(weights) as (header, memory):
        one, other = (load_shared(io.BytesIO(header), memory) for _ in range(2))
        one["w"].add_(1)
        with torch.no_grad():
            one["p"].add_(1)
        assert not other["w"].any() and not other["p"].any() and not weights["w"].any()
        assert isinstance(one["p"], torch.nn.Parameter) and one["p"].requires_grad


def test_arrays_of_a_file_are_mapped_from_it(tmp_path):
    random_sequences(4000, 30, longest=40).write(tmp_path / "log.arrow")
    data = replace(Sequences.read(tmp_path / "log.arrow"), query_times=None)
    assert data.items.nbytes > LARGE
    loaded, _, memory = sent(data)
    assert isinstance(loaded, Sequences) and loaded.users == data.users
    for name in ("items", "timestamps", "offsets"):
        assert np.array_equal(getattr(loaded, name), getattr(data, name))
    assert memory < data.items.nbytes / 4


def test_a_file_that_is_replaced_meanwhile_is_refused(tmp_path):
    path = tmp_path / "numbers"
    Path(path).write_bytes(bytes(LARGE))
    with shared_memory(np.asarray(np.memmap(path, np.uint8, "r"))) as (header, memory):
        path.rename(tmp_path / "old")
        path.write_bytes(bytes(LARGE))
        with pytest.raises(ValueError, match="was replaced while ranks were starting"):
            load_shared(io.BytesIO(header), memory)


def test_a_file_without_a_name_is_copied(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * (LARGE // 256))
    numbers = np.memmap(path, np.uint8, "r")
    path.unlink()
    loaded, _, memory = sent(np.asarray(numbers))
    assert memory >= LARGE and np.array_equal(loaded, numbers)
