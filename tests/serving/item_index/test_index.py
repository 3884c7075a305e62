"""Item index against exact search, its files beside a bundle, and what damages or outdates them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.artefacts import flip_bit
from tests.synthetic import random_sequences

import recpipe
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.digests import MANIFEST, write_manifest
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.top_k import tie_order
from recpipe.models.registry import build
from recpipe.serving.item_index.build import IndexConfig, build_index, recall_of, sample_queries
from recpipe.serving.item_index.files import DESCRIPTION, FILE, bundle_index, index_folder, main
from recpipe.serving.item_index.search import ItemIndex, Pairs, indexed_top_k
from recpipe.training.bundle import Bundle, load_bundle, save_bundle

ITEMS, WIDTH, QUERIES, K = 3000, 16, 60, 10
QUICK = IndexConfig(exact_below=0, queries=QUERIES, list_size=64, speedup=0.0)
KINDS = ("ivf", "hnsw")


def clustered(items: int = ITEMS, queries: int = QUERIES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Item vectors (I + 1, D) in clusters, the padding row large, and queries (Q, D) near some of them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, WIDTH))
    vectors = centres[rng.integers(0, 40, items + 1)] + 0.5 * rng.normal(size=(items + 1, WIDTH))
    vectors[0] = 100.0
    chosen = vectors[rng.integers(1, items + 1, queries)] + 0.5 * rng.normal(size=(queries, WIDTH))
    return torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(chosen.astype(np.float32))


def excluded_items(seed: int = 1, most: int = 30) -> Pairs:
    """Up to ``most`` items for each query, among them many of the best ones."""
    vectors, queries = clustered()
    rng, best = np.random.default_rng(seed), (queries @ vectors.T)[:, 1:].argsort(1, descending=True) + 1
    rows = [rng.choice(60, rng.integers(0, most), replace=False) for _ in range(QUERIES)]
    row = np.repeat(np.arange(QUERIES), [len(places) for places in rows])
    return Pairs(row, best.numpy()[row, np.concatenate(rows)])


def brute_force(vectors, queries, k, excluded=None, candidates=None) -> list[list[int]]:
    scores, order = (queries @ vectors.T).numpy(), tie_order(len(vectors)).numpy()
    barred = set() if excluded is None else set(zip(excluded.row.tolist(), excluded.item.tolist(), strict=True))
    allowed = range(1, len(vectors)) if candidates is None else np.flatnonzero(candidates[1:].numpy()) + 1
    lists = []
    for u, row in enumerate(scores):
        valid = [int(i) for i in allowed if (u, i) not in barred]
        lists.append(sorted(valid, key=lambda i, row=row: (-row[i], order[i]))[:k])
    return lists


@pytest.fixture(scope="module", params=KINDS)
def index(request) -> ItemIndex:
    vectors, queries = clustered()
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    built, description = build_index(vectors, queries, none, replace(QUICK, kind=request.param))
    assert description["kind"] == built.kind == request.param
    return built


def shares(lists: np.ndarray, truth: list[list[int]]) -> float:
    return float(np.mean([len({*row} & {*best}) / len(best) for row, best in zip(lists.tolist(), truth, strict=True)]))


def test_exact_search_is_that_of_a_sort():
    vectors, queries = clustered()
    excluded = excluded_items()
    candidates = torch.rand(ITEMS + 1, generator=torch.Generator().manual_seed(0)) < 0.5
    for mask in (None, candidates):
        items, scores = ItemIndex(vectors).search(queries, K, excluded=excluded, candidates=mask)
        assert items.tolist() == brute_force(vectors, queries, K, excluded, mask)
        expected = (queries @ vectors.T).numpy()
        np.testing.assert_allclose(scores, np.take_along_axis(expected, items.astype(np.int64), 1), rtol=1e-6)


def test_the_index_reaches_its_recall_with_exact_scores(index):
    vectors, queries = clustered(queries=400, seed=0)
    items, scores = index.search(queries, K)
    assert shares(items, brute_force(vectors, queries, K)) > 0.97
    expected = (queries @ vectors.T).numpy()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, items.astype(np.int64), 1), rtol=1e-5, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len({*row}) == K for row in items.tolist())


def test_excluded_items_never_appear_and_others_take_their_places(index):
    vectors, queries = clustered()
    excluded = excluded_items()
    items, _ = index.search(queries, K, excluded=excluded)
    assert not {*zip(excluded.row.tolist(), excluded.item.tolist(), strict=True)} & {
        (u, item) for u, row in enumerate(items.tolist()) for item in row
    }
    assert (items > 0).all()
    assert shares(items, brute_force(vectors, queries, K, excluded)) > 0.97


@pytest.mark.parametrize("share", [0.5, 0.2, 0.01])
def test_candidates_restrict_the_list(index, share):
    vectors, queries = clustered()
    candidates = torch.rand(ITEMS + 1, generator=torch.Generator().manual_seed(1)) < share
    items, _ = index.search(queries, K, candidates=candidates)
    assert candidates[items].all() and (items > 0).all()
    assert shares(items, brute_force(vectors, queries, K, candidates=candidates)) > 0.97


def test_few_candidates_are_searched_exactly_and_lists_end_where_items_do(index):
    vectors, queries = clustered()
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[[3, 70, 800]] = True
    items, scores = index.search(queries, K, candidates=candidates)
    assert items[:, :3].tolist() == brute_force(vectors, queries, K, candidates=candidates)
    assert (items[:, 3:] == 0).all() and np.isneginf(scores[:, 3:]).all()


def test_no_list_is_shorter_than_the_valid_items(index):
    vectors, queries = clustered(queries=3)
    allowed = np.array([5, 9, 1234])
    others = np.setdiff1d(np.arange(1, ITEMS + 1), allowed)
    excluded = Pairs(np.repeat(np.arange(3), len(others)), np.tile(others, 3))
    before = index.exact_users
    items, _ = index.search(queries, K, excluded=excluded)
    assert items[:, :3].tolist() == brute_force(vectors, queries, K, excluded)
    assert (items[:, 3:] == 0).all() and index.exact_users == before + 3


def test_lists_as_long_as_the_catalogue_are_exact(index):
    vectors, queries = clustered(queries=2)
    items, _ = index.search(queries, 10**9)
    assert items.tolist() == brute_force(vectors, queries, ITEMS)


def test_equal_items_are_ordered_as_in_exact_search(index):
    vectors = torch.ones(ITEMS + 1, WIDTH)
    built, _ = build_index(vectors, torch.ones(4, WIDTH), Pairs(*np.zeros((2, 0), np.int64)), QUICK)
    items, scores = built.search(torch.ones(2, WIDTH), 5)
    assert (scores == WIDTH).all() and (items > 0).all()
    order = tie_order(ITEMS + 1).numpy()
    assert (np.diff(order[items], axis=1) > 0).all()


def test_a_single_query_gets_the_list_it_gets_among_others(index):
    _, queries = clustered()
    together = index.search(queries, K)[0]
    alone = np.concatenate([index.search(queries[u : u + 1], K)[0] for u in range(QUERIES)])
    assert (together == alone).all()


def test_unusable_requests_are_refused(index):
    _, queries = clustered()
    with pytest.raises(ValueError, match="k is 0"):
        index.search(queries, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        index.search(queries * torch.nan, K)
    with pytest.raises(ValueError, match="of another model"):
        ItemIndex(torch.zeros(7, WIDTH), index.index, kind=index.kind)


def test_search_stays_exact_where_no_index_is_faster():
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.rand(2000, 64, generator=generator), torch.rand(50, 64, generator=generator)
    none = Pairs(*np.zeros((2, 0), np.int64))
    built, description = build_index(vectors, queries, none, replace(QUICK, speedup=1e9))
    assert built.kind == description["kind"] == "exact" and built.index is None
    assert {*description["trials"]} == {*KINDS}


def test_recall_counts_items_that_score_as_much_as_the_exact_ones():
    truth = np.array([[3.0, 2.0, 2.0], [1.0, -np.inf, -np.inf], [5.0, 4.0, 3.0]], np.float32)
    scores = np.array([[3.0, 2.0, 1.0], [1.0, -np.inf, -np.inf], [2.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(recall_of(scores, truth), [2 / 3, 1, 0])


@pytest.mark.parametrize("setting", [{"kind": "tree"}, {"recall": 0.0}, {"recall": 1.5}, {"k": 0}, {"list_size": 0}])
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        IndexConfig(**setting)


# ------------------------------------------------------------------ bundles

BUNDLE_ITEMS = 400
DATA = random_sequences(80, BUNDLE_ITEMS, longest=16, seed=1)
MMR = {"diversity": 0.3}
CONFIG = replace(QUICK, queries=50, kind="ivf", list_size=32)


def saved_bundle(folder: Path, name: str = "sasrec", *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = build(name, {"dim": 16} if name == "sasrec" else {}, n_items=BUNDLE_ITEMS, max_length=10)
    if model.closed_form:
        model.fit(DATA)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=BUNDLE_ITEMS).fit(DATA, seed=0)
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(BUNDLE_ITEMS)], object))
    events = np.bincount(DATA.items, minlength=BUNDLE_ITEMS + 1)[1:]
    bundle = Bundle(name, name, model.eval(), vocabulary, [None] * BUNDLE_ITEMS, events, Protocol(dataset="tiny"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_bundle(bundle, folder)
    return folder


def test_lists_of_a_model_through_its_index_are_those_of_the_model(tmp_path):
    folder = saved_bundle(tmp_path / "bundle")
    bundle = load_bundle(folder)
    index = bundle_index(bundle, folder, CONFIG)
    index.settings = replace(index.settings, effort=BUNDLE_ITEMS)  # every list is visited
    users = replace(random_sequences(50, BUNDLE_ITEMS, seed=5, shortest=0), timestamps=None)
    assert (users.lengths == 0).any()
    candidates = torch.rand(BUNDLE_ITEMS + 1) < 0.5
    for options in ({"exclude_seen": True}, {"exclude_seen": False, "candidates": candidates}):
        expected_items, expected = bundle.model.recommend(users, 6, **options)
        for rows, items, scores in indexed_top_k(bundle.model, index, users, 6, **options):
            np.testing.assert_allclose(scores, expected[rows], rtol=1e-4, atol=1e-5)
            assert (items == expected_items[rows]).mean() > 0.98  # but for items of nearly equal scores


def test_the_index_is_saved_beside_the_bundle_and_read_again(tmp_path, caplog):
    folder = saved_bundle(tmp_path / "bundle")
    bundle = load_bundle(folder)
    first = bundle_index(bundle, folder, CONFIG)
    assert {path.name for path in index_folder(folder).iterdir()} == {FILE, DESCRIPTION, MANIFEST}
    described = json.loads((index_folder(folder) / DESCRIPTION).read_text())
    assert described["recall"] >= CONFIG.recall and described["settings"] == asdict(first.settings)
    load_bundle(folder)  # the index is no file of the bundle
    caplog.set_level("INFO")
    caplog.clear()
    second = bundle_index(bundle, folder, CONFIG)
    assert "building" not in caplog.text
    queries, excluded = sample_queries(bundle, DATA, CONFIG)
    for index in (first, second):
        items, _ = index.search(queries, K, excluded=excluded)
        assert (items == first.search(queries, K, excluded=excluded)[0]).all()


def changed_weights(folder: Path) -> None:
    saved_bundle(folder, seed=1)


def flipped_bit(folder: Path) -> None:
    flip_bit(index_folder(folder) / FILE, seed=3)


def lost_file(folder: Path) -> None:
    (index_folder(folder) / FILE).unlink()


def lost_manifest(folder: Path) -> None:
    (index_folder(folder) / MANIFEST).unlink()


def other_kind(folder: Path) -> None:
    path = index_folder(folder) / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "hnsw"}))
    write_manifest(index_folder(folder))


def no_json(folder: Path) -> None:
    (index_folder(folder) / DESCRIPTION).write_text("{")
    write_manifest(index_folder(folder))


@pytest.mark.parametrize(
    "change", [changed_weights, flipped_bit, lost_file, lost_manifest, other_kind, no_json], ids=lambda f: f.__name__
)
def test_an_index_that_does_not_fit_is_built_again(change, tmp_path, caplog):
    folder = saved_bundle(tmp_path / "bundle")
    bundle_index(load_bundle(folder), folder, CONFIG)
    change(folder)
    bundle = load_bundle(folder)
    caplog.set_level("INFO")
    index = bundle_index(bundle, folder, CONFIG)
    assert "building the index of sasrec" in caplog.text
    torch.testing.assert_close(index.vectors, bundle.model.output_vectors().detach())
    caplog.clear()
    bundle_index(bundle, folder, CONFIG)
    assert "building" not in caplog.text
    bundle_index(bundle, folder, replace(CONFIG, recall=0.9))
    assert "building" in caplog.text


def test_a_served_bundle_lists_through_its_index_without_probabilities(tmp_path):
    folder = saved_bundle(tmp_path / "bundle")
    exact = recpipe.load_bundle(folder)
    assert exact.index is None
    served = recpipe.load_bundle(folder, index=CONFIG)
    assert served.index.kind == "ivf"
    served.index.settings = replace(served.index.settings, effort=BUNDLE_ITEMS)
    histories = {f"u{u}": [f"i{item - 1}" for item in DATA.row(u)] for u in range(30)} | {"new": []}
    for options in ({}, {"candidates": [f"i{n}" for n in range(0, 400, 3)]}, {"exclude": ["i5"]}, {"rules": MMR}):
        table, expected = (model.recommend(histories, 5, **options) for model in (served, exact))
        assert table["source"].to_pylist() == expected["source"].to_pylist()
        np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-4, atol=1e-5)
        assert table["probability"].null_count == len(table)
    by_user = {"candidates": {"u0": ["i7", "i9"], "u1": ["i8"]}}
    table, expected = (model.recommend({"u0": ["i1"], "u1": ["i2"]}, 5, **by_user) for model in (served, exact))
    assert table.equals(expected)


def test_small_catalogues_and_models_without_vectors_have_no_index(tmp_path):
    folder = saved_bundle(tmp_path / "bundle")
    assert bundle_index(load_bundle(folder), folder) is None
    popular = saved_bundle(tmp_path / "popular", "popular")
    assert bundle_index(load_bundle(popular), popular, CONFIG) is None
    assert not index_folder(folder).exists() and not index_folder(popular).exists()


def test_histories_to_measure_with_are_those_of_the_data_folder(tmp_path):
    folder = saved_bundle(tmp_path / "06_models" / "tiny" / "sasrec" / "seed_1" / "bundle" / "v" / "bundle")
    bundle = load_bundle(folder)
    drawn, _ = sample_queries(bundle, None, CONFIG)
    assert drawn.shape == (50, 16) and torch.isfinite(drawn).all()
    split = tmp_path / "05_model_input" / "tiny"
    split.mkdir(parents=True)
    DATA.write(split / "train_set.arrow")
    bundle.vocabulary.write(split / "vocabulary.parquet")
    bundle_index(bundle, folder, CONFIG)
    described = json.loads((index_folder(folder) / DESCRIPTION).read_text())
    assert described["histories"] == "training"


def test_the_command_builds_an_index_and_says_why_it_does_not(tmp_path, caplog):
    folder = saved_bundle(tmp_path / "bundle")
    caplog.set_level("INFO")
    assert main([str(folder)]) == 0
    assert "fewer than 200,000; lower --exact-below: no index" in caplog.text
    assert main([str(folder), "--exact-below", "0", "--kind", "hnsw", "--recall", "0.9"]) == 0
    assert (index_folder(folder) / DESCRIPTION).is_file()
    assert main([str(folder), "--kind", "tree"]) == 2
    assert main([str(tmp_path / "none")]) == 2
    popular = saved_bundle(tmp_path / "popular", "popular")
    assert main([str(popular), "--exact-below", "0"]) == 0
    assert "no products of two vectors" in caplog.text
