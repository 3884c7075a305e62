"""LIGER: generative retrieval of semantic ids, reranked by dense vectors of item text.

Paper: Yang et al., Unifying Generative and Dense Retrieval for Sequential Recommendation, 2024 (arXiv 2411.18814).

TIGER's encoder–decoder with item vectors: a token of the history is the embedding of its code plus the projected text
vector of its item, its level and the place of its item. It is trained on two losses: cross-entropy of the next item's
codes, and of the next item by the cosine between a query and the projected text vectors of all items. A list is made in
two steps: beam search generates candidates, items without training events join them, and the cosine ranks both.

Differences:

- The query is the decoder's state before the first code; in the authors' code, a state of the encoder. With
  ``one_pass`` one encoding serves all targets of a sequence, and only the decoder knows where a history ends.
- The projected vector of the last item is added to the query (``query: state+last``), so that training begins at the
  nearest items of the last one and need not learn them; ``state`` is the paper.
- The projection of item vectors is linear by default, without dropout; in the authors' code hidden layers of 768, 512
  and 256 (``widths``), and dropout of input and output.
- Candidates are items, each once, and never seen, excluded or unknown ones. In the authors' code a generated id that no
  item has becomes the first item of the catalogue.
- Constrained search, softmax over codes, histories and rows are as in ``tiger``.
- A score is the log-probability of the item in the dense softmax over all items with an id.

Shapes: B batch, T events, W targets of a row, L levels, I items, K results, D width, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import ItemCodes, targets_of
from recpipe.layers.code_transformer import CodeSteps, CodeTransformer, EncodedHistory
from recpipe.layers.content_table import ContentTable
from recpipe.layers.side import Side
from recpipe.layers.top_k import top_k
from recpipe.models.generator import Generator, GeneratorConfig, SearchRequest
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds

RETRIEVALS = ("beam+cold", "beam", "all")
QUERIES = ("state+last", "state")


class LIGER(Generator):
    """Encoder–decoder over the codes of one modality, with a dense head over item vectors.

    Items without an id cannot be recommended. ``is_trained`` (I + 1,) bool marks the items with training events; before
    a training there are none. Raises ValueError for ids of several modalities.
    """

    losses = ("full_softmax",)
    takes_side = True
    required_side = ("vectors",)
    search_settings = (*Generator.search_settings, "retrieve")
    scores_catalogue: ClassVar[bool] = True
    is_trained: Tensor

    @dataclass(frozen=True)
    class Config(GeneratorConfig):
        """Settings of TIGER's network and search, and of the dense head.

        ``widths`` of hidden layers of the projection of item vectors. ``dense_weight`` of the dense loss beside that
        of the codes. ``dense_temperature`` divides cosines. ``query``: the decoder's state, with or without the content
        of the last item. ``retrieve``: the items that the dense head ranks, ``beam+cold`` (the paper), ``beam`` without
        cold items, or ``all``, dense retrieval without a beam search. With ``stochastic`` the beam's items are a
        sample; the dense head ranks them as ever.
        """

        widths: tuple[int, ...] = ()
        dense_weight: float = 1.0
        dense_temperature: float = 0.07
        query: str = "state+last"
        retrieve: str = "beam+cold"

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self, retrieve=RETRIEVALS, query=QUERIES)
            if self.dense_weight < 0:
                raise ValueError(f"dense_weight is {self.dense_weight}; it must be at least 0")
            if self.dense_temperature <= 0:
                raise ValueError(f"dense_temperature is {self.dense_temperature}; it must be above 0, such as 0.07")

    config: Config

    def __init__(
        self,
        config: Config,
        *,
        n_items: int,
        max_length: int,
        ids: Mapping[str, CatalogueIds],
        side: Side | None = None,
    ) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        if len(ids) != 1:
            raise ValueError(f"LIGER reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, catalogue_ids),) = ids.items()
        self.codes = ItemCodes(catalogue_ids)
        self.transformer = CodeTransformer(config, self.codes.size, self.codes.levels)
        self.content = ContentTable(n_items, config.dim, side, widths=config.widths)
        self.levels = nn.Parameter(torch.empty(self.codes.levels, config.dim).normal_(std=0.1))
        self.places = nn.Parameter(torch.empty(max_length, config.dim).normal_(std=0.1))
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.normal_(self.query.weight, std=0.1 * config.dim**-0.5)  # little beside the vector of the last item
        self.register_buffer("is_trained", torch.zeros(n_items + 1, dtype=torch.bool))

    def set_trained_items(self, mask: Tensor) -> None:
        """Store the mask (I + 1,) bool of items with training events; all others are cold items."""
        self.is_trained.copy_(mask)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): that of the codes plus ``dense_weight`` times that of the dense softmax."""
        inputs, targets, real = targets_of(batch, self.codes.has_id, one_pass=self.config.one_pass)
        table = self.content()
        hidden = self.transformer.decode(self.encode(inputs, table), self.codes.tokens[targets])
        if not real.any():
            return hidden.sum() * 0
        hidden_NLD, items, weights = hidden[real], targets[real], inputs.target_weights(real)
        codes_loss = self.transformer.loss(hidden_NLD, items, self.codes, criterion, weights=weights)
        last = inputs.items if self.config.one_pass else last_items(inputs)[:, None]
        query = self.dense_query(hidden_NLD[:, 0] / self.transformer.scale, last[real], table)
        dense_loss = criterion(query, F.normalize(table, dim=-1), items, weights)
        return codes_loss + self.config.dense_weight * dense_loss

    def encode(self, batch: Batch, table: Tensor) -> EncodedHistory:
        """Encode the histories of ``batch``, with the ``table`` (I + 1, D) of items by content."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        history = self.transformer.input(batch, self.codes.tokens)
        events_BTD = F.embedding(batch.items, table) + self.places[: batch.items.shape[1]]
        added = (events_BTD[:, :, None] + self.levels).flatten(1, 2)
        x = history.x + F.pad(added, (0, 0, 1, 0))  # nothing is added to the first token
        return self.transformer.encode_history(history._replace(x=x))

    def dense_query(self, state_ND: Tensor, last_N: Tensor, table: Tensor) -> Tensor:
        """Return queries (N, D), whose products with unit vectors of items are logits.

        ``state_ND``: the decoder's states before the first code, without T5's scale; ``last_N``: the last items.
        """
        query_ND = self.query(state_ND)
        if self.config.query == "state+last":
            query_ND = query_ND + F.embedding(last_N, table)
        return F.normalize(query_ND, dim=-1) / self.config.dense_temperature

    def item_tables(self) -> dict[str, Tensor]:
        """Return the tables (I + 1, D) of code embeddings (``codes``) and of projected item vectors (``content``)."""
        return {
            "codes": self.transformer.input.items(self.codes.tokens, self.codes.has_id),
            "content": self.content() * self.content.has_content()[:, None],
        }

    def steps(self, batch: Batch) -> CodeSteps:
        """Return the decoding steps for the histories of ``batch``."""
        return CodeSteps(self.transformer, self.encode(batch, self.content()), self.codes.first, self.codes.sizes)

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best items (B, k) by the dense head among those of ``retrieve``, and scores (B, k)."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        steps, retrieve = self.steps(batch), self.config.retrieve
        if retrieve == "all":
            steps.step(0, None, None)
            chosen = self.codes.has_id.expand(len(batch.items), -1)
        else:
            items, _ = self.search(self.codes, steps, self.config.beam, request)
            cold = self.codes.has_id & ~self.is_trained & (retrieve == "beam+cold")
            chosen = cold.repeat(len(items), 1).scatter_(1, items, True)
        assert steps.first_state is not None
        scores = self.dense_scores(steps.first_state, last_items(batch)).masked_fill_(~chosen, -torch.inf)
        return top_k(request.mask(scores), k)

    def dense_scores(self, state_BD: Tensor, last_B: Tensor) -> Tensor:
        """Return log-probabilities (B, I + 1) of the dense softmax over the items with an id, -inf for others.

        Raises ValueError for NaN.
        """
        table = self.content()
        logits = (self.dense_query(state_BD, last_B, table) @ F.normalize(table, dim=-1).T).float()
        scores = logits.masked_fill_(~self.codes.has_id, -torch.inf).log_softmax(1)
        if scores.isnan().any():
            raise ValueError("dense scores are NaN; the model's weights are not usable")
        return scores


def last_items(batch: Batch) -> Tensor:
    """Return the last item (B,) of each history, 0 for an empty one."""
    return batch.items.gather(1, (batch.lengths - 1).clamp(min=0)[:, None])[:, 0]
