"""Base classes of models that search the prefix tree of semantic ids instead of scoring the whole catalogue.

B batch, I items, K results, U users.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.decoding import Beams, LevelDecoder, beam_search
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.code_transformer import CodeShape, CodeTransformer
from recpipe.layers.top_k import top_k
from recpipe.models.recommender import SCORES_AT_ONCE, Lists, Recommender

EVENTS_CPU = 1 << 12  # events of histories in a batch, which fit a CPU's cache
EVENTS_GPU = 1 << 15
BEAMS_GPU = 1 << 15  # in a batch: some 110 KiB each in TIGER of the paper's size, 3.5 GiB


class TreeConstraints(TypedDict):
    """Arguments of the searches in ``recpipe.decoding``."""

    seen: tuple[Tensor, Tensor] | None
    allowed: Tensor | None


class SearchRequest(NamedTuple):
    """Which items a batch of users may get: none of ``seen``, offsets (B + 1,) and items (n,); ``candidates`` (I + 1,).

    ``stochastic``: a sample instead of the best.
    """

    seen: tuple[Tensor, Tensor] | None
    candidates: Tensor | None
    stochastic: torch.Generator | None = None

    def constraints(self, codes: ItemCodes) -> TreeConstraints:
        """The same by the rows of the tree of ``codes``."""
        seen, allowed = None, None
        if self.seen is not None:
            offsets, items = self.seen
            seen = (offsets, codes.row_of.to(items.device)[items])
        if self.candidates is not None:
            allowed = self.candidates[torch.from_numpy(codes.rows).to(self.candidates.device)]
        return {"seen": seen, "allowed": allowed}


def items_of(beams: Beams, codes: ItemCodes) -> tuple[Tensor, Tensor]:
    """Items (B, k), 0 for none, and scores of the results of a search in the tree of ``codes``."""
    rows = torch.from_numpy(codes.rows).to(beams.items.device)
    return torch.where(beams.items >= 0, rows[beams.items.clamp(min=0)], 0), beams.scores.float()


def search_buckets(lengths: np.ndarray, rows: np.ndarray, device: torch.device, *, beams: int) -> list[np.ndarray]:
    """``rows`` in batches of similar length, as large as a search with ``beams`` per user is fast with."""
    if device.type == "cpu":
        return length_buckets(lengths + 1, rows, EVENTS_CPU)
    size, large = max(BEAMS_GPU // beams, 1), length_buckets(lengths + 1, rows, EVENTS_GPU)
    return [part for each in large for part in np.split(each, range(size, len(each), size))]


class TreeSearcher(Recommender):
    """A model that searches the tree of its ids, user by user."""

    def cached_weights(self) -> AbstractContextManager[None]:
        """Context in which weights must not change."""
        return nullcontext()

    @abstractmethod
    def beams(self, k: int) -> int:
        """Number of beams per user in a search for ``k`` items."""

    @abstractmethod
    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """The best ``k`` items (B, k), 0 for none, and their scores."""

    def top_k_batches(
        self, histories: Sequences, k: int, *, exclude_seen: bool = True, candidates: Tensor | None = None
    ) -> Lists:
        yield from self.search_batches(histories, k, exclude_seen=exclude_seen, candidates=candidates)

    @torch.inference_mode()
    def search_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool,
        candidates: Tensor | None,
        stochastic: torch.Generator | None = None,
    ) -> Lists:
        """Yield (rows (B,), items (B, k), scores (B, k)) over all users, in batches of similar length.

        Item 0 with score -inf where there are fewer. ``stochastic``: a sample without replacement instead of the best.
        Cold users get log-probabilities of their segment. Raises ValueError for NaN.
        """
        self.eval()
        data = self.on_device(histories, window=self.max_length)
        cold = self.needs_fallback(histories)
        candidates = None if candidates is None else candidates.to(self.device)
        with self.cached_weights():
            for rows in search_buckets(data.lengths, np.flatnonzero(~cold), self.device, beams=self.beams(k)):
                seen = self._seen(histories, rows) if exclude_seen else None
                request = SearchRequest(seen, candidates, stochastic)
                items, scores = self.search_batch(data.batch(rows), k, request)
                yield rows, *_padded(items.cpu().numpy().astype(np.int32), scores.cpu().numpy(), k)
        rows, size = np.flatnonzero(cold), max(SCORES_AT_ONCE // (self.n_items + 1), 1)
        for part in np.split(rows, range(size, len(rows), size)) if len(rows) else ():
            scores = self.cold_scores(histories, part)
            self.mask_scores(scores, histories, part, exclude_seen=exclude_seen, candidates=candidates)
            best, values = top_k(scores, k)
            yield part, *_padded(best.cpu().numpy().astype(np.int32), values.cpu().numpy(), k)

    def _seen(self, histories: Sequences, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = histories.select(rows, np.zeros(len(rows), np.int64), histories.lengths[rows])
        items = torch.from_numpy(chosen.items.astype(np.int64)).to(self.device)
        return torch.from_numpy(chosen.offsets).to(self.device), items


@dataclass(frozen=True)
class GeneratorConfig(CodeShape):
    """Settings of an encoder–decoder and of the beam search over it; see ``recpipe.decoding.beam_search``."""

    beam: int = 20

    @property
    def level_temperatures(self) -> tuple[float, ...] | None:
        """A temperature for each code level; None: 1."""
        return None


class Generator(TreeSearcher):
    """A model that generates ids level by level, by constrained beam search; subclasses write ``steps``.

    Scores are log-probabilities of items. Items without an id cannot be recommended.
    """

    reads_ids = True
    config: GeneratorConfig
    codes: ItemCodes  # of the ids that are searched
    modality: str
    transformer: CodeTransformer

    def on_device(self, sequences: Sequences, *, window: int) -> DeviceSequences:
        features = self.transformer.input.features(sequences.users)
        return DeviceSequences(sequences, window=window, device=self.device, features=features)

    def cached_weights(self) -> AbstractContextManager[None]:
        return self.transformer.cached_weights()

    def item_codes(self) -> dict[str, ItemCodes]:
        return {self.modality: self.codes}

    @abstractmethod
    def steps(self, batch: Batch) -> LevelDecoder:
        """Decoding steps for the users of ``batch``."""

    def beams(self, k: int) -> int:
        return self.config.beam

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        return self.search(self.codes, self.steps(batch), k, request)

    def search(self, codes: ItemCodes, steps: LevelDecoder, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """The best ``k`` items (B, k) by their ``codes``, 0 for none, and log-probabilities."""
        beams = beam_search(
            steps,
            codes.tree,
            beam=self.config.beam,
            k=k,
            **request.constraints(codes),
            temperatures=self.config.level_temperatures,
            renormalise=self.config.renormalise,
            stochastic=request.stochastic,
        )
        return items_of(beams, codes)

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
        stochastic: torch.Generator | None = None,
    ) -> Lists:
        """``stochastic``: a sample instead of the best. Raises ValueError for k above the beam."""
        if k > self.config.beam:
            raise ValueError(f"k is {k} and the beam {self.config.beam}; set models.<name>.beam to {k} or more")
        yield from self.search_batches(
            histories, k, exclude_seen=exclude_seen, candidates=candidates, stochastic=stochastic
        )

    def allowed_count(
        self, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None = None
    ) -> np.ndarray:
        """(U,) int64: number of items that each user's list is chosen from."""
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


def _padded(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    missing = ((0, 0), (0, k - items.shape[1]))
    return np.pad(items, missing), np.pad(scores, missing, constant_values=-np.inf)
