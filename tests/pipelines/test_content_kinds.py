"""Which semantic ids and vectors a command makes, and what is said where a data set has nothing to make them of."""

from __future__ import annotations

import pytest
from tests.config.test_resolve import FILES, files

from recpipe.config import ConfigError, Configuration
from recpipe.pipelines.content_kinds import (
    KindInputs,
    has_inputs,
    kind_inputs,
    kinds_of_command,
    kinds_of_model,
    selected_kinds,
)

TEXT = {"template": "{title}"}
POSTERS = {"from": "posters.zip", "name": "{item_id}.jpg"}
BLOCKS = {
    "bare": {"source": "files"},
    "texts": {"source": "files", "content": {"text": TEXT}},
    "films": {"source": "files", "content": {"text": TEXT, "image": POSTERS}},
    "chosen": {"source": "files", "content": {"text": TEXT, "image": POSTERS, "modalities": ["text_image"]}},
}
MODELS = {
    "net": {"type": "net"},
    "tiger": {"type": "net", "ids": "text"},
    "parallel": {"type": "net", "ids": "text_parts"},
    "pictures": {"type": "net", "ids": "image"},
    "seeing": {"type": "net", "side": {"vectors": "text_image"}},
    "borrower": {"type": "net", "ids": "foreign"},
}
FILE = {"kinds": {"foreign": {"source": {"file": "index.json"}}}}
COMPARED = {"kinds": {"foreign": {"source": {"file": "index.json", "vectors": "text"}}}}


def configuration(dataset: str, modality: str = "auto") -> Configuration:
    models = {**FILES["models"], **MODELS}
    return Configuration(files(datasets=BLOCKS, models=models), {"dataset": dataset, "modality": modality})


@pytest.mark.parametrize(
    ("dataset", "modality", "expected"),
    [
        ("bare", "auto", ()),
        ("texts", "auto", ("text",)),
        ("films", "auto", ("text", "image")),
        ("chosen", "auto", ("text_image",)),
        ("chosen", "text+image", ("text", "image")),
        ("films", "text_image", ("text_image",)),
        ("films", "none", ()),
        ("films", "image+image", ("image",)),
    ],
)
def test_auto_follows_the_data_set_and_names_choose(dataset: str, modality: str, expected: tuple) -> None:
    assert selected_kinds(configuration(dataset, modality)) == expected


