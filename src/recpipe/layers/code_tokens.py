"""Semantic ids inside a model: the codes of its catalogue, and their numbers as tokens.

L levels, I items, N items with an id. Tokens are numbered from 1, level after level: code c of level l is
``first[l] + c``; 0 is padding. Behind all codes comes one token per level for items without an id.

Histories as sequences of tokens, and which of them may see which.

B batch, T events, W targets of a row, L levels, S places of the encoder, D width, H heads, U users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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


def told_apart(criterion: Callable[..., Tensor]) -> Tensor | None:
    """(I + 1,) bool: the items that a loss over items tells targets apart from; None: all of them."""
    found: Tensor | None = getattr(criterion, "candidate_mask", None)
    return found


class ItemCodes(nn.Module):
    """The codes of the catalogue, kept with the weights. Raises ValueError, if ``unique``, where items share an id."""

    def __init__(self, ids: CatalogueIds, *, unique: bool = True) -> None:
        super().__init__()
        self.ids, self.unique = ids, unique
        self.sizes, self.levels = ids.sizes, len(ids.sizes)
        self.first = tuple(int(each) for each in 1 + np.cumsum((0, *ids.sizes[:-1])))
        self.size = sum(ids.sizes)  # tokens of codes
        self._part: tuple[Tensor, PrefixTree, Tensor] | None = None
        self.codes: Tensor
        self.register_buffer("codes", torch.from_numpy(ids.codes.copy()))

    @property
    def tokens(self) -> Tensor:
        """(I + 1, L): tokens of every item, ``size + 1 + l`` at level l where it has no id, 0 for padding."""
        device = self.codes.device
        tokens = self.codes + torch.tensor(self.first, device=device)
        unknown = torch.arange(self.size + 1, self.size + 1 + self.levels, device=device)
        tokens = torch.where(self.codes >= 0, tokens, unknown)
        return tokens * (torch.arange(len(tokens), device=device) > 0)[:, None]

    @property
    def known(self) -> Tensor:
        """(I + 1,) bool: which items have an id; others can be no target."""
        return self.codes[:, 0] >= 0

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,) items that have an id; places here are the rows of the tree."""
        return np.flatnonzero(self.codes[:, 0].cpu().numpy() >= 0)

    @cached_property
    def tree(self) -> PrefixTree:
        """Over the items that have an id. Raises ValueError where some share one and none may."""
        codes = self.codes.cpu().numpy()[self.rows]
        return PrefixTree.build(codes, self.sizes, source=self.ids.source, shared=not self.unique)

    @cached_property
    def row_of(self) -> Tensor:
        """(I + 1,) row of the tree of every item, -1 without one."""
        row = np.full(len(self.codes), -1, np.int64)
        row[self.rows] = np.arange(len(self.rows))
        return torch.from_numpy(row)

    def tree_of(self, items: Tensor | None) -> tuple[PrefixTree, Tensor]:
        """The tree over those of ``items`` (I + 1,) bool that have an id, None: all; and the rows (I + 1,) in it.

        That of the items asked for last is kept.
        """
        if items is None:
            return self.tree, self.row_of
        if self._part is None or self._part[0] is not items:
            inside = self.rows[items.cpu().numpy()[self.rows]]
            row = np.full(len(self.codes), -1, np.int64)
            row[inside] = np.arange(len(inside))
            tree = PrefixTree.build(self.codes.cpu().numpy()[inside], self.sizes, shared=not self.unique)
            self._part = items, tree, torch.from_numpy(row)
        return self._part[1:]

    def forget(self) -> None:
        """After other codes were loaded."""
        self._part = None
        for name in ("rows", "tree", "row_of"):
            self.__dict__.pop(name, None)

    def described(self) -> dict[str, Any]:
        """What a bundle says of them."""
        return replace(self.ids, codes=self.codes.cpu().numpy()).to_dict()

    def check(self, digest: str) -> None:
        """Raises ValueError unless the codes are those with this digest."""
        if (found := self.described()["digest"]) != digest:
            raise ValueError(
                f"the weights were saved with the ids {found[:12]}, beside them is written {digest[:12]}; they do not "
                "belong together: train the model again"
            )


USER = "user.token"  # the feature that holds the hashed user, 0-based


class Embedded(NamedTuple):
    """A history as the encoder reads it."""

    x: Tensor  # (B, S, D)
    mask: Tensor  # (B, S) bool, what is not padding
    event: Tensor  # (S,) the event of each place, -1 for what the history begins with


