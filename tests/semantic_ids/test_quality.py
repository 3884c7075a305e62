"""Quality of ids: every number against a plain count or another library, every check against its own collapse."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import entropy
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors

from recpipe.semantic_ids import vector_rows
from recpipe.semantic_ids.gate import Gate, apply_gate
from recpipe.semantic_ids.quality import leaf_categories, measure_quality
from recpipe.semantic_ids.quantizer import build_quantizer, quantizer_class

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "amazon-beauty" / "items.parquet"


@dataclass(frozen=True)
class Ids:
    """What is measured, so that a collapse is a change of one or two of these."""

    codes: np.ndarray
    sizes: tuple[int, ...]
    vectors: np.ndarray
    reconstructed: np.ndarray
    categories: list[str | None] | None
    after: np.ndarray | None = None

    def gate_result(self, **gate):
        after = np.arange(len(self.codes))[:, None] if self.after is None else self.after
        sizes = (*self.sizes, len(self.codes))[: self.codes.shape[1] + 1]
        codes = np.concatenate([self.codes, after], axis=1).astype(np.int32)
        quality = measure_quality(
            codes,
            self.codes,
            sizes,
            vectors_ND=self.vectors,
            decode=lambda _: self.reconstructed,
            categories=self.categories,
            seed=3,
        )
        return apply_gate(quality, Gate(**gate))


def healthy(n: int, size: int, seed: int = 0) -> Ids:
    """Items that are the sum of a code's vector on each of three levels, ever finer, and a little noise."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, size, (n, 3)).astype(np.int32)
    books = generator.normal(size=(3, size, 16)) * np.array([1.0, 0.4, 0.2])[:, None, None]
    reconstructed = sum(book[codes[:, level]] for level, book in enumerate(books))
    vectors = reconstructed + 0.1 * generator.normal(size=reconstructed.shape)
    categories = [f"kind {code // 4}" for code in codes[:, 0]]
    return Ids(codes, (size,) * 3, vectors.astype(np.float32), reconstructed.astype(np.float32), categories)


SHOP, CORNER_SHOP = healthy(3179, 64), healthy(100, 6)


def level(ids: Ids, at: int, values: np.ndarray) -> Ids:
    codes = ids.codes.copy()
    codes[:, at] = values
    return replace(ids, codes=codes)


def all_one(ids: Ids) -> Ids:
    mean = np.broadcast_to(ids.vectors.mean(axis=0), ids.vectors.shape)
    return replace(ids, codes=np.zeros_like(ids.codes), reconstructed=mean)


def dead_level(ids: Ids) -> Ids:
    return level(ids, 1, np.zeros(len(ids.codes)))


