"""Input layer of every neural model: embeddings of events and the item table, from ids and side information.

B batch, T time, I items, D width, V width of content vectors, M values of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import split_names
from recpipe.data.batches import Batch
from recpipe.data.features import Column
from recpipe.layers.large_tables import LARGE, StepTable, look_up
from recpipe.layers.side import Side

STD = 0.02  # of initial embeddings: logits begin near uniform
PREFIX = "of_"  # of module names made from column names
HOUR, DAY = 3600, 86_400
GAPS = 33  # codes of time gaps. 0: unknown; else 1 + floor(log2(1 + seconds)), up to 2^31
TIME_CODES = {"hour": 24, "weekday": 7, "gap": GAPS}


class ItemInput(nn.Module):
    """Embeddings of events (B, T, D) and of the catalogue (I + 1, D), from ids and ``side`` information.

    ``extra``: number of rows behind the catalogue for symbols such as [MASK]. Missing vectors and values add nothing;
    with ``combine: alone`` an item without any gets one learned vector.
    """

    def __init__(self, n_items: int, dim: int, side: Side | None = None, *, extra: int = 0) -> None:
        super().__init__()
        self.n_items, self.dim, self.side = n_items, dim, side or Side()
        self._cached_table: Tensor | None = None
        self._is_large = (n_items + 1) * dim >= LARGE
        self._step_table, self._step_head = StepTable(), StepTable()
        config = self.side.config
        alone = config.combine == "alone"
        self.weight = nn.Parameter(torch.empty(extra if alone else n_items + 1 + extra, dim).normal_(std=STD))
        if not alone:
            with torch.no_grad():
                self.weight[0].zero_()
        self.missing = nn.Parameter(torch.empty(dim).normal_(std=STD)) if alone else None
        self.vectors, self.columns = nn.ModuleDict(), nn.ModuleDict()
        self.users, self.events, self.moments = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, width in self.side.widths.items():
            values = item_values(self.side, n_items, f"vectors.{name}", width + 1)
            self.vectors[_module_name(name)] = ProjectedVectors(values, dim, trained=config.train_vectors)
        for column in self.side.items:
            width, dtype = (column.per_row, np.int32) if column.categorical else (2, np.float32)
            values = item_values(self.side, n_items, f"items.{column.name}", width, dtype)
            self.columns[_module_name(column.name)] = _embedding(column, dim, values)
        for modules, columns in ((self.users, self.side.users), (self.events, self.side.events)):
            for column in columns:
                modules[_module_name(column.name)] = _embedding(column, dim)
        for name in split_names(config.events):
            if name in TIME_CODES:
                self.moments[_module_name(name)] = CategoryEmbedding(TIME_CODES[name], dim)
        width = dim * (len(self.vectors) + len(self.columns) + 1)
        self.joined = nn.Linear(width, dim, bias=False) if config.combine == "concat" else None
        if self.joined is not None:
            nn.init.normal_(self.joined.weight, std=1 / math.sqrt(width))

    @property
    def is_content_alone(self) -> bool:
        """Whether no item has learned weights of its own, by ``combine: alone`` with vectors that are not trained."""
        return self.missing is not None and not self.side.config.train_vectors

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """Compute the item table once inside the outermost context, for inference with fixed weights."""
        outer, self._cached_table = self._cached_table, self.table()
        try:
            yield
        finally:
            self._cached_table = outer

    def table(self) -> Tensor:
        """Return the item table (I + 1 + extra, D); row 0 is padding."""
        if self._cached_table is not None:
            return self._cached_table
        if self._is_large and self.training and torch.is_grad_enabled():
            return self._step_table.get(self._compute_table, self.parameters())
        return self._compute_table()

    def _compute_table(self) -> Tensor:
        sources = [*self.vectors.values(), *self.columns.values()]
        if not sources:
            return self.weight
        parts = [source() for source in sources]
        if self.missing is not None:
            table = torch.stack(parts).sum(0)
            is_described = torch.stack([source.is_present() for source in sources]).any(0)  # type: ignore[operator]
            table = torch.where(is_described[:, None], table, self.missing)
            table = table * (torch.arange(len(table), device=table.device) > 0)[:, None]
            return torch.cat([table, self.weight])
        ids, symbols = self.weight.split([self.n_items + 1, len(self.weight) - self.n_items - 1])
        parts = [ids, *parts]
        table = torch.stack(parts).sum(0) if self.joined is None else self.joined(torch.cat(parts, 1))
        return torch.cat([table, symbols]) if len(symbols) else table

    def head(self, table: Tensor) -> Tensor:
        """Return the output table (I + 1, D), given ``table``."""
        table = self.weight if self.side.config.head == "ids" else table
        if not (self._is_large and self.training and torch.is_grad_enabled()):
            return table[: self.n_items + 1]
        if table is not self.weight and len(table) == self.n_items + 1:
            return table
        return self._step_head.get(lambda: table[: self.n_items + 1], self.parameters())

    def tables(self) -> dict[str, Tensor]:
        """Return the tables (I + 1, D) for ``Recommender.item_tables``, with projected vectors by modality."""
        table = self.table()
        tables = {"input": table[: self.n_items + 1]}
        if self.side.config.head == "ids" and table is not self.weight:
            tables["output"] = self.head(table)
        return tables | {name.removeprefix(PREFIX): vectors() for name, vectors in self.vectors.items()}

    def embed(self, batch: Batch, table: Tensor, *, masked: Tensor | None = None) -> Tensor:
        """Return embeddings (B, T, D) of events; those ``masked`` (B, T) get only their item and their user."""
        x_BTD = look_up(batch.items, table)
        for column, embedding in zip(self.side.users, self.users.values(), strict=True):
            x_BTD = x_BTD + _look_up(embedding, batch.features[f"user.{column.name}"], None)
        for column, embedding in zip(self.side.events, self.events.values(), strict=True):
            x_BTD = x_BTD + _look_up(embedding, batch.features[f"event.{column.name}"], masked)
        for name, embedding in self.moments.items():
            codes = time_codes(name.removeprefix(PREFIX), batch)
            x_BTD = x_BTD + _look_up(embedding, codes[..., None], masked)
        return x_BTD


def item_values(side: Side, n_items: int, name: str, width: int, dtype: type = np.float32) -> Tensor:
    """Return ``side.values[name]`` (I + 1, width), vectors standardised; zeros while a bundle is being loaded."""
    values = side.values.get(name)
    if values is None:
        return torch.from_numpy(np.zeros((n_items + 1, width), dtype))
    group, _, kind = name.partition(".")
    return torch.from_numpy(side.scales[kind].apply(values) if group == "vectors" else values.copy())


def time_codes(name: str, batch: Batch) -> Tensor:
    """Return codes (B, T) of event times, 0 at padding and for unknown times.

    ``hour``: hour of the day, ``weekday``: both UTC; ``gap``: log2 of the seconds since the previous event.
    """
    times = batch.timestamps
    if times is None:
        return torch.zeros_like(batch.items)
    if name == "hour":
        code = times % DAY // HOUR + 1
    elif name == "weekday":
        code = (times // DAY + 3) % 7 + 1  # the epoch began on a Thursday; 1 is Monday
    else:
        gap = F.pad((times[:, 1:] - times[:, :-1]).clamp(min=0), (1, 0), value=-1)
        code = (gap.double() + 1).clamp(min=1).log2().floor().long().clamp(max=GAPS - 2) + 1
        code = torch.where((gap < 0) | batch.starts, 0, code)
    return torch.where(batch.items > 0, code, 0)


class ProjectedVectors(nn.Module):
    """Content vectors of the catalogue through a trained projection, (I + 1, D); zero for items without one.

    ``values`` (I + 1, V + 1): vectors, and 1 in the last column where there is one.
    """

    present: Tensor  # (I + 1, 1)
    given: Tensor  # (I + 1, V)

    def __init__(self, values: Tensor, dim: int, *, trained: bool) -> None:
        super().__init__()
        vectors = values[:, :-1].contiguous()
        self.register_buffer("present", values[:, -1:].contiguous())
        if trained:
            self.register_parameter("given", nn.Parameter(vectors))
        else:
            self.register_buffer("given", vectors)
        self.project = nn.Linear(vectors.shape[1], dim)
        nn.init.normal_(self.project.weight, std=STD / math.sqrt(max(vectors.shape[1], 1)))
        nn.init.zeros_(self.project.bias)

    def forward(self) -> Tensor:
        """Return the projected vectors (I + 1, D), zero for items without one."""
        return self.project(self.given) * self.present

    def is_present(self) -> Tensor:
        """Return the mask (I + 1,) bool of items with a vector."""
        return self.present[:, 0] > 0


class ColumnEmbedding(nn.Module):
    """Base class of embeddings (..., D) of a column's encoded values (..., M); missing values, 0, add nothing.

    ``rows`` of the weight. ``values`` (I + 1, M): those of the catalogue, for a column of items. Subclasses write
    ``look_up``, which otherwise raises NotImplementedError.
    """

    given: Tensor | None

    def __init__(self, rows: int, dim: int, values: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=STD))
        self.register_buffer("given", values)

    def look_up(self, values: Tensor) -> Tensor:
        """Return embeddings (..., D) of encoded values (..., M)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """Return the embeddings (I + 1, D) of the catalogue."""
        assert self.given is not None
        return self.look_up(self.given)

    def is_present(self) -> Tensor:
        """Return the mask (I + 1,) bool of items with a value."""
        assert self.given is not None
        return self.given.gt(0).any(1)


