"""What chance gives: the same model before training, and the band in which one more such model would lie.

I items, D width.

The tables of items that a bundle or an encoder holds, each with random ones of its kind. I items, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import nn

from recpipe.layers.inputs import GivenVectors
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle

LEVEL = 0.95
Tables = dict[str, NDArray[np.float32]]


def band(values: Sequence[float]) -> tuple[float, float] | None:
    """Where one more value of the kind lies in 19 of 20 cases: mean ± t s √(1 + 1/n), Student's prediction interval.

    Lowest and highest of a few would hold it in (n - 1) of n + 1 cases only. None for fewer than two finite values.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if (n := len(known)) < 2:
        return None
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1) * known.std(ddof=1) * math.sqrt(1 + 1 / n))
    return float(known.mean()) - reach, float(known.mean()) + reach


def untrained(model: Recommender, type_: str, seed: int) -> Recommender:
    """``model`` as it is built, with other random weights; what it was given (vectors, ids) it is given again.

    Vectors that were trained on (``side.train_vectors``) are those after training: a bundle does not keep the others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build(
            type_,
            dataclasses.asdict(model.config),
            n_items=model.n_items,
            max_length=model.max_length,
            side=model.side,
            ids={name: codes.ids for name, codes in model.item_codes().items()},
        )
    _give_again(made, model)
    for codes in made.item_codes().values():
        codes.forget()
    return made.eval()


@torch.no_grad()
def _give_again(made: nn.Module, model: nn.Module) -> None:
    given, theirs = dict(model.named_buffers()), dict(model.named_modules())
    for name, buffer in made.named_buffers():
        buffer.copy_(given[name])
    for name, module in made.named_modules():
        if isinstance(module, GivenVectors):
            module.given.copy_(theirs[name].given)


def random_tables(tables: Mapping[str, NDArray[np.float32]], seed: int) -> Tables:
    """Normal random numbers in place of each table; without their sign where a table holds no negative number."""
    draw = np.random.default_rng(seed)
    made = {}
    for name, table in tables.items():
        drawn = draw.standard_normal(table.shape, np.float32)
        made[name] = np.abs(drawn) if table.min() >= 0 else drawn
    return made


UNTRAINED, NUMBERS = "untrained", "random numbers"


@dataclass(frozen=True)
class Source:
    """``tables`` (I, D) by name, zero where an item has no vector; ``chance(seed)`` gives as many, ``null`` says of
    what: the model before training, or random numbers, where there was nothing before.
    """

    tables: Tables
    null: str
    chance: Callable[[int], Tables]


@dataclass(frozen=True)
class Table:
    """One of them: its vectors (n, D), and of which items they are, ``rows`` (n,) of 0 .. I - 1, ascending."""

    vectors: NDArray[np.float64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, whole: NDArray[np.float32], among: NDArray[np.bool_]) -> Table:
        """The items of ``among`` (I,) that have a vector. Raises ValueError for what is not finite."""
        if not np.isfinite(whole).all():
            raise ValueError("its vectors hold NaN or infinity")
        rows = np.flatnonzero(among & whole.any(1))
        return cls(whole[rows].astype(np.float64), rows)


def source_of(bundle: Bundle) -> Source:
    """Of a model, which has no tables where it knows items by no vector."""
    tables = tables_of(bundle.model)
    if bundle.model.closed_form:
        return Source(tables, NUMBERS, lambda seed: random_tables(tables, seed))
    return Source(tables, UNTRAINED, lambda seed: tables_of(untrained(bundle.model, bundle.type, seed)))


def encoder_source(name: str, vectors_ID: NDArray[np.float32], present_I: NDArray[np.bool_]) -> Source:
    """Of item vectors that an encoder made."""
    tables = {name: np.where(present_I[:, None], vectors_ID, np.float32(0))}
    return Source(tables, NUMBERS, lambda seed: random_tables(tables, seed))


@torch.no_grad()
def tables_of(model: Recommender) -> Tables:
    """``item_tables`` as arrays, without the row of padding."""
    found: Mapping[str, torch.Tensor] = model.item_tables()
    return {name: table[1:].float().cpu().numpy() for name, table in found.items()}
