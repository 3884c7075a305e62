"""Training on the card, in bf16 where it says auto: it learns, goes on after a cut-off, and losses are the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.made import CASES, ITEMS, WINDOW, fresh
from tests.synthetic import random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.splits import Split, split
from recpipe.evaluation.evaluate import validator
from recpipe.models.recommender import Recommender
from recpipe.models.registry import model_class
from recpipe.training.checkpoint import LAST
from recpipe.training.fit import TrainingResult, train
from recpipe.training.losses import make_loss
from recpipe.training.settings import TrainSettings

PROTOCOL = Protocol(dataset="x", history=WINDOW)
TRAINED = [
    (name, config)
    for name, config in CASES
    if not model_class(name).closed_form
    and "norm_first" not in config  # which learns too slowly, on any device
]
SAMPLED = [
    {"name": "sampled_softmax", "negatives": {"uniform": 8, "popularity": 4, "in_batch": 4}, "log_q": True},
    {"name": "bce", "negatives": {"uniform": 3}, "shared": False},
    {"name": "gbce", "negatives": {"uniform": 3}},
    {"name": "focal", "negatives": {"popularity": 3}},
    {"name": "bpr", "negatives": {"uniform": 3}},
    {"name": "infonce"},
    {"name": "amince", "tail": 5},
]


@pytest.fixture(scope="module")
def data() -> Split:
    return split(random_sequences(120, ITEMS, longest=14, seed=2), PROTOCOL)


def run(
    data: Split, folder: Path, name: str, config: dict, *, epochs: int = 4, on_epoch=None, **more
) -> TrainingResult:
    def made() -> Recommender:
        return fresh(name, config, data=data.train)

    settings = {"batch_tokens": 200, "max_epochs": epochs, "device": "cuda", "loggers": [], **more}
    settings |= {"optimiser": {"name": "adam", "learning_rate": 5e-3}}
    judge = validator(data.valid, PROTOCOL)
    return train(made, data.train, judge, TrainSettings(**settings), seed=0, folder=folder, on_epoch=on_epoch)


def losses(trained: TrainingResult) -> list[float]:
    return [row["loss"] for row in trained.curve]


@pytest.mark.parametrize(("name", "config"), TRAINED, ids=str)
def test_it_learns_in_bf16_and_goes_on_after_a_cut_off(data, tmp_path, name, config):
    whole = run(data, tmp_path / "whole", name, config)
    assert (whole.cost["precision"], whole.cost["device"]) == ("bf16", "cuda")
    assert whole.cost["peak_memory_mib"] > 0 and whole.curve[0]["gpu_memory_mib"] > 0
    assert np.isfinite(losses(whole)).all() and losses(whole)[-1] < losses(whole)[0]
    items, values = whole.model.recommend(data.valid.histories, 5, exclude_seen=True)
    assert np.isfinite(values[items > 0]).all() and (items > 0).any()

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        run(data, tmp_path / "cut", name, config, on_epoch=lambda row: row["epoch"] == 2)
    assert (tmp_path / "cut" / LAST).is_file()
    resumed = run(data, tmp_path / "cut", name, config)
    assert [row["epoch"] for row in resumed.curve] == [1, 2, 3, 4]
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=0.05)  # sums on a card have no order


@pytest.mark.parametrize("name", ["gpt", "sasrec"])
def test_packed_rows_are_trained_on_and_the_card_is_watched(data, tmp_path, name):
    trained = run(data, tmp_path, name, {}, layout="packed", loggers=["csv"])
    assert np.isfinite(losses(trained)).all() and losses(trained)[-1] < losses(trained)[0]
    assert list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("name", ["sasrec", "tiger"])
def test_float32_gives_the_cpus_curve(data, tmp_path, name):
    """Without dropout nothing is drawn on the device; differences of rounding have four epochs to grow in."""
    curves = [
        losses(run(data, tmp_path / device, name, {"dropout": 0.0}, device=device, precision="fp32"))
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-2)


@pytest.mark.parametrize("chunk", [7, 512])
def test_full_softmax_and_its_gradient_are_the_cpus(chunk):
    g, found = torch.Generator().manual_seed(0), {}
    drawn = torch.randn(50, 16, generator=g), torch.randn(ITEMS + 1, 16, generator=g)
    targets = torch.randint(1, ITEMS + 1, (50,), generator=g)
    for device in ("cpu", "cuda"):
        leaves = [each.to(device).requires_grad_() for each in drawn]
        loss = make_loss({"name": "full_softmax", "chunk": chunk})(*leaves, targets.to(device))
        found[device] = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for mine, other in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(other.cpu(), mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SAMPLED, ids=lambda each: each["name"])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_sampled_losses_draw_on_the_card(settings, low):
    """Of one model on both devices; the draws differ, so over many targets the losses are near each other."""
    counts, found = torch.arange(ITEMS + 1), {}
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 16, generator=g), 0.1 * torch.randn(ITEMS + 1, 16, generator=g)
    targets = torch.randint(1, ITEMS + 1, (4000,), generator=g)
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        leaves = [each.to(device).requires_grad_() for each in drawn]
        criterion = make_loss(settings, counts).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            loss = criterion(*leaves, targets.to(device))
        assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, leaves))
        found[device] = float(loss.detach())
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.1)
