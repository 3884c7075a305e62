"""From events to vectors: what every neural model has at its entrance, and the table its head scores with.

B batch, T time, I items, D width, V width of given vectors, M values of a feature.
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
from recpipe.layers.side import Side, standardised

STD = 0.02  # of embeddings at the start: small enough that a tied head begins near uniform
KEY = "of_"  # before a name that becomes a module's
HOUR, DAY = 3600, 86_400
GAPS = 33  # 0: unknown; else 1 + floor(log2(1 + seconds)), up to 2^31


class ItemInput(nn.Module):
    """Embeddings of events (B, T, D) and of the catalogue (I + 1, D), of ids and of ``side`` information.

    ``extra`` further rows behind the catalogue are symbols such as [MASK]: ids without side information. Missing
    vectors and values add nothing; with ``combine: alone`` an item without any has one learned vector.
    """

    def __init__(self, n_items: int, dim: int, side: Side | None = None, *, extra: int = 0) -> None:
        super().__init__()
        self.n_items, self.dim, self.side = n_items, dim, side or Side()
        self._held: Tensor | None = None
        config = self.side.config
        alone = config.combine == "alone"
        rows = extra if alone else n_items + 1 + extra
        self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=STD))
        if not alone:
            with torch.no_grad():
                self.weight[0].zero_()
        self.missing = nn.Parameter(torch.empty(dim).normal_(std=STD)) if alone else None
        self.vectors = nn.ModuleDict(
            {
                _key(name): GivenVectors(
                    self._given(f"vectors.{name}", width + 1, np.float32), dim, trained=config.train_vectors
                )
                for name, width in self.side.widths.items()
            }
        )
        self.columns = nn.ModuleDict()
        for column in self.side.items:
            shape, kind = (column.per_row, np.int32) if column.categorical else (2, np.float32)
            given = self._given(f"items.{column.name}", shape, kind)
            made = Categories(len(column.values), dim, given) if column.categorical else Numbers(dim, given)
            self.columns[_key(column.name)] = made
        self.users, self.events = nn.ModuleDict(), nn.ModuleDict()
        for modules, columns in ((self.users, self.side.users), (self.events, self.side.events)):
            for column in columns:
                made = Categories(len(column.values), dim) if column.categorical else Numbers(dim)
                modules[_key(column.name)] = made
        timed = {"hour": 24, "weekday": 7, "gap": GAPS}
        self.moments = nn.ModuleDict(
            {_key(name): Categories(timed[name], dim) for name in split_names(config.events) if name in timed}
        )
        parts = len(self.vectors) + len(self.columns)
        self.joined = nn.Linear(dim * (parts + 1), dim, bias=False) if config.combine == "concat" else None
        if self.joined is not None:
            nn.init.normal_(self.joined.weight, std=1 / math.sqrt(dim * (parts + 1)))

    def _given(self, name: str, width: int, kind: type) -> Tensor:
        """The catalogue's values, or room for them where a bundle is being loaded."""
        values = self.side.values.get(name)
        if values is None:
            return torch.from_numpy(np.zeros((self.n_items + 1, width), kind))
        return torch.from_numpy(standardised(values) if name.startswith("vectors.") else values.copy())

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """Inside, the table is made once: for inference, where weights stay as they are."""
        self._held = self.table()
        try:
            yield
        finally:
            self._held = None

    def table(self) -> Tensor:
        """All that is known of items (I + 1 + extra, D); row 0 is padding."""
        if self._held is not None:
            return self._held
        sources = [*self.vectors.values(), *self.columns.values()]
        if not sources:
            return self.weight
        parts = [source() for source in sources]
        if self.missing is not None:
            table = torch.stack(parts).sum(0)
            known = torch.stack([source.there() for source in sources]).any(0)  # type: ignore[operator]
            table = torch.where(known[:, None], table, self.missing)
            table = table * (torch.arange(len(table), device=table.device) > 0)[:, None]
            return torch.cat([table, self.weight])
        ids, symbols = self.weight.split([self.n_items + 1, len(self.weight) - self.n_items - 1])
        whole = [ids, *parts]
        table = torch.stack(whole).sum(0) if self.joined is None else self.joined(torch.cat(whole, 1))
        return torch.cat([table, symbols]) if len(symbols) else table

    def head(self, table: Tensor) -> Tensor:
        """What scores are made with (I + 1, D), of ``table``."""
        return (
            self.weight[: self.n_items + 1] if self.side.config.head == "ids" else table[: self.n_items + 1]
        )

    def tables(self) -> dict[str, Tensor]:
        """What there is to look at, as ``Recommender.item_tables``; projected vectors by their modality."""
        table = self.table()
        found = {"input": table[: self.n_items + 1]}
        if self.side.config.head == "ids" and table is not self.weight:
            found["output"] = self.head(table)
        return found | {name.removeprefix(KEY): vectors() for name, vectors in self.vectors.items()}

    def embed(self, batch: Batch, table: Tensor, *, hidden: Tensor | None = None) -> Tensor:
        """(B, T, D) of ``batch``; places where ``hidden`` (B, T) is True tell nothing but their item."""
        x_BTD = F.embedding(batch.items, table)
        for column, part in zip(self.side.users, self.users.values(), strict=True):
            x_BTD = x_BTD + _looked_up(part, batch.features[f"user.{column.name}"])
        for column, part in zip(self.side.events, self.events.values(), strict=True):
            x_BTD = x_BTD + _hide(_looked_up(part, batch.features[f"event.{column.name}"]), hidden)
        for name, part in self.moments.items():
            x_BTD = x_BTD + _hide(_looked_up(part, moment(name.removeprefix(KEY), batch)[..., None]), hidden)
        return x_BTD


