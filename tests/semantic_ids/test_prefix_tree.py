"""The prefix tree against a trie of nested dictionaries, and files that are not what was written."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.artefacts import forget_digest

from recpipe.semantic_ids.prefix_tree import METADATA, PrefixTree, TreeTensors, any_child


@st.composite
def catalogues(draw, unique=True):
    """Codes (N, L) of a few items, with the sizes of their levels."""
    sizes = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    rows = draw(st.lists(row, min_size=1, max_size=60, unique=unique))
    return np.array(rows, np.int32).reshape(len(rows), len(sizes)), sizes


def trie(codes):
    """The oracle: a dictionary per prefix, whose values are dictionaries or, at the end, lists of rows."""
    root = {}
    for row, item in enumerate(codes.tolist()):
        node = root
        for code in item[:-1]:
            node = node.setdefault(code, {})
        node.setdefault(item[-1], []).append(row)
    return root


def walked(tree, node=0, level=0):
    """The same nested dictionaries, read off the arrays one node after the other."""
    if level == tree.depth:
        return tree.leaves[tree.leaf_offsets[node] : tree.leaf_offsets[node + 1]].tolist()
    edges = range(tree.offsets[level][node], tree.offsets[level][node + 1])
    return {int(tree.children[level][edge]): walked(tree, edge, level + 1) for edge in edges}


def random_codes(n, sizes, seed=0):
    """(n, L) distinct codes in random order."""
    space = int(np.prod([float(size) for size in sizes]))
    drawn = np.unique(np.random.default_rng(seed).integers(0, space, int(1.2 * n) + 8))
    keys = np.random.default_rng(seed).permutation(drawn)[:n]
    return np.stack(np.unravel_index(keys, sizes), axis=1).astype(np.int32)


@given(catalogues())
def test_tree_is_the_trie_of_its_codes(drawn):
    codes, sizes = drawn
    tree = PrefixTree.build(codes, sizes)
    assert walked(tree) == trie(codes)
    assert (tree.depth, tree.n_items) == (len(sizes), len(codes))


@given(catalogues(unique=False))
def test_tree_of_shared_ids_lists_all_items_of_a_leaf(drawn):
    codes, sizes = drawn
    assert walked(PrefixTree.build(codes, sizes, shared=True)) == trie(codes)


@given(catalogues(unique=False))
def test_prefixes_counts_distinct_prefixes(drawn):
    codes, sizes = drawn
    tree = PrefixTree.build(codes, sizes, shared=True)
    counted = [tree.prefixes(depth) for depth in range(len(sizes) + 1)]
    assert counted == [len({tuple(row[:depth]) for row in codes.tolist()}) for depth in range(len(sizes) + 1)]


@given(catalogues(unique=False), st.integers(0, 2**32 - 1))
def test_find_is_a_dictionary_look_up(drawn, seed):
    codes, sizes = drawn
    first = {}
    for row, item in enumerate(map(tuple, codes.tolist())):
        first.setdefault(item, row)
    queries = np.random.default_rng(seed).integers(-1, np.array(sizes) + 1, (80, len(sizes)))
    queries = np.concatenate([queries, codes])
    rows = PrefixTree.build(codes, sizes, shared=True).find(queries)
    assert rows.tolist() == [first.get(tuple(item), -1) for item in queries.tolist()]


@given(catalogues(unique=False))
def test_spans_are_the_items_below_every_node_of_a_depth(drawn):
    codes, sizes = drawn
    tree = PrefixTree.build(codes, sizes, shared=True)
    for depth, spans in enumerate(tree.spans):
        parts = [tree.leaves[a:b] for a, b in pairwise(spans)]
        prefixes = [{tuple(row) for row in codes[part, :depth].tolist()} for part in parts]
        assert all(len(each) == 1 for each in prefixes)
        assert len(set().union(*prefixes)) == len(parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(codes)))


@given(catalogues(), st.integers(0, 2**32 - 1))
def test_one_gather_reads_the_children_of_a_beam(drawn, seed):
    """The recipe of the class's docstring, on tensors, with dead beams in between."""
    codes, sizes = drawn
    tree = PrefixTree.build(codes, sizes)
    tensors, generator = tree.tensors(), np.random.default_rng(seed)
    for level in range(tree.depth):
        nodes = torch.tensor(generator.integers(-1, tree.prefixes(level), (4, 3)))
        start, end = tensors.offsets[level][nodes.clamp(0)], tensors.offsets[level][nodes.clamp(0) + 1]
        edges = start[..., None] + torch.arange(tensors.max_children[level])
        live = (edges < end[..., None]) & (nodes >= 0)[..., None]
        read = tensors.children[level][edges.clamp(max=len(tensors.children[level]) - 1)]
        for at in np.ndindex(4, 3):
            node = int(nodes[at])
            expected = {} if node < 0 else walked_children(tree, level, node)
            got = dict(zip(read[at][live[at]].tolist(), edges[at][live[at]].tolist(), strict=True))
            assert got == expected


