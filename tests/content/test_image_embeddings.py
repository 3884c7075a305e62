"""Image embeddings by a small SigLIP with random weights; transformers' own model is the oracle."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from recpipe.content import image_embeddings as module
from recpipe.content.embeddings import Embeddings
from recpipe.content.image_embeddings import ImageEncoderConfig, embed_images
from recpipe.content.image_encoder import ImageEncoder, open_image
from recpipe.content.image_sources import ImageSourceConfig, image_reader, image_references

POSTERS = Path(__file__).parents[3] / "shared" / "data" / "ml-1m-posters-128px.zip"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 8}
CONF = ImageSourceConfig(column="image")


def save_siglip(folder: Path, *, seed: int = 0, **vision: Any) -> Path:
    """A SigLIP for 32 pixels with its processor, as `save_pretrained` leaves it."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.SiglipConfig(
        text_config=TEXT, vision_config={**SMALL, "image_size": 32, "patch_size": 8, **vision}
    )
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    """A NaFlex SigLIP 2: patches in the image's own proportions, padded to 16."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Siglip2Config(text_config=TEXT, vision_config={**SMALL, "num_patches": 16, "patch_size": 8})
    transformers.Siglip2Model(config).save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip2(tmp_path_factory.mktemp("siglip2"))


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Twelve pictures of different proportions, 0.png … 11.png."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(12):
        picture(number, 20 + 7 * number, 60 - 3 * number).save(folder / f"{number}.png")
    return folder


class Shop:
    """A data set in a folder: `embed` runs it, and the counters say what each run did."""

    def __init__(self, raw: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw, self.cache = raw, raw.parent / "cache"
        self.config = ImageEncoderConfig(str(source), precision="fp32", device="cpu", batch=4)
        self.loaded = self.decoded = 0
        load, open_ = ImageEncoder.__init__, open_image

        def count_load(encoder: ImageEncoder, *settings: Any, **options: Any) -> None:
            self.loaded += 1
            load(encoder, *settings, **options)

        def count(data: bytes, **options: float) -> Any:
            self.decoded += 1
            return open_(data, **options)

        monkeypatch.setattr(ImageEncoder, "__init__", count_load)
        monkeypatch.setattr(module, "open_image", count)
        self.ids = [f"i{number}" for number in range(12)]
        self.names: list[str | None] = [f"{number}.png" for number in range(12)]

    def embed(self, config: ImageEncoderConfig | None = None, read: Any = None) -> tuple[Embeddings, pa.Table]:
        self.loaded = self.decoded = 0
        return embed_images(
            self.ids,
            self.names,
            config or self.config,
            reader=read or image_reader(CONF, self.raw),
            cache_folder=self.cache,
        )


@pytest.fixture
def shop(raw: Path, siglip: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(raw, siglip, monkeypatch)


def features(source: Path, pictures: list[Image.Image], model: str = "Siglip") -> np.ndarray:
    """What transformers itself makes of the pictures: the whole model, one image at a time, unit length."""
    import transformers

    whole = getattr(transformers, f"{model}Model").from_pretrained(source).eval()
    processor = getattr(transformers, f"{model}ImageProcessorPil").from_pretrained(source)
    with torch.inference_mode():
        inputs = [processor(images=item.convert("RGB"), return_tensors="pt") for item in pictures]
        vectors = torch.cat([whole.get_image_features(**item).pooler_output for item in inputs])
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def test_vectors_are_those_of_transformers(shop: Shop, siglip: Path) -> None:
    embeddings, quarantine = shop.embed()
    expected = features(siglip, [Image.open(shop.raw / str(name)) for name in shop.names])
    np.testing.assert_allclose(embeddings.vectors, expected, atol=1e-6)
    assert embeddings.vectors.std(axis=0).max() > 0.01  # different pictures, different vectors
    assert embeddings.present.all()
    assert quarantine.num_rows == 0
    assert quarantine.column_names == ["item_id", "image", "reason"]


def test_vectors_are_those_of_transformers_for_siglip_2(shop: Shop, siglip2: Path) -> None:
    embeddings, _ = shop.embed(replace(shop.config, source=str(siglip2)))
    pictures = [Image.open(shop.raw / str(name)) for name in shop.names]
    expected = features(siglip2, pictures, "Siglip2")
    np.testing.assert_allclose(embeddings.vectors, expected, atol=1e-6)


def test_only_the_vision_half_is_loaded(siglip: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = ImageEncoder(siglip, torch.device("cpu"), "fp32")
    names = [name for name, _ in encoder._model.named_parameters()]
    assert names
    assert not any("text" in name or "logit" in name for name in names)
    assert "UNEXPECTED" not in caplog.text


def test_without_normalisation_it_is_the_pooled_output_itself(shop: Shop) -> None:
    plain, _ = shop.embed(replace(shop.config, normalise=False))
    unit, _ = shop.embed()
    norms = np.linalg.norm(plain.vectors, axis=1, keepdims=True)
    assert abs(norms - 1).max() > 0.01
    np.testing.assert_allclose(plain.vectors / norms, unit.vectors, atol=1e-6)
    assert plain.space != unit.space


@pytest.mark.parametrize("batch", [1, 3, 12, 100])
def test_a_vector_does_not_depend_on_its_neighbours(shop: Shop, batch: int) -> None:
    whole, _ = shop.embed(replace(shop.config, batch=4))
    shutil.rmtree(shop.cache)
    order = np.random.default_rng(0).permutation(12)
    shop.ids, shop.names = [shop.ids[i] for i in order], [shop.names[i] for i in order]
    mixed, _ = shop.embed(replace(shop.config, batch=batch))
    np.testing.assert_allclose(mixed.vectors, whole.vectors[order], atol=1e-5)
    assert mixed.hash == whole.hash


def test_bf16_is_near_and_the_same_space(shop: Shop) -> None:
    exact, _ = shop.embed()
    rough, _ = shop.embed(replace(shop.config, precision="bf16"))
    cosines = (exact.vectors * rough.vectors).sum(axis=1)
    assert 0.99 < cosines.min() < cosines.max() < 1 + 1e-5
    assert not np.array_equal(exact.vectors, rough.vectors)
    assert exact.hash == rough.hash


def test_two_runs_from_nothing_give_the_same_bits(shop: Shop) -> None:
    first, _ = shop.embed()
    shutil.rmtree(shop.cache)
    second, _ = shop.embed()
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert (first.hash, first.space, first.about) == (second.hash, second.space, second.about)


def test_a_second_run_loads_no_encoder_and_decodes_nothing(shop: Shop) -> None:
    first, _ = shop.embed()
    assert (shop.loaded, shop.decoded) == (1, 12)
    second, _ = shop.embed()
    assert (shop.loaded, shop.decoded) == (0, 0)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert first.hash == second.hash


def test_only_the_changed_and_the_new_are_embedded(shop: Shop) -> None:
    before, _ = shop.embed()
    picture(99).save(shop.raw / "5.png")
    picture(100).save(shop.raw / "12.png")
    shop.ids.append("i12")
    shop.names.append("12.png")
    after, _ = shop.embed()
    assert shop.decoded == 2
    same = np.arange(12) != 5
    np.testing.assert_array_equal(after.vectors[:12][same], before.vectors[same])
    assert abs(after.vectors[5] - before.vectors[5]).max() > 1e-3
    assert (after.keys[:12] == before.keys).tolist() == same.tolist()
    assert after.hash != before.hash


def test_a_renamed_picture_is_not_embedded_again(shop: Shop) -> None:
    before, _ = shop.embed()
    (shop.raw / "3.png").rename(shop.raw / "three.png")
    shop.names[3] = "three.png"
    after, _ = shop.embed()
    assert shop.decoded == 0
    assert after.hash == before.hash


def test_equal_pictures_are_encoded_once_and_one_reference_is_read_once(shop: Shop) -> None:
    shutil.copy(shop.raw / "0.png", shop.raw / "copy.png")
    shop.ids, shop.names = ["a", "b", "c", "d"], ["0.png", "copy.png", "0.png", "1.png"]
    read, requests = image_reader(CONF, shop.raw), []
    lock = threading.Lock()

    def count(reference: str, *, max_bytes: int) -> bytes:
        with lock:
            requests.append(reference)
        return read(reference, max_bytes=max_bytes)

    embeddings, _ = shop.embed(read=count)
    assert shop.decoded == 2
    assert sorted(requests[:3]) == ["0.png", "1.png", "copy.png"]
    assert len(requests) == 5  # once to hash, once options to encode what the cache lacks
    np.testing.assert_array_equal(embeddings.vectors[0], embeddings.vectors[1])
    assert embeddings.keys[0] == embeddings.keys[2] != embeddings.keys[3]


def test_a_killed_run_goes_on_where_it_was(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = ImageEncoder.encode, []

    def interrupt(self: Any, prepared: list[Any]) -> Any:
        calls.append(len(prepared))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, prepared)

    monkeypatch.setattr(ImageEncoder, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shop.embed()
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    after, _ = shop.embed()
    assert shop.decoded == 4  # of twelve: two batches of four were stored
    shutil.rmtree(shop.cache)
    fresh, _ = shop.embed()
    np.testing.assert_allclose(after.vectors, fresh.vectors, atol=1e-5)


def broken(shop: Shop) -> dict[str, str]:
    """Puts one of each kind of bad image in place of 0.png … 6.png; what the reasons must say."""
    jpeg = io.BytesIO()
    picture(50, 300, 200).save(jpeg, "JPEG")
    (shop.raw / "0.png").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (shop.raw / "1.png").write_text("this is not a picture")
    (shop.raw / "2.png").unlink()
    (shop.raw / "2.png").symlink_to(shop.raw.parent / "secret.png")
    picture(51).save(shop.raw.parent / "secret.png")
    with (shop.raw / "3.png").open("wb") as file:
        file.truncate(100 << 20)
    picture(52, 400, 300).save(shop.raw / "4.png")
    shop.names[5] = "../secret.png"
    (shop.raw / "6.png").write_bytes(b"")
    return {
        "i0": "not a whole image",
        "i1": "not an image",
        "i2": "a link that leaves the folder",
        "i3": "104,857,600 bytes, more than max_bytes 20,971,520",
        "i4": "400 x 300 pixels, more than max_pixels 100,000",
        "i5": "a path that leaves the folder",
        "i6": "not an image",
    }


def test_bad_images_are_quarantined_and_the_rest_is_embedded(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    reasons = broken(shop)
    with caplog.at_level(logging.WARNING):
        embeddings, quarantine = shop.embed(replace(shop.config, max_pixels=100_000))
    reason_of = dict(zip(quarantine["item_id"].to_pylist(), quarantine["reason"].to_pylist(), strict=True))
    assert list(reason_of) == list(reasons)
    for item, reason in reasons.items():
        assert reason in reason_of[item]
    assert quarantine["image"].to_pylist() == shop.names[:7]
    assert embeddings.present.tolist() == [False] * 7 + [True] * 5
    assert not embeddings.vectors[:7].any()
    assert set(embeddings.keys[:7]) == {""}
    assert embeddings.about["refused"] == 7
    assert embeddings.about["embedded"] == 5
    assert "7 images cannot be used" in caplog.text


def test_with_bad_images_a_second_run_says_the_same_and_loads_no_encoder(shop: Shop) -> None:
    broken(shop)
    first, refused = shop.embed(replace(shop.config, max_pixels=100_000))
    second, again = shop.embed(replace(shop.config, max_pixels=100_000))
    assert shop.loaded == 0
    assert shop.decoded == 4  # only those that are refused at decoding
    assert refused.equals(again)
    assert first.hash == second.hash
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_raising_a_limit_takes_in_what_was_refused(shop: Shop) -> None:
    picture(52, 400, 300).save(shop.raw / "4.png")
    _, refused = shop.embed(replace(shop.config, max_pixels=100_000))
    _, none = shop.embed()
    assert (refused.num_rows, none.num_rows) == (1, 0)


def test_a_missing_image_is_a_mask(shop: Shop) -> None:
    (shop.raw / "4.png").unlink()
    shop.names[7] = None
    embeddings, quarantine = shop.embed()
    assert quarantine.num_rows == 0
    assert np.flatnonzero(~embeddings.present).tolist() == [4, 7]
    assert not embeddings.vectors[[4, 7]].any()
    assert embeddings.about["not_found"] == 1
    assert embeddings.about["without_image"] == 1


@pytest.mark.parametrize("names", [[None, None], ["x.png", "y.png"]], ids=["no reference", "no file"])
def test_no_image_at_all(shop: Shop, names: list[str | None], caplog: pytest.LogCaptureFixture) -> None:
    shop.ids, shop.names = ["a", "b"], names
    embeddings, quarantine = shop.embed()
    assert embeddings.vectors.shape == (2, 0)
    assert not embeddings.present.any()
    assert quarantine.num_rows == 0
    assert shop.loaded == 0
    assert ("2 of 2 images do not exist, such as 'x.png'" in caplog.text) == (names[0] is not None)


def test_no_items(shop: Shop) -> None:
    shop.ids, shop.names = [], []
    embeddings, quarantine = shop.embed()
    assert len(embeddings) == quarantine.num_rows == 0


def test_only_bad_images(shop: Shop) -> None:
    shop.ids, shop.names = ["a"], ["bad.png"]
    (shop.raw / "bad.png").write_text("no")
    embeddings, quarantine = shop.embed()
    assert embeddings.vectors.shape == (1, 0)
    assert quarantine["item_id"].to_pylist() == ["a"]
    assert shop.loaded == 0


def test_an_image_that_changes_while_it_is_read_is_not_kept_under_the_wrong_key(shop: Shop) -> None:
    shop.ids, shop.names = ["a", "b"], ["0.png", "1.png"]
    first, second = (shop.raw / name for name in ("0.png", "2.png"))
    bodies = {"0.png": [first.read_bytes(), second.read_bytes()], "1.png": [first.read_bytes() + b" "] * 2}

    def changing(reference: str, *, max_bytes: int) -> bytes:
        return bodies[reference].pop(0)

    embeddings, quarantine = shop.embed(read=changing)
    assert quarantine["reason"].to_pylist() == ["changed while it was read"]
    assert embeddings.present.tolist() == [False, True]


def test_other_trouble_in_a_reader_is_not_swallowed(shop: Shop) -> None:
    def full(reference: str, *, max_bytes: int) -> bytes:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        shop.embed(read=full)


def test_few_images_are_held_at_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the encoder is: what is read and decoded ahead of it stays within the window."""
    data, prepare, encode = (shop.raw / "0.png").read_bytes(), ImageEncoder.preprocess, ImageEncoder.encode
    lock, in_memory, peak = threading.Lock(), 0, 0

    def count(self: ImageEncoder, image: Image.Image) -> Any:
        nonlocal in_memory, peak
        with lock:
            in_memory += 1
            peak = max(peak, in_memory)
        return prepare(self, image)

    def slow(self: ImageEncoder, prepared: list[Any]) -> Any:
        nonlocal in_memory
        time.sleep(0.01)
        with lock:
            in_memory -= len(prepared)
        return encode(self, prepared)

    monkeypatch.setattr(ImageEncoder, "preprocess", count)
    monkeypatch.setattr(ImageEncoder, "encode", slow)
    shop.ids = [f"i{number}" for number in range(300)]
    shop.names = list(shop.ids)
    embeddings, _ = shop.embed(read=lambda reference, *, max_bytes: data + reference.encode())
    assert embeddings.present.all()
    assert in_memory == 0
    assert peak <= module.THREADS * module.PREFETCH + shop.config.batch


