"""Small trainings of SASRec on a random log that tests of this package share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tests.synthetic import random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.splits import split
from recpipe.evaluation.evaluate import validator
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.training.fit import TrainingResult, train
from recpipe.training.settings import TrainSettings

ITEMS = 30
PROTOCOL = Protocol(dataset="x", history=10)
DATA = split(random_sequences(120, ITEMS, longest=14, seed=2), PROTOCOL)
METRIC = "valid_ndcg@10"
SETTINGS = {"batch_tokens": 200, "max_epochs": 5, "patience": 50, "device": "cpu"}
ADAM = {"name": "adam", "learning_rate": 0.01}


def settings(**changes) -> TrainSettings:
    return TrainSettings(**{**SETTINGS, **changes})


def sasrec(**config) -> Recommender:
    return build("sasrec", {"dim": 16, **config}, n_items=ITEMS, max_length=PROTOCOL.history)


def run(
    folder: Path,
    *,
    seed: int = 0,
    validate=None,
    config=None,
    model=None,
    data=DATA.train,
    on_epoch=None,
    steps_from=None,
    replay=None,
    keep_checkpoints=False,
    **changes,
) -> TrainingResult:
    return train(
        model or (lambda: sasrec(**{"dropout": 0.1, **(config or {})})),
        data,
        validate or validator(DATA.valid, PROTOCOL),
        settings(**changes),
        seed=seed,
        folder=folder,
        on_epoch=on_epoch,
        steps_from=steps_from,
        replay=replay,
        keep_checkpoints=keep_checkpoints,
    )


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().clone() for tensor in model.state_dict().values()])


def weights(result: TrainingResult) -> torch.Tensor:
    return flat(result.model)


def column(result: TrainingResult, key: str = "loss") -> list[float]:
    return [row[key] for row in result.curve]


class Series:
    """Validation with fixed metrics, which stops as Ctrl-C does after the last one; ``states`` are the weights."""

    def __init__(self, *metrics: float) -> None:
        self.metrics: Iterator[float] = iter(metrics)
        self.states: list[torch.Tensor] = []

    def __call__(self, model: Recommender) -> dict[str, float]:
        self.states.append(flat(model))
        value = next(self.metrics, None)
        if value is None:
            raise KeyboardInterrupt
        return {METRIC: value}


class StopAfter:
    """Validation that stops, as Ctrl-C does, after a number of calls."""

    def __init__(self, calls: int) -> None:
        self.validate, self.calls = validator(DATA.valid, PROTOCOL), calls

    def __call__(self, model: Recommender) -> dict[str, float]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.validate(model)
