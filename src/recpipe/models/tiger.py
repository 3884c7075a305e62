"""TIGER: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023.

An encoder–decoder of T5's shape reads the semantic ids of a history and writes that of the next item, code by code.

Deviations from the paper:
- Search is constrained to the catalogue's prefix tree, so that no invalid id is generated.
- A history begins with one learned token, or that of the hashed user. T5's layers are our own.
- With ``one_pass: true`` tokens of the encoder attend to their own item and earlier ones only, in training and
  evaluation, so that one encoding serves all targets of a sequence. ``one_pass: false`` with rows of one target
  (``train: {windows: all, stride: 1}``) makes every prefix of a sequence a training example, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import ItemCodes, targets_of
from recpipe.layers.code_transformer import CodeSteps, CodeTransformer
from recpipe.models.generator import Generator, GeneratorConfig
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds


class TIGER(Generator):
    """Loss and scores are of the softmax over the tokens of all levels, as in T5, or of that set by ``softmax``."""

    losses = ("full_softmax",)

    @dataclass(frozen=True)
    class Config(GeneratorConfig):
        """Settings of the encoder–decoder and of its beam search."""

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        if len(ids) != 1:
            raise ValueError(f"TIGER reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, catalogue_ids),) = ids.items()
        self.codes = ItemCodes(catalogue_ids)
        self.transformer = CodeTransformer(config, self.codes.size, self.codes.levels)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        inputs, targets, real = targets_of(batch, self.codes.has_id, one_pass=self.config.one_pass)
        tokens = self.codes.tokens
        hidden = self.transformer.decode(self.transformer.encode(inputs, tokens), tokens[targets])
        if not real.any():
            return hidden.sum() * 0
        weights = inputs.target_weights(real)
        return self.transformer.loss(hidden[real], targets[real], self.codes, criterion, weights=weights)

    def item_tables(self) -> dict[str, Tensor]:
        return {"codes": self.transformer.input.items(self.codes.tokens, self.codes.has_id)}

    def steps(self, batch: Batch) -> CodeSteps:
        encoded = self.transformer.encode(batch, self.codes.tokens)
        return CodeSteps(self.transformer, encoded, self.codes.first, self.codes.sizes)
