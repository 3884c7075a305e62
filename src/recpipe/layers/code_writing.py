"""What a beam search asks an encoder-decoder of codes for, level by level or several levels at once.

B batch, K beams, N prefixes of a depth, L levels, D width, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recpipe.layers.code_transformer import CodeTransformer, Read
from recpipe.layers.t5_prepared_decoder import PreparedDecoder


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
