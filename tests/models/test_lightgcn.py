"""LightGCN: propagation against dense numpy, scores against the paper's equations written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.layers.interactions import user_item_pairs
from recpipe.models.lightgcn import adjacency, propagate
from recpipe.models.registry import build

USERS, ITEMS, DIM = 12, 9, 5
DATA = random_sequences(USERS, ITEMS, longest=7, seed=3)
PAIRS = user_item_pairs(DATA, ITEMS, torch.device("cpu"))
NODES = USERS + ITEMS + 1


def dense() -> np.ndarray:
    """D^-½ A D^-½ by loops."""
    actual = np.zeros((NODES, NODES))
    for u in range(USERS):
        for i in set(DATA.row(u).tolist()):
            actual[u, USERS + i] = actual[USERS + i, u] = 1
    degree = actual.sum(1)
    for a, b in zip(*np.nonzero(actual), strict=True):
        actual[a, b] /= math.sqrt(degree[a] * degree[b])
    return actual


def layers_of(ego: np.ndarray, count: int) -> list[np.ndarray]:
    actual = [ego]
    for _ in range(count):
        actual.append(dense() @ actual[-1])
    return actual


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_propagation_and_its_gradient_equal_dense_numpy(layers):
    graph = adjacency(PAIRS)
    np.testing.assert_allclose(graph.to_dense(), dense(), rtol=1e-6)
    ego = torch.randn(NODES, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actual = propagate(ego.requires_grad_(), graph.double(), layers)
    expected = np.mean(layers_of(ego.detach().numpy(), layers), axis=0)
    np.testing.assert_allclose(actual.detach(), expected, atol=1e-6)
    up = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((actual * up).sum(), ego)
    whole = sum(np.linalg.matrix_power(dense(), power) for power in range(layers + 1)) / (layers + 1)
    np.testing.assert_allclose(gradient, whole.T @ up.numpy(), atol=1e-6)


def test_propagation_equals_pytorch_geometrics():
    geometric = pytest.importorskip("torch_geometric.nn", reason="PyTorch Geometric is no dependency")
    ego = torch.randn(NODES, DIM, generator=torch.Generator().manual_seed(0))
    reference = geometric.LightGCN(NODES, DIM, num_layers=3)
    reference.embedding.weight.data = ego
    one, other = PAIRS.user, PAIRS.item + USERS
    edges = torch.stack([torch.cat([one, other]), torch.cat([other, one])])
    torch.testing.assert_close(propagate(ego, adjacency(PAIRS), 3), reference.get_embedding(edges).detach())


def published(layers: int, ego: np.ndarray):
    model = build("lightgcn", {"dim": DIM, "layers": layers}, n_items=ITEMS, max_length=20)
    model.set_tables(torch.from_numpy(ego).float(), adjacency(PAIRS), PAIRS)
    return model


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_known_user_gets_the_papers_score_but_for_his_own_embedding(layers):
    ego = np.random.default_rng(0).normal(size=(NODES, DIM))
    ego[USERS] = 0  # padding
    smoothed = layers_of(ego, layers)
    final = np.mean(smoothed, axis=0)
    users = final[:USERS] - smoothed[0][:USERS] / (layers + 1)
    for rows, scores in published(layers, ego).score_batches(DATA, exclude_seen=False):
        expected = users[rows] @ final[USERS + 1 :].T
        np.testing.assert_allclose(scores[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_a_new_user_is_one_propagation_from_his_history():
    ego = np.random.default_rng(1).normal(size=(NODES, DIM))
    model = published(2, ego)
    smoothed = layers_of(ego, 2)
    degree = (dense() > 0).sum(1)
    history = [2, 5, 7, 5]
    user = np.zeros(DIM)
    for layer in (0, 1):
        for item in set(history):
            user += smoothed[layer][USERS + item] / math.sqrt(3 * degree[USERS + item]) / 3
    (_, scores), *_ = model.score_batches(sequences([history]), exclude_seen=False)
    expected = np.mean(smoothed, axis=0)[USERS + 1 :] @ user
    np.testing.assert_allclose(scores[0, 1:], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_equation_15():
    model = build("lightgcn", {"dim": DIM, "layers": 2, "penalty": 0.3}, n_items=ITEMS, max_length=20)
    ego = torch.randn(NODES, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    final = np.mean(layers_of(ego.numpy(), 2), axis=0)
    triples = [(0, USERS + 1, USERS + 3), (5, USERS + 2, USERS + 1), (0, USERS + 4, USERS + 3)]
    whole = 0.0
    for user, item, negative in triples:
        whole += math.log(1 + math.exp(-final[user] @ (final[item] - final[negative])))
        whole += 0.15 * sum(float(ego[node] @ ego[node]) for node in (user, item, negative))
    ours = model.bpr(ego, adjacency(PAIRS).double(), torch.tensor(triples).T)
    assert float(ours) == pytest.approx(whole / 3, rel=1e-6)


@pytest.mark.parametrize("own", [True, False])
def test_training_learns_two_tastes_and_serves_a_new_user(own):
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(10)[:6] + 1 + 10 * (u % 2)).tolist() for u in range(80)]
    config = {"dim": 8, "batch": 64, "epochs": 15, "learning_rate": 1e-2, "user_embeddings": own}
    model = build("lightgcn", config, n_items=20, max_length=20)
    torch.manual_seed(0)
    losses = list(model.epochs(sequences(rows)))
    assert len(losses) == 15 and losses[-1] < 0.8 * losses[0]
    items, _ = model.recommend(sequences([[1, 2, 3], [11, 12, 13], [20, 12]]), 5)
    assert (items[0] <= 10).all() and (items[1:] > 10).all()


def test_a_model_can_be_asked_after_every_epoch_and_keeps_no_users():
    model = build("lightgcn", {"dim": DIM, "epochs": 3}, n_items=ITEMS, max_length=20)
    sums = [model.recommend(DATA, 3, exclude_seen=False)[1].sum() for _ in model.epochs(DATA)]
    assert len(set(sums)) == 3 and np.isfinite(sums).all()
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == {
        "items": (ITEMS + 1, DIM),
        "given": (ITEMS + 1, DIM),
    }


@pytest.mark.parametrize("config", [{"layers": 0}, {"epochs": 0}, {"batch": 0}])
def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        build("lightgcn", config, n_items=ITEMS, max_length=20)


def test_a_whole_weight_is_a_pair_that_occurs_as_often_but_for_the_penalty():
    model = build("lightgcn", {"dim": DIM, "penalty": 0.0}, n_items=ITEMS, max_length=20)
    ego = torch.randn(NODES, DIM, generator=torch.Generator().manual_seed(0))
    nodes, times = torch.tensor([[0, 1, 2], [13, 14, 15], [16, 17, 18]]), torch.tensor([3, 0, 2])
    expected = model.bpr(ego, adjacency(PAIRS), nodes.repeat_interleave(times, 1)) * times.sum() / 3
    torch.testing.assert_close(model.bpr(ego, adjacency(PAIRS), nodes, times), expected)
