"""SETRec: an item as a set of one collaborative and several semantic tokens, predicted independently.

Paper: Lin et al., Order-agnostic Identifier for Large Language Model-based Generative Recommendation, SIGIR 2025 (arXiv
2502.10833).

An item is a set of M tokens, one collaborative (from a trained model's item vector) and ``tokens`` semantic ones (from
its text or image, by an auto-encoder trained along). Tokens of an item share a position and do not attend to each
other; M learned queries attend to the history independently, and query m is multiplied with token m of every item.
Scores are of the whole catalogue: no beam, no tree, and a new item needs no more than its vectors.

Differences:

- One learned token before the history instead of an instruction.
- No self-attention in the decoder, as queries see only themselves. Cross-attention has T5's distance bias, since a
  query of a causal encoding cannot tell otherwise what is latest.
- Scores are log-probabilities, ``beta`` of the semantic ones' mean (the paper: the sum of products, the same ranking
  for another beta), chosen on the validation fold (the authors' code: on the test fold).
- A part that an item lacks is replaced by the other one, so that a cold item, whose collaborative token is not trained,
  is scored by its content.
- The authors' T5 code differs from their paper: its encoder has a padding mask only, so that the tokens of an item
  attend to each other, and the mask of its queries is an identity matrix that is added to the scores (+1 on the
  diagonal, never -inf), so that the queries attend to each other. Only their Qwen code has the paper's masks, as here.

Shapes: B batch, T time, P places with queries, I items, M tokens of an item and queries alike, S tokens of a history, N
targets, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import split_names
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers import t5
from recpipe.layers.inputs import STD
from recpipe.layers.set_items import SetItems
from recpipe.layers.side import Side
from recpipe.models.recommender import Criterion, Scorer


class QueryLayer(nn.Module):
    """Layer of T5's decoder without self-attention."""

    def __init__(self, shape: t5.T5Shape) -> None:
        super().__init__()
        self.cross, self.feed = t5.CrossAttention(shape), t5.FeedForward(shape)

    def forward(self, x_BQD: Tensor, encoded_BSD: Tensor, mask: t5.AttentionMask) -> Tensor:
        """Return the states of queries (B, Q, D) after attention to the encoded history (B, S, D) under ``mask``."""
        return self.feed(self.cross(x_BQD, *self.cross.memory(encoded_BSD), mask))


class Queries(nn.Module):
    """Decoder of M learned queries at several places of a history."""

    def __init__(self, shape: t5.T5Shape, count: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(count, shape.dim).normal_())
        self.recency = t5.RelativeBias(shape, bidirectional=False)
        self.layers = nn.ModuleList(QueryLayer(shape) for _ in range(shape.decoder_layers))
        self.norm, self.dropout = nn.RMSNorm(shape.dim, t5.EPS), nn.Dropout(shape.dropout)

    def forward(self, encoded_BSD: Tensor, mask_BS: Tensor, events_S: Tensor, places: Tensor) -> Tensor:
        """Return hidden states (B, P, M, D) after the first ``places`` (P,) or (B, P) events of a history.

        ``events_S``: the event of each token, from 1; 0 for the first token.
        """
        places = places.expand(encoded_BSD.shape[0], -1) if places.ndim == 1 else places
        visible = (events_S <= places[..., None]) & mask_BS[:, None]  # (B, P, S)
        bias = t5.attention_mask(self.recency(places + 1, events_S), visible[:, None]).bias
        mask = t5.AttentionMask(bias.repeat_interleave(len(self.queries), 2))
        x_BQD = self.dropout(self.queries.repeat(places.shape[1], 1).expand(places.shape[0], -1, -1))
        for layer in self.layers:
            x_BQD = layer(x_BQD, encoded_BSD, mask)
        return self.dropout(self.norm(x_BQD)).unflatten(1, (-1, len(self.queries)))


