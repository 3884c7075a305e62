"""Image embeddings: images are hashed and decoded by threads, and encoded where the cache lacks their content.

An item without an image has no vector. An image that cannot be used is listed in the quarantine with the reason.

Shape letters: N items, M items with a usable image, D width.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.config import check_at_least
from recpipe.content.embeddings import Embeddings, check_items, content_keys, digest, unit_rows
from recpipe.content.image_encoder import DECODING, ImageEncoder, Inputs, model_type, open_image
from recpipe.content.image_sources import MAX_BYTES, ImageReader
from recpipe.content.image_urls import UnusableImageError
from recpipe.content.pretrained import choose_device, choose_precision, fingerprint, model_folder
from recpipe.content.vector_cache import Positions, VectorCache, embed_missing
from recpipe.progress import progress

log = logging.getLogger(__name__)

FILES = ("config.json", "*.safetensors", "preprocessor_config.json|processor_config.json")
THREADS = 8
PREFETCH = 4  # images per thread that are read ahead of the encoder
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Settings of an encoder of ``image_encoders``.

    source: hub name or local folder; batch: images per step. Images above ``max_bytes`` or ``max_pixels`` are not used.
    """

    source: str = "google/siglip-base-patch16-224"
    precision: str = "auto"
    device: str = "auto"
    batch: int = 32
    normalise: bool = True  # vectors of length 1
    max_bytes: int = MAX_BYTES
    max_pixels: float = 50e6
    revision: str | None = None  # branch, tag or commit on the hub

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch", "max_bytes", "max_pixels")


def embed_images(
    item_ids: Sequence[str],
    references: Sequence[str | None],
    config: ImageEncoderConfig,
    *,
    reader: ImageReader,
    cache_folder: Path,
) -> tuple[Embeddings, pa.Table]:
    """Embed the images that ``references`` (N,) name; return also the quarantine (item_id, image, reason).

    Raises ValueError for references that do not fit the items, and for an encoder that cannot be used.
    """
    check_items(item_ids, references, "image references")
    folder = model_folder(config.source, revision=config.revision, files=FILES)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    space = digest("image", fingerprint(folder), config.normalise, DECODING)
    encoder_type = model_type(folder)
    hashes = _hash_images(references, reader, config.max_bytes)
    contents = [value if isinstance(value, str) else None for value in hashes]
    keys = content_keys(space, contents)
    job = EncodingJob(references, contents, keys, config, reader, lambda: ImageEncoder(folder, device, precision))
    rows = np.flatnonzero(keys != "")
    is_usable, vectors = embed_missing(
        keys[rows], lambda at: job.run(rows[at], at), VectorCache(cache_folder / precision), label="embed images"
    )
    present = np.zeros(len(item_ids), bool)
    present[rows] = is_usable
    vectors_ND = np.zeros((len(item_ids), vectors.shape[1]), np.float32)
    vectors_ND[rows] = vectors
    reasons = [
        job.reasons.get(key) or (str(value) if isinstance(value, UnusableImageError) else None)
        for key, value in zip(keys, hashes, strict=True)
    ]
    quarantine = quarantine_table(item_ids, references, reasons)
    keys = np.where(present, keys, "")
    about = {
        "modality": "image",
        "encoder": config.source,
        "model_type": encoder_type,
        "precision": precision,
        **_count_outcomes(references, keys, quarantine),
    }
    return Embeddings(np.array(item_ids, dtype=object), vectors_ND, present, keys, space, about), quarantine


def _hash_images(references: Sequence[str | None], reader: ImageReader, max_bytes: int) -> NDArray[np.object_]:
    """Hash the bytes of each item's image (N,): a hex string, an UnusableImageError, or None without an image."""

    def read(reference: str) -> str | UnusableImageError | None:
        try:
            return hashlib.sha256(reader(reference, max_bytes=max_bytes)).hexdigest()
        except FileNotFoundError:
            return None
        except UnusableImageError as error:
            return error

    distinct = pa.array(references, pa.string()).dictionary_encode()
    names = distinct.dictionary.to_pylist()
    with progress(len(names), "read images", unit="images") as bar:
        hashes = [*bar.over(_map_threads(read, names)), None]
    return np.array(hashes, object)[distinct.indices.fill_null(len(names)).to_numpy()]


