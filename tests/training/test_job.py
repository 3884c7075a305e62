"""Training jobs: semantic ids and item vectors that they read, and the weights that they start from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.config.run_config import ColdUsersConfig, RunConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.data.splits import TrainingData
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle
from recpipe.training.job import ItemInputs, TrainingJob, build_catalogue_ids, item_vectors, load_initial_weights

TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
WHERE = "init_from=toys/tiger/seed_42"
TRAINED_ON_VALIDATION = {"settings": {"train": {"train_on_validation": True}}}
DEFAULTS = {"sasrec": {"dim": 8, "layers": 1}, "popular": {}}


def vocabulary(n: int) -> Vocabulary:
    return Vocabulary(np.array([f"i{number:02}" for number in range(n)], object))


def bundle(model, n: int | None = None) -> Bundle:
    if isinstance(model, str):
        model = build(model, DEFAULTS[model], n_items=n, max_length=5)
    n = model.n_items
    return Bundle("m", "m", model, vocabulary(n), [None] * n, np.arange(n), Protocol(dataset="d"))


def generator(name: str, n_items: int, *, seed: int, ids=None, **config):
    torch.manual_seed(seed)
    ids = ids or {"text": catalogue_ids(n_items, seed=seed)}
    return build(name, {**TINY, **config}, n_items=n_items, max_length=5, ids=ids)


def test_item_vectors_of_another_model_are_its_item_table_without_untrained_items():
    model = bundle("sasrec", 6)
    vectors = item_vectors(model, model.protocol, model.vocabulary)
    assert vectors.present.tolist() == [False] + [True] * 5
    np.testing.assert_array_equal(vectors.vectors[1:], model.model.items.weight.detach().numpy()[2:])


@pytest.mark.parametrize(
    ("model", "protocol", "message"),
    [
        (bundle("sasrec", 7), Protocol(dataset="d"), "another catalogue"),
        (bundle("sasrec", 6), Protocol(dataset="d", split="ratio"), "another split"),
        (bundle("popular", 6), Protocol(dataset="d"), "no vectors of items|no item vectors"),
    ],
    ids=["catalogue", "split", "vectors"],
)
def test_item_vectors_of_another_catalogue_or_split_are_refused(model, protocol, message):
    with pytest.raises(ValueError, match=message):
        item_vectors(model, protocol, vocabulary(6))


def test_semantic_ids_are_put_in_the_order_of_the_vocabulary():
    codes = catalogue_ids(9).codes[1:].astype(np.int32)
    items = np.array([f"i{number}" for number in range(9)], object)
    ids = SemanticIds(items, codes, codes, np.zeros(9, bool), (4, 4, 4), {"quantizer": "q"})
    tree = PrefixTree.build(codes, (4, 4, 4), source=ids.hash)
    (catalogue,) = build_catalogue_ids(("image",), {"image": (ids, tree)}, Vocabulary(items[[3, 5, 8]])).values()
    assert (catalogue.codes[1:] == codes[[3, 5, 8]]).all()


def test_item_inputs_are_read_from_arguments_by_name():
    model = bundle("sasrec", 6)
    items = pa.table({"item_id": ["i0"], "title": ["t"]})
    vectors, ids, tree = object(), object(), object()
    inputs = {"items": items, "text_embeddings": vectors, "image_ids": ids, "image_tree": tree, "collaborative": model}
    assert ItemInputs.of(inputs) == ItemInputs(items, {"text": vectors}, {"image": (ids, tree)}, model)
    assert ItemInputs.of({"items": items}) == ItemInputs(items)


@pytest.mark.parametrize("name", ["tiger", "parallel_tiger", "mql4grec"])
def test_initial_weights_are_all_loaded_but_codes_stay(name):
    initial, model = generator(name, 30, seed=1), generator(name, 20, seed=2)
    initial.cold_users = ColdUsers(ColdUsersConfig(), n_items=30).fit(random_sequences(15, 30, longest=6))
    own_codes = {modality: codes.codes.clone() for modality, codes in model.item_codes().items()}
    count = load_initial_weights(model, bundle(initial), vocabulary(20), where=WHERE)
    assert model.cold_users is None
    initial.cold_users = None
    expected = {key: value for key, value in initial.state_dict().items() if not key.endswith("codes")}
    assert count == len(expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    for modality, codes in model.item_codes().items():
        assert torch.equal(codes.codes, own_codes[modality])


@pytest.mark.parametrize(
    ("message", "initial"),
    [
        ("another quantizer", ("tiger", {"ids": {"text": replace(catalogue_ids(20), quantizer="another")}})),
        ("other settings", ("tiger", {"dim": 32})),
        ("is a ParallelTIGER, not a TIGER", ("parallel_tiger", {})),
        ("no such run", None),
        ("ids of image, this model of text", ("tiger", {"ids": {"image": catalogue_ids(20)}})),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused(message, initial):
    model = generator("tiger", 20, seed=0)
    start = None if initial is None else bundle(generator(initial[0], 20, seed=1, **initial[1]))
    with pytest.raises(ValueError, match=f"{WHERE}.*{message}"):
        load_initial_weights(model, start, vocabulary(20), where=WHERE)


def test_initial_weights_of_a_model_without_ids_need_the_same_catalogue():
    torch.manual_seed(0)
    one, other = (build("sasrec", DEFAULTS["sasrec"], n_items=9, max_length=4) for _ in range(2))
    assert load_initial_weights(other, bundle(one), vocabulary(9), where=WHERE) == len(one.state_dict())
    renamed = Vocabulary(np.array([f"j{number}" for number in range(9)], object))
    with pytest.raises(ValueError, match="another catalogue"):
        load_initial_weights(other, bundle(one), renamed, where=WHERE)


def test_initial_weights_with_a_row_per_item_beside_the_codes_need_the_same_catalogue():
    one, other = (generator("tiger", 20, seed=seed, rerank="dense") for seed in (1, 2))
    assert load_initial_weights(other, bundle(one), vocabulary(20), where=WHERE) == len(one.state_dict()) - 1
    renamed = Vocabulary(np.array([f"j{number}" for number in range(20)], object))
    with pytest.raises(ValueError, match="another catalogue, and dense_vectors a row per item"):
        load_initial_weights(other, bundle(one), renamed, where=WHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"protocol": Protocol(dataset="d", history=50, exclude_seen=False)}, None),
        ({"protocol": Protocol(dataset="other", split="ratio"), "training": TRAINED_ON_VALIDATION}, None),
        ({"protocol": Protocol(dataset="d", split="ratio")}, "another split.*split"),
        ({"protocol": Protocol(dataset="d", fingerprint="of other steps")}, "another split.*fingerprint"),
        ({"training": TRAINED_ON_VALIDATION}, "m was trained with train_on_validation"),
        ({"training": {"settings": {"train": {"put_back": True}}}}, "train_on_validation"),
    ],
)
def test_bundles_that_saw_held_out_events_are_refused(changes, message):
    earlier, protocol = replace(bundle("sasrec", 6), **changes), Protocol(dataset="d")
    check = partial(Bundle.check_held_out, protocol=protocol, where=WHERE)
    if message is None:
        check(earlier, train_on_validation=False)
    else:
        with pytest.raises(ValueError, match=f"{WHERE}: .*{message}"):
            check(earlier, train_on_validation=False)
        # so are the weights of another data set that came from this bundle
        runs = {"earlier_runs": earlier.training_runs()}
        through_another = replace(bundle("sasrec", 6), protocol=Protocol(dataset="other"), training=runs)
        with pytest.raises(ValueError, match=message):
            check(through_another, train_on_validation=False)
    if "training" in changes:
        check(earlier, train_on_validation=True)


@pytest.mark.parametrize("inputs", [{"initial_bundle": True}, {"collaborative": True}])
def test_a_training_job_checks_the_bundles_it_reads(inputs):
    earlier = replace(bundle("sasrec", 6), training=TRAINED_ON_VALIDATION)
    blocks = {key: {} for key in ("settings", "train", "side", "cold_users")}
    config = RunConfig(name="m", type="sasrec", dataset="d", init_from="d/m/seed_1", collaborative="m", **blocks)
    fields = Protocol(dataset="d").to_dict()
    data = TrainingData(fields, vocabulary(6), random_sequences(5, 6, longest=4), None)
    items = ItemInputs(pa.table({"item_id": []}), collaborative=earlier if "collaborative" in inputs else None)
    start = earlier if "initial_bundle" in inputs else None
    job = TrainingJob(config=config, data=data, inputs=items, work_folder=None, validator=None, initial_bundle=start)
    with pytest.raises(ValueError, match="train_on_validation"):
        job.train()


@pytest.mark.parametrize("split", ["leave_one_out", "ratio"])
def test_ids_that_are_aligned_with_a_model_of_another_split_are_refused(split):
    """Item vectors may know events that this split holds out, and so may codes that follow them."""
    blocks = {key: {} for key in ("settings", "train", "side", "cold_users")}
    config = RunConfig(name="m", type="tiger", dataset="d", ids=("text_collaborative",), **blocks)
    runs = [{"name": "sasrec", "protocol": Protocol(dataset="d", split=split).to_dict(), "train_on_validation": False}]
    ids = SimpleNamespace(about={"collaborative": {"model": "sasrec", "runs": runs}})
    data = TrainingData(Protocol(dataset="d").to_dict(), vocabulary(6), random_sequences(5, 6, longest=4), None)
    items = ItemInputs(pa.table({"item_id": []}), ids={"text_collaborative": (ids, None)})
    job = TrainingJob(config=config, data=data, inputs=items, work_folder=None, validator=None)
    same = split == "leave_one_out"
    message = (
        "has no attribute" if same else "text_collaborative ids are aligned with: sasrec was trained on d under another"
    )
    with pytest.raises(AttributeError if same else ValueError, match=message):
        job.train()


def test_a_trained_bundle_has_the_item_columns_in_the_order_of_its_vocabulary(tmp_path):
    blocks = {key: {} for key in ("settings", "train", "side", "cold_users")}
    config = RunConfig(name="m", type="popular", dataset="d", **blocks)
    train_set = random_sequences(5, 6, longest=4)
    data = TrainingData(Protocol(dataset="d").to_dict(), vocabulary(6), train_set, train_set)
    items = pa.table({"item_id": ["i05", "i01"], "title": ["five", "one"], "price": [5.0, 1.0]})
    inputs = ItemInputs(items)
    job = TrainingJob(config=config, data=data, inputs=inputs, work_folder=tmp_path, validator=lambda *_, **__: None)
    assert job.train().item_columns.to_pydict() == {"price": [None, 1.0, None, None, None, 5.0]}
