"""Item images to vectors: read and hashed by many threads, decoded and encoded only where the cache has no
vector of the same bytes. A missing image is a mask; one that is not taken goes to the quarantine with the reason.

Shape letters: N items, M items whose image is taken, D width.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.content.embeddings import Embeddings, check_unique, content_keys, digest, unit_rows
from recpipe.content.image_encoder import DECODING, LazyEncoder, model_type, opened
from recpipe.content.image_sources import MAX_BYTES, Opener, UnusableImageError
from recpipe.content.pretrained import choose_device, choose_precision, fingerprint, model_folder
from recpipe.content.vector_cache import Positions, VectorCache, embed_missing
from recpipe.progress import progress

log = logging.getLogger(__name__)

FILES = ("config.json", "*.safetensors", "preprocessor_config.json|processor_config.json")
THREADS = 8
AHEAD = 4  # images per thread that are read or prepared before they are asked for
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """An encoder and what it is given. ``source``: hub name or local folder; ``batch``: images per step."""

    source: str = "google/siglip-base-patch16-224"
    precision: str = "auto"
    device: str = "auto"
    batch: int = 32
    normalise: bool = True
    max_bytes: int = MAX_BYTES
    max_pixels: float = 50e6
    revision: str | None = None

    def __post_init__(self) -> None:
        if min(self.batch, self.max_bytes, self.max_pixels) < 1:
            raise ValueError(
                f"batch {self.batch}, max_bytes {self.max_bytes} and max_pixels {self.max_pixels} must be positive"
            )


def embed_images(
    item_ids: Sequence[str],
    references: Sequence[str | None],
    config: ImageEncoderConfig,
    *,
    opener: Opener,
    cache_folder: Path,
) -> tuple[Embeddings, pa.Table]:
    """Vectors of the images that ``references`` (N,) name, and the quarantine: item_id, image, reason.

    ``opener`` reads one reference; what it reads is held for no longer than it takes to hash or encode it.
    Raises ValueError for references that do not fit the items, and for an encoder that cannot be used.
    """
    if len(item_ids) != len(references):
        raise ValueError(f"{len(item_ids)} items and {len(references)} image references: give one per item")
    check_unique(item_ids)
    folder = model_folder(config.source, revision=config.revision, files=FILES)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    about = {
        "modality": "image",
        "encoder": config.source,
        "model_type": model_type(folder),
        "precision": precision,
    }
    space = digest("image", fingerprint(folder), config.normalise, DECODING)

    read = _read_all(references, opener, config.max_bytes)
    contents = [one if isinstance(one, str) else None for one in read]
    keys = content_keys(space, contents)
    pictures = _Pictures(references, contents, keys, config, opener, LazyEncoder(folder, device, precision))
    rows, vectors_MD = pictures.embedded(VectorCache(cache_folder / precision))

    embeddings = _spread(item_ids, keys, rows, vectors_MD, space, about)
    reasons = [pictures.refused.get(key) or _reason(one) for key, one in zip(keys, read, strict=True)]
    quarantine = quarantine_table(item_ids, references, reasons)
    embeddings.about.update(_counted(references, embeddings, quarantine))
    return embeddings, quarantine


def _read_all(references: Sequence[str | None], opener: Opener, max_bytes: int) -> NDArray[np.object_]:
    """Per item (N,) the hash of its image's bytes, the refusal, or None where there is no image."""

    def read(reference: str) -> str | UnusableImageError | None:
        try:
            return hashlib.sha256(_bytes(opener, reference, max_bytes)).hexdigest()
        except FileNotFoundError:
            return None
        except UnusableImageError as refused:
            return refused

    distinct = pa.array(references, pa.string()).dictionary_encode()
    names = distinct.dictionary.to_pylist()
    with progress(len(names), "read images", unit="images") as bar:
        outcomes: list[Any] = list(bar.over(_pooled(read, names)))
    return np.array([*outcomes, None], object)[distinct.indices.fill_null(len(names)).to_numpy()]


