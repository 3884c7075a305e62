"""Parallel TIGER: all codes of the next item's semantic id at once, from as many learned queries.

After N. Nguyen's efficient_generative_reco (2025, no paper): an encoder of T5's shape reads a history, one place per
item, and L queries look at it together; query l gives the distribution of code l.

Differences: given the history the levels are independent, so the score of an item, the sum over l of log p_l(its code
l), is exact for the whole catalogue by one gather (``search: exact``); the original's constrained beam, ``search:
beam``, is there to compare with and normalises before it masks (``renormalise: true``: after, as there). Weights start
at random instead of at t5-small's. Every prefix a training example, or one pass for all targets of a row: as in TIGER.

B batch, T events, W targets of a row, L levels, I items, D width, V codes of a level, N items with an id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.decoding import Beams, beam_search, exact_top, search_error
from recpipe.decoding.exact import WIDER, Independent, SearchError, among_items, exact_scores
from recpipe.layers.code_tokens import (
    CodeInput,
    ItemCodes,
    LevelRelative,
    before,
    causal,
    target_of,
    targets_of,
    told_apart,
    within,
)
from recpipe.layers.softmax import item_cross_entropy
from recpipe.layers.t5 import Encoder, T5Shape
from recpipe.layers.t5_decoder import Decoder
from recpipe.models.generator import Limits, Searching, in_batches, items_of
from recpipe.models.recommender import Criterion, Scorer
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.semantic_ids.prefix_tree import PrefixTree

WALKED = 1_000_000  # items from which on a walk is faster than a gather, for a few users at a time
CHOICES = {
    "aggregate": ("sum", "flatten"),
    "softmax": ("level", "all", "items"),
    "head": ("tokens", "mlp"),
    "search": ("exact", "beam"),
}


class ParallelTIGER(Scorer, Searching):
    """Scores are log-probabilities of ids; what has no id has none and cannot be recommended.

    Lists from a catalogue of more than ``WALKED`` items are found by a walk of the tree that leaves out what cannot be
    among them, the same lists as by scoring all of it.
    """

    reads_ids = True
    losses = ("full_softmax",)

    @dataclass(frozen=True)
    class Config(T5Shape):
        """``users``, ``one_pass`` and ``recency`` as of TIGER.

        ``aggregate``: an item is the sum of its tokens, or a place for each; ``item_distance``, of these: places of
        one item are at distance 0; ``level_distance``, of these too: attention between codes knows how many levels are
        between them. ``softmax`` over the codes of a level, the tokens of all, or the items: one cross-entropy of the
        whole id among those that the catalogue has, whose scores are the sums of their codes'. ``head``: ``tokens``,
        the embedded ones; ``mlp``, one of two layers per level. ``weights`` (L,) of the levels' losses, the original's
        [1, .3315, .1935, .1113]. ``masked``: share of rows of which a random part of the queries is replaced by what
        they should find, and the others alone are trained. ``beam`` and ``renormalise`` are of ``search: beam``.
        """

        users: int = 0
        one_pass: bool = True
        recency: bool = False
        aggregate: str = "sum"
        item_distance: bool = False
        level_distance: bool = False
        softmax: str = "level"
        head: str = "tokens"
        weights: tuple[float, ...] | None = None
        masked: float = 0.0
        search: str = "exact"
        beam: int = 20
        renormalise: bool = False

        def __post_init__(self) -> None:
            T5Shape.__post_init__(self)
            for name, allowed in CHOICES.items():
                if (value := getattr(self, name)) not in allowed:
                    raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
            if self.level_distance and self.aggregate != "flatten":
                raise ValueError(
                    "level_distance is between codes, and aggregate: sum has one place for all of an item's; set "
                    "aggregate: flatten"
                )
            if self.head == "mlp" and self.softmax == "all":
                raise ValueError("head is mlp, one for each level, so softmax cannot be over all of them")
            if not 0 <= self.masked <= 1:
                raise ValueError(f"masked is {self.masked}; it is a share from 0 to 1")
            if self.softmax == "items" and (self.masked or self.weights is not None):
                raise ValueError(
                    "softmax is over items, whole ids: weights and masked, of their levels, cannot be set"
                )

    config: Config

    def __init__(
        self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]
    ) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        if len(ids) != 1:
            raise ValueError(f"ParallelTIGER reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, given),) = ids.items()
        self.codes = ItemCodes(given, unique=config.search == "beam")
        levels = self.codes.levels
        if config.weights is not None and len(config.weights) != levels:
            raise ValueError(f"weights are {config.weights}; the ids have {levels} levels")
        summed = config.aggregate == "sum"
        self.input = CodeInput(self.codes.size, levels, config.dim, users=config.users, summed=summed)
        self.between = None
        if config.level_distance:
            self.between = LevelRelative(levels, config.heads, std=config.dim**-0.5)
        self.encoder, self.decoder = Encoder(config), Decoder(config, causal=False, recency=config.recency)
        self.queries = nn.Parameter(torch.empty(levels, config.dim).normal_())
        mlp = config.head == "mlp"
        self.mlp = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(levels if mlp else 0))

    def item_codes(self) -> dict[str, ItemCodes]:
        return {self.modality: self.codes}

    def item_tables(self) -> dict[str, Tensor]:
        return {"codes": self.input.items(self.codes.tokens, self.codes.known)}

    def on_device(self, sequences: Sequences, *, window: int) -> DeviceSequences:
        features = self.input.features(sequences.users)
        return DeviceSequences(sequences, window=window, device=self.device, features=features)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        inputs, targets, known = targets_of(batch, self.codes.known, one_pass=self.config.one_pass)
        wanted_BWL = self.codes.tokens[targets]
        hidden_BWLD, asked_BWL = self._found(inputs, wanted_BWL)
        if self.config.softmax == "items":
            return self._items_loss(hidden_BWLD[known], targets[known], told_apart(criterion))
        asked_BWL = asked_BWL & known[..., None]
        total, whole = hidden_BWLD.new_zeros(()), 0.0
        for level, weight in enumerate(self.config.weights or [1.0] * self.codes.levels):
            asked = asked_BWL[..., level]
            hidden, tokens = hidden_BWLD[:, :, level][asked], wanted_BWL[..., level][asked]
            if len(tokens):
                hidden, table, first = self._head(hidden, level)
                total = total + weight * criterion(hidden, table, tokens - first)
                whole += weight
        return total / max(whole, 1e-9)

    def _items_loss(self, hidden_MLD: Tensor, items_M: Tensor, among: Tensor | None) -> Tensor:
        """Of M targets, told apart from the items ``among`` (I + 1,) bool; 0, with gradients of 0, of none."""
        if not len(items_M):
            return hidden_MLD.sum()
        heads = (self._head(hidden_MLD[:, level], level) for level in range(self.codes.levels))
        logits = [hidden @ table[1:].T for hidden, table, _ in heads]
        known = self.codes.known if among is None else self.codes.known & among
        return item_cross_entropy(logits, self.codes.codes[known], known.cumsum(0)[items_M] - 1)

    def log_probabilities(self, batch: Batch) -> list[Tensor]:
        """(L) of (B, V_l): of every code of the next item; the sum at an item's codes is its log-probability."""
        logs = self._levels(batch)
        if self.config.softmax == "items":
            return among_items(logs, self.codes.codes[self.codes.known])
        return logs

    def _levels(self, batch: Batch) -> list[Tensor]:
        """The same, of each level by itself: for a softmax over items less a constant of each user."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        hidden_BWLD, _ = self._found(batch, None)
        logs = []
        for level, size in enumerate(self.codes.sizes):
            hidden, table, first = self._head(hidden_BWLD[:, 0, level], level)
            start = self.codes.first[level] - 1 - first
            logs.append((hidden @ table[1:].T).log_softmax(-1)[:, start : start + size])
        return logs

    def score(self, batch: Batch) -> Tensor:
        config, exact = self.config, self.config.search == "exact"
        logs = self._levels(batch) if exact else self.log_probabilities(batch)
        scores = logs[0].new_full((len(logs[0]), self.n_items + 1), -torch.inf)
        rows = torch.from_numpy(self.codes.rows).to(scores.device)
        if exact:
            sums = exact_scores(logs, self.codes.codes[rows])
            scores[:, rows] = sums.log_softmax(1) if config.softmax == "items" else sums
            return scores
        found = beam_search(
            Independent(logs), self.codes.tree, beam=config.beam, renormalise=config.renormalise
        )
        items = torch.where(found.items >= 0, rows[found.items.clamp(min=0)], 0)
        return scores.scatter_(1, items, found.scores)

    def beams(self, k: int) -> int:
        return WIDER * k

    def found(self, batch: Batch, k: int, limits: Limits) -> tuple[Tensor, Tensor]:
        logs = self.log_probabilities(batch)
        best = exact_top(logs, self.codes.tree, min(k, len(self.codes.rows)), **limits.rows_of(self.codes))
        return items_of(best, self.codes)

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        walked = self.config.search == "exact" and len(self.codes.rows) > WALKED and self._distinct()
        way = Searching.top_k_batches if walked else Scorer.top_k_batches
        yield from way(self, histories, k, exclude_seen=exclude_seen, candidates=candidates)

    def _distinct(self) -> bool:
        """Whether no two items share an id."""
        codes = self.codes.codes[self.codes.known]
        return len(torch.unique(codes, dim=0)) == len(codes)

    @torch.inference_mode()
    def beam_error(self, histories: Sequences, k: int) -> SearchError:
        """What the original's beam would miss of the exact best ``k`` items, of those that share an id one."""
        self.eval()
        tree = self.codes.tree
        if not self._distinct():
            codes = self.codes.codes[self.codes.known].cpu().numpy()
            tree = PrefixTree.build(np.unique(codes, axis=0), self.codes.sizes)
        data, nodes = self.on_device(histories, window=self.max_length), tree.tensors(self.device)
        found, exact, beam = list[Beams](), list[Beams](), self.config.beam
        whole, widest = np.arange(len(histories)), max(beam, self.beams(min(k, beam)))
        for rows in in_batches(data.lengths, whole, self.device, beams=widest):
            logs = self.log_probabilities(data.batch(rows))
            found.append(beam_search(Independent(logs), nodes, beam=beam, k=min(k, beam)))
            exact.append(exact_top(logs, nodes, min(k, beam)))
        return search_error(*(Beams(*map(torch.cat, zip(*each, strict=True))) for each in (found, exact)))

    def _found(self, inputs: Batch, wanted_BWL: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, W, L, D) that codes are predicted from, scaled as T5's, and which of them (B, W, L) were asked for.

        Without ``wanted_BWL``: one target, that of the whole history.
        """
        config, levels = self.config, self.codes.levels
        embedded = self.input(inputs, self.codes.tokens)
        positions = (embedded.event + 1) if config.item_distance else None
        attention = causal(embedded.event) if config.one_pass else None
        bias = None if self.between is None else self.between(embedded.event)
        encoded = self.encoder(embedded.x, embedded.mask, attention=attention, positions=positions, bias=bias)
        width = 1 if wanted_BWL is None else wanted_BWL.shape[1]
        x = self.queries.expand(len(encoded), width, levels, config.dim)
        asked = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
        if wanted_BWL is not None and config.masked and self.training:
            asked = self._asked(wanted_BWL)
            x = torch.where(asked[..., None], x, self.input.embed(wanted_BWL))
        each = config.one_pass and wanted_BWL is not None
        hidden = self.decoder(
            x.flatten(1, 2),
            self.decoder.memory(encoded, embedded.mask, embedded.event),
            cross=before(embedded.event, width, levels) if each else None,
            attention=within(width, levels, x.device),
            positions=torch.arange(levels, device=x.device).repeat(width),
            events_Q=target_of(width, levels, x.device) if each else None,
        )
        return hidden.unflatten(1, (width, levels)), asked

    def _asked(self, wanted_BWL: Tensor) -> Tensor:
        """(B, W, L): of a ``masked`` share of targets a random part of 1 .. L queries, of the others all."""
        draw = torch.rand(wanted_BWL.shape, device=wanted_BWL.device)
        count = torch.randint(1, wanted_BWL.shape[2] + 1, (*wanted_BWL.shape[:2], 1), device=draw.device)
        whole = torch.rand(count.shape, device=draw.device) >= self.config.masked
        return (draw.argsort(-1).argsort(-1) < count) | whole

    def _head(self, hidden: Tensor, level: int) -> tuple[Tensor, Tensor, int]:
        """What a level is predicted with: hidden (n, D), table behind a row of padding, and its first token less 1."""
        first, size = self.codes.first[level], self.codes.sizes[level]
        hidden = F.relu(self.mlp[level](hidden)) if len(self.mlp) else hidden * self.config.dim**-0.5
        if self.config.softmax == "all":
            return hidden, self.input.head, 0
        table = self.input.weight[first : first + size]
        return hidden, torch.cat([table.new_zeros(1, table.shape[1]), table]), first - 1
