"""RPG: all 16 to 64 codes of a long semantic id at once, by a causal transformer with one head per code.

Paper: Hou et al., Generating Long Semantic IDs in Parallel for Recommendation, KDD 2025 (arXiv 2506.05781).

An item is the mean of the embeddings of its codes, each of a part of its text vector (OPQ). A causal transformer reads
the items, and one head per code predicts all codes of the next item at once.

Differences:

- Search is over the whole catalogue, exactly. ``search: graph`` is the paper's, but begins at items spread over the
  catalogue instead of random ones; see ``recpipe.decoding.graph``.
- Embedded items times √D (``scale_embeddings``), an option of the conf: without it little is learned in few epochs.
- Exact GELU, as in other models. Items without an id share one embedding per level, and are never recommended.
- ``softmax: items`` normalises over the items instead of over the codes of each level (decision 30), an option.
- Several kinds of ids may be read: their codes are pooled together, and the probability of an item is a mixture.
- Windows of long histories have all their events as targets; the code has one row per target after the first 50.

Shapes: B batch, T time, I items, N items with an id, L levels of all kinds of ids, V codes of a level, E edges, D
width, M targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.accelerate.code_transformer import WeightCache
from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.decoding import Beams, exact_scores, search_error
from recpipe.decoding.exact import SearchError
from recpipe.decoding.graph import graph_search, item_graph
from recpipe.layers.attention import causal_mask
from recpipe.layers.code_heads import CodeHeads
from recpipe.layers.code_tokens import loss_items, targets_of
from recpipe.layers.gpt2 import GPT2Block, init_gpt2
from recpipe.models.generator import search_buckets
from recpipe.models.parallel_codes import ParallelCodes, check_modality_weights
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds

STD = 0.02  # of embeddings, as in GPT-2
MEASURED_ITEMS = 50_000  # largest catalogue for which the error of graph search is measured


class RPG(ParallelCodes):
    """Causal transformer over pooled codes, with one softmax per code.

    Raises ValueError for a graph search over several kinds of ids.
    """

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """Settings of the transformer, of the code heads and of the search.

        ``feed_forward``: inner width. ``dropout`` is of embedded items, ``branch_dropout`` of residual branches.
        ``scale_embeddings``: multiply embedded items by sqrt(dim), with which Adam learns faster, as in ``gpt``.
        ``temperature`` divides the cosines between heads and codes. ``softmax``: over the codes of a level, or the
        items. ``search``: exact, or along a graph of ``edges`` similar items of each, ``steps`` times the neighbours of
        the ``beam`` best. ``modality_weights`` of the mixture of several kinds of ids, as in Parallel TIGER.
        """

        dim: int = 448
        layers: int = 2
        heads: int = 4
        feed_forward: int = 1024
        dropout: float = 0.5
        attention_dropout: float = 0.5
        branch_dropout: float = 0.0
        scale_embeddings: bool = False
        temperature: float = 0.07
        softmax: str = "level"
        search: str = "exact"
        beam: int = 50
        edges: int = 50
        steps: int = 3
        modality_weights: tuple[float, ...] | None = None

        def __post_init__(self) -> None:
            check_choices(self, softmax=("level", "items"), search=("exact", "graph"))
            check_at_least(1, self, "dim", "layers", "heads", "feed_forward", "beam", "edges", "steps")
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; set it above 0, in the paper .03 to .07")
            check_modality_weights(self.modality_weights)

    approximate_search = "graph search"
    search_settings = ("search", "beam", "edges", "steps")
    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, ids=ids)
        self._check_search()
        self.embedding = nn.Embedding(1 + sum(self.sizes) + self.levels, config.dim)
        self.positions = nn.Embedding(max_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            GPT2Block(
                config.dim,
                heads=config.heads,
                inner=config.feed_forward,
                dropout=config.branch_dropout,
                bias=True,
                attention_dropout=config.attention_dropout,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.code_heads = CodeHeads(self.levels, config.dim, temperature=config.temperature)
        nn.init.normal_(self.embedding.weight, std=STD)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        init_gpt2(self.positions, self.blocks)
        self.graph: WeightCache[Tensor] = WeightCache()

    def encode(self, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) after every event."""
        tokens_BTL = self.tokens[batch.items]
        pooled = F.embedding_bag(tokens_BTL.flatten(0, 1), self.embedding.weight, mode="mean")
        scale = math.sqrt(self.config.dim) if self.config.scale_embeddings else 1.0
        x_BTD = self.dropout(pooled.view(*batch.items.shape, -1) * scale + self.positions(batch.positions))
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return self.norm(x_BTD)

    def code_tables(self) -> list[Tensor]:
        """Return L normalised embeddings (V_l, D) of codes."""
        return list(F.normalize(self.embedding.weight[1 : 1 + sum(self.sizes)], dim=-1).split(self.sizes))

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): cross-entropy of codes by level, or of whole ids with ``softmax: items``.

        Raises ValueError for a softmax over codes with ``loss.items: trained``.
        """
        has_id, among = torch.stack([book.has_id for book in self.books]).any(0), loss_items(criterion)
        if among is not None and self.config.softmax == "level":
            raise ValueError("loss.items: trained leaves out items, and this softmax is over codes; set softmax: items")
        inputs, targets, real = targets_of(batch, has_id, one_pass=True)
        hidden, tables = self.encode(inputs), self.code_tables()
        losses = []
        for book, span in self.kinds():
            chosen = real & book.has_id[targets]
            if not chosen.any():
                continue
            states, items, weights = hidden[chosen], targets[chosen], inputs.target_weights(chosen)
            if self.config.softmax == "items":
                pairs = zip(self.code_heads(states, span), tables[span], strict=True)
                logits = [head @ table.T for head, table in pairs]
                losses.append(self.item_loss(logits, items, book, among, weights))
            else:
                codes = book.codes[items]
                losses.append(self.code_heads.loss(states, span, tables[span], codes, criterion, weights))
        return torch.stack(losses).mean() if losses else hidden.sum() * 0

    def level_log_probs(self, batch: Batch) -> list[Tensor]:
        """Return L log-probabilities (B, V_l) of the next item's codes."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        rows, last = torch.arange(len(batch.items), device=batch.items.device), (batch.lengths - 1).clamp(min=0)
        heads = self.code_heads(self.encode(batch)[rows, last], slice(None))
        pairs = zip(heads, self.code_tables(), strict=True)
        return [(head @ table.T).float().log_softmax(-1) for head, table in pairs]

    def item_tables(self) -> dict[str, Tensor]:
        """Return the mean code embeddings (I + 1, D) of items, a table for each kind of ids."""
        tokens, weight = self.tokens, self.embedding.weight
        tables = [
            F.embedding_bag(tokens[:, span], weight, mode="mean") * book.has_id[:, None] for book, span in self.kinds()
        ]
        names = ["codes"] if len(tables) == 1 else [f"{name} codes" for name in self.names]
        return dict(zip(names, tables, strict=True))

    def neighbours(self) -> Tensor:
        """Return the graph (N, E) of the items with an id, cached until a weight or ``edges`` changes."""
        edges = self.config.edges  # copies of a model with other search settings share the cache
        key = [self.embedding.weight, torch.tensor(edges)]
        return self.graph.get(lambda: item_graph(self._codes(), self.code_tables(), edges), key)

    def _codes(self) -> Tensor:
        """Codes (N, L) of the items with an id."""
        return self.codes.codes[self.codes.has_id].long()

    def score(self, batch: Batch) -> Tensor:
        """Return log-probabilities (B, I + 1); with ``search: graph``, -inf for items out of its reach."""
        if self.config.search == "exact":
            return super().score(batch)
        rows, scores = self._search(self.level_log_probs(batch))
        items = torch.from_numpy(self.codes.rows).to(rows.device)
        result = scores.new_full((len(rows), self.n_items + 1), -torch.inf)
        return result.scatter_(1, torch.where(rows >= 0, items[rows.clamp(min=0)], 0), scores)

    def _search(self, log_probs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows (B, P) of the items with an id that graph search scores, and their scores."""
        self._check_search()
        config = self.config
        return graph_search(log_probs, self._codes(), self.neighbours(), beam=config.beam, steps=config.steps)

    def _check_search(self) -> None:
        """Raise ValueError for a graph search over several kinds of ids."""
        if self.config.search == "graph" and len(self.names) > 1:
            kinds = ", ".join(self.names)
            raise ValueError(f"search is graph, over ids of one kind; the model reads {kinds}: set search: exact")

    @torch.inference_mode()
    def beam_error(self, histories: Sequences, k: int) -> SearchError | None:
        """Compare graph search with the exact best ``k`` items; items that share an id count as one.

        None for more than ``MEASURED_ITEMS`` items, whose graph takes minutes.
        """
        codes, data = self._codes(), self.on_device(histories, window=self.max_length)
        if len(codes) > MEASURED_ITEMS:
            return None
        self.eval()
        id_of, every_row = torch.unique(codes, dim=0, return_inverse=True)[1], torch.arange(len(codes)).to(codes.device)
        graph, exact = list[Beams](), list[Beams]()
        for part in search_buckets(data.lengths, np.arange(len(histories)), self.device, beams=self.config.beam):
            log_probs = self.level_log_probs(data.batch(part))
            graph.append(_best_ids(*self._search(log_probs), id_of, k))
            exact.append(_best_ids(every_row.expand(len(part), -1), exact_scores(log_probs, codes), id_of, k))
        return search_error(*(Beams(*map(torch.cat, zip(*results, strict=True))) for results in (graph, exact)))


def _best_ids(rows_BP: Tensor, scores_BP: Tensor, id_of: Tensor, k: int) -> Beams:
    """The ids, numbered by ``id_of`` (N,), of the ``k`` best of some rows; -1 where there are fewer."""
    missing = max(k - scores_BP.shape[1], 0)
    scores, places = F.pad(scores_BP, (0, missing), value=-torch.inf).topk(k)
    ids = id_of[F.pad(rows_BP, (0, missing)).gather(1, places).clamp(min=0)]
    return Beams(torch.where(scores > -torch.inf, ids, -1), scores, ids[..., None][..., :0])
