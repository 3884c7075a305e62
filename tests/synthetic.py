"""Small random logs and sequences for tests; the truth about them is recomputed there by brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.side import Side, SideConfig
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build, model_class
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.losses.full_softmax import FullSoftmax


def sequences(rows: list[list[int]], *, times: bool = True) -> Sequences:
    """Rows of item indices; the t-th event of every user is at second 100 t."""
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    stamps = np.array([100 * t for row in rows for t in range(len(row))], np.int64)
    users = np.array([f"u{i:03}" for i in range(len(rows))], dtype=object)
    return Sequences(users, items, stamps if times else None, offsets)


def random_sequences(users: int, items: int, *, seed: int = 0, longest: int = 12, shortest: int = 3) -> Sequences:
    """Random walks over the catalogue: usually the next item follows the last, which can be learned."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(users):
        start, length = rng.integers(items), rng.integers(shortest, longest + 1)
        walk = (start + np.arange(length)) % items + 1
        noise = rng.random(length) < 0.1
        rows.append(np.where(noise, rng.integers(1, items + 1, length), walk).tolist())
    return sequences(rows)


def write_log(path: Path, rows: list[tuple[str, str, int | None]]) -> Path:
    """(user, item, timestamp) in source order, as an interactions Parquet."""
    users, items, stamps = zip(*rows, strict=True)
    table = {
        "user_id": pa.array(users, pa.string()),
        "item_id": pa.array(items, pa.string()),
        "timestamp": pa.array(stamps, pa.int64()),
        "order": pa.array(range(len(rows)), pa.int64()),
    }
    pq.write_table(pa.table(table), path)
    return path


def described(data: Sequences, *, seed: int = 0) -> Sequences:
    """`data` with ratings, some missing, times of any hour, and the columns `country` and `age` of its users."""
    rng = np.random.default_rng(seed)
    ratings = rng.integers(1, 6, len(data.items)).astype(np.float32)
    ratings[::7] = np.nan
    times = np.concatenate([np.sort(rng.integers(0, 2**31, n)) for n in data.lengths]).astype(np.int64)
    countries = [None if u % 5 == 4 else f"c{u % 3}" for u in range(len(data))]
    ages = [None if u % 6 == 5 else float(a) for u, a in enumerate(rng.permutation(len(data)))]
    profiles = {"country": pa.array(countries, pa.string()), "age": pa.array(ages, pa.float64())}
    return replace(data, ratings=ratings, timestamps=times, profiles=profiles)


def weighted(data: Sequences, *, seed: int = 0) -> Sequences:
    """`data` with weights of its events, some of them 0."""
    draw = np.random.default_rng(seed)
    return replace(data, weights=draw.choice([0, 0.25, 1, 1.5, 4], len(data.items)).astype(np.float32))


def target_mask(data: Sequences) -> np.ndarray:
    """(N,) bool: events that a training predicts: behind the context of their user, and of a target type."""
    mask = np.zeros(len(data.items), bool)
    for u in range(len(data)):
        context = 1 if data.context is None else max(int(data.context[u]), 1)
        for place in range(data.offsets[u] + context, data.offsets[u + 1]):
            mask[place] = data.is_target is None or bool(data.is_target[place])
    return mask


def weights_by_pair(data: Sequences, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and maximum of the weights of each user's events of each item, both (U, I), 0 for none."""
    total, largest = np.zeros((len(data), items)), np.zeros((len(data), items))
    for u in range(len(data)):
        for n in range(data.offsets[u], data.offsets[u + 1]):
            place, weight = (u, data.items[n] - 1), float(data.weights[n])
            total[place] += weight
            largest[place] = max(largest[place], weight)
    return total, largest


def catalogue(items: int, *, width: int = 6, seed: int = 0) -> tuple[dict, dict]:
    """Columns (`price`, `genres`) and vectors (`text`, `image`) of items; many lack some, the last one all, and the
    vectors `plot` and `collaborative` no other.
    """
    rng = np.random.default_rng(seed)
    prices = [None if i % 7 == 6 or i == items - 1 else float(rng.normal()) for i in range(items)]
    genres = [None if i % 3 == 2 or i == items - 1 else [f"g{g}" for g in range(i % 4 + 1)] for i in range(items)]
    columns = {"price": pa.array(prices), "genres": pa.array(genres, pa.list_(pa.string()))}
    present = np.arange(items) % 5 != 4
    present[-1] = False
    vectors = {
        name: (np.where(present[:, None], rng.normal(3, 2, (items, width)), 0).astype(np.float32), present)
        for name in ("text", "image")
    }
    others = np.arange(items) < items - 1
    for name in ("plot", "collaborative"):
        vectors[name] = (rng.normal(size=(items, width)).astype(np.float32) * others[:, None], others)
    return columns, vectors


def train_until(
    model: Recommender, batch: Batch, done: Callable[[float], bool], *, rate: float, at_most: int = 1000, every: int = 1
) -> list[float]:
    """Losses of Adam's steps on one batch, until ``done(loss)`` of every so many steps says that it is learned.

    ``at_most`` is far more than is needed: where Adam stands after a fixed number of steps hangs on the order of
    floating-point sums, as a high rate makes the loss jump now and then.
    """
    optimiser, criterion, losses = torch.optim.Adam(model.parameters(), rate), FullSoftmax(), []
    while len(losses) < at_most:
        optimiser.zero_grad()
        loss = model.loss(batch, criterion)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if len(losses) % every == 0 and done(losses[-1]):
            break
    return losses


IDS = {"mql4grec": ("text", "image")}  # modalities of the ids that a model reads in tests; text by default
VECTORS = {"setrec": "plot+collaborative", "liger": "plot"}  # of models that know items by nothing else
FULL = {"items": "genres+price", "users": "country+age", "events": "rating+hour+weekday+gap"}


def side_of(data: Sequences, n_items: int, **asked: str | bool) -> Side:
    """A Side of `catalogue(n_items)`; everything there is with `vectors="text", **FULL`."""
    return Side.of(SideConfig(**asked), data, *catalogue(n_items), n_items=n_items)


# Sizes of models that read ids and have other settings than T5's; a test's own sizes are for the others
SIZES: dict[str, dict[str, Any]] = {
    "rpg": {"dim": 32, "layers": 1, "heads": 2, "feed_forward": 64, "attention_dropout": 0.0}
}


def untrained(name: str, config: dict, data: Sequences, *, n_items: int, max_length: int) -> Recommender:
    """A model as the registry builds it; one that cannot do without vectors or semantic ids gets some."""
    cls, vectors = model_class(name), VECTORS.get(name, "text")
    side = side_of(data, n_items, vectors=vectors) if "vectors" in cls.required_side else None
    ids = {modality: catalogue_ids(n_items, seed=seed) for seed, modality in enumerate(IDS.get(name, ("text",)))}
    given = ids if cls.reads_ids else None
    return build(name, config, n_items=n_items, max_length=max_length, side=side, ids=given)


def catalogue_ids(n_items: int, *, sizes: tuple[int, ...] = (4, 4, 4), seed: int = 0) -> CatalogueIds:
    """Different random ids, of no more items than there are codes."""
    chosen = np.random.default_rng(seed).choice(int(np.prod(sizes)), n_items, replace=False)
    codes = np.full((n_items + 1, len(sizes)), -1, np.int64)
    codes[1:] = np.stack(np.unravel_index(chosen, sizes), 1)
    return CatalogueIds(codes, sizes, f"source{seed}", "quantizer")
