"""Base class of models that predict all codes of an item at once, so that scores of the whole catalogue are exact.

Given the history the codes are independent: the log-probability of an item is the sum, over the levels, of the
log-probabilities of its codes. B batch, I items, L levels of all kinds of ids, V codes of a level, D width, M targets,
K results.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.decoding import exact_top
from recpipe.decoding.exact import BEAM_FACTOR, exact_scores, normalise_over_items
from recpipe.decoding.fusion import tune_mixture
from recpipe.layers.code_tokens import ItemCodes, tokens_of_kind
from recpipe.layers.softmax import item_cross_entropy
from recpipe.models.generator import SearchRequest, TreeSearcher, items_of
from recpipe.models.recommender import Lists, Scorer
from recpipe.semantic_ids.ids import CatalogueIds

MODALITY_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first of two kinds of ids, for ``tune``
MIN_BRANCH_AND_BOUND = 1_000_000  # items from which on branch and bound is faster than scoring all, for few users


class ParallelCodesConfig(Protocol):
    """Settings that the base class reads.

    ``softmax: items``: one softmax over the items instead of one per level. ``search: exact``, or the name of another.
    ``modality_weights``: of the mixture of several kinds of ids, in their order; None: even, and of two kinds chosen on
    the validation fold after training.
    """

    @property
    def softmax(self) -> str:
        """``items`` for one softmax over the items, otherwise one per level."""

    @property
    def search(self) -> str:
        """``exact`` or the name of an approximate search."""

    @property
    def modality_weights(self) -> tuple[float, ...] | None:
        """Weights of the mixture of several kinds of ids, in their order; None: see above."""


class ParallelCodes(Scorer, TreeSearcher):
    """Base class of models that predict all codes at once; scores are log-probabilities of items by their ids.

    Items without any id cannot be recommended. Of several kinds of ids the probability of an item is a mixture of those
    by each, 0 where it has none of a kind. Branch and bound over the prefix tree computes the lists of more than
    ``MIN_BRANCH_AND_BOUND`` items, the same ones. Subclasses write ``level_log_probs`` and ``loss``. Raises ValueError
    if the number of ``modality_weights`` is not that of the kinds of ids.
    """

    reads_ids = True
    losses = ("full_softmax",)
    tuned = ("modality_weights",)
    approximate_search: ClassVar[str] = "beam search"  # the search whose error ``beam_error`` measures
    config: Any
    modality_weights: Tensor  # (kinds of ids,), of several

    def __init__(
        self,
        config: ParallelCodesConfig,
        *,
        n_items: int,
        max_length: int,
        ids: Mapping[str, CatalogueIds],
        unique: bool = False,
    ) -> None:
        """``unique``: the prefix tree refuses ids that items share."""
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.modality, *others = self.names = tuple(ids)
        self.codes = ItemCodes(ids[self.modality], unique=unique)
        self.other_codes = nn.ModuleDict({name: ItemCodes(ids[name], unique=False) for name in others})
        self.sizes = [size for book in self.books for size in book.sizes]
        self.levels = len(self.sizes)
        stops = np.cumsum([book.levels for book in self.books]).tolist()
        self.spans = [slice(stop - book.levels, stop) for book, stop in zip(self.books, stops, strict=True)]
        weights = config.modality_weights or [1.0] * len(self.names)
        if len(weights) != len(self.names):
            kinds = ", ".join(self.names)
            raise ValueError(f"modality_weights are {config.modality_weights}; the model reads {kinds}")
        if others:
            self.register_buffer("modality_weights", torch.tensor(weights, dtype=torch.float32) / sum(weights))

    @abstractmethod
    def level_log_probs(self, batch: Batch) -> list[Tensor]:
        """Return L log-probabilities (B, V_l) of codes; with ``softmax: items`` up to a constant per user."""

    @property
    def books(self) -> list[ItemCodes]:
        """Codes of every kind of ids."""
        return [self.codes, *(cast("ItemCodes", codes) for codes in self.other_codes.values())]

    @property
    def tokens(self) -> Tensor:
        """Tokens (I + 1, L) of every item in all kinds of ids."""
        books = self.books
        return torch.cat([tokens_of_kind(books, m) for m in range(len(books))], 1)

    def item_codes(self) -> dict[str, ItemCodes]:
        """Return the semantic ids of items by kind."""
        return dict(zip(self.names, self.books, strict=True))

    def kinds(self) -> list[tuple[ItemCodes, slice]]:
        """Return codes and levels of every kind of ids."""
        return list(zip(self.books, self.spans, strict=True))

    def item_loss(
        self,
        logits: Sequence[Tensor],
        items_M: Tensor,
        book: ItemCodes,
        among: Tensor | None,
        weights_M: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy (scalar) of M targets among the items ``among`` by their ids in ``book``.

        ``logits`` are L tensors (M, V_l), a level each: an item's logit is the sum of those of its codes. ``among`` (I
        + 1,) bool, None for all items; ``weights_M`` of the targets.
        """
        items = book.has_id if among is None else book.has_id & among
        return item_cross_entropy(logits, book.codes[items], items.cumsum(0)[items_M] - 1, weights_M)

    def log_probabilities(self, batch: Batch) -> list[Tensor]:
        """Return L log-probabilities (B, V_l) of the next item's codes.

        Those of a kind of ids sum to the log-probability of an item by its id of this kind.
        """
        log_probs = self.level_log_probs(batch)
        if self.config.softmax == "items":
            kinds = (normalise_over_items(log_probs[span], book.codes[book.has_id]) for book, span in self.kinds())
            return [level for kind in kinds for level in kind]
        return log_probs

    def score(self, batch: Batch) -> Tensor:
        """Return log-probabilities (B, I + 1) of items, -inf for items without an id."""
        log_probs = self.level_log_probs(batch)
        parts = [self._item_scores(log_probs[span], book) for book, span in self.kinds()]
        if len(parts) == 1:
            return parts[0]
        return (torch.stack(parts) + self.modality_weights.log()[:, None, None]).logsumexp(0)

    def _item_scores(self, log_probs: list[Tensor], book: ItemCodes) -> Tensor:
        """Log-probabilities (B, I + 1) of items by their ids in ``book``, -inf without one."""
        scores = log_probs[0].new_full((len(log_probs[0]), self.n_items + 1), -torch.inf)
        rows = torch.from_numpy(book.rows).to(scores.device)
        sums = exact_scores(log_probs, book.codes[rows])
        scores[:, rows] = sums.log_softmax(1) if self.config.softmax == "items" else sums
        return scores

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """Choose the weight of the first of two kinds of ids by ``validate()``; return it, or nothing if it is set."""
        if len(self.names) != 2 or self.config.modality_weights is not None:
            return {}
        return {self.modality: tune_mixture(self.modality_weights, MODALITY_WEIGHTS, validate)}

    @property
    def searches(self) -> bool:
        """Whether an approximate search is configured in place of ``search: exact``."""
        return bool(self.config.search != "exact")

    def beams(self, k: int) -> int:
        """Return the width of the beam search that gives branch and bound its bound for ``k`` items."""
        return BEAM_FACTOR * k

    def search_batch(self, batch: Batch, k: int, request: SearchRequest) -> tuple[Tensor, Tensor]:
        """Return the best ``k`` items (B, k), 0 for none, and log-probabilities (B, k), by branch and bound."""
        log_probs, k = self.log_probabilities(batch), min(k, len(self.codes.rows))
        seen, allowed = request.seen_rows(self.codes), request.allowed_rows(self.codes)
        return items_of(exact_top(log_probs, self.codes.tree, k, seen=seen, allowed=allowed), self.codes)

    def top_k_batches(self, histories: Sequences, k: int, **options: Any) -> Lists:
        """Yield lists as ``TreeSearcher`` for large catalogues under ``search: exact``, otherwise as ``Scorer``."""
        large = self.config.search == "exact" and len(self.codes.rows) > MIN_BRANCH_AND_BOUND and not self.history_bias
        base = TreeSearcher if large and len(self.names) == 1 and self.ids_are_unique() else Scorer
        yield from base.top_k_batches(self, histories, k, **options)

    def ids_are_unique(self) -> bool:
        """Return whether no two items share an id."""
        codes = self.codes.codes[self.codes.has_id]
        return len(torch.unique(codes, dim=0)) == len(codes)


def check_modality_weights(weights: tuple[float, ...] | None) -> None:
    """Raise ValueError for weights of a mixture that are negative or all 0."""
    if weights is not None and (min(weights, default=0) < 0 or sum(weights) <= 0):
        raise ValueError(f"modality_weights are {weights}; each is at least 0, and one is above")