class CodeInput(nn.Module):
    """Histories (B, T) of items as places of an encoder: a beginning, then L tokens per event, or their sum.

    ``total`` tokens of codes and ``levels``, both of all modalities together. Behind them: one token that histories
    begin with, ``users`` that they begin with instead where there are any (groups, by hash, as in TIGER), and ``more``
    tokens that are the model's to use, from ``more`` on.
    """

    def __init__(
        self, total: int, levels: int, dim: int, *, users: int = 0, more: int = 0, summed: bool = False
    ) -> None:
        super().__init__()
        self.total, self.users, self.summed = total, users, summed
        self.begin = total + levels + 1
        self.more = self.begin + 1 + users
        self.weight = nn.Parameter(torch.empty(self.more + more, dim).normal_())
        with torch.no_grad():
            self.weight[0].zero_()

    @property
    def head(self) -> Tensor:
        """(V + 1, D): the tokens that may be predicted, behind the row of padding."""
        return self.weight[: self.total + 1]

    def embed(self, tokens: Tensor) -> Tensor:
        """(..., D)."""
        return F.embedding(tokens, self.weight)

    def items(self, tokens: Tensor, known: Tensor) -> Tensor:
        """(I + 1, D): the summed ``tokens`` (I + 1, L) of each item, zero where it has no id, ``known`` (I + 1,)."""
        return self.embed(tokens).sum(1) * known[:, None]

    def forward(self, batch: Batch, tokens: Tensor) -> Embedded:
        """``tokens`` (I + 1, L): those of every item."""
        return self.of(tokens[batch.items], batch.mask, self.beginning(batch))

    def of(self, tokens_BTL: Tensor, mask_BT: Tensor, beginning: Tensor) -> Embedded:
        """The same for the tokens of every event, and the token (B,) that each history begins with."""
        size, width, levels = tokens_BTL.shape
        x = self.embed(tokens_BTL)
        x = x.sum(2) if self.summed else x.flatten(1, 2)
        each = 1 if self.summed else levels
        real = mask_BT.repeat_interleave(each, 1)
        return Embedded(
            torch.cat([self.embed(beginning)[:, None], x], 1),
            torch.cat([real.new_ones(size, 1), real], 1),
            torch.arange(-each, width * each, device=x.device).div(each, rounding_mode="floor")[each - 1 :],
        )

    def beginning(self, batch: Batch) -> Tensor:
        """(B,) tokens."""
        begin = torch.full((len(batch.items),), self.begin, device=batch.items.device)
        return begin + 1 + batch.features[USER][:, 0, 0] if self.users else begin

    def features(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """What batches have to know of ``users`` (U,)."""
        return {USER: user_tokens(users, self.users)} if self.users else {}


class LevelRelative(nn.Module):
    """A bias of self-attention between codes by the levels that lie between them, whatever the items: the
    codebook-relative one of N. Nguyen's efficient_generative_reco. What a history begins with has no level and no bias.
    """

    def __init__(self, levels: int, heads: int, *, std: float) -> None:
        super().__init__()
        self.levels = levels
        self.table = nn.Parameter(torch.empty(2 * levels - 1, heads).normal_(std=std))

    def forward(self, event_S: Tensor) -> Tensor:
        """(H, S, S) of places with L codes per event: of the key's level less the query's, from 1 - L to L - 1."""
        level_S = torch.arange(-1, len(event_S) - 1, device=event_S.device) % self.levels
        between_SS = level_S[None, :] - level_S[:, None] + self.levels - 1
        coded_S = event_S >= 0
        return (F.embedding(between_SS, self.table) * (coded_S[:, None] & coded_S)[..., None]).movedim(-1, 0)


def user_tokens(users: np.ndarray, groups: int) -> np.ndarray:
    """(U, 1) int64 in 0 .. groups - 1, by MD5 of the user's id: the same wherever and whenever."""
    digests = (hashlib.md5(str(user).encode(), usedforsecurity=False).digest() for user in users)
    return np.array([int.from_bytes(each[:8], "big") % groups for each in digests], np.int64)[:, None]


def targets_of(batch: Batch, known: Tensor, *, one_pass: bool) -> tuple[Batch, Tensor, Tensor]:
    """Inputs, targets (B, W), and which of them are some (B, W): those of ``known`` (I + 1,) items.

    ``one_pass``: every event of a row is the target of those before it, and inputs may hold events that none of them
    precede. Else the last one is the only target, W being 1, and inputs are what comes before it.
    """
    inputs, targets = batch.inputs_and_targets()
    if one_pass:
        return inputs, targets, known[targets]
    place = torch.arange(targets.shape[1], device=targets.device)
    last = ((targets > 0) * place).amax(1)
    return replace(inputs, lengths=last + 1), (target := targets.gather(1, last[:, None])), known[target]


def causal(event_S: Tensor) -> Tensor:
    """(S, S) bool: a place sees those of its own event and of all before."""
    return event_S[None, :] <= event_S[:, None]


def before(event_S: Tensor, width: int, each: int) -> Tensor:
    """(width * each, S) bool: what ``each`` queries of the target after event t, t < width, see: events up to t."""
    return event_S[None, :] <= target_of(width, each, event_S.device)[:, None]


def within(width: int, each: int, device: torch.device) -> Tensor:
    """(width * each, width * each) bool: queries of one target see each other, and none of another."""
    target = target_of(width, each, device)
    return target[None, :] == target[:, None]


def target_of(width: int, each: int, device: torch.device) -> Tensor:
    """(width * each,) which target each query is of, which is the event after which it asks."""
    return torch.arange(width, device=device).repeat_interleave(each)
