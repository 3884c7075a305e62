"""Parallel TIGER: all codes of the next item's semantic id at once, from one learned query per level.

Source: Nathnf/efficient_generative_reco, 2025 (a repository on GitHub, no paper).

An encoder of T5's shape reads a history, one token per item, and L queries attend to it together; query l gives the
distribution of code l.

Differences:

- Given the history the levels are independent, so the score of an item, the sum over l of log p_l(its code l), is exact
  for the whole catalogue (``search: exact``). The original's constrained beam, ``search: beam``, is there for
  comparison and normalises before it masks (``renormalise: true``: after, as there).
- With several kinds of ids, which the original prepares and does not read, an item is the tokens of all kinds, each
  kind has its L queries, and the probability of an item is a mixture of those of its ids, 0 where it has none of a
  kind: exact over the catalogue. The loss is the mean over the kinds.
- ``softmax``: over the codes of each level by default, in the conf over the items (original: over the tokens of all
  levels, ``all``).
- Queries start at N(0, 1) instead of N(0, 0.02), other weights at random instead of from t5-small.
- Training examples are those of TIGER.

Shapes: B batch, T events, W targets of a row, L levels of all kinds of ids, I items, D width, V codes of a level, M
targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch, Features
from recpipe.data.sequences import Sequences
from recpipe.decoding import Beams, beam_search, exact_top, search_error
from recpipe.decoding.exact import IndependentLevels, SearchError
from recpipe.layers.code_tokens import (
    CodeInput,
    ItemCodes,
    LevelRelativeBias,
    causal,
    decoder_masks,
    loss_items,
    targets_of,
)
from recpipe.layers.t5 import Decoder, Encoder, T5Shape
from recpipe.models.generator import items_of, search_buckets
from recpipe.models.parallel_codes import ParallelCodes, check_modality_weights
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.semantic_ids.prefix_tree import PrefixTree


class ParallelTIGER(ParallelCodes):
    """Encoder of T5's shape with one decoder query per level.

    Raises ValueError for settings that the number of levels or kinds of ids does not allow.
    """

    @dataclass(frozen=True)
    class Config(T5Shape):
        """Settings of the encoder, of the queries and of the search.

        ``users``, ``one_pass`` and ``recency`` as in TIGER. ``aggregate``: an item is the sum of its tokens, or one
        token per code (flatten); with flatten, ``item_distance`` puts tokens of one item at distance 0,
        ``level_distance`` adds a bias by the levels of query and key, and ``cross_level_distance`` one between the
        decoder's queries and the codes of the history. ``softmax``: over the codes of a level, the tokens of all
        levels, or the items (cross-entropy of whole ids). ``head``: ``tokens``, the embedded ones, or ``mlp``, with a
        hidden layer per level. ``weights`` (L,) of the levels' losses, in the original [1, .3315, .1935, .1113].
        ``masked``: share of targets of which a random part of the queries is replaced by the target's codes and only
        the others are trained. ``beam``, ``renormalise``, ``temperatures`` (L,), ``stochastic`` and ``sample_seed``, as
        in TIGER, belong to ``search: beam``. ``modality_weights``: of the mixture of several kinds of ids, in their
        order; None: even, and of two kinds chosen on the validation fold after training.
        """

        users: int = 0
        one_pass: bool = True
        recency: bool = False
        aggregate: str = "sum"
        item_distance: bool = False
        level_distance: bool = False
        cross_level_distance: bool = False
        softmax: str = "level"
        head: str = "tokens"
        weights: tuple[float, ...] | None = None
        masked: float = 0.0
        search: str = "exact"
        beam: int = 20
        renormalise: bool = False
        temperatures: tuple[float, ...] | None = None
        stochastic: bool = False
        sample_seed: int = 0
        modality_weights: tuple[float, ...] | None = None

        def __post_init__(self) -> None:
            T5Shape.__post_init__(self)
            check_choices(self, aggregate=("sum", "flatten"), softmax=("level", "all", "items"))
            check_choices(self, head=("tokens", "mlp"), search=("exact", "beam"))
            for name in ("level_distance", "cross_level_distance"):
                if getattr(self, name) and self.aggregate != "flatten":
                    raise ValueError(f"{name} is between codes; set aggregate: flatten (sum has one token per item)")
            if self.head == "mlp" and self.softmax == "all":
                raise ValueError("head is mlp, one for each level; softmax cannot be all: set level or items")
            if self.search == "exact" and (self.stochastic or self.temperatures is not None):
                raise ValueError("search is exact; stochastic and temperatures are of a beam search: set search: beam")
            check_modality_weights(self.modality_weights)
            if not 0 <= self.masked <= 1:
                raise ValueError(f"masked is {self.masked}; it is a share from 0 to 1")
            if self.softmax == "items" and (self.masked or self.weights is not None):
                raise ValueError("softmax is items, of whole ids; weights and masked, of levels, cannot be set")

    search_settings = ("beam", "renormalise", "temperatures", "stochastic", "sample_seed")
    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]) -> None:
        unique = config.search == "beam"
        super().__init__(config, n_items=n_items, max_length=max_length, ids=ids, unique=unique)
        others, kinds = len(ids) > 1, ", ".join(ids)
        if others and config.search == "beam":
            raise ValueError(f"search is beam, over ids of one kind; the model reads {kinds}: set search: exact")
        for name in ("level_distance", "cross_level_distance"):
            if others and getattr(config, name):
                raise ValueError(f"{name} is between levels of one kind of ids; the model reads {kinds}: set it false")
        books, levels, summed = self.books, self.levels, config.aggregate == "sum"
        starts = np.cumsum([0, *(book.size for book in books)]).tolist()
        self.first = [first + start for book, start in zip(books, starts, strict=False) for first in book.first]
        if config.weights is not None and len(config.weights) != self.levels:
            raise ValueError(f"weights are {config.weights}; the ids have {self.levels} levels")
        self.input = CodeInput(sum(self.sizes), levels, config.dim, users=config.users, summed=summed)
        std = config.dim**-0.5
        self.between = LevelRelativeBias(levels, config.heads, std=std) if config.level_distance else None
        self.across = LevelRelativeBias(levels, config.heads, std=std) if config.cross_level_distance else None
        self.encoder, self.decoder = Encoder(config), Decoder(config, causal=False, recency=config.recency)
        self.queries = nn.Parameter(torch.empty(levels, config.dim).normal_())
        hidden_layers = levels if config.head == "mlp" else 0
        self.mlp = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(hidden_layers))

    def item_tables(self) -> dict[str, Tensor]:
        """Return the sums of code embeddings (I + 1, D) of items, a table for each kind of ids."""
        tokens = self.tokens
        tables = [self.input.items(tokens[:, span], book.has_id) for book, span in self.kinds()]
        names = ["codes"] if len(tables) == 1 else [f"{name} codes" for name in self.names]
        return dict(zip(names, tables, strict=True))

    def features(self, sequences: Sequences) -> Features:
        """Return the features of users (U, M) that the encoder's first token reads."""
        return self.input.features(sequences.users)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): cross-entropy of the codes, a weighted mean over levels, or of whole ids."""
        has_id = torch.stack([book.has_id for book in self.books])
        inputs, targets, real = targets_of(batch, has_id.any(0), one_pass=self.config.one_pass)
        tokens_BWL = self.tokens[targets]
        hidden_BWLD, is_query_BWL = self._decode(inputs, tokens_BWL)
        total, total_weight = hidden_BWLD.new_zeros(()), 0.0
        if self.config.softmax == "items":
            for book, span in self.kinds():
                chosen = real & book.has_id[targets]
                weights, among = inputs.target_weights(chosen), loss_items(criterion)
                loss = self._item_loss(hidden_BWLD[:, :, span][chosen], targets[chosen], book, span, among, weights)
                total, total_weight = total + loss, total_weight + bool(chosen.any())
            return total / max(total_weight, 1.0)
        level_weights = self.config.weights or [1.0] * self.levels
        for book, span in self.kinds():
            has_code_BW = real & book.has_id[targets]
            for level in range(span.start, span.stop):
                chosen, weight = is_query_BWL[..., level] & has_code_BW, level_weights[level]
                hidden, tokens = hidden_BWLD[:, :, level][chosen], tokens_BWL[..., level][chosen]
                if len(tokens):
                    hidden, table, offset = self._head(hidden, level)
                    loss = criterion(hidden, table, tokens - offset, inputs.target_weights(chosen))
                    total, total_weight = total + weight * loss, total_weight + weight
        return total / max(total_weight, 1e-9)

    def _item_loss(
        self,
        hidden_MLD: Tensor,
        items_M: Tensor,
        book: ItemCodes,
        span: slice,
        among: Tensor | None,
        weights_M: Tensor | None,
    ) -> Tensor:
        """Cross-entropy of M targets among the items ``among`` (I + 1,) bool; 0, with gradients of 0, without any."""
        if not len(items_M):
            return hidden_MLD.sum()
        heads = (self._head(hidden_MLD[:, place], span.start + place) for place in range(book.levels))
        logits = [hidden @ table[1:].T for hidden, table, _ in heads]
        return self.item_loss(logits, items_M, book, among, weights_M)

    def level_log_probs(self, batch: Batch) -> list[Tensor]:
        """Return L log-probabilities (B, V_l) of codes; with ``softmax: items`` up to a constant per user."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        hidden_BWLD, _ = self._decode(batch, None)
        log_probs = []
        for level, size in enumerate(self.sizes):
            hidden, table, offset = self._head(hidden_BWLD[:, 0, level], level)
            start = self.first[level] - 1 - offset
            log_probs.append((hidden @ table[1:].T).log_softmax(-1)[:, start : start + size])
        return log_probs

    def score(self, batch: Batch) -> Tensor:
        """Return log-probabilities (B, I + 1); with ``search: beam``, -inf for items that no beam reaches."""
        config = self.config
        if config.search == "exact":
            return super().score(batch)
        log_probs = self.log_probabilities(batch)
        scores = log_probs[0].new_full((len(log_probs[0]), self.n_items + 1), -torch.inf)
        levels = IndependentLevels(log_probs)
        beams = beam_search(
            levels,
            self.codes.tree,
            beam=config.beam,
            renormalise=config.renormalise,
            temperatures=config.temperatures,
            stochastic=torch.Generator().manual_seed(config.sample_seed) if config.stochastic else None,
        )
        return scores.scatter_(1, *items_of(beams, self.codes))

    @torch.inference_mode()
    def beam_error(self, histories: Sequences, k: int) -> SearchError:
        """Compare the original's beam search with the exact best ``k`` items; items that share an id count once.

        Raises ValueError for several kinds of ids, which no beam search covers.
        """
        if len(self.names) > 1:
            raise ValueError(f"a beam search is over ids of one kind; the model reads {', '.join(self.names)}")
        self.eval()
        tree, width = self.codes.tree, self.config.beam
        if not self.ids_are_unique():
            codes = self.codes.codes[self.codes.has_id].cpu().numpy()
            tree = PrefixTree.build(np.unique(codes, axis=0), self.codes.sizes)
        data, tensors, k = self.on_device(histories, window=self.max_length), tree.tensors(self.device), min(k, width)
        beam, exact = list[Beams](), list[Beams]()
        rows = np.arange(len(histories))
        for part in search_buckets(data.lengths, rows, self.device, beams=max(width, self.beams(k))):
            log_probs = self.log_probabilities(data.batch(part))
            beam.append(beam_search(IndependentLevels(log_probs), tensors, beam=width, k=k))
            exact.append(exact_top(log_probs, tensors, k))
        return search_error(*(Beams(*map(torch.cat, zip(*results, strict=True))) for results in (beam, exact)))

    def _decode(self, inputs: Batch, tokens_BWL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, W, L, D) and which of them (B, W, L) were queries; W = 1 without ``tokens_BWL``."""
        config, levels = self.config, self.levels
        history = self.input(inputs, self.tokens)
        positions = (history.event + 1) if config.item_distance else None
        attention = causal(history.event) if config.one_pass else None
        bias = None if self.between is None else self.between(history.event)
        encoded = self.encoder(history.x, history.mask, attention=attention, positions=positions, bias=bias)
        width = 1 if tokens_BWL is None else tokens_BWL.shape[1]
        x = self.queries.expand(len(encoded), width, levels, config.dim)
        is_query = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
        if tokens_BWL is not None and config.masked and self.training:
            draw = torch.rand(tokens_BWL.shape, device=x.device)
            count = torch.randint(1, levels + 1, (*tokens_BWL.shape[:2], 1), device=x.device)
            all_queries = torch.rand(count.shape, device=x.device) >= config.masked
            is_query = (draw.argsort(-1).argsort(-1) < count) | all_queries
            x = torch.where(is_query[..., None], x, self.input.embed(tokens_BWL))
        level_Q = torch.arange(levels, device=x.device).repeat(width)
        hidden = self.decoder(
            x.flatten(1, 2),
            self.decoder.memory(encoded, history.mask, history.event),
            cross_bias=None if self.across is None else self.across(history.event, level_Q),
            **decoder_masks(history.event, width, levels, by_target=config.one_pass and tokens_BWL is not None),
        )
        return hidden.unflatten(1, (width, levels)), is_query

    def _head(self, hidden: Tensor, level: int) -> tuple[Tensor, Tensor, int]:
        """Hidden states (n, D), output table after a row of padding, and the first token of the table less 1."""
        first, size = self.first[level], self.sizes[level]
        hidden = F.relu(self.mlp[level](hidden)) if len(self.mlp) else hidden * self.config.dim**-0.5
        if self.config.softmax == "all":
            return hidden, self.input.head, 0
        table = self.input.weight[first : first + size]
        return hidden, torch.cat([table.new_zeros(1, table.shape[1]), table]), first - 1
