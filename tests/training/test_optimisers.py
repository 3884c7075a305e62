"""Optimisers and schedules equal torch's own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import lr_scheduler

from recpipe.training import optimisers
from recpipe.training.optimisers import make_optimiser, make_schedule

RATE, STEPS, EPOCH = 0.1, 60, 6


def test_large_tables_on_a_cpu_get_the_fused_step(monkeypatch):
    monkeypatch.setattr(optimisers, "LARGE", 12)
    settings = {"name": "adam", "learning_rate": RATE}
    for net, is_fused in ((small_net(), True), (nn.Linear(3, 2), False)):
        assert make_optimiser(net.parameters(), settings).defaults["fused"] is is_fused
    assert not make_optimiser(small_net().parameters(), settings | {"fused": False}).defaults["fused"]
    assert make_optimiser(small_net().parameters(), {"name": "rmsprop"}).defaults.get("fused") is None


def test_gradients_are_clipped_in_bf16_with_a_fused_step():
    net = small_net()
    optimiser = make_optimiser(net.parameters(), {"name": "adamw", "learning_rate": RATE, "fused": True})
    net(torch.randn(8, 4)).square().mean().mul(100).backward()
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimiser, 0.5)
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in net.parameters()])
    torch.testing.assert_close(norm, torch.tensor(0.5))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def descend(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 20) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"name": "adam", "betas": [0.9, 0.98]}, lambda w: torch.optim.Adam(w, RATE, betas=(0.9, 0.98))),
        ({"name": "adam", "fused": True}, lambda w: torch.optim.Adam(w, RATE)),
        ({"name": "adamw", "fused": True, "weight_decay": 0.1}, lambda w: torch.optim.AdamW(w, RATE, weight_decay=0.1)),
        ({"name": "adamw", "weight_decay": 0.1}, lambda w: torch.optim.AdamW(w, RATE, weight_decay=0.1)),
        (
            {"name": "sgd", "momentum": 0.9, "nesterov": True},
            lambda w: torch.optim.SGD(w, RATE, momentum=0.9, nesterov=True),
        ),
        ({"name": "adafactor", "eps": [None, 0.01]}, lambda w: torch.optim.Adafactor(w, RATE, eps=(None, 0.01))),
        ({"name": "rmsprop", "alpha": 0.9}, lambda w: torch.optim.RMSprop(w, RATE, alpha=0.9)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_optimisers_are_those_of_torch(settings, theirs):
    one, other = small_net(), small_net()
    ours = descend(one, make_optimiser(one.parameters(), {"learning_rate": RATE, **settings}))
    torch.testing.assert_close(ours, descend(other, theirs(other.parameters())))


def test_decay_vectors_false_exempts_vectors_and_frozen_weights_stay():
    model = small_net()
    model[0].weight.requires_grad_(False)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimiser = make_optimiser(
        model.parameters(), {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.5, "decay_vectors": False}
    )
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    for weight, old in zip(model.parameters(), before, strict=True):
        factor = 0.5 if weight.ndim > 1 and weight.requires_grad else 1.0
        torch.testing.assert_close(weight.detach(), factor * old)


def rates(settings: dict, *, steps: int = STEPS) -> list[float]:
    """The rate that each of the steps is taken with."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE)
    schedule = make_schedule(optimiser, settings, steps, EPOCH)
    return walk(optimiser, schedule, steps)


def walk(optimiser, schedule, steps: int, every: int = 1) -> list[float]:
    seen = []
    for step in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if (step + 1) % every == 0:
            schedule.step()
    return seen


def torch_rates(make, *, every: int = 1) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE)
    return walk(optimiser, make(optimiser), STEPS, every)


SCHEDULES = {
    "constant": ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0), 1),
    "step": ({"name": "step", "epochs": 3, "factor": 0.3}, lambda o: lr_scheduler.StepLR(o, 3, 0.3), EPOCH),
    "cosine": (
        {"name": "cosine", "final": 0.1},
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1 * RATE),
        1,
    ),
    "one_cycle": (
        {"name": "one_cycle", "rise": 0.25, "start": 0.1, "final": 1e-3},
        lambda o: lr_scheduler.OneCycleLR(
            o, RATE, STEPS, pct_start=0.25, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(name):
    settings, make, every = SCHEDULES[name]
    torch.testing.assert_close(rates(settings), torch_rates(make, every=every), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_begins_after_a_linear_warm_up(name):
    settings = SCHEDULES[name][0]
    with_warmup, plain = rates({**settings, "warmup_steps": 9}), rates(settings, steps=STEPS - 9)
    torch.testing.assert_close(with_warmup[9:], plain)
    torch.testing.assert_close(with_warmup[:9], [plain[0] * (step + 1) / 10 for step in range(9)])


METRICS = [0.1, 0.2, 0.15, 0.2, 0.19, 0.3, 0.30001] + [0.2] * 8 + [0.5, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_the_plateau_schedule_is_that_of_torch(patience, cooldown):
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE) for _ in range(2))
    settings = {"name": "plateau", "factor": 0.5, "patience": patience, "cooldown": cooldown, "least": 0.2}
    schedule = make_schedule(ours, settings, STEPS, EPOCH)
    reference = lr_scheduler.ReduceLROnPlateau(
        theirs, mode="max", factor=0.5, patience=patience, cooldown=cooldown, min_lr=0.2 * RATE
    )
    seen = []
    for metric in METRICS:
        for _ in range(3):
            ours.step()
            schedule.step()
        schedule.observe(metric)
        reference.step(metric)
        seen.append(ours.param_groups[0]["lr"])
        assert seen[-1] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    assert min(seen) < RATE


def test_plateaus_wait_for_the_warm_up_and_are_resumed():
    settings = {"name": "plateau", "patience": 0, "warmup_steps": 4}
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE)
    schedule = make_schedule(optimiser, settings, STEPS, EPOCH)
    assert walk(optimiser, schedule, 6) == pytest.approx([RATE * f for f in (0.2, 0.4, 0.6, 0.8, 1, 1)])
    schedule.observe(0.5)
    schedule.observe(0.4)
    state = json.loads(json.dumps(schedule.state_dict()))  # as in a checkpoint
    other = make_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE), settings, STEPS, EPOCH)
    other.load_state_dict(state)
    assert (other.shape, other.last_epoch) == (schedule.shape, 6) and other.shape.now == 0.5
    assert make_schedule(optimiser, settings, 3).state_dict()["shape"]["best"] == -math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "unknown optimiser 'lion'"),
        ({"name": "adam", "momentum": 1}, "train.optimiser"),
        ({"name": "adam", "learning_rate": -1}, "train.optimiser"),
    ],
)
def test_bad_optimisers_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimiser(small_net().parameters(), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosinus"}, "unknown schedule 'cosinus'"),
        ({"name": "plateau", "best": 1}, "unknown argument of plateau .*'best'"),
        ({"name": "constant", "final": 0}, "unknown argument of constant .*'final'"),
    ],
)
def test_bad_schedules_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE), settings, STEPS)
