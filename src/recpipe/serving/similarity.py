"""Nearest items by their vectors, and nearest users by the hidden states of their histories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.data.batch_samplers import length_buckets
from recpipe.data.sequences import Sequences
from recpipe.models.next_item import NextItem
from recpipe.serving.ranking import check_k
from recpipe.training.bundle import Bundle

ROWS_AT_ONCE = 1 << 16  # of vectors that are compared in float64
EVENTS_AT_ONCE = 1 << 15  # of the histories whose hidden states are computed together


def similar_items(bundle: Bundle, item: str, k: int = 10) -> pa.Table:
    """Return at most ``k`` items by cosine with the vector of ``item``, best first: item_id, title, similarity.

    Vectors are those that items are scored with, else those that histories are read with, else the parts that the model
    has, such as the sums of the codes of each kind of ids. Items without a vector are left out; where vectors have a
    part that only events train, so are items without training events.

    Raises ValueError for k < 1, for an unknown item or one without a vector, and for a model without vectors of items.
    """
    check_k(k)
    tables = bundle.model.item_tables()
    if not tables:
        raise ValueError(
            f"{bundle.name} has no vectors of items, so that none is similar to another; recommend to a history of "
            "that item alone, or take a model such as sasrec"
        )
    by_item, side = tables.get("output", tables.get("input")), bundle.model.side
    vectors_IV = (torch.cat(list(tables.values()), 1) if by_item is None else by_item)[1:].detach().cpu()
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
def similar_users(bundle: Bundle, histories: Sequences, user: str, k: int = 10) -> pa.Table:
    """Return at most ``k`` other users of ``histories`` by cosine of hidden states, best first: user_id, similarity.

    The hidden state is that of the last event, which the next item is predicted from. Users without an item that the
    model knows are left out. Raises ValueError for k < 1, for a user without such a history, and for a model without
    hidden states.
    """
    check_k(k)
    model, users = bundle.model, histories.users.tolist()
    if not isinstance(model, NextItem):
        raise ValueError(f"{bundle.name} has no hidden states of histories; take a model such as sasrec or gru4rec")
    if user not in users:
        raise ValueError(f"user {user!r} has no history; there are {len(users)} histories")
    data = model.eval().on_device(histories, window=model.max_length)
    has_history = data.lengths > 0
    if not has_history[index := users.index(user)]:
        raise ValueError(f"{bundle.name} knows no item of the history of user {user!r}")
    states_UD = torch.zeros(len(histories), model.config.dim, dtype=torch.float64)
    for rows in length_buckets(data.lengths, np.flatnonzero(has_history), EVENTS_AT_ONCE):
        batch = data.batch(rows)
        hidden_BTD = model.hidden(batch)
        last_BD = hidden_BTD[torch.arange(len(rows), device=hidden_BTD.device), batch.lengths - 1]
        states_UD[torch.from_numpy(rows)] = last_BD.double().cpu()
    rows, similarity = _nearest(states_UD, index, has_history, k)
    return pa.table({"user_id": histories.users[rows].array, "similarity": similarity})


def _nearest(vectors_NV: Tensor, index: int, mask_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the mask nearest to row ``index`` by cosine, without it, and their cosines; ties by row."""
    query = F.normalize(vectors_NV[index].double(), dim=0)
    parts = vectors_NV.split(ROWS_AT_ONCE)
    cosines = torch.cat([F.normalize(part.double(), dim=1) @ query for part in parts]).numpy()
    rows = np.flatnonzero(mask_N & (np.arange(len(mask_N)) != index))
    best = rows[np.argsort(-cosines[rows], kind="stable")[:k]]
    return best, cosines[best].astype(np.float32)
