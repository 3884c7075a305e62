"""Cache of vectors on disk by content hash, and a driver that computes only the missing ones.

Shape letters: N keys, D width.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recpipe.data.atomic import atomic_file, remove
from recpipe.data.digests import verified
from recpipe.progress import progress

log = logging.getLogger(__name__)

SHARD_ROWS, SHARD_SECONDS = 2048, 20.0  # a new shard is written after so many vectors or seconds
MAX_SHARDS = 64  # above which shards are merged at the end of a run
MERGED_BYTES = 1 << 28  # at which a merged shard is full

Positions = NDArray[np.int64]
Keys = Sequence[str] | NDArray[np.object_]
Compute = Callable[[Positions], Iterator[tuple[Positions, NDArray[np.float32]]]]


class VectorCache:
    """Cache of vectors in a folder of safetensors shards.

    Each shard is written atomically, so that a killed run loses only its last seconds. A key is the SHA-256 hash, in
    hex, of content and space, so a folder may hold several spaces and widths.
    """

    def __init__(self, folder: Path, width: int | None = None) -> None:
        self.folder, self.width = Path(folder), width
        self._shards: list[tuple[Path, NDArray[np.bytes_]]] = [
            (path, _to_bytes(keys))
            for path in sorted(self.folder.glob("[!.]*.safetensors"))
            if (keys := _read(path, "keys")) is not None
        ]

    def __len__(self) -> int:
        return sum(len(keys) for _, keys in self._shards)

    def get(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which keys are cached (N,), and their vectors (N, D), zero for the others."""
        shard_of, row_of = self._locate(_from_hex(keys))
        out = np.zeros((len(shard_of), self.width or 0), np.float32)
        for shard in np.unique(shard_of[shard_of >= 0]):
            at, vectors = shard_of == shard, _read(self._shards[shard][0], "vectors")
            if vectors is not None and not out.shape[1]:
                out = np.zeros((len(out), vectors.shape[1]), np.float32)
            if vectors is None or vectors.shape[1] != out.shape[1]:
                shard_of[at] = -1
            else:
                out[at] = vectors[row_of[at]]
        return shard_of >= 0, out

    def add(self, keys: Keys, vectors_ND: NDArray[np.float32]) -> None:
        """Write the vectors (N, D) of ``keys`` (N,) as a shard. Raises ValueError if a vector is not finite."""
        if not len(keys):
            return
        if bad := len(keys) - np.count_nonzero(np.isfinite(vectors_ND).all(axis=1)):
            raise ValueError(
                f"{bad} of {len(keys)} new vectors hold NaN or infinity and are not stored; "
                "if they were made in bf16, set `precision: fp32`"
            )
        self._shards.append(self._write(_from_hex(keys), vectors_ND))

    def tidy(self) -> None:
        """Merge shards if there are more than MAX_SHARDS."""
        if len(self._shards) > MAX_SHARDS:
            self.compact()

    def compact(self) -> None:
        """Merge small shards into large ones; the old ones are deleted when the new one is complete."""
        old, self._shards, group, size = self._shards, [], list[Path](), 0
        for path, _ in old:
            group.append(path)
            size += path.stat().st_size if path.exists() else 0
            if size > MERGED_BYTES:
                self._merge(group)
                group, size = [], 0
        self._merge(group)

    def _locate(self, keys: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and row of each key, shard -1 for a missing key."""
        if not len(self):
            return np.full(len(keys), -1), np.zeros(len(keys), np.int64)
        lengths = [len(shard_keys) for _, shard_keys in self._shards]
        flat = np.concatenate([shard_keys for _, shard_keys in self._shards])
        order = np.argsort(flat, kind="stable")
        at = order[np.searchsorted(flat[order], keys).clip(max=len(flat) - 1)]
        shard = np.repeat(np.arange(len(lengths)), lengths)[at]
        row = at - (np.cumsum(lengths) - lengths)[shard]
        return np.where(flat[at] == keys, shard, -1), row

    def _merge(self, paths: list[Path]) -> None:
        by_width: dict[int, list[tuple[NDArray[np.bytes_], NDArray[np.float32]]]] = {}
        for path in paths:
            keys, vectors = _read(path, "keys"), _read(path, "vectors")
            if keys is not None and vectors is not None:
                by_width.setdefault(vectors.shape[1], []).append((_to_bytes(keys), vectors))
        for parts in by_width.values():
            keys, vectors = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            distinct, first = np.unique(keys, return_index=True)
            self._shards.append(self._write(distinct, vectors[first]))
        for path in paths:
            remove(path)

    def _write(self, keys: NDArray[np.bytes_], vectors_ND: NDArray[np.float32]) -> tuple[Path, NDArray[np.bytes_]]:
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        key_bytes = np.frombuffer(keys.tobytes(), np.uint8).reshape(-1, 32)
        with atomic_file(path) as temporary:
            save_file({"keys": key_bytes, "vectors": np.ascontiguousarray(vectors_ND, np.float32)}, temporary)
        return path, keys


def embed_missing(
    keys: Keys,
    compute: Compute,
    cache: VectorCache,
    *,
    label: str = "embed",
    rows: int = SHARD_ROWS,
    seconds: float = SHARD_SECONDS,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which keys have a vector (N,), and vectors (N, D), computing each distinct missing key once.

    ``compute`` gets the positions of missing keys and yields (positions, vectors) in any order; it may leave some out,
    and is not called if none is missing. Vectors are stored every ``rows`` vectors or ``seconds``, and if it raises.
    """
    keys = np.asarray(keys, object)
    _, first, inverse = np.unique(_from_hex(keys), return_index=True, return_inverse=True)
    is_ready, vectors = cache.get(keys[first])
    missing = np.sort(first[~is_ready]).astype(np.int64)
    note = "" if len(missing) else ", no encoder is needed"
    log.info("%s: %s of %s contents are new%s", label, f"{len(missing):,}", f"{len(first):,}", note)
    if not len(missing):
        return is_ready[inverse], vectors[inverse]

    pending: list[tuple[Positions, NDArray[np.float32]]] = []

    def store() -> None:
        if pending:
            positions, values = (np.concatenate(parts) for parts in zip(*pending, strict=True))
            pending.clear()
            cache.add(keys[positions], values)

    with progress(len(missing), label, unit="contents") as bar:
        try:
            last_store = time.monotonic()
            for positions, values in compute(missing):
                if not vectors.shape[1]:
                    vectors = np.zeros((len(first), values.shape[1]), np.float32)
                at = inverse[positions]
                vectors[at], is_ready[at] = values, True
                pending.append((positions, values))
                if sum(len(part) for part, _ in pending) >= rows or time.monotonic() - last_store > seconds:
                    store()
                    last_store = time.monotonic()
                bar.add(len(positions))
        finally:
            store()
    cache.tidy()
    return is_ready[inverse], vectors[inverse]


def _read(path: Path, name: str) -> NDArray[Any] | None:
    """Read a tensor of a shard; delete a damaged shard with a warning and return None."""
    try:
        with safe_open(verified(path), framework="numpy") as shard:
            keys, vectors = (shard.get_slice(part).get_shape() for part in ("keys", "vectors"))
            if len(vectors) != 2 or keys != [vectors[0], 32]:
                raise ValueError(f"its shapes are {keys} and {vectors}")
            return shard.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s is damaged (%s): deleted, its vectors are computed again", path, error)
        remove(path)
        return None


def _from_hex(keys: Keys) -> NDArray[np.bytes_]:
    return _to_bytes(np.frombuffer(bytes.fromhex("".join(keys)), np.uint8))


def _to_bytes(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.frombuffer(keys.tobytes(), "S32")