def walked_children(tree, level, node):
    """Code to node of the next depth, found by the prefix that leads there."""
    prefixes = np.unique(codes_of(tree)[:, : level + 1], axis=0)  # sorted: row = node of depth level + 1
    parents = np.unique(codes_of(tree)[:, :level], axis=0) if level else np.zeros((1, 0), int)
    mine = (prefixes[:, :level] == parents[node]).all(1)
    return {int(prefixes[edge, level]): int(edge) for edge in np.flatnonzero(mine)}


def codes_of(tree):
    """(N, L) all ids of the tree, by walking it."""
    prefixes = []

    def go(node, prefix):
        if isinstance(node, dict):
            for code, below in node.items():
                go(below, (*prefix, code))
        else:
            prefixes.append(prefix)

    go(walked(tree), ())
    return np.array(prefixes)


def test_nodes_of_a_prefix_lead_to_its_items():
    codes = random_codes(300, (5, 6, 7, 8))
    tree = PrefixTree.build(codes, (5, 6, 7, 8))
    nodes = tree.nodes(codes[:, :2])
    spans = tree.spans[2]
    for row in range(len(codes)):
        below = tree.leaves[spans[nodes[row]] : spans[nodes[row] + 1]]
        expected = np.flatnonzero((codes[:, :2] == codes[row, :2]).all(1))
        assert sorted(below.tolist()) == expected.tolist()
    assert tree.nodes(np.array([[4, 9]])).tolist() == [-1]
    assert tree.nodes(np.zeros((3, 0), int)).tolist() == [0, 0, 0]


def test_levels_too_large_for_one_key_sort_the_same():
    codes = random_codes(500, (50, 50, 50))
    small = PrefixTree.build(codes, (50, 50, 50))
    large = PrefixTree.build(codes, (2**40, 2**40, 2**40))  # the product needs more than 63 bits
    assert all((a == b).all() for a, b in zip(small.children, large.children, strict=True))
    assert (small.leaves == large.leaves).all()


def test_last_codes_of_the_largest_sizes_do_not_overflow():
    sizes = (2**16, 2**16, 2**16, 2**15)
    codes = np.array([sizes, (1, 1, 1, 1), (2**16, 1, 1, 2**15)], np.int32) - 1
    assert PrefixTree.build(codes, sizes).find(codes).tolist() == [0, 1, 2]


def test_same_codes_are_refused_with_their_rows():
    codes = random_codes(50, (9, 9, 9))
    codes[[7, 31, 12]] = codes[3]
    with pytest.raises(ValueError, match=r"4 rows share .*\(3, 7, 12, 31; .*semantic_ids\.collisions"):
        PrefixTree.build(codes, (9, 9, 9))
    shared = PrefixTree.build(codes, (9, 9, 9), shared=True)
    assert shared.find(codes[[31]]).tolist() == [3]
    node = int(shared.nodes(codes[[31]])[0])
    assert shared.leaves[slice(*shared.leaf_offsets[node : node + 2])].tolist() == [3, 7, 12, 31]


