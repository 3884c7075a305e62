"""Base classes: Recommender (interface), Scorer (of the whole catalogue), ClosedForm.

B batch, T time, I items (column 0 of scores is padding), N targets, D width, K results, U users.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch, DeviceSequences, Features
from recpipe.data.protocol import TIME_CHOICES
from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems
from recpipe.data.windows import Windows
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.inputs import ItemInput
from recpipe.layers.side import Side
from recpipe.layers.top_k import top_k
from recpipe.progress import progress

Criterion = Callable[..., Tensor]
"""(hidden (N, D), item table (I + 1, D), targets (N,) in 1..I, their weights (N,) or None) -> scalar loss."""

Lists = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Batches of top-k lists: rows of users (B,), items (B, K), scores (B, K)."""

SCORES_AT_ONCE = 1 << 25  # elements of a score matrix: 128 MiB


class Recommender(nn.Module, ABC):
    """Base class of models, which rank the catalogue for histories.

    ``config`` is a frozen dataclass ``Config`` whose fields are the keys of the model's conf block. ``cold_users``,
    if set, recommends to users without history. Class attributes declare abilities and inputs:

    - ``closed_form``: trained by ``fit``; otherwise by gradient on ``loss``.
    - ``probabilistic``: the softmax of the scores is the model's probability of the next item.
    - ``takes_side``: reads side information (block ``side``: features, content vectors, item vectors of another model).
      ``required_side``: keys of ``side`` that must be set. ``reads_ids``: reads semantic ids of items.
    - ``takes_weights``: events count by their weight; ``uses_weights`` says whether this model was trained so.
      Histories without weights, as in serving, have the weight 1 throughout.
    - ``losses``: names of the losses it can be trained with, empty for all; ``layouts``: of training batches.
    - ``tuned``: names of the buffers that ``tune`` sets, which training does not change.
    - ``history_bias``: added to the scores of items in the history (``train.history_bias``), by models of type Scorer.
    - ``search_settings``: settings that training does not read, so that a trained model can take other values.

    A setting ``time_mode`` says which times the model reads, with the values of ``Protocol.time``.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """No settings."""

    closed_form: ClassVar[bool] = False
    probabilistic: bool = True
    takes_side: ClassVar[bool] = False
    required_side: ClassVar[tuple[str, ...]] = ()
    reads_ids: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ("padded",)
    tuned: ClassVar[tuple[str, ...]] = ()
    search_settings: ClassVar[tuple[str, ...]] = ()
    config: Any
    cold_users: ColdUsers | None

    def __init__(self, config: object, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__()
        self.config, self.n_items, self.max_length, self.side = config, n_items, max_length, side
        self.cold_users = None
        self.uses_weights = False
        self.history_bias = 0.0

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar) of a batch of training sequences, of at most ``max_length + 1`` events each.

        Raises TypeError for a closed-form model.
        """
        raise TypeError(f"{type(self).__name__} is not trained by gradient")

    def fit(self, train: Sequences) -> None:
        """Fit a closed-form model to training events. Raises TypeError for a model that is trained by gradient."""
        raise TypeError(f"{type(self).__name__} is trained by gradient")

    def set_trained_items(self, mask: Tensor) -> None:
        """Take the items (I + 1,) bool with training events, before a training by gradient; ignored by default."""

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """Choose settings by ``validate()``, a metric of the validation fold, after training; return them by name."""
        return {}

    @abstractmethod
    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
    ) -> Lists:
        """Yield batches of rows (B,), items (B, K) and scores (B, K) as in ``recommend``, over all users."""

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the top-k items and their scores, both (U, K); item 0 with score -inf where there are fewer.

        ``candidates`` restricts the catalogue, for all users or for each; ``excluded`` are items that a user must not
        get, besides those of the history with ``exclude_seen``. Raises ValueError for k < 1 and for NaN scores.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        k = min(k, self.n_items)
        items = np.zeros((len(histories), k), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        restrictions: dict[str, Any] = {"exclude_seen": exclude_seen, "candidates": candidates, "excluded": excluded}
        with progress(len(histories), "rank users", unit="users") as bar:
            for rows, *lists in self.top_k_batches(histories, k, **restrictions):
                items[rows], scores[rows] = lists
                bar.add(len(rows))
        return items, scores

    @property
    def searches(self) -> bool:
        """Whether ranks come from a beam search, which may miss candidates."""
        return False

    def items_with_ids(self) -> np.ndarray:
        """Mark the items (I + 1,) that have semantic ids of any kind."""
        mask = np.zeros(self.n_items + 1, bool)
        for codes in self.item_codes().values():
            mask[codes.rows] = True
        return mask

    def mask_scores(
        self,
        scores: Tensor,
        histories: Sequences,
        rows: np.ndarray,
        *,
        exclude_seen: bool,
        candidates: Candidates | None,
        excluded: UserItems | None = None,
    ) -> Tensor:
        """Set ``scores`` (B, I + 1) of users ``rows`` to -inf, in place, for all items that they must not get.

        These are padding, items outside ``candidates``, ``excluded`` and, with ``exclude_seen``, those of the history.
        """
        device = scores.device
        scores[:, 0] = -torch.inf
        if isinstance(candidates, UserItems):
            scores.masked_fill_(~candidates.select(rows).mask(self.n_items, device), -torch.inf)
        elif candidates is not None:
            scores.masked_fill_(~candidates.to(device), -torch.inf)
        pairs = [histories.events(rows)] if exclude_seen else []
        if excluded is not None:
            selection = excluded.select(rows)
            pairs.append((selection.owner, selection.items))
        for row, item in (map(torch.from_numpy, pair) for pair in pairs):
            scores[row.to(device), item.to(device)] = -torch.inf
        return scores

    def needs_fallback(self, histories: Sequences) -> np.ndarray:
        """Return (U,) bool: users without a vocabulary item in the last ``max_length`` events; needs ``cold_users``."""
        if self.cold_users is None:
            return np.zeros(len(histories), bool)
        masks = []
        for part in histories.parts():
            counts, stop = np.concatenate([[0], np.cumsum(part.items > 0)]), part.offsets[1:]
            masks.append(counts[stop] == counts[np.maximum(part.offsets[:-1], stop - self.max_length)])
        return np.concatenate(masks)

    def cold_scores(self, histories: Sequences, rows: np.ndarray) -> Tensor:
        """Return the fallback's scores (n, I + 1) of users ``rows`` (n,)."""
        assert self.cold_users is not None
        none = np.zeros(len(rows), np.int64)
        return self.cold_users.scores(self.cold_users.segments(histories.select(rows, none, none)))

    def score_blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split ``rows`` (U,) so that the score matrix of a block (B,) has at most ``SCORES_AT_ONCE`` elements."""
        size = max(SCORES_AT_ONCE // (self.n_items + 1), 1)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def on_device(self, sequences: Sequences | Windows, *, window: int) -> DeviceSequences:
        """Prepare batches on the model's device, with the features it reads; weights only if it ``uses_weights``."""
        windows = Windows.of(sequences)
        windows = windows if self.uses_weights else windows.with_weights(None)
        return DeviceSequences(windows, window=window, device=self.device, features=self.features(windows.sequences))

    def features(self, sequences: Sequences) -> Features:
        """Return the features that the model reads of users (U, M) and events (N, M)."""
        return self.side.encode(sequences) if self.side is not None else {}

    @property
    def scores_by_content(self) -> bool:
        """Whether an item without training events is scored like any other, by its semantic id or its content."""
        return bool(self.item_codes())

    def item_vectors(self) -> Tensor:
        """Return the table (I + 1, D) that items are scored with, row 0 padding. Raises ValueError without a table."""
        raise ValueError(f"{type(self).__name__} has no vectors of items that another model could read")

    def item_tables(self) -> dict[str, Tensor]:
        """Return tables of item vectors (I + 1, D) for analysis, zero for padding and items without a vector.

        ``input``: for reading histories. ``output``: for scoring, if different. Further entries are parts of them.
        """
        try:
            return {"output": self.item_vectors()}
        except ValueError:
            return {}

    def item_codes(self) -> dict[str, ItemCodes]:
        """Return the semantic ids of items by modality; empty for a model without ids."""
        return {}

    @property
    def requires_time(self) -> str:
        """The least ``Protocol.time`` under which the model may be used: none, last_item or query."""
        time_mode = getattr(self.config, "time_mode", "none")
        side = "none" if self.side is None else self.side.config.requires_time
        return max(time_mode, side, key=TIME_CHOICES.index)

    @property
    def device(self) -> torch.device:
        """Device of the model's tensors."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a state dict {name: tensor} strictly; buffers take the shapes and types of the saved tensors."""
        for name, buffer in list(self.named_buffers()):
            if name in tensors and (buffer.shape, buffer.dtype) != (tensors[name].shape, tensors[name].dtype):
                owner, _, key = name.rpartition(".")
                empty = torch.empty_like(tensors[name], device=buffer.device)
                self.get_submodule(owner).register_buffer(key, empty)
        self.load_state_dict(dict(tensors), strict=True)
        for codes in self.item_codes().values():
            codes.forget()


class Scorer(Recommender):
    """Base class of models that score the whole catalogue at once.

    They implement ``query_vectors`` and ``output_vectors`` if a score is a product of two vectors, otherwise ``score``.
    ``dense_queries``: query vectors are computed from values (B, I + 1) of the whole catalogue.
    """

    dense_queries: ClassVar[bool] = False

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return vectors (B, D) of histories, to be multiplied with ``output_vectors``.

        Raises TypeError for a model whose scores are no such product.
        """
        raise TypeError(f"{type(self).__name__} has no query vectors: its scores are no product of two vectors")

    def output_vectors(self) -> Tensor:
        """Return vectors (I + 1, D) of items, row 0 padding, whose products with ``query_vectors`` are the scores.

        Raises TypeError for a model whose scores are no such product.
        """
        raise TypeError(f"{type(self).__name__} has no output vectors: its scores are no product of two vectors")

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1) of every item as the next one; column 0 is ignored."""
        return self.query_vectors(batch) @ self.output_vectors().T

    @property
    def scores_by_product(self) -> bool:
        """Whether scores are products of ``query_vectors`` and ``output_vectors``, so that an index can search them.

        Not with a ``history_bias``, which depends on the user.
        """
        return type(self).score is Scorer.score and not self.history_bias

    def refine(self, batch: Batch, scores: Tensor) -> Tensor:
        """Adjust masked ``scores`` (B, I + 1); -inf must stay. Does nothing by default."""
        return scores

    @torch.inference_mode()
    def score_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
        tokens: int = 1 << 15,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield rows (B,) and scores (B, I + 1) float32 over all users, in batches of at most ``tokens`` events.

        Scores are -inf for padding, items outside ``candidates``, ``excluded`` items and, with ``exclude_seen``, all
        items of the history, also beyond ``max_length``. Users who need the fallback get its scores. Raises ValueError
        for NaN scores.
        """
        restrictions: dict[str, Any] = {"exclude_seen": exclude_seen, "candidates": candidates, "excluded": excluded}
        for rows, batch in self.history_batches(histories, tokens=tokens):
            scores = self.cold_scores(histories, rows) if batch is None else self.score(batch).float()
            if self.history_bias and batch is not None:
                scores = self._with_history_bias(scores, histories, rows)
            if torch.isnan(scores.amax()):
                raise ValueError(f"{type(self).__name__} gives NaN scores; its weights are not usable")
            self.mask_scores(scores, histories, rows, **restrictions)
            yield rows, scores if batch is None else self.refine(batch, scores)

    def _with_history_bias(self, scores: Tensor, histories: Sequences, rows: np.ndarray) -> Tensor:
        """Add ``history_bias`` to the scores (B, I + 1) of the items in each user's whole history, once per item."""
        places = tuple(torch.from_numpy(part).to(scores.device) for part in histories.events(rows))
        return scores.index_put(places, scores[places] + self.history_bias)  # repeated items get one value

    def history_batches(
        self, histories: Sequences, *, tokens: int = 1 << 15, all_scores: bool = True
    ) -> Iterator[tuple[np.ndarray, Batch | None]]:
        """Yield rows (B,) and batches of at most ``tokens`` events over all users; None: they need the fallback.

        In evaluation mode and with cached weights. ``all_scores``: limit the rows so that scores (B, I + 1) fit in
        memory; those of users who need the fallback always are, and those of a model with ``dense_queries``.
        """
        self.eval()
        data = self.on_device(histories, window=self.max_length)
        cold = self.needs_fallback(histories)
        with self.cached_weights():
            for bucket in length_buckets(data.lengths, np.flatnonzero(~cold), tokens):
                for rows in self.score_blocks(bucket) if all_scores or self.dense_queries else [bucket]:
                    yield rows, data.batch(rows)
            for rows in self.score_blocks(np.flatnonzero(cold)):
                yield rows, None

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """Compute item tables once inside the context, for inference with fixed weights."""
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, ItemInput):
                    stack.enter_context(module.cached_weights())
            yield

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Candidates | None = None,
        excluded: UserItems | None = None,
    ) -> Lists:
        """Yield rows (B,), items (B, K) and scores (B, K) over all users, from the scores of the whole catalogue."""
        restrictions: dict[str, Any] = {"exclude_seen": exclude_seen, "candidates": candidates, "excluded": excluded}
        for rows, scores in self.score_batches(histories, **restrictions):
            items, values = top_k(scores, k)
            yield rows, items.cpu().numpy(), values.cpu().numpy()


class ClosedForm(Scorer):
    """Base class of models that are fitted without gradients and whose scores are not log-probabilities."""

    closed_form = True
    probabilistic = False
    _cache: Any = None  # computed from the buffers at the first ``score``

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a state dict {name: tensor} and drop what ``score`` computed from the former one."""
        super().load_tensors(tensors)
        self._cache = None
