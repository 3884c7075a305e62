"""Vectors in blocks: the same quantizer, codes and standardisation as in one piece, from a memory map too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids import rqvae, vector_rows
from recpipe.semantic_ids.quantizer import build_quantizer, row_hashes, scaling
from recpipe.semantic_ids.vector_rows import StandardisedRows, VectorRows

N, WIDTH = 1000, 12
SETTINGS = {
    "rqvae": {"levels": 2, "codes": 16, "widths": [16], "latent": 4, "epochs": 4, "least_steps": 20, "batch": 64},
    "pqvae": {"levels": 2, "codes": 16, "widths": [16], "latent": 4, "epochs": 4, "least_steps": 20, "batch": 64},
    "residual_kmeans": {"levels": 2, "codes": 16},
    "pq": {"levels": 2, "codes": 16},
    "opq": {"levels": 2, "codes": 16, "rotations": 2},
}


def vectors(rows: int = N) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, WIDTH)) * rng.uniform(0.1, 9, WIDTH) + 5).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(vector_rows, "BLOCK", 128 * WIDTH)
    monkeypatch.setattr(vector_rows, "MULTIPLE", 128)


def test_blocks_cover_all_rows_once(small_blocks):
    blocks = [*VectorRows(vectors()).blocks()]
    assert np.concatenate([np.arange(N)[block] for block in blocks]).tolist() == [*range(N)]
    assert max(block.stop - block.start for block in blocks) == 128
    assert [*VectorRows(vectors()[:0]).blocks()] == []


def test_some_rows_are_those_rows():
    x, rows = vectors(), np.array([5, 3, 999])
    some = VectorRows(x, rows)
    assert (len(some), some.width) == (3, WIDTH)
    assert np.array_equal(some[np.array([2, 0])], x[[999, 5]]) and np.array_equal(some[1:], x[[3, 999]])
    mask = np.ones(N, bool)
    assert np.shares_memory(VectorRows(x, mask)[2:5], x)
    mask[4] = False
    assert np.array_equal(VectorRows(x, mask)[3:5], x[[3, 5]])
    with pytest.raises(ValueError, match="must have shape"):
        VectorRows(x[0])


def test_standardised_rows_are_those_of_the_whole_matrix():
    x = vectors()
    mean, scale = scaling(x, True)
    expected = (torch.from_numpy(x) - mean) / scale
    rows = StandardisedRows(VectorRows(x), mean, scale)
    chosen = torch.tensor([7, 1, 7])
    assert torch.equal(rows.tensor(slice(None)), expected) and torch.equal(rows.tensor(chosen), expected[chosen])
    part = rows.select(torch.arange(100, 200)).select(torch.tensor([3, 1]))
    assert len(part) == 2 and torch.equal(part.tensor(slice(None)), expected[[103, 101]])


def test_scaling_in_blocks_is_that_of_numpy(small_blocks):
    x = vectors()
    mean, scale = scaling(x, True)
    np.testing.assert_allclose(mean, x.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(scale, x.std(0, np.float64), rtol=1e-6)


@pytest.mark.parametrize("type_", SETTINGS)
def test_a_memory_map_in_blocks_gives_the_codes_of_an_array(type_, tmp_path, small_blocks, monkeypatch):
    x = vectors()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    quantizer, in_blocks = (build_quantizer(type_, SETTINGS[type_]) for _ in range(2))
    in_blocks.fit(mapped, seed=1)
    codes = in_blocks.encode(VectorRows(mapped, np.arange(N)[::-1]))
    monkeypatch.setattr(vector_rows, "BLOCK", 1 << 26)
    quantizer.fit(x, seed=1)
    np.testing.assert_allclose(in_blocks.mean, quantizer.mean, rtol=1e-6)
    assert (codes[::-1] == quantizer.encode(x)).mean() > 0.98  # sums of float32 in another order
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)


def test_rows_that_are_not_finite_are_named_by_number(small_blocks):
    x = vectors()
    x[[300, 700], 2] = np.nan
    with pytest.raises(ValueError, match="2 of 1000 vectors have NaN or infinity: rows 300, 700"):
        build_quantizer("pq", SETTINGS["pq"]).fit(x, seed=0)


def test_equal_rows_in_different_blocks_have_equal_hashes(small_blocks):
    x = vectors()
    x[990] = x[3]
    hashes = row_hashes(x)
    assert hashes[990] == hashes[3] and len(np.unique(hashes)) == N - 1


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_no_more_than_a_sample_chooses_the_best_state(held_out, monkeypatch):
    monkeypatch.setattr(rqvae, "MAX_HELD_OUT", 50)
    sizes = []
    monkeypatch.setattr(
        rqvae.QuantizedAutoencoder, "reconstruction_error", lambda self, x: sizes.append(len(x)) or float(len(sizes))
    )
    build_quantizer("rqvae", {**SETTINGS["rqvae"], "held_out": held_out}).fit(vectors(), seed=0)
    assert set(sizes) == {50}
