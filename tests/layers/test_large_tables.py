"""Gradients of large item tables: those of autograd's own order, in few dense tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import FULL, described, random_sequences, side_of
from torch.utils._python_dispatch import TorchDispatchMode

from recpipe.data.batches import DeviceSequences
from recpipe.layers import inputs
from recpipe.layers.side import Side
from recpipe.models.registry import build
from recpipe.training.losses import make_loss

ITEMS, WINDOW, PARTS = 40, 9, 5
DATA = described(random_sequences(60, ITEMS))
SIDES = {"ids": {}, "vectors": {"vectors": "text", "items": "genres"}, "alone": {"vectors": "text", "combine": "alone"}}
SIDES |= {"ids only in the head": {"vectors": "text", "head": "ids"}, "all": FULL}
LOSSES = {
    "sampled_softmax": {"negatives": {"uniform": 7, "in_batch": 5}},
    "bce": {"negatives": {"uniform": 3}, "shared": False},
    "amince": {"tail": 3},
    "full_softmax": {},
}


class Created(TorchDispatchMode):
    """Counts the tensors of a shape that operations create."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_new = isinstance(result, torch.Tensor) and func._schema.returns[0].alias_info is None  # no view of an input
        self.count += int(is_new and result.layout == torch.strided and result.shape == self.shape)
        return result


def built(name: str, side: dict, monkeypatch, *, large: bool):
    monkeypatch.setattr(inputs, "LARGE", 1 if large else 1 << 62)
    torch.manual_seed(1)
    model = build(name, {"dropout": 0.0}, n_items=ITEMS, max_length=WINDOW, side=side_of(DATA, ITEMS, **side))
    return model.double().train()


def loss_of_step(model, loss: str) -> torch.Tensor:
    """The loss of several batches of one step."""
    counts = torch.from_numpy(np.bincount(DATA.items, minlength=ITEMS + 1))
    criterion = make_loss({"name": loss, **LOSSES[loss]}, counts, counts > 0)
    side = model.items.side
    data = DeviceSequences(DATA, window=WINDOW + 1, device="cpu", features=side.encode(DATA))
    torch.manual_seed(2)
    parts = [data.batch(rows) for rows in np.array_split(np.flatnonzero(data.lengths > 1), PARTS)]
    return torch.stack([model.loss(part, criterion) for part in parts]).sum()


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "loss"), [*(("sasrec", loss) for loss in LOSSES), ("bert4rec", "sampled_softmax")])
def test_the_gradients_of_a_step_are_those_of_small_tables(name, loss, side, monkeypatch):
    small, large = (built(name, SIDES[side], monkeypatch, large=large) for large in (False, True))
    for _ in range(2):  # the second step begins with changed weights
        expected, actual = (gradients(model, loss_of_step(model, loss)) for model in (small, large))
        assert expected.keys() == actual.keys()
        for name_of_weight, gradient in expected.items():
            assert actual[name_of_weight].layout == torch.strided
            torch.testing.assert_close(actual[name_of_weight], gradient, rtol=1e-9, atol=1e-12)
        for model in (small, large):
            torch.optim.SGD(model.parameters(), 0.1).step()


def test_a_step_creates_one_gradient_of_the_size_of_the_table(monkeypatch):
    created = []
    for large in (False, True):
        model = built("sasrec", {}, monkeypatch, large=large)
        with Created((ITEMS + 1, model.config.dim)) as mode:
            loss_of_step(model, "sampled_softmax").backward()
        created.append(mode.count)
    assert created[0] > 3 * PARTS
    assert created[1] == 1


def test_evaluation_sees_changed_weights_and_a_lost_loss_does_no_harm(monkeypatch):
    model = built("sasrec", {}, monkeypatch, large=True)
    loss_of_step(model, "sampled_softmax")  # without a backward pass
    expected = loss_of_step(model, "sampled_softmax")
    gradients(model, expected)
    with torch.no_grad():
        model.items.weight.mul_(2)
    assert torch.equal(model.items.table(), model.items.weight)
    assert model.items.table().grad_fn is not None
    with torch.no_grad():
        assert model.items.table() is model.items.weight
    model.eval()
    assert model.items.table() is model.items.weight
    assert loss_of_step(model.train(), "sampled_softmax").item() != expected.item()


def test_frozen_tables_need_no_gradient(monkeypatch):
    model = built("sasrec", {}, monkeypatch, large=True)
    model.items.weight.requires_grad_(False)
    assert isinstance(model.side, Side)
    assert "items.weight" not in gradients(model, loss_of_step(model, "sampled_softmax"))
