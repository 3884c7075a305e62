"""Item tokens of SETRec: one from a trained model's item vector, the others from content by an auto-encoder.

I items, N of them, M tokens of an item (the collaborative one first), D width of a token, V width of item vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recpipe.layers.inputs import STD, ProjectedVectors, item_values
from recpipe.layers.side import Side

HIDDEN_AT_ONCE = 1 << 27  # elements of the widest layer of the auto-encoder, 512 MiB
COLLABORATIVE = "collaborative"  # name of the item vectors of a trained model


class TokenCache(Protocol):
    """Cache of a tensor derived from weights and constants, such as ``WeightCache`` of ``recpipe.accelerate``."""

    def get(self, compute: Callable[[], Tensor], weights: Iterable[Tensor], constants: Iterable[Tensor]) -> Tensor:
        """Return the value (...) of ``compute`` for these tensors (...), computed again only if one has changed."""

    def clear(self) -> None:
        """Drop the value."""


class AutoEncoder(nn.Module):
    """Auto-encoder of vectors (N, V) as tokens (N, tokens, D), by ReLU layers of ``widths`` and their mirror image."""

    def __init__(self, width: int, dim: int, *, tokens: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        sizes = (width, *widths, tokens * dim)
        self.widest = max(sizes)
        self.encoder, self.decoder = perceptron(sizes), perceptron(sizes[::-1])
        last = self.encoder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=STD / math.sqrt(last.in_features))  # tokens start like embeddings

    def forward(self, vectors: Tensor) -> Tensor:
        """Return tokens (N, tokens, D) of vectors (N, V)."""
        return self.encoder(vectors).unflatten(-1, (-1, self.dim))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return vectors (N, V) of tokens (N, tokens, D), scaled as T5 reads them."""
        return self.decoder(tokens.flatten(1) * math.sqrt(self.dim))


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Build linear layers with ReLU between them, initialised after He et al. 2015."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SetItems(nn.Module):
    """Tokens of the catalogue (I + 1, M, D) from the item vectors of ``side``, which are frozen and standardised.

    The vectors named ``collaborative`` give one token, all others together ``tokens`` more. An item without the vector
    of a token has a learned one in its place. ``cache``, where it is set, caches the tokens in evaluation. Raises
    ValueError without content vectors.
    """

    vectors: Tensor  # (I + 1, V), zero where there is none
    present: Tensor  # (I + 1, number of kinds), 1 where there is a vector

    def __init__(self, n_items: int, dim: int, side: Side | None, *, tokens: int, widths: Sequence[int]) -> None:
        super().__init__()
        widths_by_name = {} if side is None else dict(side.widths)
        trained = widths_by_name.pop(COLLABORATIVE, None)
        if side is None or not widths_by_name:
            raise ValueError("semantic tokens are computed from item vectors; set some, as in `side: {vectors: text}`")
        tables = [item_values(side, n_items, f"vectors.{name}", V + 1) for name, V in widths_by_name.items()]
        self.sizes = tuple(widths_by_name.values())
        self.register_buffer("vectors", torch.cat([table[:, :-1] for table in tables], 1))
        self.register_buffer("present", torch.cat([table[:, -1:] for table in tables], 1))
        self.auto_encoder = AutoEncoder(sum(self.sizes), dim, tokens=tokens, widths=widths)
        self.collaborative: ProjectedVectors | None = None
        if trained is not None:
            vectors = item_values(side, n_items, f"vectors.{COLLABORATIVE}", trained + 1)
            self.collaborative = ProjectedVectors(vectors, dim, trained=False)
        self.missing = nn.Parameter(torch.empty(tokens + (trained is not None), dim).normal_(std=STD))
        self.cache: TokenCache | None = None
        self._step: tuple[tuple[int, ...], Tensor] | None = None  # versions of the weights, and their tokens

    @property
    def count(self) -> int:
        """Tokens of an item (M)."""
        return len(self.missing)

    @property
    def first_semantic(self) -> int:
        """Index of the first semantic token: 1 after a collaborative one, otherwise 0."""
        return int(self.collaborative is not None)

    def has_content(self) -> Tensor:
        """Return the mask (I + 1,) bool of items with a vector that semantic tokens are computed from."""
        return self.present.any(1)

    def has_collaborative(self) -> Tensor:
        """Return the mask (I + 1,) bool of items with a collaborative vector."""
        return torch.zeros_like(self.has_content()) if self.collaborative is None else self.collaborative.is_present()

    def train(self, mode: bool = True) -> SetItems:
        """Set the mode of the module; training drops the cached tokens."""
        if mode and self.cache is not None:
            self.cache.clear()
        return super().train(mode)

    def tokens(self) -> Tensor:
        """Return the tokens (I + 1, M, D) of the catalogue; those of padding are zero."""
        if self.cache is None or self.training or torch.is_grad_enabled():
            return self._compute_tokens()
        sources = [self.auto_encoder.encoder, *([] if self.collaborative is None else [self.collaborative])]
        weights = [self.missing, *(weight for module in sources for weight in module.parameters())]
        # with each of the M tables contiguous: scoring a user takes as long as reading them
        return self.cache.get(
            lambda: self._compute_tokens().transpose(0, 1).contiguous().transpose(0, 1), weights, self.buffers()
        )

    def step_tokens(self) -> Tensor:
        """Return ``tokens`` (I + 1, M, D), computed once for all parts of a training step.

        They are computed again after a backward pass or a weight update.
        """
        versions = tuple(weight._version for weight in self.parameters())
        if self._step is None or self._step[0] != versions or not torch.is_grad_enabled():
            tokens = self.tokens()
            if not tokens.requires_grad:
                return tokens
            tokens.register_hook(lambda _: setattr(self, "_step", None))
            self._step = versions, tokens
        return self._step[1]

    def _compute_tokens(self) -> Tensor:
        tokens, present = self._semantic_tokens(), self.has_content()[:, None].expand(-1, self.count)
        if self.collaborative is not None:
            tokens = torch.cat([self.collaborative()[:, None], tokens], 1)
            present = torch.cat([self.has_collaborative()[:, None], present[:, 1:]], 1)
        real = torch.arange(len(tokens), device=tokens.device) > 0
        return torch.where(present[..., None], tokens, self.missing) * real[:, None, None]

    def _semantic_tokens(self) -> Tensor:
        """(I + 1, tokens, D) of the encoder; of large catalogues in blocks, which a backward pass computes again."""
        rows = max(HIDDEN_AT_ONCE // self.auto_encoder.widest, 1)
        if len(self.vectors) <= rows:
            semantic: Tensor = self.auto_encoder(self.vectors)
            return semantic
        parts = self.vectors.split(rows)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(self.auto_encoder, part, use_reentrant=False) for part in parts])
        return torch.cat([self.auto_encoder(part) for part in parts])

    def reconstruction(self, tokens: Tensor, sample: int | None = None) -> Tensor:
        """Return the mean squared error (scalar) of the vectors decoded from ``tokens`` (I + 1, M, D).

        It is over ``sample`` random items, or over all.
        """
        items = self.has_content().nonzero()[:, 0]
        if sample is not None and sample < len(items):
            items = items[torch.randperm(len(items), device=items.device)[:sample]]
        decoded = self.auto_encoder.decode(tokens[items, self.first_semantic :])
        sizes = torch.tensor(self.sizes, device=items.device)
        weight = self.present[items].repeat_interleave(sizes, 1, output_size=sum(self.sizes))
        return ((decoded - self.vectors[items]).square() * weight).sum() / weight.sum()
