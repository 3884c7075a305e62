"""Recommendations from a bundle for any history: external item ids in, ids, titles, scores and probabilities out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_known
from recpipe.data.atomic import latest_version
from recpipe.data.batch_samplers import length_buckets
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.content_slots import ContentSlots
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.recommender import NextItem
from recpipe.training.bundle import CONFIG, Bundle

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 1 << 15  # of the histories whose hidden states are computed together


def recommend(
    bundle: Bundle,
    histories: Mapping[str, Sequence[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    timestamps: Mapping[str, Sequence[int]] | None = None,
    profiles: pa.Table | None = None,
    candidates: Sequence[str] | None = None,
    slots: ContentSlots | None = None,
    search: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Recommend at most ``k`` items to each user of ``histories`` (item ids, oldest event first), who may be new.

    Returns the table of `recommendations_table`, with a column ``<kind>_codes`` for each kind of semantic ids, null
    where an item has none. Unknown items are left out of a history; an empty one gets the list for users without.
    ``timestamps``: seconds of every event, for models that read time. ``profiles``: ``user_id`` and columns of users.
    ``candidates``: the only items that may be recommended. ``slots``: rule of content slots. ``search``: settings of
    the search in place of the bundle's, such as ``beam``, ``temperatures`` or ``stochastic`` of generative models.

    Raises ValueError for k < 1, for unknown search settings, for candidates that are all unknown, for timestamps that
    do not match the events, and for slots together with candidates.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least one item is needed")
    if slots is not None and candidates is not None:
        raise ValueError("content slots choose among all cold items: give either slots or candidates")
    if search and not bundle.model.search_settings:
        raise ValueError(f"{bundle.name} scores all items and has no search settings: leave out {', '.join(search)}")
    for name in search or ():
        check_known(name, bundle.model.search_settings, what=f"search setting of {bundle.name}")
    bundle = bundle.with_search_settings(search or {})
    sequences = _sequences(bundle, histories, timestamps)
    if profiles is not None:
        sequences = sequences.with_profiles(profiles)
    no_targets = Sequences(sequences.users, np.zeros(0, np.int32), None, np.zeros(len(sequences) + 1, np.int64))
    fold = Fold(sequences, no_targets)
    k, candidate_mask = min(k, len(bundle.vocabulary)), None
    if candidates is not None:
        items = bundle.vocabulary.encode(list(candidates))
        if not (items > 0).any():
            raise ValueError(f"none of the {len(candidates)} candidates is in the catalogue of {bundle.name}")
        candidate_mask = torch.zeros(len(bundle.vocabulary) + 1, dtype=torch.bool)  # (I + 1,)
        candidate_mask[torch.from_numpy(items[items > 0].astype(np.int64))] = True
    ranking = rank_fold(bundle.model, fold, exclude_seen=exclude_seen, k=k, candidates=candidate_mask)
    if slots is not None:
        ranking = slots.apply(ranking, fold, bundle, exclude_seen=exclude_seen)
    table = ranking.recommendations(fold, bundle, k)
    items = bundle.vocabulary.encode(table["item_id"].to_pylist())
    for name, codes in bundle.model.item_codes().items():
        lists = [None if row[0] < 0 else row.tolist() for row in codes.codes.cpu().numpy()[items]]
        table = table.append_column(f"{name}_codes", pa.array(lists, pa.list_(pa.int32())))
    return table


def similar_items(bundle: Bundle, item: str, k: int = 10) -> pa.Table:
    """Return at most ``k`` items by cosine with the vector of ``item``, best first: item_id, title, similarity.

    Vectors are those that items are scored with, else those that histories are read with, else the parts that the model
    has, such as the sums of the codes of each kind of ids. Items without a vector are left out; where vectors have a
    part that only events train, so are items without training events.

    Raises ValueError for k < 1, for an unknown item or one without a vector, and for a model without vectors of items.
    """
    _check_k(k)
    tables = bundle.model.item_tables()
    if not tables:
        raise ValueError(
            f"{bundle.name} has no vectors of items, so that none is similar to another; recommend to a history of "
            "that item alone, or take a model such as sasrec"
        )
    by_item, side = tables.get("output", tables.get("input")), bundle.model.side
    vectors_IV = (torch.cat(list(tables.values()), 1) if by_item is None else by_item)[1:].detach().cpu().double()
    has_vector = (vectors_IV != 0).any(1).numpy()
    if by_item is not None and (side is None or side.config.combine != "alone"):
        has_vector &= bundle.train_events > 0  # the embedding of an id that was never trained is random
    index = int(bundle.vocabulary.encode([item])[0]) - 1
    if index < 0:
        raise ValueError(f"item {item!r} is not in the catalogue of {bundle.name}; find ids by their title with --find")
    if not has_vector[index]:
        raise ValueError(f"{bundle.name} has no trained vector of item {item!r}; take one with training events")
    rows, similarity = _nearest(vectors_IV, index, has_vector, k)
    titles = [bundle.titles[row] for row in rows]
    ids = pa.array(bundle.vocabulary.ids[rows].tolist(), pa.string())
    return pa.table({"item_id": ids, "title": pa.array(titles, pa.string()), "similarity": similarity})


@torch.inference_mode()
def similar_users(
    bundle: Bundle,
    histories: Mapping[str, Sequence[str]],
    user: str,
    k: int = 10,
    *,
    timestamps: Mapping[str, Sequence[int]] | None = None,
) -> pa.Table:
    """Return at most ``k`` other users of ``histories`` by cosine of hidden states, best first: user_id, similarity.

    The hidden state is that of the last event, which the next item is predicted from. Users without an item that the
    model knows are left out. ``histories`` and ``timestamps`` as in `recommend`.

    Raises ValueError for k < 1, for a user without such a history, and for a model without hidden states.
    """
    _check_k(k)
    model = bundle.model
    if not isinstance(model, NextItem):
        raise ValueError(f"{bundle.name} has no hidden states of histories; take a model such as sasrec or gru4rec")
    if user not in histories:
        raise ValueError(f"user {user!r} has no history; there are {len(histories)} histories")
    data = model.eval().on_device(_sequences(bundle, histories, timestamps), window=model.max_length)
    has_history = data.lengths > 0
    if not has_history[index := list(histories).index(user)]:
        raise ValueError(f"{bundle.name} knows no item of the history of user {user!r}")
    states_UD = torch.zeros(len(histories), model.config.dim, dtype=torch.float64)
    for rows in length_buckets(data.lengths, np.flatnonzero(has_history), EVENTS_AT_ONCE):
        batch = data.batch(rows)
        hidden_BTD = model.hidden(batch)
        last_BD = hidden_BTD[torch.arange(len(rows), device=hidden_BTD.device), batch.lengths - 1]
        states_UD[torch.from_numpy(rows)] = last_BD.double().cpu()
    rows, similarity = _nearest(states_UD, index, has_history, k)
    users = np.array(list(histories), dtype=object)[rows]
    return pa.table({"user_id": pa.array(users.tolist(), pa.string()), "similarity": similarity})


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least one is needed")


def _nearest(vectors_NV: Tensor, index: int, mask_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the mask nearest to row ``index`` by cosine, without it, and their cosines; ties by row."""
    unit = F.normalize(vectors_NV, dim=1)
    cosines = (unit @ unit[index]).numpy()
    rows = np.flatnonzero(mask_N & (np.arange(len(mask_N)) != index))
    best = rows[np.argsort(-cosines[rows], kind="stable")[:k]]
    return best, cosines[best].astype(np.float32)


