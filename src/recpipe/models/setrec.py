"""SETRec: Lin et al., Order-agnostic Identifier for Large Language Model-based Generative Recommendation, SIGIR 2025.

B batch, T time, P places that are asked about, I items, M tokens of an item and queries alike, S tokens of a history,
N targets, D width, H heads.

An item is a set of M tokens, one collaborative (of a trained model's item vector) and ``tokens`` semantic (of its text
or image, by an auto-encoder that learns along). Tokens of an item have one position and do not see each other; M
learned queries look at the history together and without seeing each other, and query m is multiplied with token m
of every item. Scores are of the whole catalogue: no beam, no tree, and a new item needs no more than its vectors.

Deviations: no instruction before the history but one learned token, which is what an empty one is; queries that see
only themselves need no self-attention, so the decoder has none; its cross-attention has T5's bias by distance, since
without one a query cannot tell what is latest in a causal encoding; what the queries give are log-probabilities,
of which ``beta`` weighs the semantic ones' mean (the paper: their sum of products, the same ranking for another beta),
chosen on the validation fold (the authors' code: on the test fold). A part that an item lacks is replaced by the one it
has, so that a cold item, whose collaborative token nobody trained, is judged by what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import split_names
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.dropout import Dropout
from recpipe.layers.inputs import STD
from recpipe.layers.set_items import SetItems
from recpipe.layers.side import Side
from recpipe.layers.t5 import EPS, CrossAttention, Encoder, FeedForward, Reach, Relative, T5Shape, reach
from recpipe.models.recommender import Criterion, Scorer


class QueryLayer(nn.Module):
    """A layer of T5's decoder for queries that see no other."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.cross, self.feed = CrossAttention(shape), FeedForward(shape)

    def forward(self, x_BQD: Tensor, encoded_BSD: Tensor, looks: Reach) -> Tensor:
        return self.feed(self.cross(x_BQD, *self.cross.memory(encoded_BSD), looks))


class Queries(nn.Module):
    """M learned queries at every place that is asked about."""

    def __init__(self, shape: T5Shape, count: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(count, shape.dim).normal_())
        self.recency = Relative(shape, bidirectional=False)
        self.layers = nn.ModuleList(QueryLayer(shape) for _ in range(shape.decoder_layers))
        self.norm, self.dropout = nn.RMSNorm(shape.dim, EPS), Dropout(shape.dropout)

    def forward(self, encoded_BSD: Tensor, mask_BS: Tensor, owners_S: Tensor, places: Tensor) -> Tensor:
        """(B, P, M, D) after as many events as ``places`` (P,) or (B, P) say; a query sees these and the start."""
        places = places.expand(len(encoded_BSD), -1) if places.ndim == 1 else places
        seen = (owners_S <= places[..., None]) & mask_BS[:, None]  # (B, P, S)
        looks = reach(seen[:, None], self.recency(places + 1, owners_S))
        looks = Reach(looks.bias.repeat_interleave(len(self.queries), 2))
        x_BQD = self.dropout(self.queries.repeat(places.shape[1], 1).expand(len(places), -1, -1))
        for layer in self.layers:
            x_BQD = layer(x_BQD, encoded_BSD, looks)
        return self.dropout(self.norm(x_BQD)).unflatten(1, (-1, len(self.queries)))