def test_max_bytes_of_the_encoder(shop: Shop) -> None:
    (shop.raw / "3.png").write_bytes((shop.raw / "3.png").read_bytes() + b" " * 100_000)
    _, quarantine = shop.embed(replace(shop.config, max_bytes=100_000))
    assert quarantine["item_id"].to_pylist() == ["i3"]


def test_images_of_a_web_site(shop: Shop) -> None:
    """The column holds addresses. When the site is gone, what was fetched is still there."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    local, _ = shop.embed()
    (shop.raw / "page.png").write_text("<html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shop.raw)))
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    names = ["0.png", "nothing.png", "page.png", *shop.names[3:]]
    shop.names = [f"http://127.0.0.1:{server.server_address[1]}/{name}" for name in names]
    shop.cache = shop.raw.parent / "fresh"
    read = image_reader(
        ImageSourceConfig(column="image", private=True, retries=0), shop.raw, shop.raw.parent / "downloads"
    )
    embeddings, quarantine = shop.embed(read=read)
    server.shutdown()
    server.server_close()

    assert quarantine["reason"].to_pylist() == ["not an image (JPEG, PNG, WEBP, GIF, BMP are read)"]
    assert np.flatnonzero(~embeddings.present).tolist() == [1, 2]
    np.testing.assert_allclose(embeddings.vectors[3:], local.vectors[3:], atol=1e-5)
    again, quarantine = shop.embed(read=read)
    assert again.hash == embeddings.hash
    assert ["Connection" in reason for reason in quarantine["reason"].to_pylist()] == [True, False]

    refused, quarantine = shop.embed(read=image_reader(ImageSourceConfig(column="image"), shop.raw))
    assert not refused.present.any()
    assert set(quarantine["reason"].to_pylist()) == {"host 127.0.0.1 has the address 127.0.0.1, which is not public"}


def test_the_space_is_that_of_weights_and_processor(shop: Shop, siglip: Path, tmp_path: Path) -> None:
    spaces = {shop.embed()[0].space}
    copied = shutil.copytree(siglip, tmp_path / "copied")
    moved, _ = shop.embed(replace(shop.config, source=str(copied), batch=2, max_bytes=1 << 20))
    assert {moved.space} == spaces  # where it lies and how it is run is no part of it
    assert shop.loaded == 0
    processor = copied / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace('"resample": 3', '"resample": 2'))
    spaces.add(shop.embed(replace(shop.config, source=str(copied)))[0].space)
    other = save_siglip(tmp_path / "other", seed=1)
    spaces.add(shop.embed(replace(shop.config, source=str(other)))[0].space)
    assert len(spaces) == 3


def test_an_encoder_that_cannot_be_used(shop: Shop, siglip: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[Path], None], message: str) -> None:
        folder = shutil.copytree(siglip, tmp_path / hashlib.sha256(message.encode()).hexdigest())
        change(folder)
        with pytest.raises(ValueError, match=message):
            shop.embed(replace(shop.config, source=str(folder)))

    def rename(folder: Path) -> None:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"model_type": "siglip"', '"model_type": "bert"'))

    def without_a_weight(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if "vision" in name and "position" in name)
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def another_size(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if "vision" in name and "position" in name)
        tensors[name] = torch.zeros(3, 5)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    refused(another_size, r"of shape \(3, 5\), but its config.json describes \(16, 32\)")
    refused(rename, "type 'bert'; images are encoded by siglip")
    refused(lambda folder: (folder / "model.safetensors").unlink(), "lacks .*safetensors")
    refused(lambda folder: (folder / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json")
    refused(without_a_weight, "weights of the vision tower")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("preprocessor_config.json", '{"size": [', "preprocessor_config.json is not valid JSON"),
        ("preprocessor_config.json", '{"size": "large"}', "cannot be loaded as an image encoder.*size"),
        ("config.json", '{"model_type": "siglip", "vision_config": {"hidden_size": "x"}}', "hidden_size"),
    ],
)
def test_files_that_are_there_but_bad(
    shop: Shop, siglip: Path, tmp_path: Path, file: str, text: str, message: str
) -> None:
    folder = shutil.copytree(siglip, tmp_path / "bad")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        shop.embed(replace(shop.config, source=str(folder)))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_loading_shows_no_bars(siglip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ImageEncoder(siglip, device=torch.device("cpu"), precision="fp32")
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_a_processor_saved_with_its_tokenizer(shop: Shop, siglip: Path, tmp_path: Path) -> None:
    """transformers 5 then writes one `processor_config.json` with the image processor in it."""
    folder = shutil.copytree(siglip, tmp_path / "whole")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    described = {"image_processor": settings | {"resample": 2}, "processor_class": "SiglipProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(described))
    whole, _ = shop.embed(replace(shop.config, source=str(folder)))
    settings["resample"] = 2
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").unlink()
    parted, _ = shop.embed(replace(shop.config, source=str(folder)))
    assert abs(whole.vectors - shop.embed()[0].vectors).max() > 1e-5  # so the settings were read
    np.testing.assert_array_equal(whole.vectors, parted.vectors)


def test_a_model_without_a_pooling_head(shop: Shop, tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "headless", vision_use_head=False)
    with pytest.raises(ValueError, match="without a pooling head"):
        shop.embed(replace(shop.config, source=str(folder)))


def test_limits_of_nothing() -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        ImageEncoderConfig(batch=0)


def test_items_that_do_not_fit(shop: Shop) -> None:
    shop.names.pop()
    with pytest.raises(ValueError, match="12 items and 11 image references"):
        shop.embed()
    shop.ids = ["a"] * 11
    with pytest.raises(ValueError, match="'a'"):
        shop.embed()


@pytest.mark.skipif(not POSTERS.exists(), reason="needs ../shared/data/ml-1m-posters-128px.zip, not ours to give on")
def test_real_posters(tmp_path: Path, siglip: Path) -> None:
    with zipfile.ZipFile(POSTERS) as archive:
        stems = sorted(Path(name).stem for name in archive.namelist())[::33]
    items = pa.table({"item_id": [*stems, "no such film"]})
    conf = ImageSourceConfig(source=POSTERS.name, name="images/{item_id}.jpg")
    config = ImageEncoderConfig(str(siglip), precision="fp32", device="cpu")
    read = image_reader(conf, POSTERS.parent)
    embeddings, refused = embed_images(
        items["item_id"].to_pylist(),
        image_references(items, conf),
        config,
        reader=read,
        cache_folder=tmp_path / "cache",
    )
    assert len(stems) == 99
    assert refused.num_rows == 0
    assert embeddings.present.tolist() == [True] * 99 + [False]
    with open_image(read(f"images/{stems[7]}.jpg"), max_pixels=1e6) as poster:
        np.testing.assert_allclose(embeddings.vectors[7], features(siglip, [poster])[0], atol=1e-6)
