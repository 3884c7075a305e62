"""What is made of weights, kept from call to call for as long as they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Made(NamedTuple, Generic[T]):
    """A thing, and what it was made of."""

    thing: T
    weights: list[Tensor]  # copies
    constants: list[tuple[Tensor, int]]  # themselves, and how often they had been written to
    precision: tuple[bool, torch.dtype]


class Kept(Generic[T]):
    """One thing made of weights that outlives the call it was made in. Copies of a model make their own.

    Weights are compared by value with copies: an optimiser, ``load_state_dict`` and ``.to`` leave traces of different
    kinds, and writing to ``weight.data`` leaves none. Constants, which may be a hundred times as large, are compared by
    identity and by PyTorch's count of writes.
    """

    def __init__(self) -> None:
        self.made: Made[T] | None = None

    def __reduce__(self) -> tuple[type[Kept[Any]], tuple[()]]:
        return Kept, ()

    def get(self, make: Callable[[], T], weights: Iterable[Tensor], constants: Iterable[Tensor] = ()) -> T:
        """What ``make`` gives for them. For use without gradients, as what is kept has none."""
        weights, constants = list(weights), list(constants)
        if any(constant.is_inference() for constant in constants):  # nobody counts what is written to these
            return make()
        made = self.made  # once: another thread may forget it meanwhile
        if made is None or not self._valid(made, weights, constants):
            self.made = made = None  # not two at a time
            copies = [weight.detach().clone() for weight in weights]
            counted = [(constant, constant._version) for constant in constants]
            self.made = made = Made(make(), copies, counted, _precision(weights))
        return made.thing

    def forget(self) -> None:
        self.made = None

    @staticmethod
    def _valid(made: Made[T], weights: list[Tensor], constants: list[Tensor]) -> bool:
        pairs = zip(made.constants, constants, strict=True)
        return (
            all(kept is now and version == now._version for (kept, version), now in pairs)
            and made.precision == _precision(weights)
            and all(map(_equal, made.weights, weights))
        )


def _precision(weights: list[Tensor]) -> tuple[bool, torch.dtype]:
    device = weights[0].device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
