"""The prefix tree on a device against dictionaries of prefixes, and the tree of a mask against one built without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.tree_tensors import TreeTensors, any_child

SIZES = (3, 20, 4)


@pytest.fixture
def codes() -> np.ndarray:
    """(60, 3) distinct ids in random order."""
    keys = np.random.default_rng(0).permutation(np.prod(SIZES))[:60]
    return np.stack(np.unravel_index(keys, SIZES), axis=1)


@pytest.fixture
def tree(codes) -> TreeTensors:
    return PrefixTree.build(codes, SIZES).tensors()


def children_of(codes: np.ndarray) -> dict[tuple[int, ...], set[int]]:
    children: dict[tuple[int, ...], set[int]] = {}
    for item in codes.tolist():
        for depth, code in enumerate(item):
            children.setdefault(tuple(item[:depth]), set()).add(code)
    return children


def test_child_mask_and_follow_lead_to_the_children_of_every_node(tree, codes):
    children = children_of(codes)
    for level in range(3):
        nodes = [()] if level == 0 else [tuple(prefix) for prefix in tree.prefixes(level).tolist()]
        mask = tree.child_mask(level)
        assert mask.shape == (len(nodes), SIZES[level])
        for node, prefix in enumerate(nodes):
            allowed = set(torch.where(mask[node] == 0)[0].tolist())
            assert allowed == children[prefix]
            assert mask[node].isneginf().sum() == SIZES[level] - len(allowed)
            for code in allowed:
                child = tree.follow(level, torch.tensor([node]), torch.tensor([code]))
                assert tuple(tree.codes(child, level + 1)[0].tolist()) == (*prefix, code)
                assert tree.parents[level][child] == node


def test_wide_only_leaves_out_levels_of_few_children(tree):
    assert [tree.child_mask(level, wide_only=True) is None for level in range(3)] == [
        width <= 16 for width in tree.max_children
    ]
    dense = PrefixTree.build(np.arange(20)[:, None], (20,)).tensors()
    assert dense.child_mask(0, wide_only=True) is not None


def test_codes_of_leaves_are_the_ids(tree, codes):
    rows = torch.arange(60)
    assert (tree.codes(tree.leaf_positions[rows]).numpy() == codes).all()
    assert [used.tolist() for used in tree.used_codes] == [sorted(set(column)) for column in codes.T.tolist()]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_restricted_tree_equals_one_built_from_the_allowed_items(tree, codes, share):
    allowed = torch.rand(60, generator=torch.Generator().manual_seed(1)) < share
    small = tree.restrict(allowed)
    rows = torch.where(allowed)[0]
    assert small.n_items == 60 and sorted(small.leaves.tolist()) == rows.tolist()
    assert (small.leaf_positions[~allowed] == -1).all()
    if not len(rows):
        return
    expected = PrefixTree.build(codes[rows], SIZES).tensors()
    assert small.max_children == expected.max_children
    for name in ("offsets", "children", "spans"):
        assert all(map(torch.equal, getattr(small, name), getattr(expected, name)))
    assert torch.equal(small.leaves, rows[expected.leaves])


def test_masks_of_another_shape_or_type_are_refused(tree):
    for mask in (torch.ones(60), torch.ones(59, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"bool \(60,\)"):
            tree.restrict(mask)


def test_any_child_finds_live_edges_of_every_row(tree):
    live = torch.rand(5, len(tree.children[1]), generator=torch.Generator().manual_seed(2)) < 0.2
    expected = torch.stack([live[:, tree.parents[1] == node].any(1) for node in range(len(tree.children[0]))], 1)
    assert torch.equal(any_child(tree.offsets[1], live), expected)
