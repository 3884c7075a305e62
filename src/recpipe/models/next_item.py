"""Base class of causal networks that predict the next item at every position.

B batch, T time, I items, N targets, D width.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.layers.inputs import ItemInput
from recpipe.layers.side import Side
from recpipe.models.recommender import Criterion, Scorer


class NextItem(Scorer):
    """Base class of causal networks, trained to predict the next item at every position; they implement ``encode``.

    ``config.dim`` is D. ``self.items`` embeds events; its table also scores the items.
    """

    takes_side = True
    takes_weights = True

    def __init__(self, config: object, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.items = ItemInput(n_items, self.config.dim, side)

    @abstractmethod
    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events; position t depends on events up to t only."""

    def output_query(self, hidden: Tensor) -> Tensor:
        """Transform hidden states (N, D) before their product with the output table; identity by default."""
        return hidden

    def output_table(self, table: Tensor) -> Tensor:
        """Transform the item table (I + 1, D) before its product with hidden states; identity by default."""
        return table

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss (scalar): the hidden state after each event against the item of the next one."""
        inputs, targets = batch.inputs_and_targets()
        table = self.items.table()
        is_target = targets > 0
        hidden = self.encode(self.items.embed(inputs, table), inputs)[is_target]
        context = {"context": inputs.context_items(targets)} if getattr(criterion, "uses_context", False) else {}
        hidden, head = self.output_query(hidden), self.output_table(self.items.head(table))
        return criterion(hidden, head, targets[is_target], inputs.target_weights(is_target), **context)

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return the hidden states (B, D) after the last event of each history, transformed by ``output_query``."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        table, last = self.items.table(), (batch.lengths - 1).clamp(min=0)
        rows = torch.arange(last.shape[0], device=last.device)  # len() would fix the batch size of an exported graph
        hidden = self.encode(self.items.embed(batch, table), batch)[rows, last]
        return self.output_query(hidden)

    def output_vectors(self) -> Tensor:
        """Return the item table (I + 1, D), transformed by ``output_table``."""
        return self.output_table(self.items.head(self.items.table()))

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states (B, T, D) of events, oldest first."""
        return self.encode(self.items.embed(batch, self.items.table()), batch)

    @property
    def scores_by_content(self) -> bool:
        """Whether item vectors are computed from content alone, so that items without training events are scored."""
        return self.items.is_content_alone

    def item_vectors(self) -> Tensor:
        """Return the item table (I + 1, D) that scores items, before ``output_table``."""
        return self.items.head(self.items.table())

    def item_tables(self) -> dict[str, Tensor]:
        """Return the input and output tables of items (I + 1, D)."""
        return self.items.tables()