class CategoryEmbedding(ColumnEmbedding):
    """Embeddings (..., D) of codes 1..n (..., M), averaged over the M values of a row."""

    def __init__(self, n: int, dim: int, values: Tensor | None = None) -> None:
        super().__init__(n + 1, dim, values)
        with torch.no_grad():
            self.weight[0].zero_()

    def look_up(self, codes: Tensor) -> Tensor:
        """Return mean embeddings (..., D) of codes (..., M)."""
        is_code = (codes > 0).to(self.weight.dtype)
        M = codes.shape[-1]
        if M == 1:
            return F.embedding(codes[..., 0], self.weight) * is_code
        mean = (is_code / is_code.sum(-1, keepdim=True).clamp(min=1.0)).reshape(-1, M)
        # bags need no memory for (…, M, D)
        bags = F.embedding_bag(codes.reshape(-1, M), self.weight, per_sample_weights=mean, mode="sum")
        return bags.view(*codes.shape[:-1], -1)


class NumberEmbedding(ColumnEmbedding):
    """Embedding (..., D) of a standardised number (..., 2) as a learned direction and offset; the second value is 1."""

    def __init__(self, dim: int, values: Tensor | None = None) -> None:
        super().__init__(2, dim, values)

    def look_up(self, values: Tensor) -> Tensor:
        """Return embeddings (..., D) of a standardised number and its presence (..., 2)."""
        return values.to(self.weight.dtype) @ self.weight


def _module_name(name: str) -> str:
    """Name of a column's module: without dots, and not the name of a method."""
    return f"{PREFIX}{name}".replace(".", "_")


def _embedding(column: Column, dim: int, values: Tensor | None = None) -> nn.Module:
    return CategoryEmbedding(len(column.values), dim, values) if column.categorical else NumberEmbedding(dim, values)


def _look_up(embedding: nn.Module, values: Tensor, masked: Tensor | None) -> Tensor:
    assert isinstance(embedding, ColumnEmbedding)
    x_BTD = embedding.look_up(values)
    return x_BTD if masked is None else x_BTD.masked_fill(masked[..., None], 0.0)
