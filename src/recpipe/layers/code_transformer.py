"""Encoder–decoder over the codes of semantic ids: the network of TIGER and MQL4GRec, its losses and decoding steps.

B batch, K beams, W targets of a row, L levels, S tokens of the encoder, D width, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import CodeInput, EmbeddedHistory, ItemCodes, causal, decoder_masks, loss_items
from recpipe.layers.softmax import tree_cross_entropy
from recpipe.layers.t5 import Decoder, Encoder, Memory, T5Shape


class EncodedHistory(NamedTuple):
    """Encoded histories: the decoder's memory, and the tokens that it was computed from."""

    memory: Any  # of the decoder in use: ``Memory`` or that of a faster one
    history: EmbeddedHistory


class StepDecoder(Protocol):
    """Decoder of one level at a time, such as ``Decoder``; memory and cache are its own."""

    def memory(self, encoded_BSD: Tensor, mask_BS: Tensor, events_S: Tensor | None = None) -> Any:
        """Return what cross-attention reads of encoded histories (B, S, D); ``mask_BS`` is False in the padding."""

    def cache(self) -> Any:
        """Return an empty cache of the levels decoded so far."""

    def step(self, x_BKD: Tensor, memory: Any, cache: Any, parents_BK: Tensor | None = None) -> Tensor:
        """Return hidden states (B, K, D) of the next level of all beams, and add it to ``cache``."""


