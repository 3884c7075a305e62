"""Collaborative ids: both terms against numpy, clusters by brute force, codes that follow item vectors of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids.autoencoder import LearnedCodebooks, Losses
from recpipe.semantic_ids.collaborative import (
    Alignment,
    CollaborativeConfig,
    balanced_clusters,
    cluster_neighbours,
    diversity,
    info_nce,
)
from recpipe.semantic_ids.quality import measure_neighbours
from recpipe.semantic_ids.quantizer import ItemVectors, build_quantizer, load_quantizer, save_quantizer
from recpipe.semantic_ids.rqvae import RQVAEConfig

SMALL = {
    "levels": 2, "codes": 8, "latent": 8, "widths": [32], "batch": 100, "least_steps": 400, "most_steps": 400,
    "separate": 0.0, "dropout": 0.0,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def test_info_nce_is_the_formula_of_the_paper_with_cosines() -> None:
    z, h = rows((7, 5), 0).numpy(), rows((7, 5), 1).numpy()
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    cosines = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ h.T
    terms = [-np.log(np.exp(cosines[i, i] / 0.2) / np.exp(cosines[i] / 0.2).sum()) for i in range(7)]
    assert info_nce(torch.from_numpy(z), torch.from_numpy(h), 0.2).item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_diversity_is_the_formula_of_the_paper_without_the_own_code() -> None:
    book, codes, others = rows((6, 4), 2).numpy(), np.array([0, 3, 5, 3]), np.array([1, 3, 2, 4])  # 3 is alone once
    scale, terms = (book**2).sum(1).mean(), []
    for code, other in zip(codes, others, strict=True):
        products = np.exp(book @ book[code] / scale)
        terms.append(0.0 if code == other else -np.log(products[other] / (products.sum() - products[code])))
    tensors = [torch.from_numpy(each) for each in (book[codes], codes, others, book)]
    assert diversity(*tensors).item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_terms_are_sums_over_levels_whose_gradient_reaches_the_latent() -> None:
    books = [rows((8, 4), seed).float() for seed in (3, 4)]
    codebooks = LearnedCodebooks(books, torch.ones(2, 4))
    latent = rows((10, 4), 5).float().requires_grad_()
    codes = codebooks.encode(latent.detach())
    quantized = latent + (codebooks.decode(codes) - latent).detach()
    losses = Losses(latent.sum(), latent.sum(), latent.detach(), codes, quantized)
    targets = ItemVectors(rows((10, 6), 6).float().numpy(), np.arange(10) > 2)
    alignment = Alignment(CollaborativeConfig("sasrec", clusters=2), targets, targets, 4, seed=0)
    assert alignment.terms(torch.arange(10), losses, codebooks).diversity == 0, "no clusters yet"
    alignment.cluster_codes(codebooks)
    state = alignment.generator.get_state()
    terms = alignment.terms(torch.arange(10), losses, codebooks)
    again = generator()
    again.set_state(state)
    expected = 0.0
    for level, book in enumerate(books):
        others = cluster_neighbours(codes[:, level], alignment.labels[level], again)
        expected += diversity(book[codes[:, level]], codes[:, level], others, book).item()
    assert terms.diversity.item() == pytest.approx(expected, rel=1e-5)
    unit = torch.nn.functional.normalize(torch.from_numpy(targets.vectors[3:]) - targets.vectors[3:].mean(0), dim=1)
    prefixes = [books[0][codes[3:, 0]], books[0][codes[3:, 0]] + books[1][codes[3:, 1]]]
    own = np.mean([info_nce(alignment.projection(prefix), unit, 0.1).item() for prefix in prefixes])
    assert terms.info_nce.item() == pytest.approx(own, rel=1e-5), "of items with a vector only"
    for term in terms:
        (gradient,) = torch.autograd.grad(term, latent, retain_graph=True)
        assert gradient[3:].abs().sum() > 0


def test_items_without_a_collaborative_vector_have_no_infonce() -> None:
    targets = ItemVectors(np.zeros((4, 3), np.float32), np.zeros(4, bool))
    alignment = Alignment(CollaborativeConfig("sasrec"), targets, targets, 4, seed=0)
    latent = rows((4, 4), 0).float().requires_grad_()
    losses = Losses(latent.sum(), latent.sum(), latent.detach(), None, latent)
    assert alignment.terms(torch.arange(4), losses, None).info_nce == 0
    assert alignment.held_out(latent.detach()) == 0


@pytest.mark.parametrize(("size", "clusters"), [(16, 4), (17, 4), (5, 10), (2, 3), (256, 10)])
def test_clusters_have_equal_sizes_and_no_exchange_of_two_codes_is_better(size: int, clusters: int) -> None:
    book = rows((size, 3), size).float()
    labels = balanced_clusters(book, clusters, generator(), rounds=1)
    counts = torch.bincount(labels)
    assert counts.max() - counts.min() <= 1 and counts.min() >= 2
    if size > 20:
        return

    again = generator()
    from recpipe.semantic_ids.autoencoder import kmeans

    centroids = kmeans(book, len(counts), generator=again)
    cost = (book[:, None] - centroids).square().sum(2)
    total = cost[torch.arange(size), labels].sum()
    for i in range(size):
        for j in range(i):
            swapped = labels.clone()
            swapped[i], swapped[j] = labels[j], labels[i]
            assert cost[torch.arange(size), swapped].sum() >= total - 1e-5


def test_the_other_code_of_a_cluster_is_any_but_the_own() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    codes = torch.arange(6).repeat(500)
    others = cluster_neighbours(codes, labels, generator())
    assert (labels[others] == labels[codes]).all()
    seen = {code: set(others[codes == code].tolist()) for code in range(6)}
    assert seen == {0: {2, 5}, 1: {4}, 2: {0, 5}, 3: {3}, 4: {1}, 5: {0, 2}}


def catalogue(items: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Text vectors and item vectors with four groups each; those of the latter are a weak part of the text."""
    rng = np.random.default_rng(0)
    by_text, by_users = rng.integers(4, size=items), rng.integers(4, size=items)
    text = np.eye(4)[by_text].repeat(4, 1) * 4 + rng.normal(size=(items, 16))
    text = np.concatenate([text, np.eye(4)[by_users] * 3 + rng.normal(size=(items, 4))], 1)
    users = np.eye(4)[by_users] @ rng.normal(size=(4, 12)) * 3 + rng.normal(size=(items, 12)) * 0.3 + 5
    return text.astype(np.float32), users.astype(np.float32)


