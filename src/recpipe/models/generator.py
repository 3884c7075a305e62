"""The half for models that generate ids code by code: they write what one level needs, the half searches the catalogue.

B batch, I items, K results, U users.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batches import Batch, in_buckets
from recpipe.data.sequences import Sequences
from recpipe.decoding import Steps, beam_search
from recpipe.layers.codes import ItemCodes
from recpipe.models.ordering import top_k
from recpipe.models.recommender import Recommender

AT_ONCE = 1 << 12  # events of histories in a batch; beams multiply what a user costs


class Generator(Recommender):
    """Finds the items by constrained beam search, ``config.beam`` wide: lists, not scores of the whole catalogue.

    ``config`` may have ``temperatures`` and ``renormalise`` of ``recpipe.decoding.beam_search``. Scores are the
    model's log-probabilities of items. What has no id cannot be recommended.
    """

    reads_ids = True
    codes: ItemCodes  # those that are searched
    modality: str

    def item_codes(self) -> dict[str, ItemCodes]:
        return {self.modality: self.codes}

    @abstractmethod
    def steps(self, batch: Batch) -> Steps:
        """What is searched, for the users of ``batch``."""

    @torch.inference_mode()
    def listed(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
        stochastic: torch.Generator | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows (B,), items (B, k), scores (B, k)) over all users, in batches of like length.

        Item 0 with score -inf where fewer can be had. ``stochastic``: a sample without replacement instead of the
        best. Rows that fall back have log-probabilities of their segment. Raises ValueError for k of more than the
        beam and for NaN.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        if (most := min(k, self.n_items)) > self.config.beam:
            raise ValueError(
                f"{k} items are asked for and the beam is {self.config.beam} wide; set models.<name>.beam to {most}"
            )
        self.eval()
        data = self.on_device(histories, window=self.max_length)
        cold = self.falls_back(histories)
        for rows in in_buckets(data.lengths + 1, np.flatnonzero(~cold), AT_ONCE):
            items, scores = self._search(
                data.batch(rows), histories, rows, most, exclude_seen, candidates, stochastic
            )
            yield rows, *_filled(items, scores, k)
        if (rows := np.flatnonzero(cold)).size:
            yield rows, *_filled(*self._cold_list(histories, rows, most, exclude_seen, candidates), k)

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.n_items) if k >= 1 else k
        items = np.zeros((len(histories), max(k, 0)), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        for rows, found, values in self.listed(
            histories, k, exclude_seen=exclude_seen, candidates=candidates
        ):
            items[rows], scores[rows] = found, values
        return items, scores

    def allowed_count(
        self, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None = None
    ) -> np.ndarray:
        """(U,) int64: of how many items a list may be made."""
        free = np.zeros(self.n_items + 1, bool)
        free[self.codes.rows] = True
        if candidates is not None:
            free &= candidates.cpu().numpy()
        count = np.full(len(histories), int(free.sum()))
        if exclude_seen:
            owner = np.repeat(np.arange(len(histories)), histories.lengths)
            pairs = np.unique(np.stack([owner, histories.items]), axis=1)
            count -= np.bincount(pairs[0], weights=free[pairs[1]], minlength=len(histories)).astype(np.int64)
        return count

    def _search(
        self,
        batch: Batch,
        histories: Sequences,
        rows: np.ndarray,
        k: int,
        exclude_seen: bool,
        candidates: Tensor | None,
        stochastic: torch.Generator | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        codes, device = self.codes, self.device
        seen = None
        if exclude_seen:
            chosen = histories.select(rows, np.zeros(len(rows), np.int64), histories.lengths[rows])
            row_of = codes.row_of[torch.from_numpy(chosen.items.astype(np.int64))]
            seen = (torch.from_numpy(chosen.offsets).to(device), row_of.to(device))
        allowed = (
            None if candidates is None else candidates.to(device)[torch.from_numpy(codes.rows).to(device)]
        )
        found = beam_search(
            self.steps(batch),
            codes.tree,
            beam=self.config.beam,
            k=k,
            seen=seen,
            allowed=allowed,
            temperatures=getattr(self.config, "temperatures", None),
            renormalise=getattr(self.config, "renormalise", False),
            stochastic=stochastic,
        )
        places = found.items.cpu().numpy()
        items = np.where(places >= 0, codes.rows[places.clip(0)], 0)
        return items.astype(np.int32), found.scores.float().cpu().numpy()

    def _cold_list(
        self,
        histories: Sequences,
        rows: np.ndarray,
        k: int,
        exclude_seen: bool,
        candidates: Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = self.cold_scores(histories, rows)
        scores[:, 0] = -torch.inf
        if candidates is not None:
            scores.masked_fill_(~candidates.to(scores.device), -torch.inf)
        if exclude_seen:
            row, item = histories.events(rows)
            scores[torch.from_numpy(row), torch.from_numpy(item)] = -torch.inf
        best, values = top_k(scores, k)
        return best.cpu().numpy().astype(np.int32), values.cpu().numpy()


def _filled(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    missing = ((0, 0), (0, k - items.shape[1]))
    return np.pad(items, missing), np.pad(scores, missing, constant_values=-np.inf)