class Inference(Protocol):
    """Encoder, decoder and output layer in evaluation: a ``CodeTransformer``, or a faster version of one."""

    @property
    def encoder(self) -> Callable[..., Tensor]:
        """Function from embedded histories (B, S, D) to encoded ones."""

    @property
    def decoder(self) -> StepDecoder:
        """Decoder of one level at a time."""

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Return logits (..., n) of hidden states (..., D) for some ``rows`` of the tokens, counted from 0."""


@dataclass(frozen=True)
class CodeShape(T5Shape):
    """Settings of a ``CodeTransformer``.

    ``softmax``: ``all``, over the tokens of all levels, as in T5; ``children``, over the codes that may follow in the
    catalogue, which needs ``renormalise`` of the beam search.
    """

    users: int = 0  # groups that users are hashed into, 0: none
    one_pass: bool = True  # tokens attend to no later event, so that one encoding serves all targets of a row
    recency: bool = False  # see ``recpipe.layers.t5.Decoder``
    softmax: str = "all"
    renormalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, softmax=("all", "children"))
        if self.softmax == "children" and not self.renormalise:
            raise ValueError("softmax is children, so a search has to renormalise: set renormalise: true")


class CodeTransformer(nn.Module):
    """Encoder–decoder over ``tokens`` codes of ``levels`` levels, both counted over all kinds of ids.

    ``kinds`` of ids that are written, each with a token to begin; ``extra`` tokens follow these in the table.
    ``accelerator``, where it is set, makes a faster version of the network for inference.
    """

    def __init__(self, shape: CodeShape, tokens: int, levels: int, *, kinds: int = 1, extra: int = 0) -> None:
        super().__init__()
        self.input = CodeInput(tokens, levels, shape.dim, users=shape.users, extra=kinds + extra)
        self.encoder, self.decoder = Encoder(shape), Decoder(shape, recency=shape.recency)
        self.one_pass, self.scale, self.softmax = shape.one_pass, shape.dim**-0.5, shape.softmax
        self.accelerator: Callable[[CodeTransformer], Inference] | None = None
        self.cache: Inference | None = None  # set inside ``cached_weights``

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """Enter a context in which weights must not change, so that inference can use values derived from them."""
        self.cache = None if self.accelerator is None else self.accelerator(self)
        try:
            yield
        finally:
            self.cache = None

    @property
    def inference(self) -> Inference:
        """Network of evaluation: the faster version inside ``cached_weights``, otherwise this module."""
        return self if self.cache is None else self.cache

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Return logits (..., n) of hidden states (..., D) for some ``rows`` of the tokens, counted from 0."""
        return hidden * self.scale @ self.input.head[1:][rows].T

    def encode(self, batch: Batch, tokens: Tensor) -> EncodedHistory:
        """Encode the histories of ``batch``; ``tokens`` (I + 1, L) of every item."""
        return self.encode_history(self.input(batch if batch.items.shape[1] else batch.pad(1), tokens))

    def encode_history(self, history: EmbeddedHistory) -> EncodedHistory:
        """Encode embedded histories."""
        attention, inference = causal(history.event) if self.one_pass else None, self.inference
        encoded = inference.encoder(history.x, history.mask, attention=attention)
        return EncodedHistory(inference.decoder.memory(encoded, history.mask, history.event), history)

    def decode(
        self, encoded: EncodedHistory, targets_BWL: Tensor, *, kind: int = 0, by_target: bool | None = None
    ) -> Tensor:
        """Return hidden states (B, W, L, D) that the tokens ``targets_BWL`` are predicted from, times T5's scale.

        ``by_target``: target w follows the events up to w, by default if ``one_pass``; otherwise all events.
        """
        memory, history = encoded
        assert isinstance(memory, Memory)  # training does not run inside ``cached_weights``
        width, levels = targets_BWL.shape[1:]
        begin = torch.full_like(targets_BWL[..., :1], self.input.extra + kind)
        shifted = torch.cat([begin, targets_BWL[..., :-1]], -1)
        by_target = self.one_pass if by_target is None else by_target
        masks = decoder_masks(history.event, width, levels, by_target=by_target)
        hidden = self.decoder(self.input.embed(shifted).flatten(1, 2), memory, **masks)
        return hidden.unflatten(1, (width, levels)) * self.scale

    def loss(
        self,
        hidden_NLD: Tensor,
        items_N: Tensor,
        codes: ItemCodes,
        criterion: Callable[..., Tensor],
        *,
        weights: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """Return the loss (scalar) of the ids ``codes`` of target items (N,) with ``weights``, from states (N, L, D).

        All tokens of an item have its weight. ``offset``: tokens of other kinds before these.
        """
        if self.softmax == "children":
            tree, row_of = codes.tree_of(loss_items(criterion))
            rows = row_of.to(items_N.device)[items_N]
            tables = self.input.weight[1 + offset : 1 + offset + codes.size].split(codes.sizes)
            return tree_cross_entropy(hidden_NLD, tables, rows, tree.tensors(items_N.device), weights)
        weights = None if weights is None else weights.repeat_interleave(hidden_NLD.shape[1])
        return criterion(hidden_NLD.flatten(0, 1), self.input.head, codes.tokens[items_N].flatten() + offset, weights)


class CodeSteps:
    """Decoding steps of a beam search: a ``recpipe.decoding.LevelDecoder``."""

    def __init__(
        self, model: CodeTransformer, encoded: EncodedHistory, first: Sequence[int], sizes: Sequence[int], kind: int = 0
    ) -> None:
        """``first`` token and ``sizes`` (L,) of every level; ``kind`` of ids, as in ``CodeTransformer.decode``."""
        self.model, self.inference, (self.memory, history) = model, model.inference, encoded
        self.first, self.sizes = first, sizes
        self.by_level = model.softmax == "children"  # a search over children renormalises anyway
        self.cache = self.inference.decoder.cache()
        self.begin = torch.full((len(history.x), 1), model.input.extra + kind, device=history.x.device)
        self.first_state: Tensor | None = None  # (B, D), from which the first code is predicted, after the first step

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Return log-probabilities (B, K, V_level), see ``log_probs``."""
        tokens = self.begin if codes_BK is None else codes_BK + self.first[level - 1]
        x_BKD = self.model.input.embed(tokens)
        hidden = self.inference.decoder.step(x_BKD, self.memory, self.cache, parents_BK)
        if codes_BK is None:
            self.first_state = hidden[:, 0]
        return self.log_probs(level, hidden)

    def log_probs(self, level: int, hidden: Tensor) -> Tensor:
        """Return log-probabilities (..., V_level) of hidden states (..., D).

        They are normalised over all tokens, or over those of this level if ``by_level``.
        """
        rows = slice(self.first[level] - 1, self.first[level] - 1 + self.sizes[level])
        if self.by_level:
            return self.inference.logits(hidden, rows).float().log_softmax(-1)
        all_rows = slice(0, len(self.model.input.head) - 1)
        return self.inference.logits(hidden, all_rows).float().log_softmax(-1)[..., rows]
