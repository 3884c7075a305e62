"""Training on a CUDA device, in bf16 by default: it learns, is resumed, and losses equal those of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.small_models import CASES, ITEMS, WINDOW, fresh
from tests.synthetic import random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.splits import Split, split
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import model_class
from recpipe.training.checkpoint import LAST
from recpipe.training.fit import TrainingResult, train
from recpipe.training.losses import make_loss
from recpipe.training.settings import TrainSettings

PROTOCOL = Protocol(dataset="x", history=WINDOW)
GRADIENT_MODELS = [
    (name, config)
    for name, config in CASES
    if not model_class(name).closed_form and "norm_first" not in config  # learns too slowly on any device
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
    data: Split, folder: Path, name: str, config: dict, *, epochs: int = 4, on_epoch=None, **changes
) -> TrainingResult:
    settings = {"batch_tokens": 200, "max_epochs": epochs, "device": "cuda", "loggers": [], **changes}
    settings |= {"optimiser": {"name": "adam", "learning_rate": 5e-3}}
    return train(
        lambda: fresh(name, config, data=data.train),
        data.train,
        validator(data.valid, PROTOCOL),
        TrainSettings(**settings),
        seed=0,
        folder=folder,
        on_epoch=on_epoch,
    )


def losses(result: TrainingResult) -> list[float]:
    return [row["loss"] for row in result.curve]


@pytest.mark.parametrize(("name", "config"), GRADIENT_MODELS, ids=str)
def test_models_learn_in_bf16_and_are_resumed(data, tmp_path, name, config):
    full = run(data, tmp_path / "full", name, config)
    assert (full.cost["precision"], full.cost["device"]) == ("bf16", "cuda")
    assert full.cost["peak_memory_mib"] > 0 and full.curve[0]["gpu_memory_mib"] > 0
    assert np.isfinite(losses(full)).all() and losses(full)[-1] < losses(full)[0]
    items, values = full.model.recommend(data.valid.histories, 5, exclude_seen=True)
    assert np.isfinite(values[items > 0]).all() and (items > 0).any()

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        run(data, tmp_path / "cut", name, config, on_epoch=lambda row: row["epoch"] == 2)
    assert (tmp_path / "cut" / LAST).is_file()
    resumed = run(data, tmp_path / "cut", name, config)
    assert [row["epoch"] for row in resumed.curve] == [1, 2, 3, 4]
    np.testing.assert_allclose(losses(resumed), losses(full), rtol=0.05)  # sums on a card have no order


@pytest.mark.parametrize("name", ["gpt", "sasrec"])
def test_packed_rows_are_trained_on_and_device_statistics_are_logged(data, tmp_path, name):
    result = run(data, tmp_path, name, {}, layout="packed", loggers=["csv"])
    assert np.isfinite(losses(result)).all() and losses(result)[-1] < losses(result)[0]
    assert list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("name", ["sasrec", "tiger"])
def test_a_float32_curve_equals_that_of_the_cpu(data, tmp_path, name):
    """Without dropout no random numbers are used on the device; rounding differences grow for four epochs."""
    curves = [
        losses(run(data, tmp_path / device, name, {"dropout": 0.0}, device=device, precision="fp32"))
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-2)


@pytest.mark.parametrize("chunk", [7, 512])
def test_full_softmax_and_its_gradient_equal_those_of_the_cpu(chunk):
    generator, results = torch.Generator().manual_seed(0), {}
    inputs = torch.randn(50, 16, generator=generator), torch.randn(ITEMS + 1, 16, generator=generator)
    targets = torch.randint(1, ITEMS + 1, (50,), generator=generator)
    for device in ("cpu", "cuda"):
        leaves = [each.to(device).requires_grad_() for each in inputs]
        loss = make_loss({"name": "full_softmax", "chunk": chunk})(*leaves, targets.to(device))
        results[device] = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for ours, theirs in zip(results["cpu"], results["cuda"], strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SAMPLED, ids=lambda each: each["name"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_losses_with_negatives_are_near_those_of_the_cpu(settings, bf16):
    """Negatives differ between devices, but over many targets the losses are near each other."""
    counts, results = torch.arange(ITEMS + 1), {}
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 16, generator=generator), 0.1 * torch.randn(ITEMS + 1, 16, generator=generator)
    targets = torch.randint(1, ITEMS + 1, (4000,), generator=generator)
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        leaves = [each.to(device).requires_grad_() for each in inputs]
        criterion = make_loss(settings, counts).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = criterion(*leaves, targets.to(device))
        assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, leaves))
        results[device] = float(loss.detach())
    assert results["cuda"] == pytest.approx(results["cpu"], rel=0.1)
