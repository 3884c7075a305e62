"""An encoder–decoder that reads histories of tokens and writes ids token by token: TIGER's, and MQL4GRec's.

B batch, T events, W targets of a row, L levels, K beams, S places of the encoder, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.layers.code_history import CodeInput, Embedded, before, causal, target_of, within
from recpipe.layers.codes import ItemCodes, told_apart
from recpipe.layers.t5 import Encoder, T5Shape
from recpipe.layers.t5_decoder import Cache, Decoder, Memory
from recpipe.layers.t5_prepared import PreparedEncoder, Product
from recpipe.layers.t5_prepared_decoder import PreparedDecoder, PreparedMemory, prepared
from recpipe.layers.tree_softmax import tree_cross_entropy

Read = tuple[Memory | PreparedMemory, Embedded]


class Held(NamedTuple):
    """The two for inference, and the head."""

    encoder: Encoder | PreparedEncoder
    decoder: Decoder | PreparedDecoder
    head: Product


@dataclass(frozen=True)
class CodeShape(T5Shape):
    """``users``: groups that users are hashed into, 0: none. ``one_pass``: places see no later event, so that one
    encoding serves all targets of a row. ``recency``: cross-attention knows how many events ago something was, which
    T5's does not (see ``recpipe.layers.t5_decoder``).

    ``softmax``: ``all``, over the tokens of all levels, as in T5; ``children``, over the codes that may follow in the
    catalogue, so that nothing is spent on learning which ids exist; a search has to ``renormalise`` then, as
    ``recpipe.decoding.beam_search`` can.
    """

    users: int = 0
    one_pass: bool = True
    recency: bool = False
    softmax: str = "all"
    renormalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.softmax not in ("all", "children"):
            raise ValueError(f"softmax is {self.softmax!r}; allowed: all, children")
        if self.softmax == "children" and not self.renormalise:
            raise ValueError("softmax is children, so a search has to renormalise: set renormalise: true")


class CodeTransformer(nn.Module):
    """``total`` tokens and ``levels``, both of all modalities. ``writes``: ids of how many kinds are written, each with
    a token to begin; ``more`` tokens stand behind these.
    """

    def __init__(self, shape: CodeShape, total: int, levels: int, *, writes: int = 1, more: int = 0) -> None:
        super().__init__()
        self.input = CodeInput(total, levels, shape.dim, users=shape.users, more=writes + more)
        self.encoder, self.decoder = Encoder(shape), Decoder(shape, recency=shape.recency)
        self.one_pass, self.scale, self.among = shape.one_pass, shape.dim**-0.5, shape.softmax
        self.held: Held | None = None  # inside ``holding``

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, weights stay as they are: for searches, which a CPU then makes with weights prepared once."""
        encoder, decoder = prepared(self.encoder, self.decoder)
        self.held = Held(encoder, decoder, Product(self.input.head[1:].detach() * self.scale))
        try:
            yield
        finally:
            self.held = None

    def read(self, batch: Batch, tokens: Tensor) -> Read:
        """The encoded histories of ``batch``; ``tokens`` (I + 1, L) of every item."""
        return self.encode(self.input(batch if batch.items.shape[1] else batch.longer(1), tokens))

    def encode(self, embedded: Embedded) -> Read:
        """The same for what is embedded already."""
        attention = causal(embedded.event) if self.one_pass else None
        encoder, decoder = (self.encoder, self.decoder) if self.held is None else self.held[:2]
        encoded = encoder(embedded.x, embedded.mask, attention=attention)
        return decoder.memory(encoded, embedded.mask, embedded.event), embedded

    def write(self, read: Read, wanted_BWL: Tensor, *, kind: int = 0, each: bool | None = None) -> Tensor:
        """(B, W, L, D) hidden states that tokens ``wanted_BWL`` are predicted from, times T5's scale.

        ``each``: target w is that of the events up to w, by default if ``one_pass``; else it is that of all of them.
        """
        memory, embedded = read
        assert isinstance(memory, Memory)  # nothing is trained where weights are held
        width, levels = wanted_BWL.shape[1:]
        device = wanted_BWL.device
        begin = torch.full_like(wanted_BWL[..., :1], self.input.more + kind)
        shifted = torch.cat([begin, wanted_BWL[..., :-1]], -1)
        each = self.one_pass if each is None else each
        hidden = self.decoder(
            self.input.embed(shifted).flatten(1, 2),
            memory,
            cross=before(embedded.event, width, levels) if each else None,
            attention=within(width, levels, device),
            positions=torch.arange(levels, device=device).repeat(width),
            events_Q=target_of(width, levels, device) if each else None,
        )
        return hidden.unflatten(1, (width, levels)) * self.scale

    def error(
        self,
        hidden_NLD: Tensor,
        items_N: Tensor,
        codes: ItemCodes,
        criterion: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        before: int = 0,
    ) -> Tensor:
        """The loss of the ids, by ``codes``, of items that hidden states are to predict; ``before`` these codes stand
        as many tokens of other modalities.
        """
        if self.among == "children":
            tree, row_of = codes.tree_of(told_apart(criterion))
            rows = row_of.to(items_N.device)[items_N]
            tables = self.input.weight[1 + before : 1 + before + codes.size].split(codes.sizes)
            return tree_cross_entropy(hidden_NLD, tables, rows, tree.tensors(items_N.device))
        return criterion(hidden_NLD.flatten(0, 1), self.input.head, codes.tokens[items_N].flatten() + before)


class Writing:
    """The steps of a beam search: what ``decoding.beam_search`` asks a model for."""

    def __init__(
        self,
        model: CodeTransformer,
        read: Read,
        first: Sequence[int],
        sizes: Sequence[int],
        *,
        kind: int = 0,
    ) -> None:
        """``first`` token and ``sizes`` (L,) of every level."""
        self.model, (self.memory, embedded), self.kind = model, read, kind
        self.first, self.sizes, self.held = first, sizes, model.held
        ready = None if self.held is None else self.held.decoder
        self.decoder = ready or model.decoder
        self.cache = ready.cache() if isinstance(ready, PreparedDecoder) else Cache()
        self.begin = torch.full((len(embedded.x), 1), model.input.more + kind, device=embedded.x.device)

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Log-probabilities (B, K, V_level), of the softmax over the tokens of all levels."""
        tokens = self.begin if codes_BK is None else codes_BK + self.first[level - 1]
        step: Any = self.decoder.step
        hidden = step(self.model.input.embed(tokens), self.memory, self.cache, parents_BK)
        if self.held is None:
            logits = hidden * self.model.scale @ self.model.input.head[1:].T
        else:
            logits = self.held.head(hidden.flatten(0, 1)).view(*tokens.shape, -1)
        logs = logits.float().log_softmax(-1)
        return logs[..., self.first[level] - 1 : self.first[level] - 1 + self.sizes[level]]
