"""Vectors on disk by the hash of what they were made from, and the driver that computes only those not there.

Shape letters: N keys, D width.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recpipe.data.atomic import atomic_file
from recpipe.progress import progress

log = logging.getLogger(__name__)

SHARD_ROWS, SHARD_SECONDS = 2048, 20.0
MANY = 64  # shards, from which on a run tidies up after itself
LARGE = 1 << 28  # bytes, at which a tidied shard is full

Positions = NDArray[np.int64]
Keys = Sequence[str] | NDArray[np.object_]
Compute = Callable[[Positions], Iterator[tuple[Positions, NDArray[np.float32]]]]


class VectorCache:
    """A folder of safetensors shards, each written whole or not at all: a killed run loses only its last seconds.

    A key is the hex sha256 of content and space, so one folder may hold several spaces, also of other widths.
    """

    def __init__(self, folder: Path, width: int | None = None) -> None:
        self.folder, self.width = Path(folder), width
        self._shards: list[tuple[Path, NDArray[np.bytes_]]] = []
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []:
            if not path.name.startswith(".") and (keys := _read(path, "keys")) is not None:
                self._shards.append((path, _packed(keys)))

    def __len__(self) -> int:
        return sum(len(keys) for _, keys in self._shards)

    def get(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which of the keys are there (N,), and their vectors (N, D), zero where not."""
        shard, row = self._find(_bytes(keys))
        width, parts = self.width, []
        for number in np.unique(shard[shard >= 0]):
            at = np.flatnonzero(shard == number)
            vectors = _read(self._shards[number][0], "vectors")
            if vectors is None or (width is not None and vectors.shape[1] != width):
                shard[at] = -1
                continue
            width = vectors.shape[1]
            parts.append((at, vectors[row[at]]))
        out = np.zeros((len(shard), width or 0), np.float32)
        for at, chosen in parts:
            out[at] = chosen
        return shard >= 0, out

    def add(self, keys: Keys, vectors_ND: NDArray[np.float32]) -> None:
        """One shard more. Raises ValueError if a vector is not finite, so that none is kept that is not."""
        if not len(keys):
            return
        bad = len(keys) - np.count_nonzero(np.isfinite(vectors_ND).all(axis=1))
        if bad:
            raise ValueError(
                f"{bad} of {len(keys)} new vectors hold NaN or infinity and are not kept; "
                "if they were made in bf16, set `precision: fp32`"
            )
        self._shards.append(self._write(_bytes(keys), vectors_ND))

    def tidy(self) -> None:
        """Compacts where there are many shards."""
        if len(self._shards) > MANY:
            self.compact()

    def compact(self) -> None:
        """Few large shards instead of many small ones; the old ones go when their successor is whole."""
        old, self._shards, group, size = self._shards, [], list[Path](), 0
        for path, _ in old:
            group.append(path)
            size += path.stat().st_size if path.exists() else 0
            if size > LARGE:
                self._merge(group)
                group, size = [], 0
        self._merge(group)

    def _find(self, wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and row of each key, shard -1 if there is none."""
        if not len(self):
            return np.full(len(wanted), -1), np.zeros(len(wanted), np.int64)
        lengths = [len(keys) for _, keys in self._shards]
        flat = np.concatenate([keys for _, keys in self._shards])
        order = np.argsort(flat, kind="stable")
        at = order[np.searchsorted(flat[order], wanted).clip(max=len(flat) - 1)]
        shard = np.repeat(np.arange(len(lengths)), lengths)[at]
        row = at - (np.cumsum(lengths) - lengths)[shard]
        return np.where(flat[at] == wanted, shard, -1), row

    def _merge(self, paths: list[Path]) -> None:
        by_width: dict[int, list[tuple[NDArray[np.bytes_], NDArray[np.float32]]]] = {}
        for path in paths:
            keys, vectors = _read(path, "keys"), _read(path, "vectors")
            if keys is not None and vectors is not None:
                by_width.setdefault(vectors.shape[1], []).append((_packed(keys), vectors))
        for parts in by_width.values():
            distinct, first = np.unique(np.concatenate([keys for keys, _ in parts]), return_index=True)
            vectors = np.concatenate([vectors for _, vectors in parts])[first]
            self._shards.append(self._write(distinct, vectors))
        for path in paths:
            path.unlink(missing_ok=True)

    def _write(
        self, packed: NDArray[np.bytes_], vectors_ND: NDArray[np.float32]
    ) -> tuple[Path, NDArray[np.bytes_]]:
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        keys = np.frombuffer(packed.tobytes(), np.uint8).reshape(-1, 32)
        with atomic_file(path) as temporary:
            save_file({"keys": keys, "vectors": np.ascontiguousarray(vectors_ND, np.float32)}, temporary)
        return path, packed


def embed_missing(
    keys: Keys,
    compute: Compute,
    cache: VectorCache,
    *,
    label: str = "embed",
    rows: int = SHARD_ROWS,
    seconds: float = SHARD_SECONDS,
) -> NDArray[np.float32]:
    """Vectors (N, D) of keys (N,), each computed once in its life.

    compute: called with the positions of one item per key that is not cached, and not at all if there is none;
    yields (positions, vectors) in any order. They are stored every ``rows`` vectors or ``seconds``, and if it raises.
    """
    keys = np.asarray(keys, object)
    _, first, inverse = np.unique(_bytes(keys), return_index=True, return_inverse=True)
    found, vectors = cache.get(keys[first])
    missing = np.sort(first[~found]).astype(np.int64)
    idle = "" if len(missing) else ", no encoder is needed"
    log.info("%s: %s of %s contents are new%s", label, f"{len(missing):,}", f"{len(first):,}", idle)
    if not len(missing):
        return vectors[inverse]
    with (
        progress(len(missing), label, unit="contents") as bar,
        _Store(keys, cache, rows, seconds) as store,
    ):
        for positions, computed in compute(missing):
            if not vectors.shape[1]:
                vectors = np.zeros((len(first), computed.shape[1]), np.float32)
            places = inverse[positions]
            vectors[places], found[places] = computed, True
            store.put(positions, computed)
            bar.add(len(positions))
    assert found.all(), f"{int((~found).sum())} vectors that were asked for did not come"
    cache.tidy()
    return vectors[inverse]


class _Store:
    """Collects vectors and adds them to the cache in shards; what is collected when something raises, too."""

    def __init__(self, keys: NDArray[np.object_], cache: VectorCache, rows: int, seconds: float) -> None:
        self.keys, self.cache, self.rows, self.seconds = keys, cache, rows, seconds
        self.waiting: list[tuple[Positions, NDArray[np.float32]]] = []
        self.count, self.since = 0, time.monotonic()

    def __enter__(self) -> _Store:
        return self

    def put(self, positions: Positions, vectors: NDArray[np.float32]) -> None:
        self.waiting.append((positions, vectors))
        self.count += len(positions)
        if self.count >= self.rows or time.monotonic() - self.since > self.seconds:
            self.write()

    def write(self) -> None:
        waiting, self.waiting = self.waiting, []
        self.count, self.since = 0, time.monotonic()
        if waiting:
            positions, vectors = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            self.cache.add(self.keys[positions], vectors)

    def __exit__(self, *error: object) -> None:
        self.write()


def _read(path: Path, name: str) -> NDArray | None:
    """A tensor of a shard; None, with a warning and the shard deleted, where it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as shard:
            keys, vectors = (shard.get_slice(part).get_shape() for part in ("keys", "vectors"))
            if len(vectors) != 2 or keys != [vectors[0], 32]:
                raise ValueError(f"its shapes are {keys} and {vectors}")
            return shard.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s is not whole (%s): deleted, its vectors are computed again", path, error)
        path.unlink(missing_ok=True)
        return None


def _bytes(keys: Keys) -> NDArray[np.bytes_]:
    return _packed(np.frombuffer(bytes.fromhex("".join(keys)), np.uint8))


def _packed(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.frombuffer(keys.tobytes(), "S32")
