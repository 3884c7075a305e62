"""The switch: fast versions are installed by default, and none of them without ``accelerate``."""

from __future__ import annotations

import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.accelerate import FastDropout
from recpipe.models.registry import build

IDS = {"text": catalogue_ids(25)}
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
MODELS = {"sasrec": {"dim": 16}, "tiger": TINY, "parallel_tiger": TINY}


def create(name: str, *, accelerate: bool, **config):
    torch.manual_seed(0)
    ids = None if name == "sasrec" else IDS
    settings = {**MODELS[name], **config}
    return build(name, settings, n_items=25, max_length=10, ids=ids, accelerate=accelerate)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_and_no_fast_layer_is_left_when_off(name):
    fast, clear = (create(name, accelerate=accelerate) for accelerate in (True, False))
    assert any(isinstance(module, FastDropout) for module in fast.modules())
    assert not any(isinstance(module, FastDropout) for module in clear.modules())
    tensors = clear.state_dict()
    assert fast.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in fast.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_lists_are_the_same(name):
    data = random_sequences(20, 25, longest=10, seed=0)
    fast, clear = (create(name, accelerate=accelerate).recommend(data, 5) for accelerate in (True, False))
    assert (fast[0] == clear[0]).all()
    torch.testing.assert_close(torch.from_numpy(fast[1]), torch.from_numpy(clear[1]), rtol=1e-5, atol=1e-5)
