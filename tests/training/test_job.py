"""What a training job reads besides the split: ids and their tree, and the items of another model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tests.synthetic import catalogue_ids

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle
from recpipe.training.job import ItemInputs, ids_of, item_vectors


def bundle(name: str, n: int, **changed) -> Bundle:
    model = build(name, {"dim": 8, "layers": 1} if name == "sasrec" else {}, n_items=n, max_length=5)
    vocabulary = Vocabulary(np.array([f"i{number}" for number in range(n)], object))
    events = np.arange(n)
    return replace(
        Bundle(name, name, model, vocabulary, [None] * n, events, Protocol(dataset="d")), **changed
    )


def test_items_of_another_model_are_those_it_scores_with_but_for_unseen_ones() -> None:
    given = bundle("sasrec", 6)
    found = item_vectors(given, given.protocol, given.vocabulary)
    assert found.present.tolist() == [False] + [True] * 5
    np.testing.assert_array_equal(found.vectors[1:], given.model.items.weight.detach().numpy()[2:])


@pytest.mark.parametrize(
    ("given", "protocol", "message"),
    [
        (bundle("sasrec", 7), Protocol(dataset="d"), "another catalogue"),
        (bundle("sasrec", 6), Protocol(dataset="d", split="ratio"), "another split"),
        (bundle("popular", 6), Protocol(dataset="d"), "has no vectors of items"),
    ],
    ids=["catalogue", "split", "vectors"],
)
def test_items_of_an_unfit_model_are_refused(given: Bundle, protocol: Protocol, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        item_vectors(given, protocol, bundle("sasrec", 6).vocabulary)


def test_ids_are_put_in_the_order_of_the_vocabulary() -> None:
    codes = catalogue_ids(9).codes[1:].astype(np.int32)
    items = np.array([f"i{number}" for number in range(9)], object)
    ids = SemanticIds(items, codes, codes, np.zeros(9, bool), (4, 4, 4), {"quantizer": "q"})
    tree = PrefixTree.build(codes, (4, 4, 4), source=ids.hash)
    vocabulary = Vocabulary(items[[3, 5, 8]])
    (found,) = ids_of(("image",), {"image": (ids, tree)}, vocabulary).values()
    assert (found.codes[1:] == codes[[3, 5, 8]]).all()


def test_inputs_are_found_by_their_names() -> None:
    given = bundle("sasrec", 6)
    items = pa.table({"item_id": ["i0"], "title": ["t"]})
    vectors, ids, tree = object(), object(), object()
    inputs = {
        "items": items,
        "text_embeddings": vectors,
        "image_ids": ids,
        "image_tree": tree,
        "collaborative": given,
    }
    assert ItemInputs.of(inputs) == ItemInputs(items, {"text": vectors}, {"image": (ids, tree)}, given)
    assert ItemInputs.of({"items": items}) == ItemInputs(items)
