"""Decoding of images: formats, modes, damaged and oversized files, bounded memory."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageFile

from recpipe.content import image_encoder
from recpipe.content.image_encoder import PixelBudget, open_image
from recpipe.content.image_urls import UnusableImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(data: bytes, max_pixels: float = 1e6) -> np.ndarray:
    with open_image(data, max_pixels=max_pixels) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def refusal(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnusableImageError) as raised:
        pixels(data, max_pixels)
    return str(raised.value)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "WEBP", "JPEG"])
def test_formats(format_: str) -> None:
    options = (
        {"lossless": True} if format_ == "WEBP" else {"quality": 100, "subsampling": 0} if format_ == "JPEG" else {}
    )
    image = noise().resize((80, 60), Image.Resampling.BICUBIC)
    rgb = pixels(encoded(image, format_, **options)).astype(int)
    assert abs(rgb - np.asarray(image).astype(int)).mean() <= (1 if format_ == "JPEG" else 0)


@pytest.mark.parametrize("format_", ["TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_not_opened_at_all(format_: str) -> None:
    assert "not an image (JPEG, PNG, WEBP, GIF, BMP are read)" in refusal(encoded(noise(), format_))


@pytest.mark.parametrize(
    "data",
    [b"", b"%PDF-1.7 this is a text called a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\xff\xd8\xff", b"RIFF"],
    ids=["empty", "pdf", "postscript", "svg", "three bytes of a JPEG", "four of a WebP"],
)
def test_what_is_no_image(data: bytes) -> None:
    assert "image" in refusal(data)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files(format_: str, share: float) -> None:
    data = encoded(noise(), format_)
    assert "image" in refusal(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore")  # Pillow's, about sizes
def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for format_ in ("PNG", "WEBP", "JPEG", "GIF", "BMP"):
        intact = np.frombuffer(encoded(noise(), format_), np.uint8)
        for _ in range(60):
            damaged = intact.copy()
            where = rng.integers(0, min(len(damaged), 120), 4)
            damaged[where] = rng.integers(0, 256, 4)
            with suppress(UnusableImageError):
                assert pixels(damaged.tobytes()).ndim == 3


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


BOMBS = {
    "png": declared(60_000, 60_000),
    "png below Pillow's own limit": declared(10_000, 10_000),
    "bmp": encoded(noise(), "BMP")[:18] + struct.pack("<ii", 20_000, 20_000) + encoded(noise(), "BMP")[26:],
    "webp canvas": webp(b"VP8X", bytes(4) + (16_383).to_bytes(3, "little") * 2 + bytes(20)),
    "webp lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(20)),
    "webp lossy": webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(20)),
    "gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded(noise(), "GIF")[10:],
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_size_in_the_header_is_refused_before_pixels_are_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    assert "pixels" in refusal(BOMBS[name], 50e6)
    assert loaded == []


def test_a_webp_is_measured_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for name, bomb in BOMBS.items():
        if name.startswith("webp"):
            assert "max_pixels 50,000,000" in refusal(bomb, 50e6)
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*"}):
        assert "40 x 30 pixels" in refusal(encoded(noise(40, 30), "WEBP", **options), 1199)


def test_the_limit_is_ours_and_pillows_own_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert pixels(encoded(noise(40, 30)), 1200).shape == (30, 40, 3)
    assert refusal(encoded(noise(40, 30)), 1199) == "40 x 30 pixels, more than max_pixels 1,199"
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for format_ in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=50, **LOSSLESS[format_])
        np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


LOSSLESS: dict[str, dict] = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(image)), [[RED, GREEN]])


def test_transparency_lies_over_white() -> None:
    """What the pixels under full transparency hold must not show: usually they are black."""
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 0, 128)):
        image.putpixel((x, 0), (*RED, alpha))
    np.testing.assert_array_equal(pixels(encoded(image)), [[RED, WHITE, (255, 127, 127)]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=0)), [[WHITE, GREEN]])
    grey = Image.new("LA", (1, 1), (0, 0))
    np.testing.assert_array_equal(pixels(encoded(grey)), [[WHITE]])


def test_cmyk() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    rgb = pixels(encoded(image, "JPEG", quality=100)).astype(int)
    assert abs(rgb - np.array(RED)).max() < 12


def test_black_and_white_and_grey() -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.new("1", (2, 2), 1))), np.full((2, 2, 3), 255))
    np.testing.assert_array_equal(pixels(encoded(Image.new("L", (2, 2), 77))), np.full((2, 2, 3), 77))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 128 << 8, 65_535]], np.uint16))
    np.testing.assert_array_equal(pixels(encoded(image))[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_turns_the_picture_upright(orientation: int, turned: partial) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise()
    for format_ in ("PNG", "WEBP"):
        data = encoded(image, format_, exif=exif, **LOSSLESS[format_])
        np.testing.assert_array_equal(pixels(data), turned(np.asarray(image)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    np.testing.assert_array_equal(pixels(data), pixels(encoded(noise(), "JPEG")))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 900), (900, 1), (4, 3)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert pixels(encoded(noise(*size))).shape == (size[1], size[0], 3)


def test_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are: the pixels decoded at one time stay under the limit, or are one image's."""
    monkeypatch.setattr(image_encoder, "_budget", PixelBudget(2000))
    lock, now, peak = threading.Lock(), 0, 0

    def work(data: bytes, size: int) -> None:
        nonlocal now, peak
        for _ in range(5):
            with open_image(data, max_pixels=1e6):
                with lock:
                    now += size
                    peak = max(peak, now)
                threading.Event().wait(0.002)
                with lock:
                    now -= size

    small, large = encoded(noise(30, 20)), encoded(noise(60, 50))
    jobs = [(small, 600)] * 6 + [(large, 3000)] * 2
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert peak == 3000
