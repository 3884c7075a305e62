"""Semantic ids inside a model: targets, attention masks, hashed users, and ids that do not fit."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.generative import BOTH, ITEMS, create
from tests.synthetic import sequences

from recpipe.data.batches import Batch
from recpipe.layers.code_tokens import ItemCodes, causal, decoder_masks, targets_of, user_tokens
from recpipe.semantic_ids.ids import CatalogueIds, SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree


def test_the_shorter_of_two_rows_has_its_own_last_event_as_target():
    batch = Batch(torch.tensor([[1, 2, 3, 4], [7, 9, 0, 0], [5, 0, 0, 0]]), torch.tensor([4, 2, 1]), None)
    has_id = torch.arange(ITEMS + 1) > 0
    inputs, targets, real = targets_of(batch, has_id, one_pass=False)
    assert targets.tolist() == [[4], [9], [0]] and real.tolist() == [[True], [True], [False]]
    assert inputs.lengths[:2].tolist() == [3, 1]
    _, targets, real = targets_of(batch, has_id, one_pass=True)
    assert targets.tolist() == [[2, 3, 4], [9, 0, 0], [0, 0, 0]] and (real == (targets > 0)).all()


def test_masks_say_what_sees_what():
    event = torch.tensor([-1, 0, 0, 1, 1])
    assert causal(event).int().tolist() == [[1, 0, 0, 0, 0], *[[1, 1, 1, 0, 0]] * 2, *[[1, 1, 1, 1, 1]] * 2]
    masks = decoder_masks(event, 2, 2, by_target=True)
    assert masks["cross"].int().tolist() == [*[[1, 1, 1, 0, 0]] * 2, *[[1, 1, 1, 1, 1]] * 2]
    assert masks["attention"].int().tolist() == [*[[1, 1, 0, 0]] * 2, *[[0, 0, 1, 1]] * 2]


def test_users_are_hashed_alike_everywhere():
    assert user_tokens(np.array(["u1", "u2"], object), 2000)[:, 0].tolist() == [
        int.from_bytes(hashlib.md5(user).digest()[:8], "big") % 2000 for user in (b"u1", b"u2")
    ]
    model = create("tiger", users=50)
    one, other = (replace(sequences([[1, 2]]), users=np.array([user], object)) for user in ("a", "b"))
    assert model.recommend(one, 3)[1].tolist() != model.recommend(other, 3)[1].tolist()


def test_ids_and_tree_of_different_origin_are_refused():
    items = np.array([f"i{i}" for i in range(ITEMS)], object)
    codes = BOTH["text"].codes[1:].astype(np.int32)
    ids = SemanticIds(items, codes, codes, np.zeros(ITEMS, bool), (4, 4, 4), {"quantizer": "q"})
    tree = PrefixTree.build(codes, (4, 4, 4), source=ids.hash)
    catalogue = CatalogueIds.of(ids, items[::-1].copy(), tree)
    assert (catalogue.codes[1:] == codes[::-1]).all() and catalogue.quantizer == "q"
    with pytest.raises(ValueError, match="the prefix tree was built from the ids"):
        CatalogueIds.of(ids, items, PrefixTree.build(codes, (4, 4, 4), source="other"))
    with pytest.raises(ValueError, match="none of 2 items has a semantic id"):
        CatalogueIds.of(ids, np.array(["x", "y"], object), tree)


def test_codes_that_are_not_those_saved_are_refused():
    codes = ItemCodes(BOTH["text"])
    digest = codes.description()["digest"]
    codes.check(digest)
    codes.codes[3, 0] = (codes.codes[3, 0] + 1) % 4
    with pytest.raises(ValueError, match="do not belong together"):
        codes.check(digest)
