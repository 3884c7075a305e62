"""Vectors that were made elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.content.vector_file import VectorFileConfig, embed_file

ITEMS = pa.table({"item_id": ["a", "b", "c", "7"], "title": ["A", "B", "C", "7"]})
VECTORS = {"7": [3.0, 4.0], "a": [0.0, 2.0], "x": [1.0, 1.0], "c": [0.0, 0.0]}
CONFIG = VectorFileConfig(file="vectors.parquet")


def write(folder: Path, vectors=VECTORS, *, kind=None) -> None:
    values = pa.array(list(vectors.values()), kind or pa.list_(pa.float64()))
    pq.write_table(pa.table({"item_id": list(vectors), "vector": values}), folder / CONFIG.file)


def test_vectors_go_to_their_items(tmp_path):
    write(tmp_path)
    made = embed_file(ITEMS, tmp_path, CONFIG, modality="image")
    assert made.item_ids.tolist() == ["a", "b", "c", "7"]
    assert made.present.tolist() == [True, False, False, True]  # b is not there, c has only zeros
    np.testing.assert_allclose(made.vectors, [[0, 1], [0, 0], [0, 0], [0.6, 0.8]], atol=1e-7)
    assert made.about["without_vector"] == 2 and made.about["modality"] == "image"
    plain = embed_file(
        ITEMS, tmp_path, VectorFileConfig(file="vectors.parquet", normalise=False), modality="image"
    )
    assert plain.vectors[3].tolist() == [3, 4] and plain.space != made.space


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float16(), 2), pa.large_list(pa.float32()), pa.list_(pa.int64())]
)
def test_every_kind_of_list(tmp_path, kind):
    write(tmp_path, {"a": [0, 2], "7": [3, 4]}, kind=kind)
    assert embed_file(ITEMS, tmp_path, CONFIG, modality="text").vectors[3] == pytest.approx([0.6, 0.8])


def test_json_lines_and_ids_that_are_numbers(tmp_path):
    (tmp_path / "v.jsonl").write_text('{"sku": 7, "e": [3, 4]}\n{"sku": 9, "e": [1, 0]}\n')
    made = embed_file(
        ITEMS, tmp_path, VectorFileConfig(file="v.jsonl", item_id="sku", column="e"), modality="text"
    )
    assert made.present.tolist() == [False, False, False, True]


def test_another_file_is_another_space_and_other_keys(tmp_path):
    write(tmp_path)
    first = embed_file(ITEMS, tmp_path, CONFIG, modality="text")
    assert embed_file(ITEMS, tmp_path, CONFIG, modality="text").hash == first.hash
    write(tmp_path, {**VECTORS, "b": [1.0, 0.0]})
    second = embed_file(ITEMS, tmp_path, CONFIG, modality="text")
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
    write(tmp_path, vectors)
    with pytest.raises(ValueError, match=message):
        embed_file(ITEMS, tmp_path, CONFIG, modality="text")


def test_bad_files(tmp_path):
    inside = tmp_path / "raw"
    inside.mkdir()
    with pytest.raises(ValueError, match=r"which is not in .*raw: put it there$"):
        embed_file(ITEMS, inside, CONFIG, modality="text")
    write(tmp_path)
    with pytest.raises(ValueError, match="outside"):
        embed_file(ITEMS, inside, VectorFileConfig(file="../vectors.parquet"), modality="text")
    pq.write_table(pa.table({"item_id": ["a"], "vector": [1.0]}), inside / "vectors.parquet")
    with pytest.raises(ValueError, match="is of type double; it must hold a list of numbers"):
        embed_file(ITEMS, inside, CONFIG, modality="text")
    with pytest.raises(ValueError, match="has no column 'e'"):
        embed_file(ITEMS, inside, VectorFileConfig(file="vectors.parquet", column="e"), modality="text")
    with pytest.raises(ValueError, match="column is ''"):
        VectorFileConfig(file="x", column="")
