"""Image bytes to upright RGB pixels, or the reason why not. The size in the header is judged before any
pixel is decoded, and only the formats of photographs and screens are opened at all.

The vision half of a SigLIP or SigLIP 2 model and the processor that came with it.

Shape letters: B images of a batch, D width.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from recpipe.content.image_sources import UnusableImageError
from recpipe.content.pretrained import DTYPES, check_weights, loading, read_json

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
AT_ONCE = 32_000_000  # pixels that all threads together hold decoded; a larger image is decoded alone
DECODING = 1  # goes into the fingerprint of vectors: raise it when pixels come out differently


@contextmanager
def opened(data: bytes, *, max_pixels: float) -> Iterator[Image.Image]:
    """The first frame as mode RGB: turned as EXIF says, transparency over white, 16 bit greys scaled to 8.

    While many images are open in other threads it waits, so that memory stays bounded. Raises UnusableImageError:
    not an image of an allowed format, more than ``max_pixels``, not whole.
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
    except Exception as error:  # broken headers fail in as many ways as there are formats
        raise UnusableImageError(f"not a whole image: {error}") from error
    with image:
        _check_size(image.size, max_pixels)
        with _room.taken(image.width * image.height):
            yield _pixels(image)


class _Room:
    """A semaphore that counts pixels."""

    def __init__(self, pixels: int) -> None:
        self._pixels, self._used, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_room = _Room(AT_ONCE)


def _pixels(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise UnusableImageError(f"not a whole image: {error}") from error
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the picture is whole, only its notes are not
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _check_size(size: tuple[int, int], max_pixels: float) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnusableImageError(f"{size[0]} x {size[1]} pixels, more than max_pixels {max_pixels:,.0f}")


def _check_webp(data: bytes, max_pixels: float) -> None:
    """Older Pillow takes the memory for a WebP's canvas as soon as it is opened."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    if data[12:16] == b"VP8X":
        words = (int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little"))
        _check_size((words[0] + 1, words[1] + 1), max_pixels)
    elif data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        _check_size(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), max_pixels)
    elif data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        _check_size((width & 0x3FFF, height & 0x3FFF), max_pixels)


TEXT_HALF = [r"^text_model\.", r"^logit_(scale|bias)$"]  # of a checkpoint, left out without a word
# by model_type; SigLIP 2 of fixed resolution is built as SigLIP, "siglip2" is its NaFlex variant
CLASSES = {
    "siglip": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessorPil"),
    "siglip2": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
    "siglip2_vision_model": ("Siglip2VisionModel", "Siglip2ImageProcessorPil"),
}


def model_type(folder: Path) -> str:
    """What ``config.json`` says. Raises ValueError that lists what can be used."""
    described = read_json(folder / "config.json")
    found = described.get("model_type")
    if found not in CLASSES:
        raise ValueError(
            f"{folder} holds a model of type {found!r}; images are encoded by {', '.join(CLASSES)}"
        )
    if described.get("vision_config", described).get("vision_use_head") is False:
        raise ValueError(f"{folder} holds a vision model without a pooling head: it has no vector per image")
    return found


class LazyEncoder:
    """An ``ImageEncoder`` that is loaded when the first thread asks for it, if one ever does."""

    def __init__(self, folder: Path, device: torch.device, precision: str) -> None:
        self._settings = folder, device, precision
        self._encoder: ImageEncoder | None = None
        self._loading = threading.Lock()

    def loaded(self) -> ImageEncoder:
        """The encoder, the same one for all threads."""
        with self._loading:
            if self._encoder is None:
                folder, device, precision = self._settings
                self._encoder = ImageEncoder(folder, device=device, precision=precision)
            return self._encoder


class ImageEncoder:
    """The pooled output of the vision tower. Raises ValueError where a weight is missing, none is made up."""

    def __init__(self, folder: Path, *, device: torch.device, precision: str) -> None:
        import transformers

        tower, processor = (getattr(transformers, name) for name in CLASSES[model_type(folder)])
        with loading(folder, "an image encoder"):
            self._processor = processor.from_pretrained(folder, trust_remote_code=False)
        self._model = _loaded(tower, folder, DTYPES[precision]).to(device)
        self._device = device

    def prepare(self, image: Image.Image) -> dict[str, NDArray[Any]]:
        """What the tower reads of one image in mode RGB; safe to call from many threads."""
        return {name: array[0] for name, array in self._processor(images=image, return_tensors="np").items()}

    @torch.inference_mode()
    def encode(self, prepared: list[dict[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """Vectors (B, D), not normalised."""
        batch = {
            name: torch.from_numpy(np.stack([one[name] for one in prepared])).to(self._device)
            for name in prepared[0]
        }
        pooled_BD = self._model(**batch).pooler_output
        return pooled_BD.float().cpu().numpy()


def _loaded(tower: Any, folder: Path, dtype: torch.dtype) -> Any:
    quiet: Any = type(tower.__name__, (tower,), {"_keys_to_ignore_on_load_unexpected": TEXT_HALF})
    with loading(folder, "an image encoder"):
        model, report = quiet.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below by name
        )
    check_weights(folder, report, of="the vision tower")
    return model
