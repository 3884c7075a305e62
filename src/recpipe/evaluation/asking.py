"""Recommendations for anybody: external item ids in, external ids, titles, scores and probabilities out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.evaluation.recommendations import recommendations_table
from recpipe.training.bundle import Bundle

log = logging.getLogger(__name__)


def recommend(
    bundle: Bundle,
    histories: Mapping[str, Sequence[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    timestamps: Mapping[str, Sequence[int]] | None = None,
    profiles: pa.Table | None = None,
    candidates: Sequence[str] | None = None,
) -> pa.Table:
    """The table of ``recommendations_table``, at most ``k`` rows for each user of ``histories`` (oldest event first);
    of a model with semantic ids also ``<modality>_codes``, those of the item.

    Users need not be known to the bundle. Items that are not are left out of a history; who has none left gets the
    list for users without history. ``timestamps``: seconds of every event, for models that read time; ``profiles``:
    ``user_id`` and columns; ``candidates``: the only items that may be recommended. Raises ValueError for k < 1, for
    candidates of which the bundle knows none, and for timestamps that do not fit the events.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one item")
    model = bundle.model
    asked = _sequences(bundle, histories, timestamps)
    if profiles is not None:
        asked = asked.described(profiles)
    nothing = Sequences(asked.users, np.zeros(0, np.int32), None, np.zeros(len(asked) + 1, np.int64))
    allowed = None if candidates is None else _allowed(bundle, candidates)
    k = min(k, len(bundle.vocabulary))
    ranking = rank_fold(model, Fold(asked, nothing), exclude_seen=exclude_seen, k=k, candidates=allowed)
    found = recommendations_table(
        asked.users,
        ranking.items,
        ranking.scores,
        ranking.log_normalizer,
        item_ids=bundle.vocabulary.ids,
        titles=bundle.title_table(),
        cold=model.falls_back(asked),
    )
    return _with_codes(bundle, found)


def _allowed(bundle: Bundle, candidates: Sequence[str]) -> torch.Tensor:
    numbers = bundle.vocabulary.encode(list(candidates))
    if not (numbers > 0).any():
        raise ValueError(f"{bundle.name} knows none of the {len(candidates)} candidates")
    allowed = torch.zeros(len(bundle.vocabulary) + 1, dtype=torch.bool)
    allowed[torch.from_numpy(numbers[numbers > 0].astype(np.int64))] = True
    return allowed


def _with_codes(bundle: Bundle, table: pa.Table) -> pa.Table:
    """A list per row, null where the item has no id of the modality."""
    numbers = bundle.vocabulary.encode(table["item_id"].to_pylist())
    for name, codes in bundle.model.item_codes().items():
        rows = codes.codes.cpu().numpy()[numbers]
        lists = [None if row[0] < 0 else row.tolist() for row in rows]
        table = table.append_column(f"{name}_codes", pa.array(lists, pa.list_(pa.int32())))
    return table


def _sequences(
    bundle: Bundle, histories: Mapping[str, Sequence[str]], timestamps: Mapping[str, Sequence[int]] | None
) -> Sequences:
    users = np.array(list(histories), dtype=object)
    lengths = np.array([len(histories[user]) for user in users], np.int64)
    items = bundle.vocabulary.encode([item for user in users for item in histories[user]])
    known, owner = items > 0, np.repeat(np.arange(len(users)), lengths)
    if not known.all():
        log.warning(
            "%s of %s events are of items that %s does not know", (~known).sum(), len(known), bundle.name
        )
    times = None
    if timestamps is not None:
        if wrong := [user for user in users if len(timestamps.get(user, ())) != len(histories[user])]:
            raise ValueError(f"timestamps of user {wrong[0]!r} are not one for each event of the history")
        times = np.array([second for user in users for second in timestamps[user]], np.int64)[known]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))]).astype(
        np.int64
    )
    return Sequences(users, items[known], times, offsets)
