"""Embeddings: validation, storage, hashes, concatenation, and vectors from a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import names

from recpipe.content import embeddings
from recpipe.content.embeddings import (
    Embeddings,
    VectorFileConfig,
    concatenate_embeddings,
    content_keys,
    embed_from_file,
)


def letters(ids: str, *, absent: str = "", space: str = "s", width: int = 3, seed: int = 0) -> Embeddings:
    """Items called by one letter each; an item's vector depends on its letter only."""
    present = np.array([item not in absent for item in ids], bool)
    table = np.random.default_rng(seed).normal(size=(128, width)).astype(np.float32)
    vectors = table[[ord(item) for item in ids]] * present[:, None]
    keys = content_keys(space, [item if item not in absent else None for item in ids])
    return Embeddings(np.array(list(ids), object), vectors, present, keys, space, {"encoder": "x"})


@pytest.mark.parametrize(
    "written",
    [letters("abc"), letters("abcd", absent="bd"), letters("ab", absent="ab", width=0), letters("")],
    ids=["all present", "some absent", "all absent", "no items"],
)
def test_written_and_read(written: Embeddings, tmp_path: Path) -> None:
    written.write(tmp_path / "e.parquet")
    read = Embeddings.read(tmp_path / "e.parquet")
    for name in ("item_ids", "vectors", "present", "keys"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.space, read.about, read.hash) == (written.space, written.about, written.hash)
    assert names(tmp_path) == ["e.parquet"]


