"""Settings of training: each bad value is refused by its key."""

from __future__ import annotations

import pytest
import torch
from tests.training.runs import run

from recpipe.training.settings import choose_device


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "train.precision .*allowed: auto, fp32, bf16"),
        ({"layout": "ragged"}, "train.layout .*allowed: padded, packed"),
        ({"windows": "first"}, "train.windows .*allowed: last, all"),
        ({"stride": 3}, "train.stride is 3"),
        ({"max_epochs": 0}, "at least 1"),
        ({"optimiser": {"name": "lion"}}, "unknown optimiser 'lion'"),
        ({"optimiser": {"name": "adam", "momentum": 1}}, "train.optimiser"),
        ({"schedule": {"name": "cosinus"}}, "unknown schedule 'cosinus'"),
        ({"schedule": {"name": "cosine", "warm": 3}}, "unknown argument of cosine .*'warm'"),
        ({"validate_every": 9}, "more than train.max_epochs 5"),
        ({"batch_tokens": 3}, "raise train.batch_tokens"),
        ({"loggers": ["tensorbord"]}, "allowed: tensorboard, csv, wandb"),
        ({"gradient_clip": 0.0}, "train.gradient_clip is 0.0"),
        ({"max_minutes": "x"}, "train.max_minutes is 'x'; it must be a number, or null"),
        ({"ema": True}, "train.ema is True; it must be a number, or null"),
        ({"ema": 1.0}, "train.ema is 1.0; it is a decay between 0 and 1"),
        ({"loss": {"name": "bce"}}, "train.loss"),
        ({"device": "tpu"}, "allowed: auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_without_a_device():
    with pytest.raises(ValueError, match=r"train\.device=cpu"):
        choose_device("cuda")
