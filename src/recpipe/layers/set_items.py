"""Items as sets of tokens: one of a trained model's item vector, the others of what items say, by an auto-encoder.

I items, M tokens of an item (the collaborative one first), D width of a token, V width of given vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.layers.inputs import STD, ProjectedVectors
from recpipe.layers.kept import Kept
from recpipe.layers.side import Side, standardise

COLLABORATIVE = "collaborative"  # the name among item vectors of those that a trained model has


class AutoEncoder(nn.Module):
    """Vectors (N, V) to tokens (N, tokens, D) and back, through ReLU layers of ``widths`` and the same mirrored."""

    def __init__(self, width: int, dim: int, *, tokens: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        sizes = (width, *widths, tokens * dim)
        self.encoder, self.decoder = perceptron(sizes), perceptron(sizes[::-1])
        last = self.encoder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=STD / math.sqrt(last.in_features))  # tokens begin like embeddings

    def forward(self, vectors: Tensor) -> Tensor:
        return self.encoder(vectors).unflatten(-1, (-1, self.dim))

    def back(self, tokens: Tensor) -> Tensor:
        """(N, V) of (N, tokens, D), which a factor brings to the size that the network reads them in."""
        return self.decoder(tokens.flatten(1) * math.sqrt(self.dim))


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, initialised after He et al. 2015."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SetItems(nn.Module):
    """Tokens of the catalogue (I + 1, M, D), of the item vectors of ``side``, which are frozen and standardised.

    The vectors named ``collaborative`` make one token, all others together ``tokens`` more. An item that lacks what a
    token is made of has a learned one in its place.
    """

    def __init__(
        self, n_items: int, dim: int, side: Side | None, *, tokens: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        found = {} if side is None else dict(side.widths)
        trained = found.pop(COLLABORATIVE, None)
        if side is None or not found:
            raise ValueError(
                "the semantic tokens are made of item vectors; give some, such as `side: {vectors: text}`"
            )
        tables = [_given(side, name, n_items) for name in found]
        self.sizes = tuple(found.values())
        self.register_buffer("vectors", torch.cat([table[:, :-1] for table in tables], 1))
        self.register_buffer("present", torch.cat([table[:, -1:] for table in tables], 1))
        self.auto_encoder = AutoEncoder(sum(self.sizes), dim, tokens=tokens, widths=widths)
        given = None if trained is None else _given(side, COLLABORATIVE, n_items)
        self.collaborative = None if given is None else ProjectedVectors(given, dim, trained=False)
        self.missing = nn.Parameter(torch.empty(tokens + (trained is not None), dim).normal_(std=STD))
        self._kept: Kept[Tensor] = Kept()
        self._step: tuple[tuple[int, ...], Tensor] | None = None

    vectors: Tensor  # (I + 1, V), zero where there is none
    present: Tensor  # (I + 1, kinds of vectors), 1 where there is one

    @property
    def count(self) -> int:
        """M."""
        return len(self.missing)

    def described(self) -> Tensor:
        """(I + 1,) bool: what has a vector that semantic tokens are made of."""
        return self.present.any(1)

    def trained(self) -> Tensor:
        """(I + 1,) bool: what has a collaborative vector; nothing where there is none at all."""
        there = self.described().new_zeros(len(self.present))
        return there if self.collaborative is None else self.collaborative.is_present()

    def train(self, mode: bool = True) -> SetItems:
        if mode:
            self._kept.forget()
        return super().train(mode)

    def tokens(self) -> Tensor:
        """(I + 1, M, D); those of padding are zero.

        Evaluation without gradients makes them once, and anew when a weight, a vector or the precision has changed.
        """
        if self.training or torch.is_grad_enabled():
            return self._make()
        made_of = [self.auto_encoder.encoder, *([] if self.collaborative is None else [self.collaborative])]
        weights = [self.missing, *(weight for module in made_of for weight in module.parameters())]
        return self._kept.get(self._tables, weights, self.buffers())

    def _tables(self) -> Tensor:
        """As ``_make``, but token by token in memory: a user's scores take as long as reading the tables does."""
        return self._make().transpose(0, 1).contiguous().transpose(0, 1)

    def _make(self) -> Tensor:
        made, there = self.auto_encoder(self.vectors), self.described()[:, None].expand(-1, self.count)
        if self.collaborative is not None:
            made = torch.cat([self.collaborative()[:, None], made], 1)
            there = torch.cat([self.trained()[:, None], there[:, 1:]], 1)
        real = torch.arange(len(made), device=made.device) > 0
        return torch.where(there[..., None], made, self.missing) * real[:, None, None]

    def in_step(self) -> Tensor:
        """As ``tokens``, made once for all parts of a training step: until a gradient passes or a weight changes."""
        state = tuple(weight._version for weight in self.parameters())
        if self._step is None or self._step[0] != state or not torch.is_grad_enabled():
            made = self.tokens()
            if not made.requires_grad:
                return made
            made.register_hook(self._forget)
            self._step = state, made
        return self._step[1]

    def _forget(self, _: Tensor) -> None:
        self._step = None

    def reconstruction(self, tokens: Tensor, sample: int | None = None) -> Tensor:
        """The mean squared error of vectors decoded from ``tokens`` (I + 1, M, D), over all that there are or over
        those of ``sample`` random items.
        """
        rows = self.described().nonzero()[:, 0]
        if sample is not None and sample < len(rows):
            rows = rows[torch.randperm(len(rows), device=rows.device)[:sample]]
        decoded = self.auto_encoder.back(tokens[rows, self.first_semantic :])
        sizes = torch.tensor(self.sizes, device=rows.device)
        weight = self.present[rows].repeat_interleave(sizes, 1, output_size=sum(self.sizes))
        return ((decoded - self.vectors[rows]).square() * weight).sum() / weight.sum()

    @property
    def first_semantic(self) -> int:
        """Which of the M tokens it is."""
        return int(self.collaborative is not None)


def _given(side: Side, name: str, n_items: int) -> Tensor:
    """(I + 1, V + 1) as ``Side.values``, standardised; room for them where a bundle is being loaded."""
    values = side.values.get(f"vectors.{name}")
    if values is None:
        return torch.from_numpy(np.zeros((n_items + 1, side.widths[name] + 1), np.float32))
    return torch.from_numpy(standardise(values))