def test_absent_vector_is_null_in_the_file(tmp_path: Path) -> None:
    letters("abc", absent="b").write(tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet")["vector"].is_null().to_pylist() == [False, True, False]


@pytest.mark.parametrize("absent", ["", "ceg"])
def test_large_vectors_are_read_into_a_map_in_parts(absent: str, tmp_path: Path, monkeypatch) -> None:
    whole, other = letters("abcdefgh", absent=absent), letters("abcdefgh", absent="a", seed=1)
    joined = concatenate_embeddings(whole, other)
    whole.write(tmp_path / "whole.parquet")
    for name, value in {"MAPPED": 0, "ROW_GROUP": 3, "ROWS_AT_ONCE": 2}.items():
        monkeypatch.setattr(embeddings, name, value)
    whole.write(tmp_path / "parts.parquet")
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 3
    for name in ("whole", "parts"):
        read = Embeddings.read(tmp_path / f"{name}.parquet")
        assert isinstance(read.vectors.base, np.memmap)
        np.testing.assert_array_equal(read.vectors, whole.vectors)
        assert read.present.tolist() == whole.present.tolist() and read.hash == whole.hash
    np.testing.assert_array_equal(concatenate_embeddings(whole, other).vectors, joined.vectors)
    assert names(tmp_path) == ["parts.parquet", "whole.parquet"]


def test_a_full_disk_is_named_before_vectors_are_read(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    letters("abc").write(tmp_path / "e.parquet")
    monkeypatch.setattr(embeddings, "MAPPED", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=f"no room for .* of vectors in {tmp_path}.*No space left"):
        Embeddings.read(tmp_path / "e.parquet")


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="holds no embeddings.*pipelines=embed"):
        Embeddings.read(tmp_path / "e.parquet")


def test_hash_ignores_order_and_nothing_else() -> None:
    assert letters("abc").hash == letters("cab").hash
    others = [letters("abd"), letters("ab"), letters("abc", absent="c"), letters("abc", space="t")]
    assert len({letters("abc").hash, *(other.hash for other in others)}) == 5


def test_hash_of_swapped_contents_differs() -> None:
    straight = letters("ab")
    swapped = Embeddings(straight.item_ids, straight.vectors, straight.present, straight.keys[::-1], "s")
    assert straight.hash != swapped.hash


def test_rows_of_unknown_ids() -> None:
    assert letters("abc").rows(["c", "?", "a"]).tolist() == [2, -1, 0]


def test_duplicate_ids_are_named() -> None:
    with pytest.raises(ValueError, match="2 item ids occur more than once.*'a'.*'c'"):
        letters("abcca")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_name_the_item(value: float) -> None:
    good = letters("abc")
    vectors = good.vectors.copy()
    vectors[1, 2] = value
    with pytest.raises(ValueError, match="1 items.*'b'"):
        Embeddings(good.item_ids, vectors, good.present, good.keys, "s")


@pytest.mark.parametrize("change", ["fewer vectors", "fewer keys", "float64", "absent with vector"])
def test_what_does_not_agree_is_refused(change: str) -> None:
    good = letters("abc", absent="b")
    vectors, present, keys = good.vectors, good.present, good.keys
    match change:
        case "fewer vectors":
            vectors = vectors[:2]
        case "fewer keys":
            keys = keys[:2]
        case "float64":
            vectors = vectors.astype(np.float64)
        case "absent with vector":
            vectors = vectors + 1
    with pytest.raises(ValueError):
        Embeddings(good.item_ids, vectors, present, keys, "s")


def test_joined_blocks_weigh_the_same() -> None:
    text, image = letters("abcd", absent="bd"), letters("abcd", absent="cd", space="i", width=5, seed=1)
    both = concatenate_embeddings(text, image)
    assert both.vectors.shape == (4, 8)
    assert both.present.tolist() == [True, True, True, False]
    norms = [np.linalg.norm(block, axis=1) for block in np.split(both.vectors, [3], axis=1)]
    half = 0.5**0.5
    np.testing.assert_allclose(norms, [[half, 0, half, 0], [half, half, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(both.vectors[0, :3], text.vectors[0] / np.linalg.norm(text.vectors[0]) * half, atol=1e-6)
    assert both.keys[3] == "" and len(set(both.keys)) == 4
    assert concatenate_embeddings(text, letters("abcd", absent="cd", space="j", width=5)).space != both.space


def test_joined_refuses_other_items() -> None:
    with pytest.raises(ValueError, match="same order"):
        concatenate_embeddings(letters("abc"), letters("acb"))


def test_keys_depend_on_content_and_space() -> None:
    keys = content_keys("s", ["x", "y", None, "x", "漢字"])
    assert keys[0] == keys[3] and keys[2] == "" and len(set(keys)) == 4
    assert content_keys("t", ["x"])[0] != keys[0]


ITEMS = pa.table({"item_id": ["a", "b", "c", "7"], "title": ["A", "B", "C", "7"]})
VECTORS = {"7": [3.0, 4.0], "a": [0.0, 2.0], "x": [1.0, 1.0], "c": [0.0, 0.0]}
CONFIG = VectorFileConfig(file="vectors.parquet")


def write_vectors(folder: Path, vectors=VECTORS, *, kind=None) -> None:
    values = pa.array(list(vectors.values()), kind or pa.list_(pa.float64()))
    pq.write_table(pa.table({"item_id": list(vectors), "vector": values}), folder / CONFIG.file)


def test_vectors_go_to_their_items(tmp_path):
    write_vectors(tmp_path)
    embeddings = embed_from_file(ITEMS, tmp_path, CONFIG, modality="image")
    assert embeddings.item_ids.tolist() == ["a", "b", "c", "7"]
    assert embeddings.present.tolist() == [True, False, False, True]  # b is not there, c has only zeros
    np.testing.assert_allclose(embeddings.vectors, [[0, 1], [0, 0], [0, 0], [0.6, 0.8]], atol=1e-7)
    assert embeddings.about["without_vector"] == 2 and embeddings.about["modality"] == "image"
    plain = embed_from_file(
        ITEMS, tmp_path, VectorFileConfig(file="vectors.parquet", normalise=False), modality="image"
    )
    assert plain.vectors[3].tolist() == [3, 4] and plain.space != embeddings.space


@pytest.mark.parametrize("kind", [pa.list_(pa.float16(), 2), pa.large_list(pa.float32()), pa.list_(pa.int64())])
def test_every_kind_of_list(tmp_path, kind):
    write_vectors(tmp_path, {"a": [0, 2], "7": [3, 4]}, kind=kind)
    assert embed_from_file(ITEMS, tmp_path, CONFIG, modality="text").vectors[3] == pytest.approx([0.6, 0.8])


def test_json_lines_and_ids_that_are_numbers(tmp_path):
    (tmp_path / "v.jsonl").write_text('{"sku": 7, "e": [3, 4]}\n{"sku": 9, "e": [1, 0]}\n')
    embeddings = embed_from_file(
        ITEMS, tmp_path, VectorFileConfig(file="v.jsonl", item_id="sku", column="e"), modality="text"
    )
    assert embeddings.present.tolist() == [False, False, False, True]


def test_another_file_is_another_space_and_other_keys(tmp_path):
    write_vectors(tmp_path)
    first = embed_from_file(ITEMS, tmp_path, CONFIG, modality="text")
    assert embed_from_file(ITEMS, tmp_path, CONFIG, modality="text").hash == first.hash
    write_vectors(tmp_path, {**VECTORS, "b": [1.0, 0.0]})
    second = embed_from_file(ITEMS, tmp_path, CONFIG, modality="text")
    assert second.space != first.space and second.keys[0] != first.keys[0]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"a": [1.0], "b": [1.0, 2.0]}, "vectors of 1 to 2 numbers"),
        ({"a": [1.0, None]}, "numbers are missing"),
        ({"a": [1.0, np.nan]}, "not finite"),
        ({"a": [1.0, 1e300]}, "not finite"),
        ({"y": [1.0, 2.0]}, "0 of 4 items found.*an encoder of kind file"),
    ],
)
def test_bad_vectors(tmp_path, vectors, message):
    write_vectors(tmp_path, vectors)
    with pytest.raises(ValueError, match=message):
        embed_from_file(ITEMS, tmp_path, CONFIG, modality="text")


def test_bad_files(tmp_path):
    inside = tmp_path / "raw"
    inside.mkdir()
    with pytest.raises(ValueError, match=r"which is not in .*raw: put it there$"):
        embed_from_file(ITEMS, inside, CONFIG, modality="text")
    write_vectors(tmp_path)
    with pytest.raises(ValueError, match="outside"):
        embed_from_file(ITEMS, inside, VectorFileConfig(file="../vectors.parquet"), modality="text")
    pq.write_table(pa.table({"item_id": ["a"], "vector": [1.0]}), inside / "vectors.parquet")
    with pytest.raises(ValueError, match="is of type double; it must hold a list of numbers"):
        embed_from_file(ITEMS, inside, CONFIG, modality="text")
    with pytest.raises(ValueError, match="has no column 'e'"):
        embed_from_file(ITEMS, inside, VectorFileConfig(file="vectors.parquet", column="e"), modality="text")
    with pytest.raises(ValueError, match="column is ''"):
        VectorFileConfig(file="x", column="")
