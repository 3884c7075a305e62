"""TIGER: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023.

An encoder–decoder of T5's shape reads the semantic ids of a history and writes that of the next item, code by code.

Differences from the paper: search is constrained to the catalogue's prefix tree, so that no invalid id comes out; a
history begins with one learned token, or that of the hashed user; T5's layers are our own. Every prefix of a sequence
is a training example with ``one_pass: false`` and rows of one target (``train: {windows: all, stride: 1}``). With
``one_pass: true`` places of the encoder see only their own item and those before, in training and afterwards, so that
one encoding serves all targets of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.layers.code_tokens import ItemCodes, targets_of
from recpipe.layers.code_transformer import CodeShape, CodeTransformer, Writing, writing
from recpipe.models.generator import Generator
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds


class TIGER(Generator):
    """Loss and scores are of the softmax over the tokens of all levels together, as in T5, unless ``softmax`` says
    otherwise.
    """

    losses = ("full_softmax",)

    @dataclass(frozen=True)
    class Config(CodeShape):
        """``beam`` of the search, and ``temperatures``, one for each level: as of ``recpipe.decoding.beam_search``."""

        beam: int = 20
        temperatures: tuple[float, ...] | None = None

    def __init__(
        self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]
    ) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        if len(ids) != 1:
            raise ValueError(f"TIGER reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, given),) = ids.items()
        self.codes = ItemCodes(given)
        self.transformer = CodeTransformer(config, self.codes.size, self.codes.levels)

    def on_device(self, sequences: Sequences, *, window: int) -> DeviceSequences:
        features = self.transformer.input.features(sequences.users)
        return DeviceSequences(sequences, window=window, device=self.device, features=features)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        inputs, targets, known = targets_of(batch, self.codes.known, one_pass=self.config.one_pass)
        tokens = self.codes.tokens
        hidden = self.transformer.write(self.transformer.read(inputs, tokens), tokens[targets])
        if not known.any():
            return hidden.sum() * 0
        return self.transformer.error(hidden[known], targets[known], self.codes, criterion)

    def item_tables(self) -> dict[str, Tensor]:
        return {"codes": self.transformer.input.items(self.codes.tokens, self.codes.known)}

    def cached_weights(self) -> AbstractContextManager[None]:
        return self.transformer.cached_weights()

    def steps(self, batch: Batch) -> Writing:
        read = self.transformer.read(batch, self.codes.tokens)
        return writing(self.transformer, read, self.codes.first, self.codes.sizes)
