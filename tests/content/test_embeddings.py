"""Embeddings: what is refused, what survives writing, hashes and joining."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.content.embeddings import Embeddings, concatenate_embeddings, content_keys


def made(ids: str, *, absent: str = "", space: str = "s", width: int = 3, seed: int = 0) -> Embeddings:
    """Items called by one letter each; an item's vector depends on its letter only."""
    present = np.array([item not in absent for item in ids], bool)
    table = np.random.default_rng(seed).normal(size=(128, width)).astype(np.float32)
    vectors = table[[ord(item) for item in ids]] * present[:, None]
    keys = content_keys(space, [item if item not in absent else None for item in ids])
    return Embeddings(np.array(list(ids), object), vectors, present, keys, space, {"encoder": "x"})


@pytest.mark.parametrize(
    "embeddings",
    [made("abc"), made("abcd", absent="bd"), made("ab", absent="ab", width=0), made("")],
    ids=["all present", "some absent", "all absent", "no items"],
)
def test_written_and_read(embeddings: Embeddings, tmp_path: Path) -> None:
    embeddings.write(tmp_path / "e.parquet")
    read = Embeddings.read(tmp_path / "e.parquet")
    for name in ("item_ids", "vectors", "present", "keys"):
        np.testing.assert_array_equal(getattr(read, name), getattr(embeddings, name))
    assert (read.space, read.about, read.hash) == (embeddings.space, embeddings.about, embeddings.hash)
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_absent_vector_is_null_in_the_file(tmp_path: Path) -> None:
    made("abc", absent="b").write(tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet")["vector"].is_null().to_pylist() == [False, True, False]


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="holds no embeddings.*pipelines=embed"):
        Embeddings.read(tmp_path / "e.parquet")


def test_hash_ignores_order_and_nothing_else() -> None:
    assert made("abc").hash == made("cab").hash
    others = [made("abd"), made("ab"), made("abc", absent="c"), made("abc", space="t")]
    assert len({made("abc").hash, *(other.hash for other in others)}) == 5


def test_hash_of_swapped_contents_differs() -> None:
    straight = made("ab")
    swapped = Embeddings(straight.item_ids, straight.vectors, straight.present, straight.keys[::-1], "s")
    assert straight.hash != swapped.hash


def test_rows_of_unknown_ids() -> None:
    assert made("abc").rows(["c", "?", "a"]).tolist() == [2, -1, 0]


def test_duplicate_ids_are_named() -> None:
    with pytest.raises(ValueError, match="2 item ids occur more than once.*'a'.*'c'"):
        made("abcca")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_name_the_item(value: float) -> None:
    good = made("abc")
    vectors = good.vectors.copy()
    vectors[1, 2] = value
    with pytest.raises(ValueError, match="1 items.*'b'"):
        Embeddings(good.item_ids, vectors, good.present, good.keys, "s")


@pytest.mark.parametrize("change", ["fewer vectors", "fewer keys", "float64", "absent with vector"])
def test_what_does_not_agree_is_refused(change: str) -> None:
    good = made("abc", absent="b")
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
    text, image = made("abcd", absent="bd"), made("abcd", absent="cd", space="i", width=5, seed=1)
    both = concatenate_embeddings(text, image)
    assert both.vectors.shape == (4, 8)
    assert both.present.tolist() == [True, True, True, False]
    norms = [np.linalg.norm(block, axis=1) for block in np.split(both.vectors, [3], axis=1)]
    half = 0.5**0.5
    np.testing.assert_allclose(norms, [[half, 0, half, 0], [half, half, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(
        both.vectors[0, :3], text.vectors[0] / np.linalg.norm(text.vectors[0]) * half, atol=1e-6
    )
    assert both.keys[3] == "" and len(set(both.keys)) == 4
    assert concatenate_embeddings(text, made("abcd", absent="cd", space="j", width=5)).space != both.space


def test_joined_refuses_other_items() -> None:
    with pytest.raises(ValueError, match="same order"):
        concatenate_embeddings(made("abc"), made("acb"))


def test_keys_depend_on_content_and_space() -> None:
    keys = content_keys("s", ["x", "y", None, "x", "漢字"])
    assert keys[0] == keys[3] and keys[2] == "" and len(set(keys)) == 4
    assert content_keys("t", ["x"])[0] != keys[0]
