"""Rules of a request: which items a list may have, how many of a category, how new and how different they are.

The same keys are `recommend.rules` in the conf, `rules` in requests to the service, and `Rules` in Python.
I items, D width; index 0 is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import build_config, check_known
from recpipe.data.conditions import condition_mask
from recpipe.training.bundle import Bundle

SEEN = ("protocol", "exclude", "allow")
DAY = 86_400
MAX_DAYS = 1_000_000
RULES_CACHED = 64  # sets of rules that are resolved once


@dataclass(frozen=True, kw_only=True)
class NewItems:
    """Share of the places of a list for new items, and the condition on item columns that says which are new."""

    share: float  # share of the places, above 0 and at most 1
    where: str = "train_events = 0"  # condition on item columns; by default items without training events

    def __post_init__(self) -> None:
        _check_share("share", self.share, above=True)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules of the lists of a request; by default those of the bundle's protocol.

    Attributes:
        where: condition on item columns, such as ``in_stock = true and region in ['DE', 'AT']``.
        candidates: the only items that may be recommended.
        exclude: items that must not be recommended.
        seen: items of the user's history: ``protocol`` (as in the evaluation), ``exclude``, ``allow``, or a number of
            days after which they may be recommended again, which needs timestamps.
        max_per_category: the most items of one value of the item column ``category``; items without one are not
            limited.
        category: name of that column.
        new_items: share of places for new items, as ``{share: 0.2, where: train_events = 0}``.
        diversity: from 0, the order of the model, to 1, items as unlike as possible; maximal marginal relevance
            (Carbonell & Goldstein, SIGIR 1998) with the cosine of item vectors.

    Raises:
        ValueError: for values that are not allowed.

    Examples:
        >>> rules = Rules(exclude=["22423"], diversity=0.3)
        >>> rules.seen
        'protocol'
    """

    where: str | None = None
    candidates: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    seen: str | float = "protocol"
    max_per_category: int | None = None
    category: str | None = None
    new_items: NewItems | None = None
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("candidates", "exclude"):  # lists in files and requests
            if isinstance(values := getattr(self, name), str):
                raise ValueError(f"{name} is {values!r}; it is a list of item ids")
            object.__setattr__(self, name, None if values is None else tuple(values))
        if isinstance(self.new_items, Mapping):
            object.__setattr__(self, "new_items", build_config(NewItems, self.new_items, where="rules.new_items"))
        if self.seen not in SEEN and not _is_number_from_0(self.seen, MAX_DAYS):
            days = f"a number of days from 0 to {MAX_DAYS:,}"
            raise ValueError(f"seen is {self.seen!r}; allowed: {', '.join(SEEN)}, or {days}")
        if (self.max_per_category is None) != (self.category is None):
            raise ValueError("max_per_category and category, the item column that it counts, belong together")
        if self.max_per_category is not None and self.max_per_category < 1:
            raise ValueError(f"max_per_category is {self.max_per_category}; it is at least 1")
        _check_share("diversity", self.diversity)

    @classmethod
    def of(cls, rules: Rules | Mapping[str, Any] | None) -> Rules:
        """Build from a mapping.

        Raises ValueError for anything but a mapping, ConfigError for unknown keys and values that are not allowed.
        """
        if isinstance(rules, Rules):
            return rules
        if rules is not None and not isinstance(rules, Mapping):
            raise ValueError(f"rules are {rules!r}; give a mapping, such as diversity: 0.3")
        return build_config(cls, _lists_as_tuples(rules or {}), where="rules")

    @property
    def picks(self) -> bool:
        """Whether lists are more than the first items of a ranking."""
        return self.max_per_category is not None or self.new_items is not None or self.diversity > 0


def _lists_as_tuples(rules: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("candidates", "exclude"):
        values = rules.get(name)
        for value in values if isinstance(values, list | tuple) else ():
            if not isinstance(value, str):
                raise ValueError(f"rules.{name} has {value!r}; item ids are texts, in quotation marks")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in rules.items()}


