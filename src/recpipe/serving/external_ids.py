"""Bundle that converts external ids of users and items to indices, and back.

U users, I items, D width; item 0 is none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems
from recpipe.evaluation.recommendations import titles_of
from recpipe.serving.request_checks import check_histories, check_profiles, event_times, item_indices
from recpipe.serving.rules import unit_vectors
from recpipe.training.bundle import Bundle

log = logging.getLogger(__name__)

ItemIds = Sequence[str] | Mapping[str, Sequence[str]]  # of all users, or by user


class ExternalIdBundle(Bundle):
    """A bundle with the ids, titles and semantic ids of its items as Arrow arrays."""

    @cached_property
    def ids(self) -> pa.Array:
        """External ids of the items (I,)."""
        return pa.array(self.vocabulary.ids, pa.string())

    @cached_property
    def shown_titles(self) -> pa.Array:
        """Titles of the items (I,); the id where there is none."""
        return titles_of(self.ids, self.title_table())

    @cached_property
    def unit_vectors(self) -> torch.Tensor:
        """Vectors of the items (I + 1, D) of length 1, 0 without one. Raises ValueError for a model without vectors."""
        return unit_vectors(self)

    @cached_property
    def codes(self) -> dict[str, pa.Array]:
        """Semantic ids of the items (I,) by kind, null without one."""
        tables = {name: codes.codes.cpu().numpy()[1:] for name, codes in self.model.item_codes().items()}
        lists = {name: [None if row[0] < 0 else row.tolist() for row in table] for name, table in tables.items()}
        return {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in lists.items()}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.vocabulary.ids.tolist(), 1)}

    def encode(self, items: Iterable[str]) -> np.ndarray:
        """Convert item ids to indices (n,) int64 from 1, 0 for unknown ones. Raises ValueError for other than texts."""
        return item_indices(items, self._index)

    def sequences(
        self,
        histories: Mapping[str, Sequence[str]],
        timestamps: Mapping[str, Sequence[int]] | None = None,
        profiles: pa.Table | None = None,
    ) -> Sequences:
        """Convert histories of item ids, oldest first; unknown ones are left out. Raises ValueError for wrong times."""
        check_histories(histories)
        users = np.array(list(histories), dtype=object)
        lengths = np.array([len(histories[user]) for user in users], np.int64)
        items = self.encode(item for user in users for item in histories[user])
        known, owner = items > 0, np.repeat(np.arange(len(users)), lengths)
        if not known.all():
            log.info("%s of %s events are of items unknown to %s", (~known).sum(), len(known), self.name)
        times = None if timestamps is None else event_times(histories, timestamps)[known]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))]).astype(np.int64)
        result = Sequences(Ids(users), items[known].astype(np.int32), times, offsets)
        if profiles is None:
            return result
        check_profiles(profiles)
        return result.with_profiles(profiles)

    def candidates(self, candidates: ItemIds | None, users: Sequence[str]) -> Candidates | None:
        """Convert candidates of ``recommend``. Raises ValueError where none of those of all users is known."""
        if candidates is None or isinstance(candidates, Mapping):
            return self.user_items(candidates, users)
        items = self.encode(candidates)
        if not (items > 0).any():
            raise ValueError(f"none of the {len(items)} candidates is in the catalogue of {self.name}")
        mask = torch.zeros(len(self.vocabulary) + 1, dtype=torch.bool)
        mask[torch.from_numpy(items[items > 0])] = True
        return mask

    def user_items(self, items: ItemIds | None, users: Sequence[str]) -> UserItems | None:
        """Convert item ids of all users, or by user, to the items of every user. None stays None."""
        if items is None:
            return None
        if not isinstance(items, Mapping):
            return UserItems.of_lists([self.encode(items)] * len(users))
        return UserItems.of_lists([self.encode(items.get(user, ())) for user in users])
