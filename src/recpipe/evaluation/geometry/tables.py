"""The tables of items that a bundle or an encoder holds, each with random ones of its kind. I items, D width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recpipe.evaluation.geometry.null import Tables, random_tables, untrained
from recpipe.models.recommender import Recommender
from recpipe.training.bundle import Bundle

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