@pytest.mark.parametrize(
    ("dataset", "modality", "message"),
    [
        ("texts", "image", "'texts' has no image to make image ids of: add `content: {image"),
        ("texts", "text+text_image", "has no image to make text_image ids"),
        ("bare", "text", "has no text"),
        ("films", "audio", "unknown modality 'audio'; choose text, image, text_image"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(dataset: str, modality: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        selected_kinds(configuration(dataset, modality))


def test_a_run_of_the_two_pipelines_alone_needs_content_and_a_whole_run_does_not() -> None:
    bare = configuration("bare")
    assert kinds_of_command(bare, [], ["ingest", "embed", "semantic_ids", "train"]) == ((), ())
    for pipeline in ("embed", "semantic_ids"):
        with pytest.raises(ConfigError, match="'bare' has no `content` block"):
            kinds_of_command(bare, [], [pipeline])
    assert kinds_of_command(configuration("films"), [], ["embed"]) == (("text", "image"), ("text", "image"))


def test_a_command_that_trains_builds_no_ids_that_its_models_do_not_read() -> None:
    texts = configuration("texts")
    for pipeline in ("train", "tune", "study", "refit"):
        stages = ["ingest", "embed", "semantic_ids", pipeline]
        assert kinds_of_command(texts, [texts.run("net")], stages) == ((), ("text",))
        assert kinds_of_command(texts, [texts.run("parallel")], stages) == (("text_parts",), ("text",))
    for stages in (["ingest", "embed", "semantic_ids"], ["train", "export"]):
        assert kinds_of_command(texts, [texts.run("net")], stages) == (("text",), ("text",))
    named = configuration("texts", "text")
    assert kinds_of_command(named, [named.run("net")], ["train"]) == (("text",), ("text",))


def test_auto_also_makes_what_the_models_read_where_the_content_is_there() -> None:
    texts = configuration("texts")
    runs = [texts.run(name) for name in ("parallel", "tiger")]
    assert kinds_of_command(texts, runs, ["train"]) == (("text_parts", "text"), ("text",))
    films = configuration("films")
    assert kinds_of_command(films, [films.run("seeing")], ["train"])[1] == ("text", "image", "text_image")
    with pytest.raises(ConfigError, match="model 'pictures' reads image ids: data set 'texts' has no image"):
        kinds_of_command(texts, [texts.run("pictures")], ["train"])


def test_a_model_alone_needs_only_what_it_reads() -> None:
    films = configuration("films")
    assert kinds_of_model(films, films.run("net")) == ((), ())
    assert kinds_of_model(films, films.run("parallel")) == (("text_parts",), ("text",))
    assert kinds_of_model(films, films.run("seeing")) == ((), ("text", "image", "text_image"))


def test_whether_a_command_makes_all_that_a_model_reads() -> None:
    films = configuration("films")
    assert has_inputs(films.run("net"), ())
    assert has_inputs(films.run("tiger"), ("text",)) and not has_inputs(films.run("tiger"), ("image",))
    assert has_inputs(films.run("seeing"), ("text_image",)) and not has_inputs(films.run("seeing"), ("text", "image"))


def test_foreign_ids_need_a_file_and_text_only_where_neighbours_are_compared() -> None:
    blocks = {
        "filed": {"source": "files", "semantic_ids": FILE},
        "compared": {"source": "files", "content": {"text": TEXT}, "semantic_ids": COMPARED},
        "textless": {"source": "files", "semantic_ids": COMPARED},
    }

    def configured(dataset: str, modality: str = "auto") -> Configuration:
        models = {**FILES["models"], **MODELS}
        return Configuration(
            files(datasets={**BLOCKS, **blocks}, models=models), {"dataset": dataset, "modality": modality}
        )

    filed, compared = configured("filed"), configured("compared")
    assert kinds_of_command(filed, [filed.run("borrower")], ["train"]) == (("foreign",), ())
    assert kinds_of_command(filed, [], ["train"]) == ((), ())
    assert kinds_of_command(compared, [compared.run("borrower")], ["train"]) == (("foreign",), ("text",))
    assert kind_inputs(compared, ["foreign"])["foreign"].embeddings == "text_embeddings"
    assert kind_inputs(filed, ["foreign"])["foreign"].embeddings is None
    assert kinds_of_model(compared, compared.run("borrower")) == (("foreign",), ("text",))
    with pytest.raises(
        ConfigError, match="model 'borrower' reads foreign ids: data set 'texts' has no file of foreign ids"
    ):
        kinds_of_command(configuration("texts"), [configuration("texts").run("borrower")], ["train"])
    with pytest.raises(ConfigError, match="data set 'textless' has no text to make foreign ids of"):
        selected_kinds(configured("textless", "foreign"))


def test_collaborative_ids_name_a_model_that_exists() -> None:
    def aligned_with(**option) -> Configuration:
        quantizers = {"rqvae": {"type": "rqvae", **option}}
        semantic_ids = {**FILES["semantic_ids"], "kinds": {"text_collaborative": {"quantizers": quantizers}}}
        models = {**FILES["models"], **MODELS}
        tree = files(datasets=BLOCKS, models=models, semantic_ids=semantic_ids)
        return Configuration(tree, {"dataset": "texts", "modality": "text_collaborative"})

    inputs = kind_inputs(aligned_with(collaborative={"model": "net"}), ["text", "text_collaborative"])
    assert inputs == {"text": KindInputs("text"), "text_collaborative": KindInputs("text", "net")}
    with pytest.raises(ConfigError, match="unknown model in .*rqvae.collaborative.model 'nett' .did you mean 'net'"):
        kind_inputs(aligned_with(collaborative={"model": "nett"}), ["text_collaborative"])
    with pytest.raises(ConfigError, match="text_collaborative ids need a model whose item vectors"):
        kind_inputs(aligned_with(), ["text_collaborative"])
