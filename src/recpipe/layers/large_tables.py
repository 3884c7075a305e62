"""Large item tables in training: computed once per step, with one dense gradient for all look-ups of the step.

The gradient of a look-up is as large as the table. A step has some 30 look-ups: three or four in each of its batches.
For a million items of width 64 that is 30 × 256 MB of zeros, most of the time of a step. Here the look-ups have sparse
gradients, which are added up to one dense gradient that optimisers, clipping and DDP see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LARGE = 1 << 23  # elements of a table, 32 MiB; gradients of smaller ones are added up in autograd's order


def look_up(rows: Tensor, table: Tensor) -> Tensor:
    """Return the rows (..., D) of a table (I + 1, D), as ``F.embedding``."""
    shares = table.grad_fn is not None and table.grad_fn.name() == f"{_SharedGradient.__name__}Backward"
    return F.embedding(rows, table, sparse=shares)


class StepTable:
    """Cache of a table for one training step, cleared by a backward pass or a weight update."""

    def __init__(self) -> None:
        self._versions: tuple[int, ...] = ()
        self._table: Tensor | None = None

    def get(self, compute: Callable[[], Tensor], weights: Iterable[Tensor]) -> Tensor:
        """Return the table (I + 1, D) of ``compute()``, or the same one as before.

        ``weights`` are those that it is computed from.
        """
        versions = tuple(value for weight in weights for value in (weight.data_ptr(), weight._version))
        if self._table is None or self._versions != versions:
            if not (table := compute()).requires_grad:
                return table
            shared: Tensor = _SharedGradient.apply(table)  # type: ignore[no-untyped-call]
            shared.register_hook(self._clear)
            self._versions, self._table = versions, shared
        return self._table

    def _clear(self, _: Tensor) -> None:
        self._table = None


class _SharedGradient(torch.autograd.Function):
    """The table itself; its gradient, a sum of sparse and dense ones, becomes dense."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        return table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if not grad.is_sparse:
            return grad
        # the kernel of a look-up's dense gradient; with to_dense() equal rows would be sorted first
        dense: Tensor = torch.ops.aten.embedding_dense_backward(
            grad._values(), grad._indices()[0], len(grad), -1, False
        )
        return dense