@dataclass
class EncodingJob:
    """Decoding and encoding of images; collects the reasons why some cannot be used, by content key."""

    references: Sequence[str | None]
    contents: Sequence[str | None]
    keys: NDArray[np.object_]
    config: ImageEncoderConfig
    reader: ImageReader
    load_encoder: Callable[[], ImageEncoder]  # called for the first image that can be decoded
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._encoder: ImageEncoder | None = None
        self._lock = threading.Lock()

    def run(self, rows: NDArray[np.int64], positions: Positions) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        """Yield positions (B,) and vectors (B, D) of the usable images among ``rows``."""
        batch: list[tuple[int, Inputs]] = []
        for row, position, inputs in zip(rows, positions, _map_threads(self._preprocess, rows), strict=True):
            if isinstance(inputs, UnusableImageError):
                self.reasons[self.keys[row]] = str(inputs)
                continue
            batch.append((position, inputs))
            if len(batch) == self.config.batch:
                yield self._encode(batch)
                batch = []
        if batch:
            yield self._encode(batch)

    def _preprocess(self, row: int) -> Inputs | UnusableImageError:
        try:
            data = self.reader(self.references[row] or "", max_bytes=self.config.max_bytes)
            if hashlib.sha256(data).hexdigest() != self.contents[row]:
                return UnusableImageError("changed while it was read")
            with open_image(data, max_pixels=self.config.max_pixels) as image:
                return self._loaded_encoder().preprocess(image)
        except FileNotFoundError:
            return UnusableImageError("went away while it was read")
        except UnusableImageError as error:
            return error

    def _encode(self, batch: list[tuple[int, Inputs]]) -> tuple[Positions, NDArray[np.float32]]:
        positions, inputs = zip(*batch, strict=True)
        vectors_BD = self._loaded_encoder().encode(list(inputs))
        return np.array(positions), unit_rows(vectors_BD) if self.config.normalise else vectors_BD

    def _loaded_encoder(self) -> ImageEncoder:
        with self._lock:
            self._encoder = self._encoder or self.load_encoder()
            return self._encoder


def _map_threads(function: Callable[[In], Out], values: Iterable[In]) -> Iterator[Out]:
    """Map in threads, in order, at most THREADS x PREFETCH values ahead of the consumer."""
    pool, futures = ThreadPoolExecutor(THREADS), deque[Future[Out]]()
    try:
        for value in values:
            futures.append(pool.submit(function, value))
            if len(futures) >= THREADS * PREFETCH:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def quarantine_table(
    item_ids: Sequence[str], references: Sequence[str | None], reasons: Sequence[str | None]
) -> pa.Table:
    """Return a table with the columns item_id, image and reason, of the items that have a reason."""
    columns = [pa.array(column, pa.string()) for column in (item_ids, references, reasons)]
    return pa.table(columns, ["item_id", "image", "reason"]).filter(pc.is_valid(columns[2]))


def _count_outcomes(
    references: Sequence[str | None], keys: NDArray[np.object_], quarantine: pa.Table
) -> dict[str, int]:
    """Count items by outcome, and log the counts."""
    with_reference = sum(reference is not None for reference in references)
    embedded, unusable = int((keys != "").sum()), quarantine.num_rows
    counts = {
        "items": len(references),
        "embedded": embedded,
        "distinct": len(set(keys) - {""}),
        "without_image": len(references) - with_reference,
        "not_found": with_reference - embedded - unusable,
        "refused": unusable,
    }
    log.info("images: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    if unusable:
        reason, times = Counter(quarantine["reason"].to_pylist()).most_common(1)[0]
        log.warning("%s images cannot be used, most often (%s times): %s", unusable, times, reason)
    if 2 * counts["not_found"] > with_reference:
        example = next(name for name, key in zip(references, keys, strict=True) if name is not None and not key)
        other = next((name for name, key in zip(references, keys, strict=True) if key), None)
        log.warning(
            "%s of %s images do not exist, such as %r%s: check the data set's `content.image`",
            f"{counts['not_found']:,}", f"{with_reference:,}", example, f", unlike {other!r}" if other else "",
        )  # fmt: skip
    return counts
