"""Sources of images: templates, columns, folders, zips, and paths that must not be read."""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from recpipe.content import image_urls
from recpipe.content.image_sources import (
    ImageSourceConfig,
    UnreachableHostError,
    UnusableImageError,
    image_reader,
    image_references,
)

PATHS = ImageSourceConfig(column="image")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder with one picture, beside a secret that is not in it."""
    (tmp_path / "raw" / "pictures").mkdir(parents=True)
    (tmp_path / "raw" / "pictures" / "a.jpg").write_bytes(b"picture a")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return tmp_path / "raw"


def refusal(read: Callable[[str], bytes], reference: str) -> str:
    with pytest.raises(UnusableImageError) as raised:
        read(reference)
    return str(raised.value)


def test_a_template_fills_plain_fields_and_skips_items_that_lack_one() -> None:
    items = pa.table({"item_id": ["1", "2", "3", ""], "year": [1999, None, 2001, 2002]})
    conf = ImageSourceConfig(source="posters.zip", name="images/{year}/{item_id}.jpg")
    assert image_references(items, conf) == ["images/1999/1.jpg", None, "images/2001/3.jpg", None]


def test_a_column_of_names_or_of_lists() -> None:
    items = pa.table({"item_id": ["1", "2", "3"], "image": [" a.jpg ", "", None], "all": [[None, "b"], [], None]})
    assert image_references(items, PATHS) == ["a.jpg", None, None]
    assert image_references(items, ImageSourceConfig(column="all")) == ["b", None, None]
    assert image_references(items.slice(0, 0), PATHS) == []


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        (["a.jpg", "b.jpg"], "a.jpg", "b.jpg"),
        ([" ", "b.jpg", None], "b.jpg", "b.jpg"),
        ('["http://x/a,1.jpg", "http://x/b.jpg"]', "http://x/a,1.jpg", "http://x/b.jpg"),
        ("['a.jpg', 'b.jpg']", "a.jpg", "b.jpg"),
        ("[a.jpg, b.jpg]", "a.jpg", "b.jpg"),
        ("[]", None, None),
        ("a, b.jpg", "a, b.jpg", "a, b.jpg"),
        ("[" * 100_000 + "]" * 100_000, None, None),
    ],
    ids=["list", "blanks", "JSON", "Python", "no quotes", "empty", "no list", "deep"],
)
def test_one_image_of_a_list_counts(value: object, first: str | None, last: str | None) -> None:
    items = pa.table({"item_id": ["1"], "image": [value]})
    assert image_references(items, PATHS) == [first]
    assert image_references(items, ImageSourceConfig(column="image", of_list="last")) == [last]
    template = ImageSourceConfig.from_block({"name": "x/{image}", "of_list": "last"})
    if isinstance(value, list):
        assert image_references(items, template) == [f"x/{last}"]
    with pytest.raises(ValueError, match="of_list of content.image"):
        ImageSourceConfig.from_block({"column": "image", "of_list": "middle"})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "either `name` or `column`, not none"),
        ({"name": "{item_id}", "column": "image"}, "not both"),
        (
            {"colum": "image"},
            r"unknown key of content.image 'colum' \(did you mean 'column'\?\); choose from, name, column",
        ),
        ({"column": "image", "timeout": 0}, "timeout 0"),
    ],
)
def test_a_block_that_makes_no_sense(block: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSourceConfig.from_block(block)


def test_a_block_says_from_where() -> None:
    block = {"from": "posters.zip", "name": "{item_id}.jpg", "retries": 1}
    assert ImageSourceConfig.from_block(block) == ImageSourceConfig(
        source="posters.zip", name="{item_id}.jpg", retries=1
    )
    assert image_references(pa.table({"item_id": ["7"]}), ImageSourceConfig.from_block(block)) == ["7.jpg"]


@pytest.mark.parametrize("name", ["{item_id.__class__}", "{item_id[0]}", "{item_id!r}", "{item_id:>9}", "{}", "x.jpg"])
def test_templates_reach_for_nothing_but_columns(name: str) -> None:
    with pytest.raises(ValueError, match="content.image: name"):
        image_references(pa.table({"item_id": ["1"]}), ImageSourceConfig(name=name))


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no column 'image'; there are item_id, title"):
        image_references(pa.table({"item_id": ["1"], "title": ["x"]}), PATHS)


def test_a_file_in_the_folder(raw: Path) -> None:
    assert image_reader(PATHS, raw)("pictures/a.jpg") == b"picture a"
    assert image_reader(PATHS, raw)("./pictures\\a.jpg") == b"picture a"
    assert image_reader(ImageSourceConfig(source="pictures", column="image"), raw)("a.jpg") == b"picture a"


@pytest.mark.parametrize("reference", ["pictures/b.jpg", "nothing/a.jpg", "."])
def test_a_file_that_is_not_there_is_no_refusal(raw: Path, reference: str) -> None:
    with pytest.raises(FileNotFoundError):
        image_reader(PATHS, raw)(reference)


@pytest.mark.parametrize(
    "reference", ["../secret.jpg", "pictures/../../secret.jpg", "..\\secret.jpg", "/etc/passwd", "C:\\a.jpg", "a\0.jpg"]
)
def test_paths_that_leave_the_folder(raw: Path, reference: str) -> None:
    assert refusal(image_reader(PATHS, raw), reference) == "a path that leaves the folder"


def test_an_absolute_path_to_the_folder_itself_is_refused_too(raw: Path) -> None:
    assert refusal(image_reader(PATHS, raw), str(raw / "pictures" / "a.jpg")) == "a path that leaves the folder"


def test_links_out_of_the_folder_are_refused_and_links_within_are_not(raw: Path) -> None:
    (raw / "out.jpg").symlink_to(raw.parent / "secret.jpg")
    (raw / "folder").symlink_to(raw.parent)
    (raw / "twice.jpg").symlink_to("out.jpg")
    (raw / "within.jpg").symlink_to("pictures/a.jpg")
    (raw / "dangling.jpg").symlink_to("nothing.jpg")
    read = image_reader(PATHS, raw)
    for reference in ("out.jpg", "folder/secret.jpg", "twice.jpg"):
        assert refusal(read, reference) == "a link that leaves the folder"
    assert read("within.jpg") == b"picture a"
    with pytest.raises(FileNotFoundError):
        read("dangling.jpg")


def test_a_raw_folder_that_is_itself_a_link(raw: Path) -> None:
    (raw.parent / "other").symlink_to(raw)
    assert image_reader(PATHS, raw.parent / "other")("pictures/a.jpg") == b"picture a"


def test_links_in_a_circle_folders_and_pipes(raw: Path) -> None:
    (raw / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(raw / "pipe.jpg")
    read = image_reader(PATHS, raw)
    assert "cannot be read" in refusal(read, "circle.jpg")
    assert refusal(read, "pictures") == "not a file"
    assert refusal(read, "pipe.jpg") == "not a file"
    assert "cannot be read" in refusal(read, "x" * 5000)
    assert "cannot be read" in refusal(read, "pictures/a.jpg/b.jpg")


def test_a_file_of_100_mb_is_refused_unread(raw: Path) -> None:
    with (raw / "huge.jpg").open("wb") as file:
        file.truncate(100 << 20)
    read = image_reader(PATHS, raw)
    assert refusal(read, "huge.jpg") == "104,857,600 bytes, more than max_bytes 20,971,520"
    assert read("pictures/a.jpg", max_bytes=9) == b"picture a"
    assert "max_bytes 8" in refusal(partial(read, max_bytes=8), "pictures/a.jpg")


def test_a_source_that_is_missing_or_neither_folder_nor_zip(raw: Path) -> None:
    (raw / "posters.zip").write_text("half a down")
    with pytest.raises(ValueError, match="neither a folder nor a complete zip"):
        image_reader(ImageSourceConfig(source="posters.zip", name="{item_id}.jpg"), raw)
    with pytest.raises(ValueError, match="other.zip is missing"):
        image_reader(ImageSourceConfig(source="other.zip", name="{item_id}.jpg"), raw)


def packed(raw: Path, **entries: Callable[[zipfile.ZipInfo], None]) -> Callable[[str], bytes]:
    """A zip with `a.jpg` and further entries, each changed by a function before it is written."""
    with zipfile.ZipFile(raw / "posters.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.jpg", b"picture a")
        for name, change in entries.items():
            info = zipfile.ZipInfo(f"images/{name}.jpg")
            change(info)
            archive.writestr(info, b"target")
    return image_reader(ImageSourceConfig(source="posters.zip", name="images/{item_id}.jpg"), raw)


def test_an_image_in_a_zip(raw: Path) -> None:
    read = packed(raw)
    assert read("images/a.jpg") == b"picture a"
    with pytest.raises(FileNotFoundError):
        read("images/b.jpg")
    assert list(raw.rglob("images")) == []  # nothing was unpacked


def test_many_threads_read_one_zip(raw: Path) -> None:
    with zipfile.ZipFile(raw / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(50):
            archive.writestr(str(number), str(number).encode() * 5000)
    read = image_reader(ImageSourceConfig(source="many.zip", column="image"), raw)
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(read, [str(number % 50) for number in range(400)]))
    assert bodies == [str(number % 50).encode() * 5000 for number in range(400)]


def test_entries_outside_the_zip(raw: Path) -> None:
    with zipfile.ZipFile(raw / "posters.zip", "w") as archive:
        archive.writestr("images/../../evil.jpg", b"x")
        archive.writestr("/evil.jpg", b"x")
    read = image_reader(ImageSourceConfig(source="posters.zip", column="image"), raw)
    assert refusal(read, "images/../../evil.jpg") == "a path that leaves the folder"
    assert refusal(read, "/evil.jpg") == "a path that leaves the folder"


def test_a_link_and_a_folder_in_a_zip(raw: Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16

    def folder(info: zipfile.ZipInfo) -> None:
        info.filename = "images/"

    read = packed(raw, link=link, folder=folder)
    assert refusal(read, "images/link.jpg") == "a link in the zip"
    with pytest.raises(FileNotFoundError):
        read("images/")


def patched(raw: Path, old: bytes, new: bytes) -> Callable[[str], bytes]:
    """The zip with bytes of its directory and headers exchanged, as a tool would not write them."""
    path = raw / "posters.zip"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return image_reader(ImageSourceConfig(source="posters.zip", column="image"), raw)


def test_a_locked_entry(raw: Path) -> None:
    packed(raw)
    path = raw / "posters.zip"
    data = bytearray(path.read_bytes())
    data[6] |= 1  # flag bits of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and of the directory
    path.write_bytes(data)
    read = image_reader(ImageSourceConfig(source="posters.zip", column="image"), raw)
    assert refusal(read, "images/a.jpg") == "locked with a password in the zip"


def test_a_damaged_entry(raw: Path) -> None:
    with zipfile.ZipFile(raw / "posters.zip", "w") as archive:
        archive.writestr("a.jpg", b"picture a")
    read = patched(raw, b"picture a", b"picture b")
    assert "not whole in the zip" in refusal(read, "a.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [0, 3, 6, 20])
def test_damage_of_any_kind_refuses_that_entry_alone(raw: Path, method: int, at: int) -> None:
    with zipfile.ZipFile(raw / "posters.zip", "w", method) as archive:
        archive.writestr("a.jpg", bytes(range(256)) * 9)
        archive.writestr("b.jpg", b"picture b")
    path = raw / "posters.zip"
    data = bytearray(path.read_bytes())
    start = 30 + len("a.jpg") + at  # past the header
    data[start : start + 9] = bytes(byte ^ 0x5A for byte in data[start : start + 9])
    path.write_bytes(data)
    read = image_reader(ImageSourceConfig(source="posters.zip", column="image"), raw)
    assert "not whole in the zip" in refusal(read, "a.jpg")
    assert read("b.jpg") == b"picture b"


@pytest.mark.parametrize("error", [lzma.LZMAError("x"), RuntimeError("x"), ValueError("x")])
def test_what_zipfile_raises_is_a_refusal(raw: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    read = packed(raw)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    assert refusal(read, "images/a.jpg") == "not whole in the zip: x"


def test_a_small_entry_that_unpacks_to_much(raw: Path) -> None:
    with zipfile.ZipFile(raw / "posters.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(30 << 20))
    assert (raw / "posters.zip").stat().st_size < 100_000
    read = image_reader(ImageSourceConfig(source="posters.zip", column="image"), raw)
    assert refusal(read, "a.jpg") == "31,457,280 bytes, more than max_bytes 20,971,520"


def test_a_small_entry_that_unpacks_to_much_and_lies_about_it(raw: Path) -> None:
    with zipfile.ZipFile(raw / "posters.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(30 << 20))
    read = patched(raw, (30 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert "not whole in the zip" in refusal(read, "a.jpg")


def test_addresses_are_fetched_with_the_settings_of_the_block(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: dict = {}
    monkeypatch.setattr(image_urls, "fetch", lambda url, **settings: requests.update(url=url, **settings) or b"x")
    read = image_reader(ImageSourceConfig(column="image", timeout=3, retries=1), raw, raw / "cache")
    assert read("https://example.com/a.jpg", max_bytes=7) == b"x"
    assert requests == {
        "url": "https://example.com/a.jpg",
        "max_bytes": 7,
        "timeout": 3,
        "retries": 1,
        "cache_folder": raw / "cache",
        "private": False,
        "offline": False,
    }


def test_a_host_that_never_answers_is_given_up(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried hard once, then once per image, and after twenty images not at all; other hosts go on."""
    requests: list[tuple[str, int]] = []

    def fetch(url: str, *, retries: int, **_: object) -> bytes:
        requests.append((url, retries))
        if "down.example" in url:
            raise UnreachableHostError("silence")
        return b"x"

    monkeypatch.setattr(image_urls, "fetch", fetch)
    read = image_reader(PATHS, raw)
    reasons = [refusal(read, f"http://down.example/{number}") for number in range(25)]
    assert [retries for _, retries in requests] == [3] + [0] * 19
    assert reasons[19] == "silence"
    assert "down.example did not answer for 20 images in a row" in reasons[20]
    assert read("http://up.example/1") == b"x"


def test_a_host_that_has_no_such_image_did_answer(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        UnreachableHostError("silence"),
        FileNotFoundError(),
        UnreachableHostError("silence"),
        UnusableImageError("403"),
    ] * 15

    def fetch(url: str, **_: object) -> bytes:
        raise answers.pop()

    monkeypatch.setattr(image_urls, "fetch", fetch)
    read = image_reader(PATHS, raw)
    for number in range(60):
        with pytest.raises((UnusableImageError, FileNotFoundError)) as raised:
            read(f"http://shop.example/{number}")
        assert "in a row" not in str(raised.value)


def test_addresses_of_other_schemes_are_not_paths(raw: Path) -> None:
    assert "scheme 'file'" in refusal(image_reader(PATHS, raw), "file:///etc/passwd")
