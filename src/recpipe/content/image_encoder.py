"""Image decoding with Pillow, and the vision tower of SigLIP and SigLIP 2 with its image processor.

Shape letters: B images of a batch, D width.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from recpipe.content.image_urls import UnusableImageError
from recpipe.content.pretrained import DTYPES, check_weights, quiet_loading, read_json

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_DECODED = 32_000_000  # pixels decoded at a time by all threads together; a larger image is decoded alone
DECODING = 1  # version, part of the vectors' fingerprint: raise it when pixels come out differently

TEXT_TOWER = [r"^text_model\.", r"^logit_(scale|bias)$"]  # weights of a checkpoint that are not loaded
# By model_type. SigLIP 2 of a fixed resolution is of type "siglip"; "siglip2" is its NaFlex variant.
CLASSES = {
    "siglip": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip2": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
    "siglip2_vision_model": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
}

Inputs = dict[str, NDArray[Any]]  # arrays of one image, by the tower's argument names


@contextmanager
def open_image(data: bytes, *, max_pixels: float) -> Iterator[Image.Image]:
    """Decode the first frame to RGB: upright by EXIF, transparency over white, 16-bit grey scaled to 8.

    The size in the header is checked before pixels are decoded. The call waits while other threads hold many decoded
    pixels. Raises UnusableImageError for another format, more than ``max_pixels``, and damaged data.
    """
    _check_webp(data, max_pixels)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnusableImageError(f"not an image ({', '.join(FORMATS)} are read)") from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"too many pixels: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # each format fails in its own ways
        raise UnusableImageError(f"not a whole image: {error}") from error
    with image:
        _check_size(image.size, max_pixels)
        with _budget.reserve(image.width * image.height):
            yield _decode(image)


class PixelBudget:
    """Semaphore that counts pixels."""

    def __init__(self, pixels: int) -> None:
        self._pixels, self._used, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until ``pixels`` fit, or nobody else holds any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_budget = PixelBudget(MAX_DECODED)


def _decode(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise UnusableImageError(f"not a whole image: {error}") from error
    with suppress(Exception):  # damaged EXIF of an undamaged image
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _check_size(size: tuple[int, int], max_pixels: float) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnusableImageError(f"{size[0]} x {size[1]} pixels, more than max_pixels {max_pixels:,.0f}")


def _check_webp(data: bytes, max_pixels: float) -> None:
    """Check a WebP's size from its bytes, as older Pillow allocates the canvas on opening."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
        _check_size((width + 1, height + 1), max_pixels)
    elif data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        _check_size(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), max_pixels)
    elif data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        _check_size((width & 0x3FFF, height & 0x3FFF), max_pixels)


def model_type(folder: Path) -> str:
    """Return ``model_type`` of ``config.json``. Raises ValueError if it is not one of ``CLASSES``."""
    config = read_json(folder / "config.json")
    if (name := config.get("model_type")) not in CLASSES:
        raise ValueError(f"{folder} holds a model of type {name!r}; images are encoded by {', '.join(CLASSES)}")
    if config.get("vision_config", config).get("vision_use_head") is False:
        raise ValueError(f"{folder} holds a vision model without a pooling head: it has no vector per image")
    return name


class ImageEncoder:
    """Vision tower and image processor. Raises ValueError where a weight is missing."""

    def __init__(self, folder: Path, device: torch.device, precision: str) -> None:
        import transformers

        tower_class, processor_class = (getattr(transformers, name) for name in CLASSES[model_type(folder)])
        with quiet_loading(folder, "an image encoder"):
            self._processor = processor_class.from_pretrained(folder, trust_remote_code=False)
        # Weights of the text tower in the checkpoint are no reason for a warning.
        quiet: Any = type(tower_class.__name__, (tower_class,), {"_keys_to_ignore_on_load_unexpected": TEXT_TOWER})
        with quiet_loading(folder, "an image encoder"):
            model, report = quiet.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=DTYPES[precision],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by check_weights with their names
            )
        check_weights(folder, report, part="the vision tower")
        self._model = model.to(device)
        self._device = device

    def preprocess(self, image: Image.Image) -> Inputs:
        """Convert an RGB image to inputs of the tower; thread-safe."""
        return {name: array[0] for name, array in self._processor(images=image, return_tensors="np").items()}

    @torch.inference_mode()
    def encode(self, inputs: list[Inputs]) -> NDArray[np.float32]:
        """Return pooled vectors (B, D), not normalised."""
        batch = {
            name: torch.from_numpy(np.stack([arrays[name] for arrays in inputs])).to(self._device) for name in inputs[0]
        }
        return self._model(**batch).pooler_output.float().cpu().numpy()
