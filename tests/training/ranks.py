"""Trainings that tests run by one process and by two ranks; in a module of its own, for the processes to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.synthetic import untrained, weighted
from tests.training.runs import DATA, ITEMS, PROTOCOL, flat, sasrec, settings

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.evaluation.evaluate import validator
from recpipe.models.recommender import Criterion, Recommender
from recpipe.models.sasrec import SASRec
from recpipe.training.checkpoint import derive_random_state
from recpipe.training.distributed import Ranks
from recpipe.training.fit import RankTraining
from recpipe.training.setup import TrainingSetup

TINY = {"dim": 32, "heads": 2, "head_dim": 16, "feed_forward": 64, "layers": 1, "decoder_layers": 1, "dropout": 0.0}


@dataclass(frozen=True)
class Case:
    """A training: ``build`` makes the model and ``data`` the training set; ``changes`` are settings."""

    build: Callable[[], Recommender]
    changes: dict[str, Any]
    data: Callable[[Sequences], Sequences] = lambda data: data


def still() -> Recommender:
    return sasrec(dropout=0.0)


def tiger() -> Recommender:
    return untrained("tiger", {**TINY, "beam": 5}, DATA.train, n_items=ITEMS, max_length=PROTOCOL.history)


def weighting() -> Recommender:
    model = still()
    model.uses_weights = True
    return model


class LongOnly(SASRec):
    """SASRec with a weight that only parts of long histories use."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.extra = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch: Batch, criterion: Criterion) -> torch.Tensor:
        loss = super().loss(batch, criterion)
        return loss * self.extra if batch.items.shape[1] > PROTOCOL.history else loss


def long_only() -> Recommender:
    return LongOnly(SASRec.Config(dim=16, dropout=0.0), n_items=ITEMS, max_length=PROTOCOL.history)


def odd_targets(data: Sequences) -> Sequences:
    return replace(data, is_target=np.arange(len(data.items)) % 3 > 0)


SGD = {"name": "sgd", "learning_rate": 0.1}
CASES = {
    "padded": Case(still, {"gradient_clip": 0.1, "ema": 0.9}),
    "packed": Case(still, {"layout": "packed"}),
    "micro-batches": Case(still, {"accumulate": 3, "schedule": {"name": "cosine"}}),
    "windows": Case(still, {"windows": "all", "window": 5, "schedule": {"name": "plateau", "patience": 1}}),
    "few users in a step": Case(still, {"batch_tokens": 11, "max_epochs": 2, "optimiser": SGD}),
    "weights": Case(weighting, {}, weighted),
    "target events": Case(still, {"layout": "packed"}, odd_targets),
    "tiger": Case(tiger, {"validate_users": 31, "max_epochs": 2}),
    "unused weights": Case(long_only, {}),
}


def training(case: Case, folder: Path, seed: int = 0, **changes: Any) -> RankTraining:
    """The training of a case as every rank does it."""
    torch.manual_seed(seed)
    chosen = settings(**{"batch_tokens": 400, **case.changes, **changes})
    setup = TrainingSetup(
        model=case.build().train(),
        data=case.data(DATA.train),
        validate=validator(DATA.valid, PROTOCOL, users=chosen.validate_users),
        settings=chosen,
        seed=seed,
    )
    folder.mkdir(exist_ok=True)
    return RankTraining(setup, "cpu", folder, "f")


@dataclass(frozen=True)
class Result:
    """Curve, final weights and fields of a training."""

    curve: list[dict[str, Any]]
    weights: torch.Tensor

    @classmethod
    def of(cls, train: RankTraining, ranks: Ranks, on_epoch: Callable[[Any], bool] | None = None) -> Result:
        """Train."""
        module = train(ranks, on_epoch)
        return cls(module.curve, flat(module.model))

    def column(self, name: str) -> list[float]:
        """A column of the curve, where it has a value."""
        return [row[name] for row in self.curve if name in row]


def interrupted(train: RankTraining, ranks: Ranks, epochs: int) -> None:
    """Train, and stop after some epochs as `on_epoch` does, which only rank 0 has."""
    try:
        train(ranks, (lambda row: row["epoch"] == epochs) if ranks.is_main else None)
    except KeyboardInterrupt:
        return
    raise AssertionError("the training was not interrupted")


@dataclass(frozen=True)
class Trainings:
    """All trainings of the tests by two ranks, in one pair of processes; the folder is theirs."""

    folder: Path

    def __call__(self, ranks: Ranks) -> dict[str, Any]:
        """Return what rank 0 sees, by name."""
        results: dict[str, Any] = {
            name: Result.of(training(case, self.folder / name), ranks) for name, case in CASES.items()
        }
        padded, dropout = CASES["padded"], Case(sasrec, {"ema": 0.9})
        results["dropout"] = Result.of(training(dropout, self.folder / "dropout"), ranks)
        interrupted(training(dropout, self.folder / "cut"), ranks, 2)
        results["dropout resumed"] = Result.of(training(dropout, self.folder / "cut"), ranks)
        interrupted(training(padded, self.folder / "2 then 1"), ranks, 3)
        results["1 then 2"] = Result.of(training(padded, self.folder / "1 then 2"), ranks)
        derive_random_state(ranks)
        own = torch.rand(8).numpy()
        results["draws"] = own, ranks.sum(own)
        return results
