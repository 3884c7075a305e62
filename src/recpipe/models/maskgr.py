"""MaskGR: masked diffusion over the codes of the next item's semantic id.

Paper: Shah et al., Masked Diffusion for Generative Recommendation, 2025 (arXiv 2511.23021).

A random part of the codes is masked, and a bidirectional decoder, which attends to the encoded history, predicts the
masked ones from the others. A list is made from fully masked ids by a beam search that reveals one code per step, in
the order of the model's confidence.

Differences:

- Only codes of the target are masked, as in DiffGRM (Liu et al., 2025, arXiv 2510.21805), whose encoder–decoder this
  is. The masks are uniform (DiffGRM: uncertain codes first). The paper masks codes of whole histories in one encoder.
  History, rows and ``one_pass`` are as in TIGER.
- Of L codes, n are masked, with n uniform in 1 .. L, and the loss is their mean: t = n / L and the weight 1 / t. Its
  expectation is the bound of a t uniform in (0, 1), with less variance, and at least one code is masked.
- Search is constrained to the catalogue, never returns a seen or excluded item, and reveals one code per step; paper
  and DiffGRM can reveal several.

Shapes: B batch, T events, K beams, W targets of a row, L levels, I items, D width, V codes of the largest level, S
tokens of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch, Features
from recpipe.data.sequences import Sequences
from recpipe.decoding import beam_search
from recpipe.decoding.masked import MASKED, any_order_search
from recpipe.layers.code_tokens import CodeInput, ItemCodes, causal, decoder_masks, loss_items, targets_of
from recpipe.layers.t5 import Decoder, Encoder, Memory, T5Shape
from recpipe.models.generator import Generator, SearchRequest, items_of
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds

MAX_ATTENTION = 1 << 25  # attention weights of a layer that exist at once in a search


class MaskGR(Generator):
    """Encoder–decoder that predicts masked codes; scores are log-probabilities of items.

    Probabilities are of the softmax over the codes of each level. Raises ValueError for ids of several modalities, and
    if ``least_masked`` exceeds the number of levels.
    """

    losses = ("full_softmax",)
    search_settings = ("beam", "order")
    scores_catalogue = True

    @dataclass(frozen=True)
    class Config(T5Shape):
        """Settings of the encoder–decoder, of masking and of the search.

        ``users``, ``one_pass``, ``recency`` and ``beam`` as in TIGER. ``order`` in which a search reveals codes:
        ``confidence``, each beam by its own, or ``left_to_right``, with TIGER's search. ``least_masked``: the fewest
        codes that are masked in training.
        """

        users: int = 0
        one_pass: bool = True
        recency: bool = False
        beam: int = 20
        order: str = "confidence"
        least_masked: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self, order=("confidence", "left_to_right"))
            check_at_least(1, self, "beam", "least_masked")

    config: Config  # type: ignore[assignment]

    def __init__(self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        if len(ids) != 1:
            raise ValueError(f"MaskGR reads ids of one modality, not of {', '.join(ids)}")
        ((self.modality, catalogue_ids),) = ids.items()
        self.codes = ItemCodes(catalogue_ids)
        self.sizes, levels = self.codes.sizes, self.codes.levels
        if config.least_masked > levels:
            raise ValueError(f"least_masked is {config.least_masked}; ids of this catalogue have {levels} codes")
        # tokens behind those of the history stand for a masked code, one per level
        self.input = CodeInput(self.codes.size, levels, config.dim, users=config.users, extra=levels)
        self.encoder, self.decoder = Encoder(config), Decoder(config, causal=False, recency=config.recency)

    def features(self, sequences: Sequences) -> Features:
        """Return the features of users (U, M) that the encoder's first token reads."""
        return self.input.features(sequences.users)

    def cached_weights(self) -> AbstractContextManager[None]:
        """Return an empty context: nothing is cached."""
        return nullcontext()

    def sampler(self) -> None:
        """Return None: lists are the best items, never a sample."""
        return None

    def item_tables(self) -> dict[str, Tensor]:
        """Return the sums of code embeddings (I + 1, D) of items as the table ``codes``."""
        return {"codes": self.input.items(self.codes.tokens, self.codes.has_id)}

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the mean cross-entropy (scalar) of the masked codes of all targets.

        Raises ValueError for a softmax over trained items only (``loss.items``), and for ids that items share.
        """
        _ = self.codes.tree  # refuses ids that items share before the first step, not in the first search
        if loss_items(criterion) is not None:
            raise ValueError("the softmax of maskgr is over codes, not over items; set train.loss.items: all")
        inputs, targets, real = targets_of(batch, self.codes.has_id, one_pass=self.config.one_pass)
        codes_BWL = self.codes.codes[targets].clamp(min=0)
        is_masked, share = self.draw_masks(codes_BWL)
        memory, event_S = self.encode(inputs)
        partial = codes_BWL.masked_fill(is_masked, MASKED)
        hidden = self.decode(memory, event_S, partial, by_target=self.config.one_pass)
        if not real.any():
            return hidden.sum() * 0
        weights_N, target_weights = 1 / (share[real] * real.sum() * self.codes.levels), inputs.target_weights(real)
        weights_N = weights_N if target_weights is None else weights_N * target_weights
        levels = zip(hidden[real].unbind(1), codes_BWL[real].unbind(1), is_masked[real].unbind(1), strict=True)
        losses = [
            self._level_loss(level, states[chosen], codes[chosen], weights_N[chosen], criterion)
            for level, (states, codes, chosen) in enumerate(levels)
            if chosen.any()
        ]
        return torch.stack(losses).sum()

    def _level_loss(
        self, level: int, states_MD: Tensor, codes_M: Tensor, weights_M: Tensor, criterion: Criterion
    ) -> Tensor:
        """Return the sum of the weighted cross-entropies of M masked codes of a level."""
        table = self.table(level)
        table = torch.cat([table.new_zeros(1, table.shape[1]), table])  # a criterion numbers codes from 1
        return criterion(states_MD, table, codes_M + 1, weights_M * len(codes_M))  # which takes the mean

    def draw_masks(self, codes_BWL: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the codes that are masked (B, W, L), bool, and return their share t of each target's codes (B, W)."""
        levels, shape, device = self.codes.levels, codes_BWL.shape, codes_BWL.device
        count = torch.randint(self.config.least_masked, levels + 1, (*shape[:2], 1), device=device)
        is_masked = torch.rand(shape, device=device).argsort(-1).argsort(-1) < count
        return is_masked, count[..., 0] / levels

    def table(self, level: int) -> Tensor:
        """Return the embeddings (V_level, D) of the codes of a level."""
        first = self.codes.first[level]
        return self.input.weight[first : first + self.sizes[level]]

    def encode(self, batch: Batch) -> tuple[Memory, Tensor]:
        """Return encoded histories as the decoder reads them, and the event of each of their tokens (S,)."""
        history = self.input(batch if batch.items.shape[1] else batch.pad(1), self.codes.tokens)
        attention = causal(history.event) if self.config.one_pass else None
        encoded = self.encoder(history.x, history.mask, attention=attention)
        return self.decoder.memory(encoded, history.mask, history.event), history.event

    def decode(self, memory: Memory, event_S: Tensor, partial_BWL: Tensor, *, by_target: bool) -> Tensor:
        """Return states (B, W, L, D) of partial ids, times T5's scale; ``by_target`` as in ``decoder_masks``."""
        width, levels = partial_BWL.shape[1:]
        device = partial_BWL.device
        tokens = partial_BWL + torch.tensor(self.codes.first, device=device)
        mask_tokens = self.input.extra + torch.arange(levels, device=device)
        x = self.input.embed(torch.where(partial_BWL == MASKED, mask_tokens, tokens))
        masks = decoder_masks(event_S, width, levels, by_target=by_target)
        return self.decoder(x.flatten(1, 2), memory, **masks).unflatten(1, (width, levels)) * self.config.dim**-0.5

    def steps(self, batch: Batch) -> MaskedSteps:
        """Return the decoder of one search for the histories of ``batch``."""
        return MaskedSteps(self, *self.encode(batch))

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the best ``k`` items (B, k) in the configured ``order``, 0 for none, and log-probabilities."""
        codes, steps, beam = self.codes, self.steps(batch), self.config.beam
        seen, allowed = request.seen_rows(codes), request.allowed_rows(codes)
        tree = codes.tree  # refuses ids that items share
        if self.config.order == "left_to_right":
            return items_of(beam_search(steps, tree, beam=beam, k=k, seen=seen, allowed=allowed), codes)
        rows = torch.from_numpy(codes.rows).to(self.device)
        users, k = len(batch.items), min(k, len(rows))
        limits = {"users": users, "beam": beam, "k": k}
        return items_of(any_order_search(steps, codes.codes[rows], seen=seen, allowed=allowed, **limits), codes)


class MaskedSteps:
    """Decoder of one search, of both orders: a ``MaskedDecoder`` and a ``LevelDecoder``."""

    def __init__(self, model: MaskGR, memory: Memory, event_S: Tensor) -> None:
        self.model, self.memory, self.event_S = model, memory, event_S
        self.codes: Tensor | None = None  # (B, K, l) of the beams after l steps from left to right

    def log_probs(self, codes_BKL: Tensor) -> Tensor:
        """Return log-probabilities (B, K, L, V) of the codes of partial ids ``codes_BKL``; see ``MaskedDecoder``."""
        hidden = self._hidden(codes_BKL)
        width = max(self.model.sizes)
        levels = [
            F.pad(self._level(hidden, level), (0, width - size), value=-torch.inf)
            for level, size in enumerate(self.model.sizes)
        ]
        return torch.stack(levels, 2)

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Return log-probabilities (B, K, V_level) of a level after its earlier codes; see ``LevelDecoder``."""
        if codes_BK is None or parents_BK is None:
            users = len(self.memory.layers[0][0])
            self.codes = torch.empty(users, 1, 0, dtype=torch.int64, device=self.event_S.device)
        else:
            assert self.codes is not None
            past = self.codes.gather(1, parents_BK[..., None].expand(-1, -1, level - 1))
            self.codes = torch.cat([past, codes_BK[..., None]], 2)
        masked = len(self.model.sizes) - level
        return self._level(self._hidden(F.pad(self.codes, (0, masked), value=MASKED)), level)

    def _level(self, hidden_BKLD: Tensor, level: int) -> Tensor:
        return (hidden_BKLD[:, :, level] @ self.model.table(level).T).float().log_softmax(-1)

    def _hidden(self, codes_BKL: Tensor) -> Tensor:
        """States (B, K, L, D), for a part of the users at a time: beams attend to themselves in one (K L)² matrix."""
        weights = self.model.config.heads * (codes_BKL.shape[1] * codes_BKL.shape[2]) ** 2
        parts = torch.arange(len(codes_BKL), device=codes_BKL.device).split(max(MAX_ATTENTION // weights, 1))
        states = []
        for part in parts:
            rows = slice(int(part[0]), int(part[-1]) + 1)
            layers = tuple((keys[rows], values[rows]) for keys, values in self.memory.layers)
            mask_BS = None if self.memory.mask_BS is None else self.memory.mask_BS[rows]
            memory = Memory(layers, mask_BS, self.memory.events_S)
            states.append(self.model.decode(memory, self.event_S, codes_BKL[rows], by_target=False))
        return torch.cat(states)