class SETRec(Scorer):
    """Encoder over the token sets of a history, with one query per token of the next item.

    Raises ValueError for side information besides item vectors.
    """

    @dataclass(frozen=True)
    class Config(t5.T5Shape):
        """Settings of the encoder–decoder and of the semantic tokens.

        ``tokens``: semantic tokens of an item; ``widths`` of the auto-encoder, whose loss has the weight ``alpha``.
        ``one_pass``: the encoder attends to no later item, and one pass serves all targets of a sequence. Without, it
        is bidirectional and every target is an example with its own encoding: slower by about half a history's length.
        ``beta``: weight of semantic scores, 0 to 1; after training, the best of ``betas`` on the validation fold.
        """

        tokens: int = 4
        widths: tuple[int, ...] = (512, 256, 128)
        alpha: float = 0.7
        one_pass: bool = True
        beta: float = 0.5
        betas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.tokens < 1 or not self.widths:
                raise ValueError(f"tokens is {self.tokens}, widths {self.widths}; set at least one of each")
            if not self.alpha >= 0:
                raise ValueError(f"alpha is {self.alpha}; it must be at least 0")
            if wrong := [beta for beta in (self.beta, *self.betas) if not 0 <= beta <= 1]:
                raise ValueError(f"beta is {wrong[0]}; it lies between 0 (collaborative) and 1 (semantic)")

    probabilistic = False
    takes_side = True
    takes_weights = True
    required_side = ("vectors",)
    tuned = ("beta",)
    config: Config
    beta: Tensor  # scalar

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        other = () if side is None else (side.config.items, side.config.users, side.config.events)
        if any(map(split_names, other)):
            raise ValueError("setrec reads item vectors only; set side.items, side.users and side.events to none")
        self.start = nn.Parameter(torch.empty(config.dim).normal_(std=STD))
        self.items = SetItems(n_items, config.dim, side, tokens=config.tokens, widths=config.widths)
        self.encoder = t5.Encoder(config)
        self.queries = Queries(config, self.items.count)
        self.register_buffer("beta", torch.tensor(float(config.beta)))

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): mean over the M queries, plus ``alpha`` times the auto-encoder's error."""
        inputs, targets = batch.inputs_and_targets()
        weights, tokens = inputs.target_weights(targets > 0), self.items.step_tokens()
        if self.config.one_pass:
            real, places = targets > 0, torch.arange(1, targets.shape[1] + 1, device=targets.device)
            hidden, targets = self.hidden(inputs.items, places, tokens)[real], targets[real]
        else:
            items, lengths, targets = prefixes(inputs.items, targets)
            hidden = self.hidden(items, lengths[:, None], tokens)[:, 0]
        pairs = zip(hidden.unbind(1), tokens.unbind(1), strict=True)
        parts = [criterion(queries, table, targets, weights) for queries, table in pairs]
        error = self.items.reconstruction(tokens, sample=len(targets))
        return torch.stack(parts).mean() + self.config.alpha * error

    def hidden(self, items_BT: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """Return hidden states (B, P, M, D) of the queries after the first ``places`` (P,) or (B, P) events."""
        (B, T), M = items_BT.shape, self.items.count
        events_S = F.pad(torch.arange(1, T + 1, device=items_BT.device).repeat_interleave(M), (1, 0))
        mask_BS = F.pad((items_BT > 0).repeat_interleave(M, 1), (1, 0), value=True)
        embedded = torch.stack([F.embedding(items_BT, table) for table in tokens.unbind(1)], 2).flatten(1, 2)
        x_BSD = torch.cat([self.start.expand(B, 1, -1), embedded], 1) * math.sqrt(self.config.dim)
        attention_SS = between_items(events_S, causal=self.config.one_pass)
        encoded = self.encoder(x_BSD, mask_BS, attention=attention_SS, positions=events_S)
        return self.queries(encoded, mask_BS, events_S, places)

    def parts(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return log-probabilities (B, I + 1) of the collaborative query, if any, and the mean of the semantic ones."""
        tokens, first = self.items.tokens(), self.items.first_semantic
        hidden = self.hidden(batch.items, batch.lengths[:, None], tokens)[:, 0]
        semantic = log_probabilities(hidden[:, first], tokens[:, first])
        for m in range(first + 1, self.items.count):
            semantic.add_(log_probabilities(hidden[:, m], tokens[:, m]))
        collaborative = log_probabilities(hidden[:, 0], tokens[:, 0]) if first else None
        return collaborative, semantic.div_(self.items.count - first)

    @property
    def scores_by_content(self) -> bool:
        """True: an item without training events is scored by its content."""
        return True

    def item_tables(self) -> dict[str, Tensor]:
        """Return the tables (I + 1, D) of the mean semantic token and of the collaborative one, if read."""
        tokens, first = self.items.tokens(), self.items.first_semantic
        tables = {"semantic": tokens[:, first:].mean(1) * self.items.has_content()[:, None]}
        if first:
            tables["collaborative"] = tokens[:, 0] * self.items.has_collaborative()[:, None]
        return tables

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): log-probabilities by the collaborative and semantic tokens, mixed by ``beta``."""
        collaborative, semantic = self.parts(batch)
        if collaborative is None:
            return semantic
        has_collaborative, has_content = self.items.has_collaborative(), self.items.has_content()
        beta = torch.where(has_collaborative == has_content, self.beta, has_content.to(self.beta.dtype))
        return collaborative.mul_(1 - beta).add_(semantic.mul_(beta))

    def score_batches(
        self, histories: Sequences, *, tokens: int = 1 << 15, **restrictions: Any
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield rows (B,) and scores (B, I + 1) as ``Scorer``, in batches smaller by the tokens of an item."""
        yield from super().score_batches(histories, tokens=tokens // self.items.count, **restrictions)

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """Choose ``beta`` among ``betas`` by ``validate()``; return it, or nothing without a collaborative token."""
        if self.items.collaborative is None or not self.config.betas:
            return {}
        metrics = {}
        for beta in self.config.betas:
            self.beta.fill_(beta)
            metrics[beta] = validate()
        best = max(metrics, key=metrics.__getitem__)
        self.beta.fill_(best)
        return {"beta": best}


def between_items(events_S: Tensor, *, causal: bool) -> Tensor:
    """Return the attention mask (S, S) bool: a token attends to itself and to other items, or to earlier ones only."""
    other = events_S[:, None] > events_S if causal else events_S[:, None] != events_S
    return other | torch.eye(events_S.shape[0], dtype=torch.bool, device=events_S.device)


def prefixes(items_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make every target an example: items (N, T), zero from the target on, lengths (N,), and targets (N,)."""
    row, place = (targets_BT > 0).nonzero(as_tuple=True)
    lengths = place + 1
    before = torch.arange(items_BT.shape[1], device=row.device) < lengths[:, None]
    return torch.where(before, items_BT[row], 0), lengths, targets_BT[row, place]


def log_probabilities(hidden: Tensor, table: Tensor) -> Tensor:
    """Return log-probabilities (B, I + 1) of hidden states (B, D) by the item table (I + 1, D).

    Row 0 of the table, padding, gets no probability.
    """
    scores = (hidden @ table.T).float()
    return scores.sub_(scores[:, 1:].logsumexp(1, keepdim=True))
