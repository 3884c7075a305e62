"""The interface: what is refused, what is saved, what a hash stands for. Run on the quantizers of our own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.artefacts import forget_digest, names

from recpipe.semantic_ids.quantizer import (
    TYPES,
    Quantizer,
    build_quantizer,
    distinct_rows,
    fitting_sizes,
    load_quantizer,
    quantizer_class,
    save_quantizer,
)

SMALL = {"levels": 3, "codes": 8, "latent": 6, "widths": [16], "least_steps": 60, "most_steps": 60, "batch": 64}


def clusters(rows: int = 200, width: int = 12, *, seed: int = 0) -> np.ndarray:
    """Points around 20 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, width)) * 3
    return (centres[rng.integers(20, size=rows)] + rng.normal(size=(rows, width))).astype(np.float32)


@pytest.fixture(scope="module", params=["rqvae", "pqvae"])
def fitted(request: pytest.FixtureRequest) -> Quantizer:
    quantizer = build_quantizer(request.param, SMALL)
    quantizer.fit(clusters(), seed=0)
    quantizer.about = {"space": "abc", "items": 200}
    return quantizer


def test_types_are_named_with_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"unknown quantizer type 'rq_vae' \(did you mean 'rqvae'\?\).*opq, pq, pqvae"):
        build_quantizer("rq_vae", {})
    assert list(TYPES) == sorted(TYPES)
    assert all(issubclass(quantizer_class(name), Quantizer) for name in TYPES)


def test_every_class_knows_its_own_type():
    assert [quantizer_class(name).type for name in TYPES] == list(TYPES)


