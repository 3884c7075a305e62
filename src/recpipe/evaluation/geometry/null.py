"""What chance gives: the same model before training, and the band in which one more such model would lie.

I items, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import nn

from recpipe.layers.inputs import GivenVectors
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build

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