class _Pictures:
    """The images that could be read: decoded, encoded and cached; ``refused`` says why some are not, by key."""

    def __init__(
        self,
        references: Sequence[str | None],
        contents: Sequence[str | None],
        keys: NDArray[np.object_],
        config: ImageEncoderConfig,
        opener: Opener,
        encoder: LazyEncoder,
    ) -> None:
        self.references, self.contents, self.keys = references, contents, keys
        self.config, self.opener, self.encoder = config, opener, encoder
        self.refused: dict[str, str] = {}

    def embedded(self, cache: VectorCache) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows (M,) of the items whose image is taken, and their vectors (M, D)."""
        while True:
            rows = np.array(
                [row for row, key in enumerate(self.keys) if key and key not in self.refused], int
            )
            try:
                compute = partial(self._compute, rows)
                return rows, embed_missing(self.keys[rows], compute, cache, label="embed images")
            except _Refusals:
                continue  # all others are in the cache now

    def _compute(
        self, rows: NDArray[np.int64], positions: Positions
    ) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        known = len(self.refused)
        batch: list[tuple[int, dict[str, NDArray[Any]]]] = []
        for position, prepared in zip(positions, _pooled(self._prepared, rows[positions]), strict=True):
            if isinstance(prepared, UnusableImageError):
                self.refused[self.keys[rows[position]]] = str(prepared)
                continue
            batch.append((position, prepared))
            if len(batch) == self.config.batch:
                yield self._encoded(batch)
                batch = []
        if batch:
            yield self._encoded(batch)
        if len(self.refused) > known:
            raise _Refusals

    def _prepared(self, row: int) -> dict[str, NDArray[Any]] | UnusableImageError:
        try:
            data = _bytes(self.opener, self.references[row] or "", self.config.max_bytes)
            if hashlib.sha256(data).hexdigest() != self.contents[row]:
                return UnusableImageError("changed while it was read")
            with opened(data, max_pixels=self.config.max_pixels) as image:
                return self.encoder.loaded().prepare(image)
        except FileNotFoundError:
            return UnusableImageError("went away while it was read")
        except UnusableImageError as refused:
            return refused

    def _encoded(
        self, batch: list[tuple[int, dict[str, NDArray[Any]]]]
    ) -> tuple[Positions, NDArray[np.float32]]:
        positions, prepared = zip(*batch, strict=True)
        vectors_BD = self.encoder.loaded().encode(list(prepared))
        return np.array(positions), unit_rows(vectors_BD) if self.config.normalise else vectors_BD


class _Refusals(Exception):
    """Ends a computation that left images out, after all others were handed over."""


def _pooled(function: Callable[[In], Out], values: Iterable[In]) -> Iterator[Out]:
    """Results in order, a bounded number of them ahead of whoever takes them."""
    pool, waiting = ThreadPoolExecutor(THREADS), deque[Future[Out]]()
    try:
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) >= THREADS * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes(opener: Opener, reference: str, max_bytes: int) -> bytes:
    data = opener(reference, max_bytes=max_bytes)
    if len(data) > max_bytes:
        raise UnusableImageError(f"{len(data):,} bytes, more than max_bytes {max_bytes:,}")
    return data


def _spread(
    item_ids: Sequence[str],
    keys: NDArray[np.object_],
    rows: NDArray[np.int64],
    vectors_MD: NDArray[np.float32],
    space: str,
    about: dict[str, Any],
) -> Embeddings:
    present = np.zeros(len(item_ids), bool)
    present[rows] = True
    vectors_ND = np.zeros((len(item_ids), vectors_MD.shape[1]), np.float32)
    vectors_ND[rows] = vectors_MD
    ids = np.array(item_ids, dtype=object)
    return Embeddings(ids, vectors_ND, present, np.where(present, keys, ""), space, about)


def _reason(outcome: str | UnusableImageError | None) -> str | None:
    return str(outcome) if isinstance(outcome, UnusableImageError) else None


def quarantine_table(
    item_ids: Sequence[str], references: Sequence[str | None], reasons: Sequence[str | None]
) -> pa.Table:
    """Of items (N,) those whose image is not taken, with the reason; null where there is none."""
    names = ("item_id", "image", "reason")
    columns = (pa.array(column, pa.string()) for column in (item_ids, references, reasons))
    table = pa.table(dict(zip(names, columns, strict=True)))
    return table.filter(pc.is_valid(table["reason"]))


def _counted(
    references: Sequence[str | None], embeddings: Embeddings, quarantine: pa.Table
) -> dict[str, int]:
    """What became of the items, also into the log."""
    named = sum(reference is not None for reference in references)
    taken, refused = int(embeddings.present.sum()), quarantine.num_rows
    counts = {
        "items": len(references),
        "embedded": taken,
        "distinct": len(set(embeddings.keys) - {""}),
        "without_image": len(references) - named,
        "not_found": named - taken - refused,
        "refused": refused,
    }
    log.info("images: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    if refused:
        reason, often = Counter(quarantine["reason"].to_pylist()).most_common(1)[0]
        log.warning("%s images are not taken, most often (%s times): %s", refused, often, reason)
    if named and counts["not_found"] == named:
        first = next(reference for reference in references if reference is not None)
        log.warning(
            "none of %s images is there, such as %r: look at the data set's `content.image`", named, first
        )
    return counts
