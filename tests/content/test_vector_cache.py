"""The cache of vectors: storage, interrupted runs, and which contents are computed."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.artefacts import names as file_names

from recpipe.content.embeddings import content_keys
from recpipe.content.vector_cache import Compute, VectorCache, embed_missing
from recpipe.progress import progress


def keys(*names: str) -> np.ndarray:
    return content_keys("s", names)


class Computation:
    """Vector of position p is (p, 2 p), two positions at a time; fails after ``good`` of them."""

    def __init__(self, good: int = 10**9) -> None:
        self.good, self.positions = good, list[int]()

    def __call__(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.positions += positions.tolist()
        for start in range(0, len(positions), 2):
            if start >= self.good:
                raise KeyboardInterrupt
            part = positions[start : start + 2]
            yield part[::-1], np.stack([part, 2 * part], axis=1).astype(np.float32)[::-1]


def never(positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    raise AssertionError(f"computed {positions}")


def expected(n: int) -> np.ndarray:
    return np.stack([np.arange(n), 2 * np.arange(n)], axis=1).astype(np.float32)


def embed(names: np.ndarray, compute: Compute, cache: VectorCache, **settings: Any) -> np.ndarray:
    is_present, vectors = embed_missing(names, compute, cache, **settings)
    assert is_present.all()
    return vectors


def test_get_finds_what_was_added_in_any_order(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    cache.add(keys("a", "b", "c"), np.eye(3, dtype=np.float32))
    cache.add(keys("d"), np.full((1, 3), 7, np.float32))
    for again in (cache, VectorCache(tmp_path), VectorCache(tmp_path, 3)):
        is_cached, vectors = again.get(keys("d", "?", "b", "b"))
        assert is_cached.tolist() == [True, False, True, True]
        assert vectors.tolist() == [[7, 7, 7], [0, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_many_keys_against_a_dictionary(tmp_path: Path) -> None:
    names = [str(i) for i in range(3000)]
    expected_values, cache = dict[str, float](), VectorCache(tmp_path)
    for part in np.array_split(np.random.default_rng(0).permutation(2500), 7):
        cache.add(keys(*(names[i] for i in part)), part[:, None].astype(np.float32))
        expected_values |= {names[i]: float(i) for i in part}
    is_cached, vectors = cache.get(keys(*names))
    assert is_cached.tolist() == [name in expected_values for name in names]
    assert vectors[:, 0].tolist() == [expected_values.get(name, 0.0) for name in names]


def test_empty_folder_and_no_keys(tmp_path: Path) -> None:
    is_cached, vectors = VectorCache(tmp_path / "not there", 4).get(keys("a"))
    assert not is_cached.any() and vectors.shape == (1, 4)
    assert VectorCache(tmp_path).get([])[1].shape == (0, 0)


def test_computed_once(tmp_path: Path) -> None:
    computation = Computation()
    names = keys("a", "b", "a", "c", "b")
    vectors = embed(names, computation, VectorCache(tmp_path))
    assert computation.positions == [0, 1, 3]
    assert vectors[:, 0].tolist() == [0, 1, 0, 3, 1]
    np.testing.assert_array_equal(embed(names, never, VectorCache(tmp_path)), vectors)
    np.testing.assert_array_equal(embed(names[::-1], never, VectorCache(tmp_path)), vectors[::-1])


def test_only_new_content_is_computed(tmp_path: Path) -> None:
    embed(keys("a", "b", "c"), Computation(), VectorCache(tmp_path))
    computation = Computation()
    vectors = embed(keys("a", "changed", "c"), computation, VectorCache(tmp_path))
    assert computation.positions == [1]
    np.testing.assert_array_equal(vectors, expected(3))


@pytest.mark.parametrize("rows", [2, 1000], ids=["after a shard", "before the first shard"])
def test_interrupted_run_goes_on(tmp_path: Path, rows: int) -> None:
    names = keys(*"abcdefgh")
    with pytest.raises(KeyboardInterrupt):
        embed(names, Computation(good=4), VectorCache(tmp_path), rows=rows)
    computation = Computation()
    vectors = embed(names, computation, VectorCache(tmp_path))
    assert computation.positions == [4, 5, 6, 7]
    np.testing.assert_array_equal(vectors, expected(8))


def test_shards_by_rows_and_by_time(tmp_path: Path) -> None:
    names = keys(*"abcdefgh")
    for folder, settings, shards in [("r", {"rows": 4}, 2), ("t", {"seconds": -1.0}, 4), ("n", {}, 1)]:
        embed(names, Computation(), VectorCache(tmp_path / folder), **settings)
        assert len(file_names(tmp_path / folder)) == shards


@pytest.mark.parametrize("harm", ["cut", "emptied", "text"])
def test_shard_that_is_not_whole_is_computed_again(harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = keys(*"abcd")
    embed(names, Computation(), VectorCache(tmp_path), rows=2)
    shard = next(tmp_path.glob("*.safetensors"))
    content = {"cut": shard.read_bytes()[:-3], "emptied": b"", "text": b"no tensors in here, only text"}
    shard.write_bytes(content[harm])
    computation = Computation()
    with caplog.at_level(logging.WARNING):
        vectors = embed(names, computation, VectorCache(tmp_path))
    assert shard.name in caplog.text and not shard.exists()
    assert len(computation.positions) == 2
    np.testing.assert_array_equal(vectors, expected(4))


def test_shard_that_goes_while_in_use_is_computed_again(tmp_path: Path) -> None:
    names = keys(*"abcd")
    embed(names, Computation(), VectorCache(tmp_path))
    cache = VectorCache(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    np.testing.assert_array_equal(embed(names, Computation(), cache), expected(4))


def test_leftover_of_a_killed_write_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / ".0123.safetensors.0a0a0a0a.part").write_bytes(b"half")
    (tmp_path / ".0123.safetensors").write_bytes(b"half")
    assert len(VectorCache(tmp_path)) == 0 and len(file_names(tmp_path)) == 2


def test_vectors_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    with pytest.raises(ValueError, match="1 of 2 new vectors.*fp32"):
        cache.add(keys("a", "b"), np.array([[1, 2], [np.nan, 1]], np.float32))
    assert not VectorCache(tmp_path).get(keys("a"))[0].any()


def test_compact_keeps_vectors_and_widths(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    for i, name in enumerate("abcdef"):
        cache.add(keys(name), np.full((1, 2 + i % 2), i, np.float32))
    before = [cache.get(keys(*names))[1] for names in ("ace", "bdf")]
    cache.compact()
    assert len(file_names(tmp_path)) == 2
    for again in (cache, VectorCache(tmp_path)):
        for names, vectors in zip(("ace", "bdf"), before, strict=True):
            np.testing.assert_array_equal(again.get(keys(*names))[1], vectors)


def test_many_shards_are_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recpipe.content.vector_cache.MAX_SHARDS", 3)
    embed(keys(*"abcdefgh"), Computation(), VectorCache(tmp_path), rows=2)
    assert len(file_names(tmp_path)) == 1
    np.testing.assert_array_equal(embed(keys(*"abcdefgh"), never, VectorCache(tmp_path)), expected(8))


def test_what_is_new_is_said_and_that_nothing_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        embed(keys(*"abca"), Computation(), VectorCache(tmp_path), label="embed texts")
        embed(keys(*"abca"), never, VectorCache(tmp_path), label="embed texts")
    assert [record.message for record in caplog.records] == [
        "embed texts: 3 of 3 contents are new",
        "embed texts: 0 of 3 contents are new, no encoder is needed",
    ]


def test_what_cannot_be_computed_is_left_out(tmp_path: Path) -> None:
    def compute(positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield positions[1:], np.ones((len(positions) - 1, 2), np.float32)

    is_present, vectors = embed_missing(keys("a", "b", "a", "c"), compute, VectorCache(tmp_path))
    assert is_present.tolist() == [False, True, False, True]
    assert vectors.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert VectorCache(tmp_path).get(keys("a", "b", "c"))[0].tolist() == [False, True, True]


def test_progress_is_logged_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(0, 20)  # between any two looks at the clock
    slow = partial(progress, clock=lambda: next(seconds), stream=io.StringIO())
    monkeypatch.setattr("recpipe.content.vector_cache.progress", slow)
    with caplog.at_level(logging.INFO):
        embed(keys(*"abcde"), Computation(), VectorCache(tmp_path), seconds=1e9)
    messages = [record.message.split(",")[0] for record in caplog.records if record.name == "recpipe.progress"]
    assert messages == [f"embed: {n} of 5 contents" for n in (2, 4, 5)]


def test_progress_is_not_logged_of_a_short_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        embed(keys(*"abcde"), Computation(), VectorCache(tmp_path))
    assert not [record for record in caplog.records if record.name == "recpipe.progress"]
