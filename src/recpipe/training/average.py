"""An exponential moving average of a model's weights, which is validated and kept in place of the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """After step t every averaged weight is d w + (1 - d) of the trained one, d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first steps lets a short training forget where it began (TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``). Averaged weights are buffers, so that checkpoints hold them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._trained: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        for index, weight in enumerate(self._trained):
            self.register_buffer(str(index), weight.detach().clone())

    @property
    def _averaged(self) -> list[Tensor]:
        return list(self.buffers())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after ``step`` steps, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """The model gets the averaged weights and this object the model's."""
        kept = [weight.clone() for weight in self._averaged]
        torch._foreach_copy_(self._averaged, self._trained)
        torch._foreach_copy_(self._trained, kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again after."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
