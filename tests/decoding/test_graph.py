"""Graph-constrained decoding against loops over pairs of items, and against all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.decoding import exact_scores, graph
from recpipe.decoding.graph import graph_search, item_graph, row_scores

ITEMS, SIZES, USERS = 60, (5, 7, 6, 4), 9


def case(seed: int = 0, items: int = ITEMS):
    """Codes (N, L), embeddings of codes and log-probabilities of independent levels."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (items,), generator=g) for size in SIZES], 1)
    tables = [torch.randn(size, 3, generator=g) for size in SIZES]
    log_probs = [torch.randn(USERS, size, generator=g).log_softmax(1) for size in SIZES]
    return codes, tables, log_probs


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_edges_are_the_items_with_the_highest_sum_of_cosines(at_once, monkeypatch):
    monkeypatch.setattr(graph, "MAX_SIMILARITIES", at_once)
    codes, tables, _ = case()
    neighbours = item_graph(codes, tables, 6)
    for item in range(ITEMS):
        similarity = np.zeros(ITEMS)
        for other in range(ITEMS):
            for level, table in enumerate(tables):
                a, b = table[codes[item, level]], table[codes[other, level]]
                similarity[other] += float(a @ b / (a.norm() * b.norm()))
        found = neighbours[item].tolist()
        assert found[0] == item and len(set(found)) == 6
        worst, rest = min(similarity[found]), np.delete(similarity, found)
        assert worst >= rest.max() - 1e-5


def test_an_item_is_its_own_edge_where_more_items_share_its_id_than_there_are_edges():
    codes, tables, _ = case()
    codes[:20] = codes[0]
    assert (item_graph(codes, tables, 3)[:, 0] == torch.arange(ITEMS)).all()


def test_more_edges_than_items_are_all_items():
    codes, tables, _ = case(items=5)
    assert (item_graph(codes, tables, 50).sort(1).values == torch.arange(5)).all()


def test_a_search_that_reaches_every_item_gives_all_scores_once():
    codes, tables, log_probs = case()
    rows, scores = graph_search(log_probs, codes, item_graph(codes, tables, ITEMS), beam=ITEMS, steps=1)
    expected = exact_scores(log_probs, codes)
    for user in range(USERS):
        at = rows[user] >= 0
        assert rows[user][at].tolist() == list(range(ITEMS))
        torch.testing.assert_close(scores[user][at], expected[user])
    assert torch.isneginf(scores[rows < 0]).all()


@pytest.mark.parametrize(("steps", "at_once"), [(1, 1 << 24), (3, 1 << 24), (3, 100)])
def test_a_narrow_search_is_that_of_a_loop_over_users(steps, at_once, monkeypatch):
    """First as many evenly spaced items as a step scores, then the neighbours of the best."""
    monkeypatch.setattr(graph, "MAX_CODES", at_once)
    codes, tables, log_probs = case()
    beam, edges = 3, 4
    neighbours = item_graph(codes, tables, edges)
    rows, scores = graph_search(log_probs, codes, neighbours, beam=beam, steps=steps)
    expected = exact_scores(log_probs, codes)
    for user in range(USERS):
        pool = {round(place * (ITEMS - 1) / (beam * edges - 1)) for place in range(beam * edges)}
        visited = set(pool)
        for _ in range(steps):
            best = sorted(pool, key=lambda item: -float(expected[user, item]))[:beam]
            pool = {n for item in best for n in neighbours[item].tolist()}
            visited |= pool
        results = dict(zip(rows[user].tolist(), scores[user].tolist(), strict=True))
        results.pop(-1, None)
        assert set(results) == visited
        assert all(score == pytest.approx(float(expected[user, item]), abs=1e-5) for item, score in results.items())


def test_a_catalogue_smaller_than_the_beam_is_searched_as_a_whole():
    codes, tables, log_probs = case(items=3)
    rows, _ = graph_search(log_probs, codes, item_graph(codes, tables, 10), beam=50, steps=2)
    assert all(set(row) - {-1} == {0, 1, 2} for row in rows.tolist())


def test_rows_of_no_item_score_nothing():
    codes, _, log_probs = case()
    rows = torch.tensor([[0, -1, 5]]).expand(USERS, -1)
    scores = row_scores(log_probs, codes, rows)
    assert torch.isneginf(scores[:, 1]).all()
    torch.testing.assert_close(scores[:, [0, 2]], exact_scores(log_probs, codes)[:, [0, 5]])
