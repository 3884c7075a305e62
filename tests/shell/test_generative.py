"""What a model reads besides the split: ids and their tree, another model's items, another run's weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from kedro.framework.project import pipelines
from kedro.io import DatasetError
from tests.synthetic import catalogue_ids

from recpipe.content.embeddings import Embeddings, text_space
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.experiments.material import ids_of, item_vectors
from recpipe.io.objects import OthersDataset
from recpipe.models.registry import build
from recpipe.pipelines import zoo
from recpipe.pipelines.semantic_ids.nodes import assign_ids, fit_quantizer
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.session import Refused, check_described
from recpipe.training.bundle import Bundle

RESIDUAL = {
    "quantizer": "residual_kmeans",
    "collisions": "extra_digit",
    "extra_codes": 16,
    "seed": 1,
    "refit": False,
    "gate": {},
    "quantizers": {"residual_kmeans": {"type": "residual_kmeans", "levels": 2, "codes": 8}},
}
ASKED = ({"d": {}}, "d", RESIDUAL)

BLOCKS = {
    "one": {"type": "sasrec"},
    "two": {"type": "tiger", "ids": "text", "datasets": {"d": {"ids": "text+image"}}},
    "three": {"type": "setrec", "collaborative": "one", "side": {"vectors": "text+collaborative"}},
}
CONF = {"dataset": "d", "models": BLOCKS, "side": {"vectors": "none"}, "datasets": {"d": {}}}


def test_what_models_ask_for_is_read_from_their_blocks() -> None:
    found = zoo.asked(CONF)
    assert found["one"] == zoo.Asked()
    assert found["two"] == zoo.Asked(ids=("text", "image"))
    assert found["three"] == zoo.Asked(vectors=("text",), collaborative="one")
    assert zoo.asked({**CONF, "dataset": "e"})["two"].ids == ("text",)
    assert found["two"].inputs == {
        "text_ids": "text_ids.semantic_ids",
        "text_tree": "text_ids.prefix_tree",
        "image_ids": "image_ids.semantic_ids",
        "image_tree": "image_ids.prefix_tree",
    }
    assert found["three"].inputs == {"text_embeddings": "text_embeddings", "collaborative": "one.bundle"}
    assert found["two"].modalities == {"text", "image"}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"type": "tiger", "ids": "txt"},
            r"models\.new\.ids: unknown ids 'txt'; choose text, image, text_image",
        ),
        (
            {"type": "setrec", "side": {"vectors": "collaborative"}},
            r"models\.new\.collaborative is None; name",
        ),
        (
            {"type": "setrec", "collaborative": "new", "side": {"vectors": "collaborative"}},
            r"models\.new\.collaborative is 'new'; name the model .* one of one, three, two",
        ),
    ],
    ids=["ids", "nobody", "itself"],
)
def test_what_is_not_there_is_refused(block: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.asked({**CONF, "models": {**BLOCKS, "new": block}})


def test_a_data_set_without_images_has_no_ids_of_them() -> None:
    conf = {**CONF, "datasets": {"d": {"content": {"text": {"template": "{title}"}}}}}
    check_described(["one"], zoo.asked(conf), {}, conf)
    with pytest.raises(Refused, match="model 'two' reads image ids: data set 'd' has no image"):
        check_described(["one", "two"], zoo.asked(conf), {}, conf)


def test_nodes_are_wired_to_what_their_model_reads(project_copy, monkeypatch) -> None:
    monkeypatch.chdir(project_copy)
    monkeypatch.setattr(zoo, "_declared", [])
    zoo.declare(BLOCKS, zoo.asked(CONF))
    nodes = {node.namespace: set(node.inputs) for node in pipelines["train"].nodes if node.namespace}
    assert {"image_ids.semantic_ids", "text_ids.prefix_tree"} <= nodes["two"]
    assert {"one.bundle", "text_embeddings"} <= nodes["three"]
    assert not any("ids." in name or name.endswith(".bundle") for name in nodes["one"])
    zoo._declared.clear()
    pipelines.configure("recpipe.pipeline_registry")


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


def test_a_quantizer_of_two_data_sets_is_that_of_all_their_vectors() -> None:
    rng = np.random.default_rng(0)

    def made(count: int, template: str, encoder: str = "minilm") -> Embeddings:
        items = np.array([f"{template}{number}" for number in range(count)], object)
        present = np.arange(count) % 5 > 0
        keys = np.where(present, "k", "").astype(object)
        about = {"template": template, "fingerprint": encoder}
        vectors = rng.normal(size=(count, 6)).astype(np.float32) * present[:, None]
        return Embeddings(items, vectors, present, keys, text_space(encoder, template), about)

    own, other = made(200, "{title}"), made(100, "{title}. {brand}")
    everything = np.concatenate([own.vectors[own.present], other.vectors[other.present]])
    alone, _ = fit_quantizer("text", own, None, *ASKED)
    joint, _ = fit_quantizer("text", own, None, *ASKED, others={"e": other})
    items, keys = np.arange(240).astype(str).astype(object), np.array(["k"] * 240, object)
    whole = Embeddings(items, everything, np.ones(240, bool), keys, own.space, own.about)
    same, _ = fit_quantizer("text", whole, None, *ASKED)
    assert joint.hash == same.hash != alone.hash
    for kept in ({}, {"e": other}):  # a run that does not name the other, or names it again
        assert fit_quantizer("text", own, joint, *ASKED, others=kept)[0] is joint
    assert fit_quantizer("text", own, alone, *ASKED, others={"e": other})[0].hash == joint.hash
    lent, _ = fit_quantizer("text", other, None, *ASKED, "d", joint)
    assert lent.hash == joint.hash
    with pytest.raises(ValueError, match="quantizer_with=f: its vectors are not of one encoder with these"):
        fit_quantizer("text", own, None, *ASKED, others={"f": made(50, "{title}", "e5")})
    with pytest.raises(ValueError, match="quantizer_with=d is the data set itself"):
        fit_quantizer("text", own, None, *ASKED, others={"d": own})
    with pytest.raises(ValueError, match="say one of them"):
        fit_quantizer("text", own, None, *ASKED, "e", joint, {"e": other})


def test_embeddings_of_other_data_sets_are_read_by_their_names(tmp_path) -> None:
    given = Embeddings(
        np.array(["a"], object), np.ones((1, 2), np.float32), np.ones(1, bool), np.array(["k"], object), "s"
    )
    (tmp_path / "ml-1m").mkdir()
    given.write(tmp_path / "ml-1m" / "text_embeddings.parquet")

    def read(names: str) -> dict[str, Embeddings]:
        return OthersDataset(
            path=str(tmp_path), file="text_embeddings.parquet", names=names, holds="embeddings"
        ).load()

    assert read("none") == {}
    assert read("ml-1m")["ml-1m"].hash == given.hash
    with pytest.raises(DatasetError, match="steam has no text_embeddings.parquet; run `kedro run"):
        read("ml-1m+steam")
    for name in ("..", "../ml-1m", "ml-1m+", "/etc"):
        with pytest.raises(DatasetError, match="is no name of a data set"):
            read(name)


def test_a_lent_quantizer_is_used_as_it_is_and_only_for_vectors_of_its_space() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    items = np.array([f"i{number}" for number in range(300)], object)
    present, keys, template = np.ones(300, bool), np.array(["k"] * 300, object), "{title}. {brand}"
    about = {"template": template, "fingerprint": "minilm"}
    embeddings = Embeddings(items, vectors, present, keys, text_space("minilm", template), about)
    lent, _ = fit_quantizer("text", embeddings, None, *ASKED)
    other = replace(embeddings, vectors=vectors[::-1].copy())
    found, curves = fit_quantizer("text", other, None, *ASKED, "lender", lent)
    assert found.hash == lent.hash and isinstance(curves, pl.DataFrame)
    elsewhere = replace(other, space=text_space("minilm", "{title}"), about={**about, "template": "{title}"})
    moved, _ = fit_quantizer("text", elsewhere, None, *ASKED, "lender", lent)
    assert (
        moved.hash == lent.hash and lent.about["space"] == embeddings.space
    )  # the lender's own is as it was
    assert len(assign_ids("text", elsewhere, moved, None, *ASKED)) == 300
    again, _ = fit_quantizer("text", elsewhere, moved, *ASKED)
    assert again is moved  # a run that does not name the lender keeps it
    weights = {**elsewhere.about, "fingerprint": "of other weights"}
    for unlike in (replace(elsewhere, about=weights), replace(elsewhere, about={"template": "{title}"})):
        with pytest.raises(ValueError, match="quantizer_from=lender: .*both need vectors of one encoder"):
            fit_quantizer("text", unlike, None, *ASKED, "lender", lent)
    with pytest.raises(ValueError, match="quantizer_from=lender: .*both need vectors of one encoder"):
        fit_quantizer("text", replace(embeddings, space="elsewhere"), None, *ASKED, "lender", lent)
    with pytest.raises(ValueError, match="quantizer_from=lender: it has no quantizer"):
        fit_quantizer("text", embeddings, None, *ASKED, "lender", None)