def _key(name: str) -> str:
    """A column's name as a module's: those may hold no dot and no name of a method."""
    return f"{KEY}{name}".replace(".", "_")


def _looked_up(part: nn.Module, values: Tensor) -> Tensor:
    assert isinstance(part, Categories | Numbers)
    return part.look_up(values)


def _hide(x_BTD: Tensor, hidden: Tensor | None) -> Tensor:
    return x_BTD if hidden is None else x_BTD.masked_fill(hidden[..., None], 0.0)


def moment(name: str, batch: Batch) -> Tensor:
    """Codes (B, T) of the time of every event, 0 at padding and unknown: hour of the day and weekday in UTC, or the
    logarithm of the seconds since the event before.
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


class GivenVectors(nn.Module):
    """Vectors of the catalogue through a trained projection: (I + 1, D), zero where there is none."""

    def __init__(self, given: Tensor, dim: int, *, trained: bool) -> None:
        super().__init__()
        vectors, present = given[:, :-1].contiguous(), given[:, -1:].contiguous()
        self.register_buffer("present", present)
        if trained:
            self.given: Tensor = nn.Parameter(vectors)
        else:
            self.register_buffer("given", vectors)
        self.project = nn.Linear(vectors.shape[1], dim)
        nn.init.normal_(self.project.weight, std=STD / math.sqrt(max(vectors.shape[1], 1)))
        nn.init.zeros_(self.project.bias)

    present: Tensor

    def forward(self) -> Tensor:
        return self.project(self.given) * self.present

    def there(self) -> Tensor:
        """(I + 1,) whether there is a vector."""
        return self.present[:, 0] > 0


class Categories(nn.Module):
    """Embeddings of codes 1..n, several of a row averaged; code 0 adds nothing."""

    def __init__(self, n: int, dim: int, given: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n + 1, dim).normal_(std=STD))
        with torch.no_grad():
            self.weight[0].zero_()
        self.register_buffer("given", given)

    given: Tensor | None

    def look_up(self, codes: Tensor) -> Tensor:
        """(…, M) -> (…, D)."""
        known = (codes > 0).to(self.weight.dtype)
        if codes.shape[-1] == 1:
            return F.embedding(codes[..., 0], self.weight) * known
        mean = known / known.sum(-1, keepdim=True).clamp(min=1.0)
        rows = codes.shape[-1]
        bags = F.embedding_bag(
            codes.reshape(-1, rows), self.weight, per_sample_weights=mean.reshape(-1, rows), mode="sum"
        )
        return bags.view(*codes.shape[:-1], -1)  # not (…, M, D): a large catalogue has no room for that

    def forward(self) -> Tensor:
        assert self.given is not None
        return self.look_up(self.given)

    def there(self) -> Tensor:
        """(I + 1,) whether there is a value."""
        assert self.given is not None
        return self.given.gt(0).any(1)


class Numbers(nn.Module):
    """A number as a direction and an offset, both learned; a missing one adds nothing."""

    def __init__(self, dim: int, given: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, dim).normal_(std=STD))
        self.register_buffer("given", given)

    given: Tensor | None

    def look_up(self, values: Tensor) -> Tensor:
        """(…, 2): standardised value, 1 if there is one -> (…, D)."""
        return values.to(self.weight.dtype) @ self.weight

    def forward(self) -> Tensor:
        assert self.given is not None
        return self.look_up(self.given)

    def there(self) -> Tensor:
        """(I + 1,) whether there is a value."""
        assert self.given is not None
        return self.given[:, 1] > 0
