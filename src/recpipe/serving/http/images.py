"""HTTP route of item images, as thumbnails: GET /images/{item_id}.

Images are those of the data set (block ``content.image``), from its raw folder or from what `embed` has downloaded; the
service itself fetches nothing from the web. Every image is decoded and written anew, so that what a browser gets is a
small picture whatever the file holds.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
from fastapi import APIRouter
from fastapi.responses import Response

from recpipe.config import DataPaths
from recpipe.content.image_encoder import open_image
from recpipe.content.image_sources import ImageReader, ImageSourceConfig, image_reader, image_references
from recpipe.content.image_urls import UnusableImageError
from recpipe.serving.http.guard import error_body

log = logging.getLogger(__name__)

SIDE = 160  # pixels of the longer side
MAX_PIXELS = 1 << 26  # of an image before it is made smaller
REMEMBERED = 4096  # thumbnails in memory, some 5 KiB each
HEADERS = {
    "Cache-Control": "private, max-age=86400",
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Thumbnails:
    """Small images of items by id."""

    def __init__(self, items: Path, config: ImageSourceConfig, reader: ImageReader) -> None:
        """``items``: Parquet file with ``item_id`` and the columns that ``config`` names."""
        self._items, self._config, self._reader = ds.dataset(items, format="parquet"), config, reader
        self.get = lru_cache(REMEMBERED)(self._get)

    def _get(self, item: str) -> bytes | None:
        """Return a JPEG, None for an item without an image that can be used."""
        rows = self._items.scanner(filter=pc.field("item_id") == item).head(1)
        (reference,) = image_references(rows, self._config) or (None,)
        if reference is None:
            return None
        try:
            with open_image(self._reader(reference), max_pixels=MAX_PIXELS) as image:
                image.thumbnail((SIDE, SIDE))
                content = io.BytesIO()
                image.save(content, "JPEG", quality=80)
        except (FileNotFoundError, UnusableImageError):
            return None
        return content.getvalue()


def images_router(items: Path, config: ImageSourceConfig, raw_folder: Path, downloads: Path | None = None) -> APIRouter:
    """Return the route. ``downloads``: cache of images from the web. Raises ValueError for a missing image source."""
    thumbnails = Thumbnails(items, config, image_reader(config, raw_folder, downloads, offline=True))
    router = APIRouter(tags=["items"])

    @router.get("/images/{item_id:path}", summary="Return a small image of an item")
    def image(item_id: str) -> Response:
        content = thumbnails.get(item_id)
        if content is None:
            message = f"item {item_id[:200]!r} has no image"
            return Response(error_body(message), 404, HEADERS, "application/json")
        return Response(content, media_type="image/jpeg", headers=HEADERS)

    return router


def images_of_dataset(dataset: Mapping[str, Any], paths: DataPaths) -> APIRouter | None:
    """Return the route for the conf of a data set; None without images, or with a warning where they are not there."""
    block = (dataset.get("content") or {}).get("image") or {}
    items = paths.primary / "items.parquet"
    if not items.is_file() or not (block.keys() & {"name", "column"}):  # a file of vectors has neither
        return None
    try:
        config = ImageSourceConfig.from_block(block)
        return images_router(items, config, paths.raw, paths.cache("image") / "downloads")
    except ValueError as error:
        log.warning("the service shows no images: %s", error)
        return None
