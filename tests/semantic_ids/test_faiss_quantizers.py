"""Our encoding and decoding against faiss' own on the same codebooks; learning, odd sizes, saving."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from recpipe.semantic_ids.faiss_quantizers import one_thread
from recpipe.semantic_ids.quantizer import (
    DEAD_DIMENSION,
    Quantizer,
    build_quantizer,
    load_quantizer,
    save_quantizer,
    scaling,
)

TYPES = ("residual_kmeans", "pq", "opq")
FAST = {"steps": 2, "iterations": 4, "rotations": 3}


def vectors(n: int = 600, width: int = 24, *, seed: int = 0) -> np.ndarray:
    """Correlated dimensions of unequal spread around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) * np.linspace(0.2, 3, width)
    return (x + 5 * rng.normal(size=width)).astype(np.float32)


def fitted(type_: str, x: np.ndarray, *, seed: int = 1, **settings) -> Quantizer:
    fast = {key: value for key, value in FAST.items() if key != "rotations" or type_ == "opq"}
    quantizer = build_quantizer(type_, {"levels": 3, "codes": 16, **fast, **settings})
    quantizer.fit(x, seed=seed)
    return quantizer


def lost(x: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    return ((x - decoded) ** 2).sum(1)


def agree(x, ours, theirs, our_vectors, their_vectors) -> None:
    """Same codes; where rounding chose another, an error as small. Same decoding."""
    assert (ours == theirs).all(1).mean() > 0.99
    assert np.allclose(lost(x, our_vectors), lost(x, their_vectors), rtol=1e-3, atol=1e-3)


def unpacked(packed: np.ndarray, bits: int, levels: int) -> np.ndarray:
    flat = np.unpackbits(packed, axis=1, bitorder="little")[:, : bits * levels].reshape(-1, levels, bits)
    return (flat * (1 << np.arange(bits))).sum(-1)


@pytest.mark.parametrize("beam", [1, 2, 7])
@pytest.mark.parametrize("bits", [4, 5])
def test_residual_codes_equal_faiss_residual_quantizer(beam, bits):
    x = vectors()
    ours = fitted("residual_kmeans", x, codes=2**bits, beam=beam, standardise=False)
    theirs = faiss.ResidualQuantizer(24, 3, bits)
    faiss.copy_array_to_vector(torch.cat(ours.books).numpy().ravel(), theirs.codebooks)
    theirs.is_trained, theirs.max_beam_size = True, beam
    theirs.compute_codebook_tables()
    packed = theirs.compute_codes(x)
    codes = ours.encode(x)
    agree(x, codes, unpacked(packed, bits, 3), ours.decode(codes), theirs.decode(packed))


@pytest.mark.parametrize("type_", ["pq", "opq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_product_codes_equal_faiss_product_quantizer(type_, bits):
    x = vectors(1000)
    ours = fitted(type_, x, codes=2**bits, standardise=False, few_items="refuse")
    theirs = faiss.ProductQuantizer(24, 3, bits)
    faiss.copy_array_to_vector(torch.cat(ours.books).numpy().ravel(), theirs.centroids)
    rotate = faiss.LinearTransform(24, 24)
    matrix = ours.rotation if type_ == "opq" else torch.eye(24)
    faiss.copy_array_to_vector(matrix.numpy().ravel(), rotate.A)
    rotate.is_trained = rotate.is_orthonormal = True
    packed = theirs.compute_codes(rotate.apply(x))
    codes = ours.encode(x)
    decoded = rotate.reverse_transform(theirs.decode(packed))
    agree(x, codes, unpacked(packed, bits, 3), ours.decode(codes), decoded)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("standardise", [True, False])
def test_level_distances_are_those_of_a_plain_loop(type_, standardise):
    x = vectors(60, 7)
    ours = fitted(type_, x, codes=[8, 4, 5], standardise=standardise, few_items="refuse")
    z = (x - ours.mean.numpy()) / ours.scale.numpy()
    if type_ == "opq":
        z = np.pad(z, ((0, 0), (0, 2))) @ ours.rotation.numpy().T
    codes = ours.encode(x)
    for level, book in enumerate(ours.books):
        expected = np.zeros((60, len(book)))
        for i, row in enumerate(z):
            if type_ == "residual_kmeans":
                part = row - sum(ours.books[j][codes[i, j]].numpy() for j in range(level))
            else:
                begin = sum(b.shape[1] for b in ours.books[:level])
                part = row[begin : begin + book.shape[1]]
            expected[i] = ((part - book.numpy()) ** 2).sum(1)
        distances = ours.level_distances(x, codes, level)
        assert np.allclose(distances, expected, rtol=1e-3, atol=1e-3)
        assert (distances.argmin(1) == codes[:, level]).mean() > 0.98


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize(("width", "levels", "codes"), [(7, 3, 16), (10, 4, [12, 7, 16, 3]), (24, 5, 30), (3, 3, 8)])
def test_any_width_and_any_number_of_codes(type_, width, levels, codes):
    x = vectors(300, width)
    ours = fitted(type_, x, levels=levels, codes=codes)
    codes_NL = ours.encode(x)
    assert ours.sizes == tuple([codes] * levels if isinstance(codes, int) else codes)
    assert [len(np.unique(column)) for column in codes_NL.T] == list(ours.sizes)  # every code is used
    spread = lost(x, x.mean(0)).sum()
    assert lost(x, ours.decode(codes_NL)).sum() < 0.8 * spread
    again = ours.decode(ours.encode(ours.decode(codes_NL)))
    assert lost(ours.decode(codes_NL), again).sum() < 0.05 * spread


@pytest.mark.parametrize("type_", ["pq", "opq"])
def test_more_levels_than_dimensions_are_refused(type_):
    with pytest.raises(ValueError, match="vectors of width 2 cannot be cut into 3 pieces"):
        fitted(type_, vectors(100, 2))


def test_the_rotation_is_orthonormal_and_loses_less_than_none():
    x = vectors(2000, 10)
    pq, opq = (fitted(type_, x, levels=3, iterations=10) for type_ in ("pq", "opq"))
    assert torch.allclose(opq.rotation @ opq.rotation.T, torch.eye(12), atol=1e-4)
    z = (x - pq.mean.numpy()) / pq.scale.numpy()
    loss = {q.type: lost(z, (q.decode(q.encode(x)) - pq.mean.numpy()) / pq.scale.numpy()).sum() for q in (pq, opq)}
    assert loss["opq"] < 0.95 * loss["pq"]


def test_residual_kmeans_loses_no_more_than_faiss_residual_quantizer_does():
    x = vectors(2000, 32)
    ours = fitted("residual_kmeans", x, standardise=False, codes=32, steps=10, iterations=10)
    theirs = faiss.ResidualQuantizer(32, 3, 5)
    theirs.max_beam_size = 1
    with one_thread():
        theirs.train(x)
    theirs_lost = lost(x, theirs.decode(theirs.compute_codes(x))).sum()
    assert lost(x, ours.decode(ours.encode(x))).sum() < 1.03 * theirs_lost


def test_a_wider_beam_finds_nearer_sums_in_the_same_codebooks():
    x = vectors()
    narrow = fitted("residual_kmeans", x)
    wide = build_quantizer("residual_kmeans", {**narrow.settings, "beam": 8})
    wide.sizes, wide.width = narrow.sizes, narrow.width
    wide.load_tensors(narrow.tensors())
    assert lost(x, wide.decode(wide.encode(x))).sum() < lost(x, narrow.decode(narrow.encode(x))).sum()


def test_dimensions_of_rounding_errors_are_not_blown_up():
    x = vectors()
    x[:, 3] = 1e-9 * np.random.default_rng(1).normal(size=600)
    x[:, 4], x[:, 5] = 0, 1e-33 * x[:, 0]
    mean, scale = scaling(x, True)
    z = ((torch.from_numpy(x) - mean) / scale).numpy()
    assert scale[3:6].tolist() == [1, 1, 1]
    assert np.allclose(z[:, [0, 1, 2, *range(6, 24)]].std(0), 1, atol=1e-4)
    assert np.abs(z[:, 3:6]).max() < DEAD_DIMENSION


@pytest.mark.parametrize("type_", TYPES)
def test_one_seed_one_quantizer_and_saving_keeps_it(type_, tmp_path):
    x = vectors()
    first, again, other = (fitted(type_, x, seed=seed) for seed in (1, 1, 2))
    assert first.hash == again.hash != other.hash
    save_quantizer(first, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.hash == first.hash
    assert (loaded.encode(x) == first.encode(x)).all()
    assert (loaded.decode(first.encode(x)) == first.decode(first.encode(x))).all()


@pytest.mark.parametrize("type_", TYPES)
def test_it_learns_from_a_sample_of_many_items(type_):
    x = vectors(1500)
    whole, part = fitted(type_, x), fitted(type_, x, sample=200)
    assert whole.hash != part.hash
    errors = [lost(x, q.decode(q.encode(x))).sum() for q in (whole, part)]
    assert errors[0] < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("n", [2, 5, 20, 40])
def test_few_items_shrink_the_codebooks_with_a_warning(type_, n, caplog):
    x = vectors(n)
    ours = fitted(type_, x, codes=64)
    assert "codes shrink to" in caplog.text
    assert ours.sizes == (max(2, n // 4),) * 3
    assert ours.encode(x).shape == (n, 3)
    with pytest.raises(ValueError, match=f"{n} distinct vectors are fewer than the 64 codes"):
        fitted(type_, x, codes=64, few_items="refuse")


@pytest.mark.parametrize("type_", TYPES)
def test_many_equal_vectors_are_no_trouble(type_):
    x = np.repeat(vectors(20), 20, axis=0)
    ours = fitted(type_, x, codes=16)
    assert np.isfinite(ours.decode(ours.encode(x))).all()
    assert (ours.encode(x).reshape(20, 20, 3) == ours.encode(x[::20])[:, None]).all()


@pytest.mark.parametrize(("type_", "name"), [("pq", "iterations"), ("opq", "rotations"), ("residual_kmeans", "beam")])
def test_settings_that_make_no_sense_are_refused(type_, name):
    for value in (0, 1.5, True, None):
        with pytest.raises(ValueError, match=f"{name} is {value!r}; a whole number of at least 1"):
            build_quantizer(type_, {name: value})
    with pytest.raises(ValueError, match="sample is 255; a whole number of at least 256"):
        build_quantizer(type_, {"sample": 255})


def test_fitting_leaves_the_threads_of_faiss_as_they_were():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        fitted("pq", vectors())
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
