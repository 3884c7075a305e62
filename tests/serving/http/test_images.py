"""Thumbnails of items: what is sent, and what is not."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from PIL import Image
from tests.serving.explorer_service import serving

from recpipe.content.image_sources import ImageSourceConfig
from recpipe.serving.http.images import SIDE, images_router

WEB = "http://images.invalid/cup.png"


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    raw, downloads = tmp_path / "raw", tmp_path / "downloads"
    raw.mkdir()
    Image.new("RGB", (800, 400), "red").save(raw / "red.png")
    (raw / "page.jpg").write_bytes(b"<script>alert(1)</script>")
    (tmp_path / "secret.png").write_bytes((raw / "red.png").read_bytes())
    name = hashlib.sha256(WEB.encode()).hexdigest()
    (downloads / name[:2]).mkdir(parents=True)
    Image.new("RGB", (20, 20), "blue").save(downloads / name[:2] / name, "PNG")
    images = {
        "a/b": "red.png", "script": "page.jpg", "outside": "../secret.png", "gone": "gone.png", "none": None,
        "fetched": WEB, "never fetched": "http://images.invalid/other.png",
    }  # fmt: skip
    pq.write_table(pa.table({"item_id": list(images), "image": list(images.values())}), tmp_path / "items.parquet")
    app = FastAPI()
    config = ImageSourceConfig(column="image")
    app.include_router(images_router(tmp_path / "items.parquet", config, raw, downloads))
    return app


def test_images_are_sent_small_and_only_from_their_source(app):
    with serving(app) as address:
        answer = urlopen(f"{address}/images/a%2Fb")
        image = Image.open(io.BytesIO(answer.read()))
        assert (image.format, image.size) == ("JPEG", (SIDE, SIDE // 2))
        assert image.getpixel((5, 5))[0] > 240 and answer.headers["X-Content-Type-Options"] == "nosniff"
        fetched = Image.open(io.BytesIO(urlopen(f"{address}/images/fetched").read()))
        assert fetched.size == (20, 20) and fetched.getpixel((5, 5))[2] > 240
        for item in ("script", "outside", "gone", "none", "never fetched", "unknown", "../items.parquet"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"{address}/images/{quote(item, safe='')}")
