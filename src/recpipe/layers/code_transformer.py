"""An encoder–decoder that reads histories of tokens and writes ids token by token: TIGER's, and MQL4GRec's.

B batch, T events, W targets of a row, L levels, S places of the encoder, D width, V tokens.

What a beam search asks an encoder-decoder of codes for, level by level or several levels at once.

B batch, K beams, N prefixes of a depth, L levels, D width, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import (
    CodeInput,
    Embedded,
    ItemCodes,
    before,
    causal,
    target_of,
    told_apart,
    within,
)
from recpipe.layers.kept import Kept
from recpipe.layers.softmax import tree_cross_entropy
from recpipe.layers.t5 import Encoder, T5Shape
from recpipe.layers.t5_decoder import Decoder, Memory
from recpipe.layers.t5_prepared import PreparedEncoder, Product
from recpipe.layers.t5_prepared_decoder import PreparedDecoder, PreparedMemory, prepared

Read = tuple[Memory | PreparedMemory, Embedded]


@dataclass(frozen=True)
class Held:
    """The two for inference, and the table (V, D) that hidden states are multiplied with."""

    encoder: Encoder | PreparedEncoder
    decoder: Decoder | PreparedDecoder
    table: Tensor
    heads: dict[tuple[int, int], Product] = field(default_factory=dict)

    def head(self, rows: slice) -> Product:
        """Of some ``rows`` of the table, made when first asked for."""
        key = rows.start, rows.stop
        if key not in self.heads:
            self.heads[key] = Product(self.table[rows])
        return self.heads[key]


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
        self.held: Held | None = None  # inside ``cached_weights``
        self.kept: Kept[Held] = Kept()

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """Inside, weights stay as they are: for searches, which a CPU then makes with weights prepared once, and kept
        for the next ones: to prepare them takes longer than a search for one user.
        """
        of_cpu = self.input.weight.device.type == "cpu"
        self.held = self.kept.get(self._prepared, self.parameters()) if of_cpu else self._prepared()
        try:
            yield
        finally:
            self.held = None

    def _prepared(self) -> Held:
        encoder, decoder = prepared(self.encoder, self.decoder)
        return Held(encoder, decoder, self.input.head[1:].detach() * self.scale)

    def read(self, batch: Batch, tokens: Tensor) -> Read:
        """The encoded histories of ``batch``; ``tokens`` (I + 1, L) of every item."""
        return self.encode(self.input(batch if batch.items.shape[1] else batch.pad(1), tokens))

    def encode(self, embedded: Embedded) -> Read:
        """The same for what is embedded already."""
        attention = causal(embedded.event) if self.one_pass else None
        of = self if self.held is None else self.held
        encoder: Any = of.encoder
        decoder: Any = of.decoder
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
    """The steps of a beam search, as ``recpipe.decoding.beam_search`` takes them."""

    def __init__(
        self,
        model: CodeTransformer,
        read: Read,
        first: Sequence[int],
        sizes: Sequence[int],
        *,
        kind: int = 0,
    ) -> None:
        """``first`` token and ``sizes`` (L,) of every level; ``kind`` of ids, as of ``CodeTransformer.write``."""
        self.model, (self.memory, embedded) = model, read
        self.first, self.sizes = first, sizes
        self.alone = model.among == "children"
        self.decoder: Any = model.decoder if model.held is None else model.held.decoder
        self.cache: Any = self.decoder.cache()
        self.begin = torch.full((len(embedded.x), 1), model.input.more + kind, device=embedded.x.device)

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """(B, K, V_level) as of ``logs``."""
        tokens = self.begin if codes_BK is None else codes_BK + self.first[level - 1]
        hidden = self.decoder.step(self.model.input.embed(tokens), self.memory, self.cache, parents_BK)
        return self.logs(level, hidden)

    def logs(self, level: int, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., V_level) of hidden states (..., D), of the softmax over the tokens of all levels; of
        that over the level's own where a search renormalises anyway, among children.
        """
        if self.alone:
            return self._softmax(hidden, self._rows(level))
        return self._softmax(hidden, slice(0, len(self.model.input.head) - 1))[..., self._rows(level)]

    def _rows(self, level: int) -> slice:
        return slice(self.first[level] - 1, self.first[level] - 1 + self.sizes[level])

    def _softmax(self, hidden: Tensor, rows: slice) -> Tensor:
        if self.model.held is None:
            logits = hidden * self.model.scale @ self.model.input.head[1:][rows].T
        else:
            logits = self.model.held.head(rows)(hidden.flatten(0, -2)).view(*hidden.shape[:-1], -1)
        return logits.float().log_softmax(-1)


class WritingAhead(Writing):
    """The same with a decoder that reads prefixes of several depths at once."""

    def ahead(self, level: int, prefixes: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Each (B, N, V) as of ``logs``: as ``step`` for one after the other of codes and parents, both (B, N)."""
        tokens = [codes + self.first[level - 1 + i] for i, (codes, _) in enumerate(prefixes)]
        x = [self.model.input.embed(each) for each in tokens]
        hidden = self.decoder.ahead(x, self.memory, self.cache, [parents for _, parents in prefixes])
        counts = [each.shape[1] for each in tokens]
        if self.alone:
            return [self.logs(level + i, part) for i, part in enumerate(hidden.split(counts, 1))]
        logs = self._softmax(hidden, slice(0, len(self.model.input.head) - 1)).split(counts, 1)
        return [part[..., self._rows(level + i)] for i, part in enumerate(logs)]


def writing(
    model: CodeTransformer, read: Read, first: Sequence[int], sizes: Sequence[int], *, kind: int = 0
) -> Writing:
    """What is searched, as of ``Writing``, by the fastest way that the decoder has."""
    prepared = model.held is not None and isinstance(model.held.decoder, PreparedDecoder)
    return (WritingAhead if prepared else Writing)(model, read, first, sizes, kind=kind)