def _sequences(
    bundle: Bundle, histories: Mapping[str, Sequence[str]], timestamps: Mapping[str, Sequence[int]] | None
) -> Sequences:
    users = np.array(list(histories), dtype=object)
    lengths = np.array([len(histories[user]) for user in users], np.int64)
    items = bundle.vocabulary.encode([item for user in users for item in histories[user]])
    valid, owner = items > 0, np.repeat(np.arange(len(users)), lengths)
    if not valid.all():
        log.warning("%s of %s events are of items unknown to %s", (~valid).sum(), len(valid), bundle.name)
    times = None
    if timestamps is not None:
        if wrong := [user for user in users if len(timestamps.get(user, ())) != len(histories[user])]:
            raise ValueError(f"timestamps of user {wrong[0]!r} are not one for each event of the history")
        times = np.array([second for user in users for second in timestamps[user]], np.int64)[valid]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[valid], minlength=len(users)))])
    return Sequences(users, items[valid], times, offsets.astype(np.int64))


def bundle_folder(run: Path) -> Path:
    """Find the bundle of a run: the folder itself, or the latest version. Raises ValueError where there is none."""
    if (run / CONFIG).is_file():
        return run
    latest = latest_version(run / "bundle")
    if latest is None:
        raise ValueError(
            f"there is no bundle in {run}; train one with `kedro run --pipelines=train --params model=<name>`"
        )
    return latest


def items_titled(bundle: Bundle, text: str) -> list[tuple[str, str]]:
    """Return ids and titles that contain ``text`` in any case, most frequent in training first."""
    rows = zip(bundle.train_events.tolist(), bundle.vocabulary.ids.tolist(), bundle.titles, strict=True)
    hits = [row for row in rows if row[2] and text.casefold() in row[2].casefold()]
    return [(item, str(title)) for _, item, title in sorted(hits, key=lambda row: (-row[0], row[1]))]
