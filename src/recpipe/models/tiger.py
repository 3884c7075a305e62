"""TIGER: generative retrieval, which writes the next item's semantic id code by code.

Paper: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023 (arXiv 2305.05065).

An encoder–decoder of T5's shape reads the semantic ids of a history and writes that of the next item, code by code.

Differences:

- Search is constrained to the catalogue's prefix tree, so that no invalid id is generated.
- A history begins with one learned token, or with ``users`` that of the hashed user (paper: 2,000). T5's layers are our
  own.
- ``softmax: children``, in the conf, normalises over the codes that may follow in the catalogue (paper: ``all``).
- ``recency``, in the conf, adds a bias by the age of an item to cross-attention.
- With ``one_pass: true`` tokens of the encoder attend to their own item and earlier ones only, in training and
  evaluation, so that one encoding serves all targets of a sequence. ``one_pass: false`` with rows of one target
  (``train: {windows: all, stride: 1}``) makes every prefix of a sequence a training example, as in the paper.
- Optionally (``rerank: dense``) a second head scores the items that the beam search returns, from the decoder's state
  before the first code, as BARGE (Zeng et al., 2026, arXiv 2607.21028) reranks its paths. It is trained along with the
  codes.

Shapes: B batch, I items, K beams, L levels, N targets, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import ItemCodes, targets_of
from recpipe.layers.code_transformer import CodeSteps, CodeTransformer
from recpipe.models.generator import Generator, GeneratorConfig, SearchRequest
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds


class TIGER(Generator):
    """Encoder–decoder over the codes of one modality, with a constrained beam search.

    Loss and scores are of the softmax over the tokens of all levels, as in T5, or of that set by ``softmax``. Raises
    ValueError for ids of several modalities.
    """

    losses = ("full_softmax",)
    search_settings = (*Generator.search_settings, "rerank_share")

    @dataclass(frozen=True)
    class Config(GeneratorConfig):
        """Settings of the encoder–decoder and of its beam search.

        ``rerank``: none, or dense, a softmax over all items whose loss has the weight ``dense_weight``. The score of an
        item of the beam is (1 - ``rerank_share``) times the log-probability of its id plus ``rerank_share`` times that
        of the dense softmax.
        """

        rerank: str = "none"
        dense_weight: float = 1.0
        rerank_share: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self, rerank=("none", "dense"))
            if self.dense_weight < 0:
                raise ValueError(f"dense_weight is {self.dense_weight}; it must be at least 0")
            if not 0 <= self.rerank_share <= 1:
                raise ValueError(f"rerank_share is {self.rerank_share}; it lies between 0 (ids) and 1 (dense)")
            if self.rerank != "none" and self.stochastic:
                raise ValueError("a stochastic search returns a sample in the order of its draw: set rerank: none")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        if len(ids) != 1:
            raise ValueError(f"TIGER reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, catalogue_ids),) = ids.items()
        self.codes = ItemCodes(catalogue_ids)
        self.transformer = CodeTransformer(config, self.codes.size, self.codes.levels)
        if config.rerank == "dense":
            self.dense_vectors = nn.Parameter(torch.zeros(n_items + 1, config.dim))

    @property
    def probabilistic(self) -> bool:  # type: ignore[override]
        """Whether scores are log-probabilities; those of two heads together are not."""
        return self.config.rerank == "none"

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): that of the codes plus, if configured, that of the dense head."""
        inputs, targets, real = targets_of(batch, self.codes.has_id, one_pass=self.config.one_pass)
        tokens = self.codes.tokens
        hidden = self.transformer.decode(self.transformer.encode(inputs, tokens), tokens[targets])
        if not real.any():
            return hidden.sum() * 0
        hidden_NLD, items, weights = hidden[real], targets[real], inputs.target_weights(real)
        loss = self.transformer.loss(hidden_NLD, items, self.codes, criterion, weights=weights)
        if self.config.rerank == "dense" and self.config.dense_weight:
            loss = loss + self.config.dense_weight * criterion(hidden_NLD[:, 0], self.dense_table(), items, weights)
        return loss

    def dense_table(self) -> Tensor:
        """Return the item vectors (I + 1, D) of the dense head: code embeddings plus a vector of each item's own."""
        return self.code_vectors() + self.dense_vectors

    def code_vectors(self) -> Tensor:
        """Return the sum of each item's code embeddings (I + 1, D)."""
        return self.transformer.input.items(self.codes.tokens, self.codes.has_id)

    def item_tables(self) -> dict[str, Tensor]:
        """Return the tables (I + 1, D) of code embeddings (``codes``) and of the dense head, if configured."""
        dense = {"dense": self.dense_table()} if self.config.rerank == "dense" else {}
        return {"codes": self.code_vectors(), **dense}

    def steps(self, batch: Batch) -> CodeSteps:
        """Return the decoding steps for the histories of ``batch``."""
        encoded = self.transformer.encode(batch, self.codes.tokens)
        return CodeSteps(self.transformer, encoded, self.codes.first, self.codes.sizes)

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the best ``k`` items (B, k) of beam search, 0 for none, reranked if configured, and scores (B, k)."""
        if self.config.rerank == "none":
            return super().search_batch(batch, k, request)
        steps, share = self.steps(batch), self.config.rerank_share
        items_BK, scores_BK = self.search(self.codes, steps, self.config.beam, request)
        assert steps.first_state is not None
        dense_BK = self.dense_scores(steps.first_state).gather(1, items_BK)
        scores_BK = scores_BK.masked_fill(items_BK == 0, 0.0)  # -inf times a share of 0 is NaN
        mixed_BK = ((1 - share) * scores_BK + share * dense_BK).masked_fill(items_BK == 0, -torch.inf)
        scores, order = mixed_BK.sort(dim=1, descending=True, stable=True)
        return items_BK.gather(1, order)[:, :k], scores[:, :k]

    def dense_scores(self, state_BD: Tensor) -> Tensor:
        """Return log-probabilities (B, I + 1) of the dense softmax, -inf for padding, from the decoder's first states.

        Raises ValueError for NaN.
        """
        logits = (state_BD * self.transformer.scale @ self.dense_table().T).float()
        logits[:, 0] = -torch.inf
        scores = logits.log_softmax(1)
        if scores.isnan().any():
            raise ValueError("dense scores are NaN; the model's weights are not usable")
        return scores
