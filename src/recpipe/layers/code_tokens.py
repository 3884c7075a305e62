"""Semantic ids inside a model: the codes of its catalogue, their numbers as tokens, and histories of tokens.

Tokens are numbered from 1, level after level: code c of level l is ``first[l] + c``; 0 is padding. After all codes
there is one token per level for items without an id.

B batch, T events, W targets of a row, L levels, S tokens of the encoder, Q queries of the decoder, I items, N items
with an id, D width, H heads, U users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.semantic_ids.prefix_tree import PrefixTree

USER = "user.token"  # the feature with the hashed user, 0-based


class ItemCodes(nn.Module):
    """Codes of the catalogue, saved with the weights. If ``unique``, ``tree`` raises ValueError for shared ids."""

    codes: Tensor  # (I + 1, L), negative without an id

    def __init__(self, ids: CatalogueIds, *, unique: bool = True) -> None:
        super().__init__()
        self.ids, self.unique = ids, unique
        self.sizes, self.levels = ids.sizes, len(ids.sizes)
        self.first = tuple(int(each) for each in 1 + np.cumsum((0, *ids.sizes[:-1])))
        self.size = sum(ids.sizes)  # tokens of codes
        self._subtree: tuple[Tensor, PrefixTree, Tensor] | None = None
        self.register_buffer("codes", torch.from_numpy(ids.codes.copy()))

    @property
    def tokens(self) -> Tensor:
        """Tokens (I + 1, L) of every item, ``size + 1 + l`` at level l where it has no id, 0 for padding."""
        device = self.codes.device
        tokens = self.codes + torch.tensor(self.first, device=device)
        without_id = torch.arange(self.size + 1, self.size + 1 + self.levels, device=device)
        tokens = torch.where(self.codes >= 0, tokens, without_id)
        return tokens * (torch.arange(len(tokens), device=device) > 0)[:, None]

    @property
    def has_id(self) -> Tensor:
        """Mask (I + 1,) bool of the items with an id; others cannot be targets."""
        return self.codes[:, 0] >= 0

    @cached_property
    def rows(self) -> np.ndarray:
        """Items (N,) with an id, in the order of the tree's rows."""
        return np.flatnonzero(self.codes[:, 0].cpu().numpy() >= 0)

    @cached_property
    def tree(self) -> PrefixTree:
        """Prefix tree of the items with an id."""
        codes = self.codes.cpu().numpy()[self.rows]
        return PrefixTree.build(codes, self.sizes, source=self.ids.source, shared=not self.unique)

    @cached_property
    def row_of(self) -> Tensor:
        """Row of the tree (I + 1,) of every item, -1 without one."""
        return self._positions(self.rows)

    def _positions(self, items: np.ndarray) -> Tensor:
        """(I + 1,) position of every item in ``items``, -1 for others."""
        positions = np.full(len(self.codes), -1, np.int64)
        positions[items] = np.arange(len(items))
        return torch.from_numpy(positions)

    def tree_of(self, items: Tensor | None) -> tuple[PrefixTree, Tensor]:
        """Return the prefix tree of ``items`` (I + 1,) bool that have an id, None for all, and its rows (I + 1,).

        The last result is cached.
        """
        if items is None:
            return self.tree, self.row_of
        if self._subtree is None or self._subtree[0] is not items:
            inside = self.rows[items.cpu().numpy()[self.rows]]
            tree = PrefixTree.build(self.codes.cpu().numpy()[inside], self.sizes, shared=not self.unique)
            self._subtree = items, tree, self._positions(inside)
        return self._subtree[1:]

    def forget(self) -> None:
        """Drop cached values after other codes were loaded."""
        self._subtree = None
        for name in ("rows", "tree", "row_of"):
            self.__dict__.pop(name, None)

    def description(self) -> dict[str, Any]:
        """Return the description of the ids in a bundle, in plain JSON types."""
        return replace(self.ids, codes=self.codes.cpu().numpy()).to_dict()

    def check(self, digest: str) -> None:
        """Raise ValueError unless the codes have this digest."""
        if (present := self.description()["digest"]) != digest:
            raise ValueError(
                f"the weights were saved with the ids {present[:12]}, beside them is written {digest[:12]}; they do "
                "not belong together: train the model again"
            )


def tokens_of_kind(books: Sequence[ItemCodes], m: int) -> Tensor:
    """Return tokens (I + 1, L) of every item in kind ``m`` of several, which are numbered one kind after the other.

    Codes of all kinds come first, then tokens for items without an id.
    """
    tokens, size = books[m].tokens, books[m].size
    earlier, behind = sum(book.size for book in books[:m]), sum(book.size for book in books) - size
    without_id = tokens + behind + sum(book.levels for book in books[:m])
    return torch.where(tokens > size, without_id, tokens + earlier) * (tokens > 0)


class EmbeddedHistory(NamedTuple):
    """Embedded histories: token embeddings, padding mask, and the event of each token."""

    x: Tensor  # (B, S, D)
    mask: Tensor  # (B, S) bool, False in the padding
    event: Tensor  # (S,) the event of each token, -1 for the first token