def test_unknown_setting_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"argument of quantizer type rqvae 'level' \(did you mean 'levels'\?\); choose levels, codes"
    ):
        build_quantizer("rqvae", {"level": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"levels": 2.5}, "levels is 2.5"),
        ({"codes": 1}, "codes is 1"),
        ({"codes": [8, 8]}, r"codes is \(8, 8\); with levels 3 give one number, or 3 of them"),
        ({"few_items": "cry"}, "few_items is 'cry'; allowed: shrink, refuse"),
        ({"latent": 2}, "latent is 2; allowed: at least levels, 3"),
        ({"sinkhorn": [0.1]}, "sinkhorn is .*; allowed: null, or 3 numbers"),
        ({"dead_codes": {"evry": 3}}, "dead_codes .evry. .*every"),
        ({"dead_codes": {"every": 0}}, "dead_codes are every 0, until 0.7; allowed: at least 1"),
        ({"precision": "fp8"}, "precision is 'fp8'; allowed: auto, fp32, bf16"),
        ({"warm_up": 1.5}, "warm_up is 1.5; allowed: from 0 to below 1"),
        ({"held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_quantizer("rqvae", settings)


def test_codes_may_differ_by_level():
    quantizer = build_quantizer("rqvae", {**SMALL, "codes": [4, 8, 16]})
    quantizer.fit(clusters(), seed=0)
    assert quantizer.sizes == (4, 8, 16)
    assert (quantizer.encode(clusters()).max(0) < quantizer.sizes).all()
    assert quantizer.level_distances(clusters(5), np.zeros((5, 3), np.int32), 2).shape == (5, 16)


def broken(kind: str) -> np.ndarray:
    x = clusters()
    if kind == "nan":
        x[[3, 7], 0] = np.nan, np.inf
    return {"nan": x, "constant": x[:1].repeat(50, 0), "one": x[:1], "none": x[:, :0], "flat": x[0]}[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "2 of 200 vectors have NaN or infinity: rows 3, 7"),
        ("constant", "all 50 vectors are equal"),
        ("one", "only one item has content, a quantizer needs at least 2"),
        ("none", "no item has content: nothing to quantize"),
        ("flat", r"shape \(N, D\), got \(12,\)"),
    ],
)
@pytest.mark.parametrize("type_", TYPES)
def test_vectors_that_cannot_be_quantized_are_refused_by_every_type(type_: str, kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        build_quantizer(type_, {}).fit(broken(kind), seed=0)


def test_few_items_shrink_the_codebooks_with_a_warning(caplog: pytest.LogCaptureFixture):
    quantizer = build_quantizer("rqvae", {**SMALL, "codes": [4, 256, 256]})
    with caplog.at_level(logging.WARNING):
        quantizer.fit(clusters(40), seed=0)
    assert quantizer.sizes == (4, 10, 10)
    assert (
        "40 distinct vectors are fewer than 4 for each of the 256 codes of a level: codes shrink to 4 x 10 x 10"
        in caplog.text
    )
    assert quantizer.encode(clusters(40)).shape == (40, 3)


def test_few_items_are_refused_where_asked():
    with pytest.raises(ValueError, match="40 distinct vectors are fewer than the 256 codes"):
        build_quantizer("rqvae", {"few_items": "refuse"}).fit(clusters(40), seed=0)


@pytest.mark.parametrize("rows", [2, 3, 19])
def test_a_handful_of_items(rows: int):
    quantizer = build_quantizer("rqvae", {**SMALL, "most_steps": 25})
    quantizer.fit(clusters(rows), seed=0)
    assert quantizer.encode(clusters(rows)).shape == (rows, 3)


def test_sizes_stay_where_there_are_enough_items():
    assert fitting_sizes(clusters(200), (50, 8)) == (50, 8)
    assert fitting_sizes(clusters(200), (51, 8)) == (50, 8)
    assert fitting_sizes(clusters(200), (200, 8), few_items="refuse") == (200, 8)


def test_distinct_rows_against_numpy():
    x = np.random.default_rng(0).integers(-1, 2, size=(500, 5)).astype(np.float32)
    x[x == 0] *= np.random.default_rng(1).choice([-1, 1], size=(x == 0).sum())  # zeros of both signs
    kinds, same = np.unique(x, axis=0, return_inverse=True)
    first, mine = distinct_rows(x)
    assert (x[first][mine] == x).all() and len(first) == len(kinds)
    assert len(np.unique(np.stack([mine, same.ravel()], 1), axis=0)) == len(kinds)


def test_nothing_works_before_fitting():
    for call in (
        lambda q: q.encode(clusters()),
        lambda q: q.decode(np.zeros((1, 3), np.int32)),
        lambda q: q.level_distances(clusters(1), np.zeros((1, 3), np.int32), 0),
    ):
        with pytest.raises(ValueError, match="was not fitted: call fit first"):
            call(build_quantizer("rqvae", SMALL))


def test_input_of_a_fitted_quantizer_is_checked(fitted: Quantizer):
    codes = np.zeros((200, 3), np.int32)
    for call, message in (
        (lambda: fitted.encode(clusters(width=5)), "width 5, the quantizer was fitted to width 12"),
        (lambda: fitted.encode(broken("nan")), "rows 3, 7"),
        (lambda: fitted.decode(codes + 8), "row 0 has 8 at level 1, allowed 0 to 7"),
        (lambda: fitted.decode(codes[:, :2]), r"shape \(N, 3\)"),
        (lambda: fitted.decode(codes.astype(np.float32)), "whole numbers"),
        (lambda: fitted.level_distances(clusters(), codes, 3), "level is 3; allowed: 0 to 2"),
        (lambda: fitted.level_distances(clusters(), codes[:9], 1), "200 vectors, but codes of 9 items"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_no_items_are_no_codes(fitted: Quantizer):
    assert fitted.encode(clusters()[:0]).shape == (0, 3)
    assert fitted.decode(np.zeros((0, 3), np.int32)).shape == (0, 12)


def test_saved_and_loaded_is_the_same(fitted: Quantizer, tmp_path: Path):
    save_quantizer(fitted, tmp_path / "quantizer")
    again = load_quantizer(tmp_path / "quantizer")
    x, codes = clusters(seed=1), fitted.encode(clusters(seed=1))
    assert (again.encode(x) == codes).all()
    assert (again.decode(codes) == fitted.decode(codes)).all()
    assert (again.level_distances(x, codes, 1) == fitted.level_distances(x, codes, 1)).all()
    for name in ("hash", "settings", "sizes", "about", "history", "config"):
        assert getattr(again, name) == getattr(fitted, name), name
    assert names(tmp_path / "quantizer") == ["config.json", "model.safetensors"]


def test_hash_stands_for_settings_and_tensors(fitted: Quantizer):
    other = build_quantizer(fitted.type, {**SMALL, "patience": 99})
    other.fit(clusters(), seed=0)
    assert (other.encode(clusters()) == fitted.encode(clusters())).all() and other.hash != fitted.hash
    seeded = build_quantizer(fitted.type, SMALL)
    seeded.fit(clusters(), seed=1)
    assert seeded.hash != fitted.hash


def edit(folder: Path, **changes: object) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changes}))


def spoil(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "other weights":
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    elif how == "cut config":
        config.write_text(config.read_text()[:50])
    elif how == "format":
        edit(folder, format=2)
    elif how == "type":
        edit(folder, type="rqv")
    elif how == "sizes":
        edit(folder, sizes=[8, 8, 9])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "model.safetensors missing; run `kedro run"),
        ("cut weights", "is not a complete quantizer"),
        ("other weights", "model.safetensors is not the file that config.json was written with"),
        ("cut config", "is not a complete quantizer"),
        ("format", "format 2, this version reads 1"),
        ("type", "did you mean 'rqvae'"),
        ("sizes", "codebooks have shapes"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(fitted: Quantizer, tmp_path: Path, how: str, message: str):
    save_quantizer(fitted, tmp_path)
    spoil(tmp_path, how)
    forget_digest(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_quantizer(tmp_path)


def test_an_empty_folder_names_both_files(tmp_path: Path):
    with pytest.raises(ValueError, match="config.json and model.safetensors missing"):
        load_quantizer(tmp_path)


def test_the_curve_is_told_as_it_grows():
    rows: list[dict] = []
    quantizer = build_quantizer("rqvae", SMALL)
    quantizer.fit(clusters(), seed=0, on_epoch=rows.append)
    assert rows == quantizer.history and len(rows) > 3
    assert {"epoch", "step", "seconds", "loss", "reconstruction", "valid_reconstruction", "usage_1"} <= set(rows[-1])
    json.dumps(rows, allow_nan=False)
