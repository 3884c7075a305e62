"""The one interface of every model.

B batch, T time, I items (column 0 of a score matrix is padding), N targets, D width, U users.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.protocol import TIME_CHOICES
from recpipe.data.sequences import Sequences
from recpipe.layers.code_tokens import ItemCodes
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.inputs import ItemInput
from recpipe.layers.side import Side
from recpipe.layers.top_k import top_k
from recpipe.progress import progress

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden (N, D), item table (I + 1, D), targets (N,) in 1..I) -> scalar loss."""

SCORES_AT_ONCE = 1 << 25  # elements of a score matrix: 128 MiB


class Recommender(nn.Module):
    """A model that ranks the catalogue for histories.

    ``Config`` is a frozen dataclass whose fields are the keys of the model's conf block. ``closed_form`` models are
    fitted by ``fit``; the others are trained by gradient on ``loss``. ``probabilistic`` says that the softmax of
    the scores is the model's own probability of the next item. ``takes_side``: it reads side information, and cannot do
    without what ``needs`` names of the block ``side``. ``reads_ids``: it is built with the semantic ids of its items.
    ``losses`` that it can be trained with, all of them where it names none. ``layouts`` of training batches that it
    can read: padded, packed. A model that weighs the past by time has the setting ``time_mode``, in the words of
    ``Protocol.time``. ``cold_users``, once there, answers for users without history.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """No settings."""

    closed_form: ClassVar[bool] = False
    probabilistic: bool = True
    takes_side: ClassVar[bool] = False
    reads_ids: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ("padded",)
    config: Any
    cold_users: ColdUsers | None

    def __init__(self, config: Any, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__()
        self.config, self.n_items, self.max_length, self.side = config, n_items, max_length, side
        self.cold_users = None

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """The training loss of a batch of whole training sequences (at most ``max_length + 1`` events each)."""
        raise TypeError(f"{type(self).__name__} is not trained by gradient")

    def fit(self, train: Sequences) -> None:
        """Fits a closed-form model; sequences hold training events only."""
        raise TypeError(f"{type(self).__name__} is trained by gradient")

    @abstractmethod
    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows (B,), items (B, k), scores (B, k)) over all users, as ``recommend`` returns them."""

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` items and their scores, both (U, k); item 0 with score -inf where fewer can be had.

        ``candidates`` (I + 1,) bool restricts the catalogue. Raises ValueError for k < 1 and for NaN scores.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        items = np.zeros((len(histories), min(k, self.n_items)), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        lists = self.top_k_batches(
            histories, items.shape[1], exclude_seen=exclude_seen, candidates=candidates
        )
        with progress(len(histories), "rank users", unit="users") as bar:
            for rows, found, values in lists:
                items[rows], scores[rows] = found, values
                bar.add(len(rows))
        return items, scores

    def mask_scores(
        self,
        scores: Tensor,
        histories: Sequences,
        rows: np.ndarray,
        *,
        exclude_seen: bool,
        candidates: Tensor | None,
    ) -> Tensor:
        """``scores`` (B, I + 1) of the users ``rows``, -inf, in place, for what may not be recommended to them."""
        scores[:, 0] = -torch.inf
        if candidates is not None:
            scores.masked_fill_(~candidates.to(scores.device), -torch.inf)
        if exclude_seen:
            row, item = map(torch.from_numpy, histories.events(rows))
            scores[row.to(scores.device), item.to(scores.device)] = -torch.inf
        return scores

    def needs_fallback(self, histories: Sequences) -> np.ndarray:
        """(U,) bool: whose answer is that of ``cold_users``, as the last ``max_length`` events hold no known item."""
        if self.cold_users is None:
            return np.zeros(len(histories), bool)
        known = np.concatenate([[0], np.cumsum(histories.items > 0)])
        stop = histories.offsets[1:]
        return known[stop] == known[np.maximum(histories.offsets[:-1], stop - self.max_length)]

    def cold_scores(self, histories: Sequences, rows: np.ndarray) -> Tensor:
        """(n, I + 1) scores of ``rows`` (n,), users that fall back."""
        assert self.cold_users is not None
        none = np.zeros(len(rows), np.int64)
        return self.cold_users.scores(self.cold_users.segments(histories.select(rows, none, none)))

    def on_device(self, sequences: Sequences, *, window: int) -> DeviceSequences:
        """``sequences`` where the model is, with the features that it reads."""
        features = self.side.encoded(sequences) if self.side is not None else {}
        return DeviceSequences(sequences, window=window, device=self.device, features=features)

    def item_vectors(self) -> Tensor:
        """(I + 1, D) what it scores items with; row 0 is padding. Raises ValueError if it has no such table."""
        raise ValueError(f"{type(self).__name__} has no vectors of items that another model could read")

    def item_tables(self) -> dict[str, Tensor]:
        """Tables of items (I + 1, D), to be looked at: ``input``, what histories are read with, ``output``, what items
        are scored with where that is another, and parts of these by their names. Row 0 is padding; an item that lacks
        a vector has a row of zeros. Empty for a model that has no vectors of items.
        """
        try:
            return {"output": self.item_vectors()}
        except ValueError:
            return {}

    def item_codes(self) -> dict[str, ItemCodes]:
        """The semantic ids that it was built with, by modality."""
        return {}

    @property
    def requires_time(self) -> str:
        """What it needs ``Protocol.time`` to allow: none, last_item or query."""
        own = getattr(self.config, "time_mode", "none")
        side = "none" if self.side is None else self.side.config.requires_time
        return max(own, side, key=TIME_CHOICES.index)

    @property
    def device(self) -> torch.device:
        """Where the model's tensors are."""
        # the first alone: collecting all takes a millisecond
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Strict loading that lets closed-form buffers, empty until fitted, take the size that was saved."""
        for name, buffer in list(self.named_buffers()):
            if name in tensors and buffer.shape != tensors[name].shape:
                owner = self.get_submodule(name.rpartition(".")[0])
                owner.register_buffer(
                    name.rpartition(".")[2], torch.empty_like(tensors[name], device=buffer.device)
                )
        self.load_state_dict(dict(tensors), strict=True)
        for codes in self.item_codes().values():
            codes.forget()


class Scorer(Recommender):
    """The half for models that score the whole catalogue at once: they write ``score``."""

    @abstractmethod
    def score(self, batch: Batch) -> Tensor:
        """Scores (B, I + 1) of every item as the next one; column 0 is ignored."""

    def refine(self, batch: Batch, scores: Tensor) -> Tensor:
        """The last word on ``scores`` (B, I + 1), where what may not be recommended is -inf and stays so."""
        return scores

    @torch.inference_mode()
    def score_batches(
        self,
        histories: Sequences,
        *,
        exclude_seen: bool,
        candidates: Tensor | None = None,
        tokens: int = 1 << 15,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields (rows (B,), scores (B, I + 1) float32) over all users, in batches of like length.

        What may not be recommended is -inf: padding, items outside ``candidates`` and, if asked, everything in the
        *whole* history, also beyond ``max_length``. Rows that fall back have log probabilities of their segment as
        scores, less what novelty takes. Raises ValueError for NaN scores.
        """
        self.eval()
        data = self.on_device(histories, window=self.max_length)
        most = max(SCORES_AT_ONCE // (self.n_items + 1), 1)
        cold = self.needs_fallback(histories)
        buckets = (*length_buckets(data.lengths, np.flatnonzero(~cold), tokens), np.flatnonzero(cold))
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, ItemInput):
                    stack.enter_context(module.cached_weights())
            for rows in (part for each in buckets for part in np.split(each, range(most, len(each), most))):
                if len(rows) == 0:
                    continue
                own, batch = not cold[rows[0]], data.batch(rows)
                scores = self.score(batch).float() if own else self.cold_scores(histories, rows)
                if torch.isnan(scores).any():
                    raise ValueError(f"{type(self).__name__} gives NaN scores; its weights are not usable")
                self.mask_scores(scores, histories, rows, exclude_seen=exclude_seen, candidates=candidates)
                yield rows, self.refine(batch, scores) if own else scores

    def top_k_batches(
        self,
        histories: Sequences,
        k: int,
        *,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for rows, scores in self.score_batches(histories, exclude_seen=exclude_seen, candidates=candidates):
            best, values = top_k(scores, k)
            yield rows, best.cpu().numpy(), values.cpu().numpy()


class NextItem(Scorer):
    """The half for causal networks: they write ``encode`` and predict the next item at every position.

    ``config.dim`` is D. Items come in through ``self.items``, whose table is the head too.
    """

    takes_side = True

    def __init__(self, config: Any, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.items = ItemInput(n_items, config.dim, side)

    @abstractmethod
    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Hidden states (B, T, D) of embedded events; position t has seen the events up to t of its sequence."""

    def output(self, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """What is multiplied to scores, hidden (N, D) and table (I + 1, D); here both as they are."""
        return hidden, table

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        inputs, targets = batch.inputs_and_targets()
        table = self.items.table()
        real = targets > 0
        hidden = self.encode(self.items.embed(inputs, table), inputs)[real]
        return criterion(*self.output(hidden, self.items.head(table)), targets[real])

    def item_vectors(self) -> Tensor:
        return self.items.head(self.items.table())

    def item_tables(self) -> dict[str, Tensor]:
        return self.items.tables()

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states (B, T, D) of events, oldest first."""
        return self.encode(self.items.embed(batch, self.items.table()), batch)

    def score(self, batch: Batch) -> Tensor:
        batch = batch if batch.items.shape[1] else batch.pad(1)
        table = self.items.table()
        last = (batch.lengths - 1).clamp(min=0)
        hidden = self.encode(self.items.embed(batch, table), batch)
        hidden, head = self.output(
            hidden[torch.arange(len(last), device=last.device), last], self.items.head(table)
        )
        return hidden @ head.T
