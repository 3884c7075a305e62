"""Base classes of models that search the prefix tree of semantic ids instead of scoring the whole catalogue.

B batch, I items, K results, U users.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch, Features
from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems, candidates_of
from recpipe.decoding import Beams, LevelDecoder, beam_search
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.code_transformer import CodeShape, CodeTransformer
from recpipe.layers.top_k import top_k
from recpipe.models.recommender import Lists, Recommender

EVENTS_CPU = 1 << 12  # events of histories in a batch, which fit a CPU's cache
EVENTS_GPU = 1 << 15
BEAMS_GPU = 1 << 15  # in a batch: some 110 KiB each in TIGER of the paper's size, 3.5 GiB


class SearchRequest(NamedTuple):
    """Constraints of a search for a batch of users.

    ``stochastic``: draw a sample instead of the best items. ``whole_catalogue``: probabilities among all items, not
    only those that a user may get.
    """

    seen: tuple[Tensor, Tensor] | None  # excluded: offsets (B + 1,) and items (n,)
    candidates: Tensor | None  # (I + 1,) or (B, I + 1) bool
    stochastic: torch.Generator | None = None
    whole_catalogue: bool = False

    def seen_rows(self, codes: ItemCodes) -> tuple[Tensor, Tensor] | None:
        """Return ``seen`` as offsets (B + 1,) and rows (n,) of the tree of ``codes`` instead of items."""
        return None if self.seen is None else (self.seen[0], codes.row_of.to(self.seen[1].device)[self.seen[1]])

    def allowed_rows(self, codes: ItemCodes) -> Tensor | None:
        """Return the candidates among the rows (N,) or (B, N) of the tree of ``codes``, bool."""
        mask = self.candidates
        return None if mask is None else mask[..., torch.from_numpy(codes.rows).to(mask.device)]

    def mask(self, scores: Tensor) -> Tensor:
        """Set scores (B, I + 1) to -inf, in place, for padding, seen items and items that are no candidates."""
        scores[:, 0] = -torch.inf
        if self.candidates is not None:
            scores.masked_fill_(~self.candidates, -torch.inf)
        if self.seen is not None:
            offsets, items = self.seen
            scores[torch.arange(len(scores), device=items.device).repeat_interleave(offsets.diff()), items] = -torch.inf
        return scores


def items_of(beams: Beams, codes: ItemCodes) -> tuple[Tensor, Tensor]:
    """Return items (B, k), 0 for none, and scores of the results of a search in the tree of ``codes``."""
    rows = torch.from_numpy(codes.rows).to(beams.items.device)
    return torch.where(beams.items >= 0, rows[beams.items.clamp(min=0)], 0), beams.scores.float()


def search_buckets(lengths: np.ndarray, rows: np.ndarray, device: torch.device, *, beams: int) -> list[np.ndarray]:
    """Split users ``rows`` (U,) into batches of similar length, sized for a search with ``beams`` per user.

    ``lengths`` (all users,) are events per user; the result is a list of rows (B,).
    """
    if device.type == "cpu":
        return length_buckets(lengths + 1, rows, EVENTS_CPU)
    size, large = max(BEAMS_GPU // beams, 1), length_buckets(lengths + 1, rows, EVENTS_GPU)
    return [bucket[start : start + size] for bucket in large for start in range(0, len(bucket), size)]


class TreeSearcher(Recommender):
    """Base class of models that make a list by a search over the prefix tree of semantic ids.

    ``scores_catalogue``: ``search_batch`` needs tensors (B, I + 1), which limit the size of a batch.
    """

    takes_weights = True
    scores_catalogue: ClassVar[bool] = False
    codes: ItemCodes  # of the ids that are searched
    modality: str

    def item_codes(self) -> dict[str, ItemCodes]:
        """Return the codes of the modality that is searched."""
        return {self.modality: self.codes}

    def cached_weights(self) -> AbstractContextManager[None]:
        """Return a context in which weights must not change."""
        return nullcontext()

    @abstractmethod
    def beams(self, k: int) -> int:
        """Return the number of beams per user in a search for ``k`` items. Raises ValueError for too many items."""

    def sampler(self) -> torch.Generator | None:
        """Return the random generator of a stochastic search, None for the best items."""
        return None

    @abstractmethod
    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the best ``k`` items (B, k), 0 for none, and their scores."""

    @torch.inference_mode()
    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
        stochastic: torch.Generator | None = None,
        whole_catalogue: bool = False,
    ) -> Lists:
        """Yield lists in batches of similar length. ``stochastic``: a sample without replacement instead of the best.

        By default as the model is configured. ``whole_catalogue``: see ``SearchRequest``. Cold users get
        log-probabilities of their segment. Raises ValueError for NaN.
        """
        self.eval()
        stochastic = self.sampler() if stochastic is None else stochastic
        data = self.on_device(histories, window=self.max_length)
        cold = self.needs_fallback(histories)
        seen = UserItems.of_histories(histories) if exclude_seen else excluded
        seen = seen.joined(excluded) if seen is not None and exclude_seen else seen
        with self.cached_weights():
            buckets = search_buckets(data.lengths, np.flatnonzero(~cold), self.device, beams=self.beams(k))
            if self.scores_catalogue or isinstance(candidates, UserItems) or whole_catalogue:  # tensors (B, I + 1)
                buckets = [rows for bucket in buckets for rows in self.score_blocks(bucket)]
            for rows in buckets:
                request = SearchRequest(*self._restrictions(rows, seen, candidates), stochastic, whole_catalogue)
                yield rows, *_pad(*self.search_batch(data.batch(rows), k, request), k)
        for rows in self.score_blocks(np.flatnonzero(cold)):
            scores = self.cold_scores(histories, rows)
            self.mask_scores(scores, histories, rows, exclude_seen=False, candidates=candidates, excluded=seen)
            yield rows, *_pad(*top_k(scores, k), k)

    def _restrictions(
        self, rows: np.ndarray, seen: UserItems | None, candidates: Candidates | None
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """Excluded items and candidates of the users ``rows`` as tensors of a ``SearchRequest``."""
        mask = candidates_of(candidates, rows)
        if isinstance(mask, UserItems):
            mask = mask.mask(self.n_items)
        mask = None if mask is None else mask.to(self.device)
        if seen is None:
            return None, mask
        selection = seen.select(rows)
        return (
            torch.from_numpy(selection.offsets).to(self.device),
            torch.from_numpy(selection.items).to(self.device),
        ), mask


@dataclass(frozen=True)
class GeneratorConfig(CodeShape):
    """Settings of an encoder–decoder and of the beam search over it; see ``recpipe.decoding.beam_search``.

    ``temperatures``: one for each level. ``stochastic``: lists are a sample without replacement, drawn with
    ``sample_seed``, instead of the best items.
    """

    beam: int = 20
    temperatures: tuple[float, ...] | None = None
    stochastic: bool = False
    sample_seed: int = 0


class Generator(TreeSearcher):
    """Base class of models that generate ids level by level, by constrained beam search over ``steps``.

    Scores are log-probabilities of items. Items without an id cannot be recommended.
    """

    reads_ids = True
    search_settings: ClassVar[tuple[str, ...]] = ("beam", "renormalise", "temperatures", "stochastic", "sample_seed")
    config: GeneratorConfig
    transformer: CodeTransformer

    def features(self, sequences: Sequences) -> Features:
        """Return the features of users (U, M) that the encoder's first token reads."""
        return self.transformer.input.features(sequences.users)

    def cached_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the transformer caches values derived from its weights, which must not change."""
        return self.transformer.cached_weights()

    @property
    def searches(self) -> bool:
        """True: lists come from a beam search."""
        return True

    @abstractmethod
    def steps(self, batch: Batch) -> LevelDecoder:
        """Return the decoding steps for the users of ``batch``."""

    def beams(self, k: int) -> int:
        """Return ``config.beam``. Raises ValueError if ``k`` is greater."""
        if k > self.config.beam:
            raise ValueError(f"k is {k} and the beam {self.config.beam}; set models.<name>.beam to {k} or more")
        return self.config.beam

    def sampler(self) -> torch.Generator | None:
        """Return a generator seeded by ``sample_seed`` if ``stochastic`` is set, otherwise None."""
        return torch.Generator().manual_seed(self.config.sample_seed) if self.config.stochastic else None

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best items (B, k) by beam search, 0 for none, and their log-probabilities (B, k)."""
        return self.search(self.codes, self.steps(batch), k, request)

    def search(self, codes: ItemCodes, steps: LevelDecoder, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the best ``k`` items (B, k) by their ``codes``, 0 for none, and log-probabilities."""
        beams = beam_search(
            steps,
            codes.tree,
            beam=self.config.beam,
            k=k,
            seen=request.seen_rows(codes),
            allowed=request.allowed_rows(codes),
            temperatures=self.config.temperatures,
            renormalise=self.config.renormalise,
            whole_catalogue=request.whole_catalogue,
            stochastic=request.stochastic,
        )
        return items_of(beams, codes)

    def allowed_count(
        self, histories: Sequences, *, exclude_seen: bool, candidates: Tensor | None = None
    ) -> np.ndarray:
        """Return the number (U,) int64 of items that each user's list is chosen from."""
        free = self.items_with_ids()
        if candidates is not None:
            free &= candidates.cpu().numpy()
        count = np.full(len(histories), int(free.sum()))
        if exclude_seen:
            start = 0
            for part in histories.parts():
                owner = np.repeat(np.arange(len(part)), part.lengths)
                pairs = np.unique(np.stack([owner, part.items]), axis=1)
                seen = np.bincount(pairs[0], weights=free[pairs[1]], minlength=len(part))
                count[start : start + len(part)] -= seen.astype(np.int64)
                start += len(part)
        return count


def _pad(items: Tensor, scores: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad lists to ``k`` items with item 0 and score -inf."""
    padding = ((0, 0), (0, k - items.shape[1]))
    padded_items = np.pad(items.cpu().numpy().astype(np.int32), padding)
    return padded_items, np.pad(scores.cpu().numpy(), padding, constant_values=-np.inf)
