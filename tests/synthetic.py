"""Small random logs and sequences for tests; the truth about them is recomputed there by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.sequences import Sequences


def sequences(rows: list[list[int]], *, times: bool = True) -> Sequences:
    """Rows of item indices; the t-th event of every user is at second 100 t."""
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    stamps = np.array([100 * t for row in rows for t in range(len(row))], np.int64)
    users = np.array([f"u{i:03}" for i in range(len(rows))], dtype=object)
    return Sequences(users, items, stamps if times else None, offsets)


def random_sequences(
    users: int, items: int, *, seed: int = 0, longest: int = 12, shortest: int = 3
) -> Sequences:
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