@pytest.mark.parametrize(("row", "level", "code"), [(4, 0, -1), (11, 2, 9), (0, 1, 2**31 - 1)])
def test_codes_out_of_range_are_refused_with_their_rows(row, level, code):
    codes = random_codes(20, (9, 9, 9))
    codes[row, level] = code
    expected = rf"1 items are out of range: row {row} has {code} at level {level + 1}, allowed 0 to 8"
    with pytest.raises(ValueError, match=expected):
        PrefixTree.build(codes, (9, 9, 9))


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.zeros((0, 3), np.int32), (4, 4, 4), "no item has codes"),
        (np.zeros((2, 3), np.int32), (4, 4), r"int32 \(2, 3\)"),
        (np.zeros(3, np.int32), (4,), r"int32 \(3,\)"),
        (np.zeros((2, 0), np.int32), (), "no item has codes"),
        (np.zeros((2, 1)), (4,), "float64"),
    ],
    ids=["empty", "one size short", "one dimension", "no levels", "not whole"],
)
def test_what_are_no_codes_is_refused(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        PrefixTree.build(codes, sizes)


def test_one_item_is_a_tree():
    tree = PrefixTree.build(np.array([[3, 0, 2]]), (4, 4, 4))
    assert [tree.prefixes(depth) for depth in range(4)] == [1, 1, 1, 1]
    assert tree.find(np.array([[3, 0, 2], [3, 0, 1]])).tolist() == [0, -1]


def test_prefixes_of_a_depth_that_is_not_there_are_refused():
    tree = PrefixTree.build(random_codes(5, (4, 4)), (4, 4))
    for depth in (-1, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            tree.prefixes(depth)
    with pytest.raises(ValueError, match="have 2 codes"):
        tree.find(np.zeros((1, 3), int))


def test_tree_of_other_ids_is_refused():
    tree = PrefixTree.build(random_codes(5, (4, 4)), (4, 4), source="ab" * 32)
    tree.check_source("ab" * 32)
    with pytest.raises(ValueError, match=r"abababababab.*cdcdcdcdcdcd; run `kedro run"):
        tree.check_source("cd" * 32)


@settings(max_examples=10)
@given(catalogues(unique=False), st.text(max_size=8))
def test_read_gives_what_was_written(tmp_path_factory, drawn, source):
    path = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    tree = PrefixTree.build(*drawn, source=source, shared=True)
    tree.write(path)
    again = PrefixTree.read(path)
    assert (again.hash, again.sizes, again.source) == (tree.hash, tree.sizes, tree.source)
    for mine, its in zip((*tree.offsets, *tree.children), (*again.offsets, *again.children), strict=True):
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(tree.leaves, again.leaves)
    np.testing.assert_array_equal(tree.leaf_offsets, again.leaf_offsets)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "tree.safetensors"
    PrefixTree.build(random_codes(400, (6, 7, 8, 9)), (6, 7, 8, 9), source="ids").write(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(written, share):
    whole = written.read_bytes()
    written.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"is not a complete prefix tree.*kedro run"):
        PrefixTree.read(written)


def test_every_flipped_byte_is_noticed(written):
    whole = written.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= 1
        written.write_bytes(bytes(changed))
        try:
            again = PrefixTree.read(written)
        except ValueError:
            continue
        pytest.fail(f"byte {at} of {len(whole)} changed: {again.source}")


def test_absent_file_and_other_safetensors_are_refused(tmp_path):
    save_file({"leaves": np.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("absent.safetensors", "other.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} is not a complete prefix tree"):
            PrefixTree.read(tmp_path / name)


TAMPERED = {
    "a leaf twice": ("leaves", lambda a: a.put(0, a[1])),
    "a leaf beyond the catalogue": ("leaves", lambda a: a.put(0, len(a))),
    "a code out of range": ("children.1", lambda a: a.put(-1, 99)),
    "codes that descend": ("children.0", lambda a: a.put([0, 1], a[[1, 0]])),
    "an offset that goes back": ("offsets.2", lambda a: a.put(1, 10**9)),
    "offsets that end early": ("offsets.2", lambda a: a.put(-1, a[-2] + 0)),
    "two leaves swapped": ("leaves", lambda a: a.put([0, 1], a[[1, 0]])),
}


@pytest.mark.parametrize("what", TAMPERED)
@pytest.mark.parametrize("forged", [False, True], ids=["hash as written", "hash forged"])
def test_tampered_arrays_are_refused(written, what, forged, monkeypatch):
    """Without a digest the hash detects every change; with a forged hash, arrays that are no tree are still refused."""
    arrays, header = load_file(written), PrefixTree.read(written)
    name, change = TAMPERED[what]
    changed = arrays[name].copy()
    change(changed)
    metadata = {"format": 1, "sizes": header.sizes, "source": "ids", "hash": header.hash}
    save_file(arrays | {name: changed}, written, {METADATA: json.dumps(metadata)})
    forget_digest(written)
    if forged:
        monkeypatch.setattr(PrefixTree, "hash", header.hash)
    if forged and what == "two leaves swapped":
        assert PrefixTree.read(written).leaves[0] == arrays["leaves"][1]  # a tree, but of another order
        return
    with pytest.raises(ValueError, match="is not a complete prefix tree"):
        PrefixTree.read(written)


def test_a_hundred_thousand_items_take_a_fraction_of_a_second(tmp_path):
    """A tenth of issue 3's catalogue in a fifth of its 5 s: benchmarks/prefix_tree.py has the real one."""
    codes = random_codes(100_000, (256,) * 4)
    started = time.perf_counter()
    tree = PrefixTree.build(codes, (256,) * 4)
    assert time.perf_counter() - started < 1.0
    tree.write(tmp_path / "tree.safetensors")
    assert (PrefixTree.read(tmp_path / "tree.safetensors").find(codes) == np.arange(100_000)).all()


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
