"""Cache of a value derived from weights, invalidated when the weights change.

With it a list of one user takes 12 instead of 22 ms in TIGER, and 11 instead of 155 ms in SETRec (12,101 items).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """A cached value and what it was computed from."""

    value: T
    weights: list[Tensor]  # copies
    constants: list[tuple[Tensor, int]]  # the tensors themselves, and their version counters
    precision: tuple[bool, torch.dtype]


class WeightCache(Generic[T]):
    """One value that outlives the call it was computed in. Copies of a model have caches of their own.

    Weights are compared by value with copies, since writing to ``weight.data`` leaves no trace. Constants, which may be
    a hundred times as large, are compared by identity and version counter.
    """

    def __init__(self) -> None:
        self.entry: Entry[T] | None = None

    def __reduce__(self) -> tuple[type[WeightCache[Any]], tuple[()]]:
        return WeightCache, ()

    def get(self, compute: Callable[[], T], weights: Iterable[Tensor], constants: Iterable[Tensor] = ()) -> T:
        """The value of ``compute`` for these tensors. For use without gradients, which the value has none of."""
        weights, constants = list(weights), list(constants)
        if any(constant.is_inference() for constant in constants):  # these have no version counter
            return compute()
        entry = self.entry  # read once: another thread may clear it meanwhile
        if entry is None or not _is_valid(entry, weights, constants):
            self.entry = entry = None  # not two values in memory
            copies = [weight.detach().clone() for weight in weights]
            versions = [(constant, constant._version) for constant in constants]
            self.entry = entry = Entry(compute(), copies, versions, _precision(weights))
        return entry.value

    def clear(self) -> None:
        """Drop the value."""
        self.entry = None


def _is_valid(entry: Entry[Any], weights: list[Tensor], constants: list[Tensor]) -> bool:
    pairs = zip(entry.constants, constants, strict=True)
    return (
        all(old is new and version == new._version for (old, version), new in pairs)
        and entry.precision == _precision(weights)
        and all(map(_equal, entry.weights, weights))
    )


def _precision(weights: list[Tensor]) -> tuple[bool, torch.dtype]:
    device = weights[0].device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