def _is_number_from_0(value: object, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limit


def _check_share(name: str, value: float, *, above: bool = False) -> None:
    if not _is_number_from_0(value, 1) or (above and value == 0):
        raise ValueError(f"{name} is {value!r}; it is a number {'above' if above else 'from'} 0 and at most 1")


@dataclass(frozen=True)
class BundleRules:
    """Rules in terms of the items of one bundle."""

    rules: Rules
    exclude_seen: bool
    again_after: float | None  # seconds after which an item of the history may be recommended again
    candidates: Tensor | None  # (I + 1,) bool
    is_new: Tensor | None = None  # (I + 1,) bool
    categories: NDArray[np.int64] | None = None  # (I + 1,), 0 for none
    vectors: Tensor | None = field(default=None, repr=False)  # (I + 1, D), of length 1 or 0

    @classmethod
    def of(cls, rules: Rules, bundle: Bundle, *, vectors: Tensor | None = None) -> BundleRules:
        """Resolve ``rules``; ``vectors`` (I + 1, D), see ``unit_vectors``, are needed for diversity.

        Raises ValueError for unknown columns and items, and where no item is left.
        """
        seen = rules.seen
        days = None if isinstance(seen, str) else float(seen)
        return cls(
            rules,
            exclude_seen=bundle.protocol.exclude_seen if seen == "protocol" else seen == "exclude",
            again_after=None if days is None else days * DAY,
            candidates=_candidates(rules, bundle),
            is_new=None if rules.new_items is None else _new_items(rules.new_items, bundle),
            categories=None if rules.category is None else _categories(rules.category, bundle),
            vectors=vectors,
        )


class RulesCache:
    """The latest resolved rules of one bundle, for several threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Rules, BundleRules] = OrderedDict()
        self._lock = Lock()

    def get(self, rules: Rules, resolve: Callable[[Rules], BundleRules]) -> BundleRules:
        """Return the resolved ``rules``, by ``resolve`` where they are not there yet."""
        with self._lock:
            resolved = self._entries.pop(rules, None)
        resolved = resolve(rules) if resolved is None else resolved
        with self._lock:
            self._entries[rules] = resolved
            while len(self._entries) > RULES_CACHED:
                self._entries.popitem(last=False)
        return resolved


def _item_mask(condition: str, bundle: Bundle) -> NDArray[np.bool_]:
    """Return the items (I,) that fulfil a condition. Raises ValueError for unknown columns."""
    hint = "; the bundle was trained without item columns: give a table of current ones (items)"
    mask: NDArray[np.bool_] = condition_mask(
        condition, bundle.item_table(), hint=hint if bundle.item_columns is None else ""
    )
    return mask


def _candidates(rules: Rules, bundle: Bundle) -> Tensor | None:
    """Candidates for all users; None: the whole catalogue."""
    if rules.where is None and rules.candidates is None and not rules.exclude:
        return None
    mask = np.ones(len(bundle.vocabulary) + 1, bool)
    mask[0] = False
    if rules.candidates is not None:
        items = bundle.vocabulary.encode(list(rules.candidates))
        if not (items > 0).any():
            raise ValueError(f"none of the {len(items)} candidates is in the catalogue of {bundle.name}")
        mask &= np.isin(np.arange(len(mask)), items[items > 0])
    if rules.where is not None:
        mask[1:] &= _item_mask(rules.where, bundle)
    if rules.exclude:
        mask[bundle.vocabulary.encode(list(rules.exclude))] = False
    if not mask.any():
        names = [name for name in ("where", "candidates", "exclude") if getattr(rules, name)]
        raise ValueError(f"no item of {bundle.name} is left by the rules {', '.join(names)}; loosen one of them")
    return torch.from_numpy(mask)


def _new_items(new_items: NewItems, bundle: Bundle) -> Tensor:
    mask = np.concatenate([[False], _item_mask(new_items.where, bundle)])
    if not mask.any():
        raise ValueError(f"new_items: no item of {bundle.name} is new by {new_items.where!r}; give another condition")
    return torch.from_numpy(mask)


def _categories(column: str, bundle: Bundle) -> NDArray[np.int64]:
    table = bundle.item_table()
    check_known(column, table.column_names, what=f"item column of {bundle.name}", hint=" (rules.category)")
    values = table[column].combine_chunks()
    if pa.types.is_nested(values.type):
        raise ValueError(f"category is {column!r}, a column of lists; take one with a single value for each item")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    codes = values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], codes.astype(np.int64) + 1])


def unit_vectors(bundle: Bundle) -> Tensor:
    """Return (I + 1, D) of length 1, 0 without a vector. Raises ValueError for a model without vectors of items."""
    tables = bundle.model.item_tables()
    if not tables:
        raise ValueError(f"diversity needs vectors of items, which {bundle.name} has not; take a model such as sasrec")
    by_item = tables.get("output", tables.get("input"))
    vectors = torch.cat(list(tables.values()), 1) if by_item is None else by_item
    return F.normalize(vectors.detach().cpu().float(), dim=1)