def few_codes_used(ids: Ids) -> Ids:
    return level(ids, 1, ids.codes[:, 1] // 3)


def one_code_takes_nearly_all(ids: Ids) -> Ids:
    rare = np.arange(len(ids.codes)) % 40 == 0
    return level(ids, 2, np.where(rare, ids.codes[:, 2], 0))


def everyone_shares(ids: Ids) -> Ids:
    order = np.lexsort(ids.codes.T[::-1])
    codes = ids.codes.copy()
    codes[order[1::2]] = codes[order[: len(order) // 2 * 2 : 2]]
    return replace(ids, codes=codes)


def one_large_group(ids: Ids) -> Ids:
    codes = ids.codes.copy()
    codes[: max(len(codes) // 5, 25)] = codes[0]
    return replace(ids, codes=codes)


def nothing_kept(ids: Ids) -> Ids:
    return replace(ids, reconstructed=np.broadcast_to(ids.vectors.mean(axis=0), ids.vectors.shape))


def codes_of_other_items(ids: Ids) -> Ids:
    """Purity stays, the neighbours change."""
    order = np.random.default_rng(1).permutation(len(ids.codes))
    return replace(ids, codes=ids.codes[order], categories=[ids.categories[row] for row in order])


def categories_of_other_items(ids: Ids) -> Ids:
    order = np.random.default_rng(1).permutation(len(ids.codes))
    return replace(ids, categories=[ids.categories[row] for row in order])


def left_shared(ids: Ids) -> Ids:
    return replace(one_large_group(ids), after=np.zeros((len(ids.codes), 1), np.int32))


COLLAPSES = [
    (few_codes_used, {"usage"}),
    (one_code_takes_nearly_all, {"perplexity"}),
    (dead_level, {"usage", "perplexity"}),
    (everyone_shares, {"sharing"}),
    (one_large_group, {"largest"}),
    (nothing_kept, {"reconstruction"}),
    (codes_of_other_items, {"neighbours"}),
    (categories_of_other_items, {"purity"}),
    (all_one, {"usage", "perplexity", "sharing", "largest", "reconstruction", "neighbours", "purity"}),
]


def failed(result) -> set[str]:
    return {check["name"] for check in result["checks"] if not check["passed"]}


@pytest.mark.parametrize(("collapse", "expected"), COLLAPSES, ids=[each[0].__name__ for each in COLLAPSES])
def test_each_collapse_fails_its_own_checks_and_no_other(collapse, expected):
    result = collapse(SHOP).gate_result()
    assert failed(result) == expected
    assert result["passed"] is False


@pytest.mark.parametrize("ids", [SHOP, CORNER_SHOP], ids=["3,179 items", "100 items"])
@pytest.mark.parametrize("seed", range(3))
def test_healthy_ids_pass(ids, seed):
    result = healthy(len(ids.codes), ids.sizes[0], seed).gate_result()
    assert (failed(result), result["passed"]) == (set(), True)


@pytest.mark.parametrize("collapse", [all_one, dead_level, one_large_group, codes_of_other_items])
def test_a_small_catalogue_collapses_too(collapse):
    assert collapse(CORNER_SHOP).gate_result()["passed"] is False


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_of_real_shape_passes_with_the_defaults(seed):
    """No structure but clusters, and a quantizer that is not the one the data were drawn from."""
    faiss = pytest.importorskip("faiss", reason="faiss comes with recpipe, not with the library half alone")
    generator = np.random.default_rng(seed)
    n, codes = [(2000, 64), (300, 32), (100, 6), (40, 4)][seed]
    x = (generator.normal(size=(n // 5, 24))[generator.integers(0, n // 5, n)]).astype(np.float32)
    x += 0.5 * generator.normal(size=x.shape).astype(np.float32)
    rest, columns = x.copy(), []
    for _ in range(3):
        means = faiss.Kmeans(24, codes, seed=seed + 1, min_points_per_centroid=1)
        means.train(rest)
        columns.append(means.index.search(rest, 1)[1][:, 0])
        rest = rest - means.centroids[columns[-1]]
    ids = Ids(np.stack(columns, axis=1).astype(np.int32), (codes,) * 3, x, x - rest, None)
    assert failed(ids.gate_result()) == set()


def test_ids_shared_after_resolution_are_judged_if_asked():
    assert "sharing_after" not in {check["name"] for check in left_shared(SHOP).gate_result()["checks"]}
    result = left_shared(SHOP).gate_result(sharing_after=0.0, largest=None)
    assert failed(result) == {"sharing_after"}
    assert "semantic_ids.collisions" in result["checks"][-4]["advice"]
    assert failed(SHOP.gate_result(sharing_after=0.0)) == set()


@pytest.mark.parametrize(
    ("collapse", "name", "key"),
    [
        (few_codes_used, "usage", "dead_codes.every"),
        (all_one, "usage", "dead_codes.every"),
        (one_code_takes_nearly_all, "perplexity", ".sinkhorn"),
        (everyone_shares, "sharing", ".codes"),
        (one_large_group, "largest", "content.text.template"),
        (nothing_kept, "reconstruction", ".standardise"),
        (codes_of_other_items, "neighbours", "semantic_ids.seed"),
        (categories_of_other_items, "purity", "semantic_ids.gate.purity"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_advice_names_the_conf_key_to_change(collapse, name, key):
    checks = {check["name"]: check for check in collapse(SHOP).gate_result()["checks"]}
    assert key in checks[name]["advice"]


@pytest.mark.parametrize("kind", ["rqvae", "pqvae", "residual_kmeans", "pq", "opq"])
@pytest.mark.parametrize(
    "collapse", [few_codes_used, one_code_takes_nearly_all, all_one, nothing_kept, codes_of_other_items]
)
def test_advice_names_settings_that_the_quantizer_has(kind, collapse):
    settings = {field.name for field in fields(quantizer_class(kind).Config)}
    checks = apply_gate(collapse(SHOP).gate_result(), Gate(), quantizer="mine", kind=kind)["checks"]
    text = " ".join(check["advice"] for check in checks)
    named = re.findall(r"(?:semantic_ids.quantizers.mine|[ (])\.([a-z_]+)", text)
    assert "codes" in named and set(named) <= settings
    assert "<name>" not in text and "refit" not in text and " for rqvae" not in text
    assert kind != "residual_kmeans" or "quantizer=residual_kmeans" not in text


def test_a_lent_quantizer_is_no_quantizer_to_change():
    checks = apply_gate(few_codes_used(SHOP).gate_result(), Gate(), kind="rqvae", lent_by="beauty")["checks"]
    advice = {check["name"]: check["advice"] for check in checks}["usage"]
    assert "the quantizer of beauty" in advice and "semantic_ids.gate.usage" in advice
    assert "semantic_ids.quantizers" not in advice


def test_advice_on_levels_that_have_nothing_left_to_tell_apart():
    """Many codes for few items: the first level names the items, the last one is idle, not broken."""
    n = 60
    x = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    codes = np.stack([np.arange(n), np.zeros(n), np.zeros(n)], axis=1).astype(np.int32)
    checks = {check["name"]: check for check in Ids(codes, (64,) * 3, x, x, None).gate_result()["checks"]}
    assert not checks["usage"]["passed"]
    assert "lower semantic_ids.quantizers.<name>.codes" in checks["usage"]["advice"]


def test_advice_on_a_code_for_nearly_every_item():
    n = 300
    x = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    codes = np.stack([np.arange(n) % 256, np.arange(n)[::-1] % 256], axis=1).astype(np.int32)
    checks = {check["name"]: check for check in Ids(codes, (256, 256), x, x, None).gate_result()["checks"]}
    assert not checks["neighbours"]["passed"]
    assert checks["neighbours"]["advice"].endswith("lower semantic_ids.quantizers.<name>.codes")


def test_neighbours_and_purity_are_not_checked_where_chance_decides():
    names = [{check["name"] for check in healthy(n, 8).gate_result()["checks"]} for n in (49, 50, 999, 1000)]
    assert ["neighbours" in each for each in names] == [False, True, True, True]
    assert ["purity" in each for each in names] == [False, False, False, True]
    assert failed(all_one(healthy(30, 4)).gate_result()) >= {"usage", "sharing"}


def test_a_threshold_of_none_is_no_check():
    names = {check["name"] for check in all_one(SHOP).gate_result(**dict.fromkeys(asdict(Gate())))["checks"]}
    assert names == set()


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_share(value):
    with pytest.raises(ValueError, match=r"semantic_ids\.gate\.usage is"):
        Gate(usage=value)


def test_perplexity_is_exp_of_scipys_entropy():
    quality = one_code_takes_nearly_all(SHOP).gate_result()["levels"]
    for at, row in enumerate(quality):
        counts = np.bincount(one_code_takes_nearly_all(SHOP).codes[:, at], minlength=64)
        assert row["perplexity"] == pytest.approx(np.exp(entropy(counts)))
        assert (row["level"], row["size"], row["used"]) == (at + 1, 64, int((counts > 0).sum()))
        assert row["usage"] == row["used"] / 64


def test_prefixes_and_collisions_are_those_of_sets_and_counters():
    ids = everyone_shares(SHOP)
    quality = ids.gate_result()
    items = [tuple(row) for row in ids.codes.tolist()]
    assert quality["prefixes"] == [
        {"depth": depth, "distinct": len({item[:depth] for item in items})} for depth in (1, 2, 3)
    ]
    counts = Counter(items)
    sharing = sum(count for count in counts.values() if count > 1)
    expected = {"distinct": len(counts), "sharing": sharing, "share": sharing / 3179, "largest": max(counts.values())}
    assert quality["collisions"]["before"] == expected
    assert quality["collisions"]["after"] == {"distinct": 3179, "sharing": 0, "share": 0.0, "largest": 1}


def test_reconstruction_is_what_r2_lacks_of_one():
    quality = SHOP.gate_result()["reconstruction"]
    r2 = r2_score(SHOP.vectors, SHOP.reconstructed, multioutput="variance_weighted")
    assert quality["relative"] == pytest.approx(1 - r2, rel=1e-4)
    assert quality["mse"] == pytest.approx(0.01, rel=0.05)  # the noise of `healthy`


def test_overlap_is_that_of_sklearns_neighbours():
    search = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute").fit(SHOP.vectors)
    near = search.kneighbors(SHOP.vectors, return_distance=False)[:, 1:]
    same = SHOP.codes[near] == SHOP.codes[:, None]
    quality = quality_of(SHOP, sample=10_000)["neighbours"]
    assert (quality["k"], quality["sample"]) == (10, 3179)
    for depth, row in enumerate(quality["by_depth"], 1):
        assert row["overlap"] == pytest.approx(same[:, :, :depth].all(-1).mean(), abs=1e-4)
    assert quality_of(SHOP, sample=500)["neighbours"]["by_depth"][0]["overlap"] == pytest.approx(
        quality["by_depth"][0]["overlap"], abs=0.05
    )


def test_random_overlap_is_the_mean_over_shuffled_codes():
    ids = CORNER_SHOP
    quality = quality_of(ids)["neighbours"]["by_depth"]
    generator, overlaps = np.random.default_rng(0), []
    for _ in range(400):
        shuffled = replace(ids, codes=generator.permutation(ids.codes))
        overlaps.append([row["overlap"] for row in quality_of(shuffled)["neighbours"]["by_depth"]])
    spread = np.std(overlaps, axis=0) / 20
    for depth in range(3):
        assert abs(quality[depth]["random"] - np.mean(overlaps, axis=0)[depth]) < 4 * spread[depth] + 1e-6
    assert quality[0]["random"] > 0.1  # not a number that any small one would equal


def test_purity_is_the_share_of_each_codes_main_category():
    kinds = np.random.default_rng(2).choice(["a", "b", "c", None], 3179, p=[0.5, 0.3, 0.1, 0.1]).tolist()
    ids = replace(SHOP, categories=kinds)
    quality = ids.gate_result()["purity"]
    labelled = [(code, kind) for code, kind in zip(ids.codes[:, 0], kinds, strict=True) if kind]
    per_code = {code: Counter(kind for its, kind in labelled if its == code) for code in range(64)}
    expected = sum(counts.most_common(1)[0][1] for counts in per_code.values()) / len(labelled)
    assert quality["first_code"] == pytest.approx(expected)
    assert (quality["categories"], quality["items"]) == (3, len(labelled))
    assert quality["shuffled"] == pytest.approx(expected, abs=0.02)  # the kinds were drawn at random


def quality_of(ids: Ids, **changes):
    options = {"vectors_ND": ids.vectors, "decode": lambda _: ids.reconstructed, "seed": 0, **changes}
    return measure_quality(ids.codes, ids.codes, ids.sizes, categories=ids.categories, **options)


def test_measured_is_json_and_the_same_for_a_seed():
    once, again, other = (SHOP.gate_result(), SHOP.gate_result(), quality_of(SHOP, seed=9))
    assert json.loads(json.dumps(once, allow_nan=False)) == once == again
    assert other["neighbours"] != quality_of(SHOP, seed=8)["neighbours"]


def test_blocks_of_vectors_give_the_same_numbers(monkeypatch):
    ids, books = SHOP, np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    whole, asked = quality_of(ids, decode=lambda codes: books[codes[:, 0]]), []
    monkeypatch.setattr(vector_rows, "BLOCK", 500 * 16)
    monkeypatch.setattr(vector_rows, "MULTIPLE", 500)

    def decode(codes):
        asked.append(len(codes))
        return books[codes[:, 0]]

    blocks = quality_of(ids, decode=decode)
    assert asked == [500] * 6 + [179]
    for key in ("mse", "relative"):
        assert blocks["reconstruction"].pop(key) == pytest.approx(whole["reconstruction"].pop(key), rel=1e-6)
    assert blocks == whole


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_catalogues_are_measured(n):
    ids = Ids(np.arange(n)[:, None].astype(np.int32), (4,), np.eye(4, dtype=np.float32)[:n], np.eye(4)[:n], None)
    result = ids.gate_result()
    json.dumps(result, allow_nan=False)
    assert result["neighbours"] is None or result["neighbours"]["k"] == n - 1
    assert (result["purity"], result["items"]) == (None, n)


def test_equal_vectors_have_no_relative_error():
    ids = replace(CORNER_SHOP, vectors=np.full((100, 16), 0.1, np.float32))
    result = ids.gate_result()
    assert result["reconstruction"]["relative"] is None
    assert "reconstruction" not in {check["name"] for check in result["checks"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors_ND": SHOP.vectors[1:]}, "vectors.*3178"),
        ({"categories": ["a"]}, "categories.*1"),
        ({"decode": lambda _: SHOP.vectors[:, 1:]}, "reconstructed ones"),
        ({"decode": lambda _: SHOP.vectors * np.nan}, "NaN"),
    ],
    ids=["rows", "categories", "widths", "nan"],
)
def test_what_does_not_fit_is_refused(change, message):
    options = {"vectors_ND": SHOP.vectors, "decode": lambda _: SHOP.reconstructed, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        measure_quality(SHOP.codes, SHOP.codes, SHOP.sizes, **options)


def test_no_ids_and_sizes_that_do_not_fit_are_refused():
    none = np.zeros((0, 3), np.int32)
    with pytest.raises(ValueError, match="no semantic ids"):
        measure_quality(none, none, (4, 4, 4), vectors_ND=np.zeros((0, 2)), decode=lambda x: x, seed=0)
    options = {"vectors_ND": SHOP.vectors, "decode": lambda _: SHOP.reconstructed, "seed": 0}
    with pytest.raises(ValueError, match="2 sizes"):
        measure_quality(SHOP.codes, SHOP.codes, (64, 64), **options)


@pytest.mark.parametrize("items", [260, 300, 700])
@pytest.mark.parametrize("kind", ["residual_kmeans", "rqvae"])
def test_a_small_catalogue_passes_with_the_default_codes(items, kind):
    """A code for nearly every item would leave the later levels idle."""
    settings = {"epochs": 10, "least_steps": 60} if kind == "rqvae" else {}
    x = clustered(items)
    quantizer = build_quantizer(kind, settings)
    quantizer.fit(x, seed=1)
    codes = quantizer.encode(x)
    options = {"vectors_ND": x, "decode": quantizer.decode, "seed": 1}
    assert quantizer.sizes == (items // 4,) * 3
    assert failed(apply_gate(measure_quality(codes, codes, quantizer.sizes, **options), gate_of_conf())) == set()


def clustered(items: int) -> np.ndarray:
    """Kinds of kinds of items."""
    rng = np.random.default_rng(0)
    kinds, sub_kinds = rng.normal(size=(12, 48)), rng.normal(size=(12, 6, 48)) / 2
    first, second = rng.integers(12, size=items), rng.integers(6, size=items)
    noise = rng.normal(size=(items, 48)) / 4
    return (kinds[first] + sub_kinds[first, second] + noise).astype(np.float32)


def gate_of_conf() -> Gate:
    conf = Path(__file__).parents[2] / "conf" / "base" / "parameters" / "semantic_ids.yml"
    return Gate(**yaml.safe_load(conf.read_text())["semantic_ids"]["gate"])


def test_leaf_categories_of_paths_sets_and_plain_values():
    paths = [[["Beauty", "Nails"], ["Beauty", "Makeup", "Lips"]], [["Beauty"], []], [], None, [[None, ""]]]
    assert leaf_categories(pa.chunked_array([paths])) == ["Lips", "Beauty", None, None, None]
    genres = pa.chunked_array([[["Animation", "Comedy"], ["Drama"], None]])
    assert leaf_categories(genres, "first") == ["Animation", "Drama", None]
    assert leaf_categories(pa.chunked_array([["toys", "", None]])) == ["toys", None, None]
    assert leaf_categories(pa.chunked_array([[3, None]])) == ["3", None]
    with pytest.raises(ValueError, match="allowed: first, last"):
        leaf_categories(pa.chunked_array([genres.to_pylist()]), "middle")


@pytest.mark.skipif(not BEAUTY.exists(), reason="needs ../shared/data/amazon-beauty, which may not be redistributed")
def test_letters_published_ids_have_their_published_purity():
    """12,101 items, 12,088 distinct ids; leaf category by first code .31, shuffled .08."""
    items = pq.read_table(BEAUTY)
    texts = items["reference_semantic_id"].to_pylist()
    codes = np.array([[int(text[3:-1]) for text in row] for row in texts], np.int32)
    vectors = np.random.default_rng(0).normal(size=(len(codes), 8)).astype(np.float32)
    categories = leaf_categories(items["categories"])
    options = {"vectors_ND": vectors, "decode": lambda _: vectors, "seed": 0}
    quality = measure_quality(codes, codes, (256,) * 4, categories=categories, **options)
    assert quality["purity"]["first_code"] == pytest.approx(0.31, abs=0.005)
    assert quality["purity"]["shuffled"] == pytest.approx(0.08, abs=0.005)
    assert quality["prefixes"][-1]["distinct"] == 12_088