class SETRec(Scorer):
    """Predicts every token of the next item by itself."""

    @dataclass(frozen=True)
    class Config(T5Shape):
        """``tokens``: semantic ones of an item; ``widths`` of the auto-encoder, whose error weighs ``alpha``.

        ``one_pass``: the encoder sees no later item, and one pass serves all targets of a sequence. Without, it sees
        both ways and every target is an example of its own, encoded anew: dearer by about half a history's length.
        ``beta`` weighs semantic scores, 0 to 1; after training, that of ``betas`` is taken that is best on the
        validation fold.
        """

        tokens: int = 4
        widths: tuple[int, ...] = (512, 256, 128)
        alpha: float = 0.7
        one_pass: bool = True
        beta: float = 0.5
        betas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

        def __post_init__(self) -> None:
            T5Shape.__post_init__(self)
            if self.tokens < 1 or not self.widths:
                raise ValueError(f"tokens is {self.tokens}, widths {self.widths}; each needs at least one")
            if not self.alpha >= 0:
                raise ValueError(f"alpha is {self.alpha}; it is a weight from 0")
            if wrong := [beta for beta in (self.beta, *self.betas) if not 0 <= beta <= 1]:
                raise ValueError(f"beta is {wrong[0]}; it lies between 0 (collaborative) and 1 (semantic)")

    probabilistic = False
    takes_side = True
    required_side = ("vectors",)
    config: Config
    beta: Tensor  # scalar

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        if side is not None and any(
            split_names(getattr(side.config, part)) for part in ("items", "users", "events")
        ):
            raise ValueError("setrec reads item vectors alone; say side.items, users and events=none for it")
        self.start = nn.Parameter(torch.empty(config.dim).normal_(std=STD))
        self.items = SetItems(n_items, config.dim, side, tokens=config.tokens, widths=config.widths)
        self.encoder = Encoder(config)
        self.queries = Queries(config, self.items.count)
        self.register_buffer("beta", torch.tensor(float(config.beta)))

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        inputs, targets = batch.inputs_and_targets()
        tokens = self.items.in_step()
        if self.config.one_pass:
            real = targets > 0
            places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
            hidden, wanted = self.hidden(inputs.items, places, tokens)[real], targets[real]
        else:
            items, lengths, wanted = prefixes(inputs.items, targets)
            hidden = self.hidden(items, lengths[:, None], tokens)[:, 0]
        each = zip(hidden.unbind(1), tokens.unbind(1), strict=True)
        parts = [criterion(found, table, wanted) for found, table in each]
        error = self.items.reconstruction(tokens, sample=len(wanted))
        return torch.stack(parts).mean() + self.config.alpha * error

    def hidden(self, items_BT: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """(B, P, M, D): what the queries found after as many events as ``places`` (P,) or (B, P) say."""
        (B, T), M = items_BT.shape, self.items.count
        owners_S = F.pad(torch.arange(1, T + 1, device=items_BT.device).repeat_interleave(M), (1, 0))
        mask_BS = F.pad((items_BT > 0).repeat_interleave(M, 1), (1, 0), value=True)
        events = torch.stack([F.embedding(items_BT, table) for table in tokens.unbind(1)], 2).flatten(1, 2)
        x_BSD = torch.cat([self.start.expand(B, 1, -1), events], 1) * math.sqrt(self.config.dim)
        sees_SS = in_sets(owners_S, causal=self.config.one_pass)
        encoded = self.encoder(x_BSD, mask_BS, attention=sees_SS, positions=owners_S)
        return self.queries(encoded, mask_BS, owners_S, places)

    def parts(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Log-probabilities (B, I + 1) by the collaborative query, if there is one, and the semantic ones' mean."""
        tokens = self.items.tokens()
        hidden = self.hidden(batch.items, batch.lengths[:, None], tokens)[:, 0]
        first, semantic = self.items.first_semantic, None
        for m in range(first, self.items.count):
            scores = log_probabilities(hidden[:, m], tokens[:, m])
            semantic = scores if semantic is None else semantic.add_(scores)
        assert semantic is not None
        collaborative = log_probabilities(hidden[:, 0], tokens[:, 0]) if first else None
        return collaborative, semantic.div_(self.items.count - first)

    def item_tables(self) -> dict[str, Tensor]:
        tokens, first = self.items.tokens(), self.items.first_semantic
        found = {"semantic": tokens[:, first:].mean(1) * self.items.described()[:, None]}
        return found | ({"collaborative": tokens[:, 0] * self.items.trained()[:, None]} if first else {})

    def score(self, batch: Batch) -> Tensor:
        collaborative, semantic = self.parts(batch)
        if collaborative is None:
            return semantic
        trained, described = self.items.trained(), self.items.described()
        beta = torch.where(trained == described, self.beta, described.to(self.beta.dtype))
        return collaborative.mul_(1 - beta).add_(semantic.mul_(beta))

    def score_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Tensor | None = None,
        tokens: int = 1 << 15,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        yield from super().score_batches(
            histories, exclude_seen=exclude_seen, candidates=candidates, tokens=tokens // self.items.count
        )

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """Takes that of ``betas`` for which ``validate``, a metric of the validation fold, is highest."""
        if self.items.collaborative is None or not self.config.betas:
            return {}
        found = {}
        for beta in self.config.betas:
            self.beta.fill_(beta)
            found[beta] = validate()
        best = max(found, key=found.__getitem__)
        self.beta.fill_(best)
        return {"beta": best}


def in_sets(owners_S: Tensor, *, causal: bool) -> Tensor:
    """(S, S) bool, which token may look at which: itself and those of other items, or of earlier ones alone."""
    other = owners_S[:, None] > owners_S if causal else owners_S[:, None] != owners_S
    return other | torch.eye(len(owners_S), dtype=torch.bool, device=owners_S.device)


def prefixes(items_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every target as an example: items (N, T), zero from the target on, their number (N,), and targets (N,)."""
    row, place = (targets_BT > 0).nonzero(as_tuple=True)
    lengths = place + 1
    kept = torch.arange(items_BT.shape[1], device=row.device) < lengths[:, None]
    return torch.where(kept, items_BT[row], 0), lengths, targets_BT[row, place]


def log_probabilities(hidden: Tensor, table: Tensor) -> Tensor:
    """(B, I + 1) of hidden (B, D) and table (I + 1, D); row 0, padding, is no item and gets no share."""
    scores = (hidden @ table.T).float()
    return scores.sub_(scores[:, 1:].logsumexp(1, keepdim=True))