class CodeInput(nn.Module):
    """Input layer for histories (B, T) of items: a first token, then L tokens per event, or their sum.

    ``tokens`` of codes and ``levels``, both counted over all kinds of ids. They are followed by the first token of
    histories, ``users`` more for groups of users (by hash, as in TIGER), and ``extra`` for the model.
    """

    def __init__(
        self, tokens: int, levels: int, dim: int, *, users: int = 0, extra: int = 0, summed: bool = False
    ) -> None:
        super().__init__()
        self.tokens, self.users, self.summed = tokens, users, summed
        self.begin = tokens + levels + 1
        self.extra = self.begin + 1 + users
        self.weight = nn.Parameter(torch.empty(self.extra + extra, dim).normal_())
        with torch.no_grad():
            self.weight[0].zero_()

    @property
    def head(self) -> Tensor:
        """Embeddings (V + 1, D) of the tokens that may be predicted, after the row of padding."""
        return self.weight[: self.tokens + 1]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embeddings (..., D) of ``tokens`` (...)."""
        return F.embedding(tokens, self.weight)

    def items(self, tokens: Tensor, has_id: Tensor) -> Tensor:
        """Return the sum (I + 1, D) of the ``tokens`` (I + 1, L) of each item, zero without an id (``has_id``)."""
        return self.embed(tokens).sum(1) * has_id[:, None]

    def forward(self, batch: Batch, tokens: Tensor) -> EmbeddedHistory:
        """Embed the histories of ``batch``; ``tokens`` (I + 1, L) of every item."""
        first = torch.full((len(batch.items),), self.begin, device=batch.items.device)
        if self.users:
            first = first + 1 + batch.features[USER][:, 0, 0]
        return self.embed_history(tokens[batch.items], batch.mask, first)

    def embed_history(self, tokens_BTL: Tensor, mask_BT: Tensor, first_B: Tensor) -> EmbeddedHistory:
        """Embed the tokens (B, T, L) of events and the first token (B,) of histories; ``mask_BT``: False in padding."""
        size, width, levels = tokens_BTL.shape
        x = self.embed(tokens_BTL)
        x = x.sum(2) if self.summed else x.flatten(1, 2)
        per_event = 1 if self.summed else levels
        mask = mask_BT.repeat_interleave(per_event, 1)
        place = torch.arange(-per_event, width * per_event, device=x.device)
        return EmbeddedHistory(
            torch.cat([self.embed(first_B)[:, None], x], 1),
            torch.cat([mask.new_ones(size, 1), mask], 1),
            place.div(per_event, rounding_mode="floor")[per_event - 1 :],
        )

    def features(self, users: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the features of ``users`` (U,) that batches need: an array (U, 1), or none without groups of users."""
        return {USER: user_tokens(users, self.users)} if self.users else {}


class LevelRelativeBias(nn.Module):
    """Attention bias by the code levels of query and key; the first token of a history has none.

    The codebook-relative bias of N. Nguyen's efficient_generative_reco.
    """

    def __init__(self, levels: int, heads: int, *, std: float) -> None:
        super().__init__()
        self.levels = levels
        self.table = nn.Parameter(torch.empty(2 * levels - 1, heads).normal_(std=std))

    def forward(self, event_S: Tensor, level_Q: Tensor | None = None) -> Tensor:
        """Return the bias (H, Q, S) for keys of L codes per event, by the key's level less the query's.

        ``level_Q``: levels of the queries of a decoder; None: the tokens of the history are the queries, Q = S.
        """
        level_S = torch.arange(-1, len(event_S) - 1, device=event_S.device) % self.levels
        coded_QS = coded_S = event_S >= 0
        if level_Q is None:
            level_Q, coded_QS = level_S, coded_S[:, None] & coded_S
        difference_QS = level_S[None, :] - level_Q[:, None] + self.levels - 1
        return (F.embedding(difference_QS, self.table) * coded_QS[..., None]).movedim(-1, 0)


def user_tokens(users: Iterable[str], groups: int) -> np.ndarray:
    """Return a group (U, 1) int64 in 0 .. groups - 1 for each user, by MD5 of his id: the same on every machine."""
    digests = (hashlib.md5(str(user).encode(), usedforsecurity=False).digest() for user in users)
    return np.array([int.from_bytes(each[:8], "big") % groups for each in digests], np.int64)[:, None]


def loss_items(criterion: Callable[..., Tensor]) -> Tensor | None:
    """Return the mask (I + 1,) bool of the items among which the softmax of a loss is taken; None: all."""
    items: Tensor | None = getattr(criterion, "candidate_mask", None)
    return items


def targets_of(batch: Batch, has_id: Tensor, *, one_pass: bool) -> tuple[Batch, Tensor, Tensor]:
    """Return inputs, targets (B, W), and which of them are real (B, W) bool: items that ``has_id`` (I + 1,).

    ``one_pass``: every event of a row is the target of those before it; inputs may have events that no target follows.
    Otherwise the last event is the only target, W = 1, and inputs are the events before it. ``next_weights`` of the
    inputs (B, W) are those of the targets.
    """
    inputs, targets = batch.inputs_and_targets()
    if one_pass:
        return inputs, targets, has_id[targets]
    place = torch.arange(targets.shape[1], device=targets.device)
    last = ((targets > 0) * place).amax(1)
    target, weights = targets.gather(1, last[:, None]), inputs.next_weights
    weights = None if weights is None else weights.gather(1, last[:, None])
    return replace(inputs, lengths=last + 1, next_weights=weights), target, has_id[target]


def causal(event_S: Tensor) -> Tensor:
    """Return the attention mask (S, S) bool: a token attends to those of its own event and of earlier ones."""
    return event_S[None, :] <= event_S[:, None]


def decoder_masks(event_S: Tensor, width: int, queries: int, *, by_target: bool) -> dict[str, Tensor]:
    """Return masks and positions for ``Decoder.forward``: ``queries`` of each of ``width`` targets.

    ``event_S`` (S,) is the event of each token of the history. ``by_target``: queries of the target after event t
    attend to events up to t, otherwise to all.
    """
    target = torch.arange(width, device=event_S.device).repeat_interleave(queries)  # also the last event before it
    positions = torch.arange(queries, device=event_S.device).repeat(width)
    masks = {"attention": target[None, :] == target[:, None], "positions": positions}
    return masks | {"cross": event_S[None, :] <= target[:, None], "events_Q": target} if by_target else masks