def test_neighbours_by_item_vectors_share_more_codes_than_with_plain_ids(tmp_path) -> None:
    text, users = catalogue()
    targets = ItemVectors(users, np.arange(len(users)) % 10 > 0)
    plain = build_quantizer("rqvae", SMALL)
    plain.fit(text, seed=1)
    aligned = build_quantizer("rqvae", {**SMALL, "collaborative": {"model": "sasrec", "alpha": 1.0}})
    aligned.fit(text, seed=1, targets=targets)
    overlap = {}
    for name, quantizer in {"plain": plain, "aligned": aligned}.items():
        measured = measure_neighbours(quantizer.encode(text), users - users.mean(0), seed=0)
        assert measured is not None
        overlap[name] = measured["by_depth"][0]["overlap"]
    assert overlap["aligned"] > overlap["plain"] + 0.15, overlap
    save_quantizer(aligned, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.hash == aligned.hash and loaded.settings["collaborative"]["alpha"] == 1.0
    assert (loaded.encode(text) == aligned.encode(text)).all()


def test_without_the_option_nothing_changes() -> None:
    assert "collaborative" not in build_quantizer("rqvae", SMALL).settings
    text, users = catalogue(100)
    quantizers = [build_quantizer("rqvae", {**SMALL, "least_steps": 30, "most_steps": 30, **more}) for more in ({}, {
        "collaborative": {"model": "sasrec", "alpha": 0.0, "beta": 0.0}
    })]  # fmt: skip
    quantizers[0].fit(text, seed=1)
    quantizers[1].fit(text, seed=1, targets=ItemVectors(users, np.ones(100, bool)))
    assert (quantizers[0].encode(text) == quantizers[1].encode(text)).all(), "weights of 0 leave the codes as they are"


def test_settings_and_vectors_have_to_agree() -> None:
    text, users = catalogue(50)
    targets = ItemVectors(users, np.ones(50, bool))
    option = {**SMALL, "collaborative": {"model": "sasrec"}}
    with pytest.raises(ValueError, match="fit got no item vectors"):
        build_quantizer("rqvae", option).fit(text, seed=0)
    with pytest.raises(ValueError, match="collaborative is not set"):
        build_quantizer("rqvae", SMALL).fit(text, seed=0, targets=targets)
    with pytest.raises(ValueError, match="50 rows, but 40 item vectors"):
        build_quantizer("rqvae", option).fit(text, seed=0, targets=ItemVectors(users[:40], np.ones(40, bool)))
    with pytest.raises(ValueError, match="type residual_kmeans cannot be aligned"):
        build_quantizer("residual_kmeans", {"levels": 2, "codes": 4}).fit(text, seed=0, targets=targets)
    for name, value in {"alpha": -1, "beta": -1, "temperature": 0, "clusters": 0}.items():
        with pytest.raises(ValueError, match=f"collaborative.{name} is {value}"):
            RQVAEConfig(collaborative={"model": "sasrec", name: value})
    with pytest.raises(ValueError, match="alfa"):
        RQVAEConfig(collaborative={"model": "sasrec", "alfa": 1})
