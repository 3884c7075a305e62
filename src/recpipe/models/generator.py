"""The half for models that generate ids code by code: they write what one level needs, the half searches the catalogue.

B batch, I items, K results, U users.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.decoding import Beams, Steps, beam_search
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.top_k import top_k
from recpipe.models.recommender import SCORES_AT_ONCE, Recommender

AT_ONCE = 1 << 12  # events of histories in a batch: what a CPU's cache holds
AT_ONCE_GPU = 1 << 15
BEAMS_GPU = 1 << 15  # of a batch: some 110 KiB each in TIGER of the paper's size, 3.5 GiB


class Limits(NamedTuple):
    """What may be found: ``seen`` may not, offsets (B + 1,) and items (n,); ``candidates`` (I + 1,) bool may."""

    seen: tuple[Tensor, Tensor] | None
    candidates: Tensor | None
    stochastic: torch.Generator | None = None  # a sample instead of the best

    def rows_of(self, codes: ItemCodes) -> dict[str, Any]:
        """``seen`` and ``allowed`` by the rows of a tree, as searches of ``recpipe.decoding`` take them."""
        seen, allowed = None, None
        if self.seen is not None:
            offsets, items = self.seen
            seen = (offsets, codes.row_of.to(items.device)[items])
        if self.candidates is not None:
            allowed = self.candidates[torch.from_numpy(codes.rows).to(self.candidates.device)]
        return {"seen": seen, "allowed": allowed}


def items_of(found: Beams, codes: ItemCodes) -> tuple[Tensor, Tensor]:
    """Items (B, k), 0 for none, and scores of what was found in the tree of ``codes``."""
    rows, there = torch.from_numpy(codes.rows).to(found.items.device), found.items >= 0
    return torch.where(there, rows[found.items.clamp(min=0)], 0), found.scores.float()


def in_batches(
    lengths: np.ndarray, rows: np.ndarray, device: torch.device, *, beams: int
) -> list[np.ndarray]:
    """``rows`` cut into batches of like length, as large as a search with ``beams`` of a user is fast with."""
    if device.type == "cpu":
        return length_buckets(lengths + 1, rows, AT_ONCE)
    most, large = max(BEAMS_GPU // beams, 1), length_buckets(lengths + 1, rows, AT_ONCE_GPU)
    return [part for each in large for part in np.split(each, range(most, len(each), most))]


class Searching(Recommender):
    """What finds lists in the tree of its ids, user by user, instead of scoring the whole catalogue."""

    def cached_weights(self) -> AbstractContextManager[None]:
        """Inside, weights stay as they are."""
        return nullcontext()

    @abstractmethod
    def beams(self, k: int) -> int:
        """How many a search for ``k`` items has of each user."""

    @abstractmethod
    def found(self, batch: Batch, k: int, limits: Limits) -> tuple[Tensor, Tensor]:
        """The best ``k`` items (B, k), 0 for none, and their scores."""

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        yield from self.searched(histories, k, exclude_seen=exclude_seen, candidates=candidates)

    @torch.inference_mode()
    def searched(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool,
        candidates: Tensor | None,
        stochastic: torch.Generator | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows (B,), items (B, k), scores (B, k)) over all users, in batches of like length.

        Item 0 with score -inf where fewer can be had. ``stochastic``: a sample without replacement instead of the
        best. Rows that fall back have log-probabilities of their segment. Raises ValueError for NaN.
        """
        self.eval()
        data = self.on_device(histories, window=self.max_length)
        cold = self.needs_fallback(histories)
        with self.cached_weights():
            for rows in in_batches(data.lengths, np.flatnonzero(~cold), self.device, beams=self.beams(k)):
                limits = self._limits(histories, rows, exclude_seen, candidates, stochastic)
                items, scores = self.found(data.batch(rows), k, limits)
                yield rows, *_filled(items.cpu().numpy().astype(np.int32), scores.cpu().numpy(), k)
        rows, most = np.flatnonzero(cold), max(SCORES_AT_ONCE // (self.n_items + 1), 1)
        for part in np.split(rows, range(most, len(rows), most)) if len(rows) else ():
            yield part, *_filled(*self._cold_list(histories, part, k, exclude_seen, candidates), k)

    def _limits(
        self,
        histories: Sequences,
        rows: np.ndarray,
        exclude_seen: bool,
        candidates: Tensor | None,
        stochastic: torch.Generator | None,
    ) -> Limits:
        seen = None
        if exclude_seen:
            chosen = histories.select(rows, np.zeros(len(rows), np.int64), histories.lengths[rows])
            items = torch.from_numpy(chosen.items.astype(np.int64)).to(self.device)
            seen = (torch.from_numpy(chosen.offsets).to(self.device), items)
        return Limits(seen, None if candidates is None else candidates.to(self.device), stochastic)

    def _cold_list(
        self,
        histories: Sequences,
        rows: np.ndarray,
        k: int,
        exclude_seen: bool,
        candidates: Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = self.cold_scores(histories, rows)
        self.mask_scores(scores, histories, rows, exclude_seen=exclude_seen, candidates=candidates)
        best, values = top_k(scores, k)
        return best.cpu().numpy().astype(np.int32), values.cpu().numpy()


class Generator(Searching):
    """Finds the items by constrained beam search, ``config.beam`` wide: lists, not scores of the whole catalogue.

    A model of several kinds of ids writes ``found`` instead of ``steps``. ``config`` may have ``temperatures`` and
    ``renormalise`` of ``recpipe.decoding.beam_search``. Scores are the model's log-probabilities of items. What has no
    id cannot be recommended.
    """

    reads_ids = True
    codes: ItemCodes  # those that are searched
    modality: str

    def item_codes(self) -> dict[str, ItemCodes]:
        return {self.modality: self.codes}

    @abstractmethod
    def steps(self, batch: Batch) -> Steps:
        """What is searched, for the users of ``batch``."""

    def beams(self, k: int) -> int:
        return self.config.beam

    def found(self, batch: Batch, k: int, limits: Limits) -> tuple[Tensor, Tensor]:
        return self.search(self.codes, self.steps(batch), k, limits)

    def search(self, codes: ItemCodes, steps: Steps, k: int, limits: Limits) -> tuple[Tensor, Tensor]:
        """The best ``k`` items (B, k) by their ``codes``, 0 for none, and log-probabilities."""
        found = beam_search(
            steps,
            codes.tree,
            beam=self.config.beam,
            k=k,
            **limits.rows_of(codes),
            temperatures=getattr(self.config, "temperatures", None),
            renormalise=getattr(self.config, "renormalise", False),
            stochastic=limits.stochastic,
        )
        return items_of(found, codes)

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
        stochastic: torch.Generator | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """``stochastic``: a sample instead of the best. Raises ValueError for k of more than the beam."""
        if k > self.config.beam:
            raise ValueError(
                f"{k} items are asked for and the beam is {self.config.beam} wide; set models.<name>.beam to {k}"
            )
        yield from self.searched(
            histories, k, exclude_seen=exclude_seen, candidates=candidates, stochastic=stochastic
        )

    def allowed_count(
        self, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None = None
    ) -> np.ndarray:
        """(U,) int64: of how many items a list may be made."""
        free = np.zeros(self.n_items + 1, bool)
        for codes in self.item_codes().values():
            free[codes.rows] = True
        if candidates is not None:
            free &= candidates.cpu().numpy()
        count = np.full(len(histories), int(free.sum()))
        if exclude_seen:
            owner = np.repeat(np.arange(len(histories)), histories.lengths)
            pairs = np.unique(np.stack([owner, histories.items]), axis=1)
            count -= np.bincount(pairs[0], weights=free[pairs[1]], minlength=len(histories)).astype(np.int64)
        return count


def _filled(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    missing = ((0, 0), (0, k - items.shape[1]))
    return np.pad(items, missing), np.pad(scores, missing, constant_values=-np.inf)
