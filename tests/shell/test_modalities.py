"""Which semantic ids a run makes, and what is said where a data set has nothing to make them of."""

from __future__ import annotations

import pytest

from recpipe.hooks.values import numbers
from recpipe.pipelines.blocks import ids_block, merged
from recpipe.pipelines.modalities import KINDS, chosen
from recpipe.pipelines.zoo import Asked
from recpipe.session import MODEL_TAGS_RESERVED, Refused, also_read, content_tags, tags, winning

TEXT = {"template": "{title}"}
POSTERS = {"from": "posters.zip", "name": "{item_id}.jpg"}
BLOCKS = {
    "bare": {},
    "texts": {"content": {"text": TEXT}},
    "films": {"content": {"text": TEXT, "image": POSTERS}},
    "chosen": {"content": {"text": TEXT, "image": POSTERS, "modalities": ["text_image"]}},
}


@pytest.mark.parametrize(
    ("dataset", "asked", "expected"),
    [
        ("bare", "auto", []),
        ("texts", "auto", ["text"]),
        ("films", "auto", ["text", "image"]),
        ("chosen", "auto", ["text_image"]),
        ("chosen", "text+image", ["text", "image"]),
        ("films", "text_image", ["text_image"]),
        ("films", "none", []),
        ("films", "image+image", ["image"]),
    ],
)
def test_auto_follows_the_data_set_and_names_choose(dataset: str, asked: str, expected: list[str]) -> None:
    assert chosen(asked, dataset, BLOCKS[dataset]) == expected


@pytest.mark.parametrize(
    ("dataset", "asked", "message"),
    [
        ("texts", "image", "'texts' has no image to make image ids of: add `content: {image"),
        ("texts", "text+text_image", "has no image to make text_image ids"),
        ("bare", "text", "has no text"),
        ("films", "audio", "unknown modality 'audio': choose text, image, text_image"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(dataset: str, asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(asked, dataset, BLOCKS[dataset])


def test_a_run_of_the_two_pipelines_alone_needs_content_and_a_whole_run_does_not() -> None:
    conf = {"dataset": "bare", "modality": "auto", "datasets": BLOCKS}
    assert content_tags({}, conf, {}) == []
    assert content_tags({}, conf, {"pipeline_names": ["train"]}) == []
    for pipeline in ("embed", "semantic_ids"):
        with pytest.raises(Refused, match="'bare' has no `content` block"):
            content_tags({}, conf, {"pipeline_names": [pipeline]})
    assert content_tags({"dataset": "films"}, conf, {"pipeline_name": "embed"}) == ["text", "image"]
    with pytest.raises(Refused, match="has no image"):
        content_tags({"dataset": "texts", "modality": "image"}, conf, {})


def test_modalities_join_the_models_unless_the_user_filters() -> None:
    assert tags("sasrec", ["sasrec"], [], {"pipeline_names": ["embed"]}, ["text"]) == [
        "shared",
        "sasrec",
        "text",
    ]
    assert tags("sasrec", ["sasrec"], [], {"tags": ("image",)}, ["text"]) == ["image"]


def test_a_data_sets_own_block_goes_over_the_common_one_at_any_depth() -> None:
    assert merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 4}, "e": 5}) == {
        "a": 1,
        "b": {"c": 2, "d": 4},
        "e": 5,
    }


def common() -> dict:
    return {
        "quantizer": "small",
        "collisions": "keep",
        "extra_codes": 4,
        "seed": 1,
        "refit": False,
        "gate": {},
        "quantizers": {"small": {"type": "rqvae", "codes": 8}, "large": {"type": "pq"}},
    }


def test_the_chosen_quantizer_and_what_is_said_of_one_that_is_not_there() -> None:
    own = {"shop": {"semantic_ids": {"quantizers": {"small": {"codes": 16}}}}}
    assert ids_block(common(), own, "shop", "text").chosen() == ("rqvae", {"codes": 16})
    with pytest.raises(ValueError, match=r"semantic_ids.quantizer is 'smal' \(did you mean 'small'\?\)"):
        ids_block(common() | {"quantizer": "smal"}, own, "shop", "text").chosen()
    with pytest.raises(ValueError, match="collisions"):
        ids_block(common() | {"collisions": "ignore"}, own, "shop", "text")
    with pytest.raises(ValueError, match="unknown setting 'usag'"):
        ids_block(common() | {"gate": {"usag": 0.5}}, own, "shop", "text").gate_settings()


def test_a_kind_of_ids_has_settings_of_its_own_and_a_data_sets_are_over_both() -> None:
    kinds = common() | {
        "own": {"text_parts": {"quantizer": "large", "quantizers": {"large": {"levels": 16}}}}
    }
    shop = {"shop": {}}
    assert ids_block(kinds, shop, "shop", "text").chosen() == ("rqvae", {"codes": 8})
    assert ids_block(kinds, shop, "shop", "text_parts").chosen() == ("pq", {"levels": 16})
    shop = {
        "shop": {"semantic_ids": {"seed": 3, "own": {"text_parts": {"quantizers": {"large": {"levels": 4}}}}}}
    }
    found = ids_block(kinds, shop, "shop", "text_parts")
    assert (found.chosen(), found.seed) == (("pq", {"levels": 4}), 3)
    with pytest.raises(
        ValueError, match=r"semantic_ids.own has texts; allowed: text, image, text_image, text_parts"
    ):
        ids_block(common() | {"own": {"texts": {}}}, shop, "shop", "text")
    with pytest.raises(ValueError, match=r"unknown key .*quantiser \(did you mean 'quantizer'\?\)"):
        ids_block(common() | {"own": {"text": {"quantiser": "large"}}}, {"shop": {}}, "shop", "text")


def test_ids_that_models_read_are_made_where_the_content_is_there_anyway() -> None:
    reads = {
        "parallel": Asked(ids=("text_parts",)),
        "tiger": Asked(ids=("text",)),
        "pictures": Asked(ids=("image",)),
    }
    assert also_read(["parallel", "tiger", "pictures"], reads, ["text"]) == ["text_parts"]
    assert also_read(["parallel"], reads, ["text", "text_parts"]) == []
    assert also_read(["parallel"], reads, ["image"]) == []
    assert also_read(["tiger"], reads, []) == []


def test_the_command_line_wins_over_the_data_sets_own_block() -> None:
    conf = {
        "dataset": "shop",
        "models": {},
        "datasets": {"shop": {"semantic_ids": {"quantizers": {"small": {"codes": 16}}}}},
        "semantic_ids": common(),
    }
    asked = {"semantic_ids": {"quantizers": {"small": {"codes": 32}}}}
    found = winning(asked, conf)
    assert found["datasets"]["shop"]["semantic_ids"]["quantizers"]["small"]["codes"] == 32


def test_models_cannot_be_called_as_a_modality() -> None:
    assert set(KINDS) < set(MODEL_TAGS_RESERVED)


def test_numbers_of_nested_json_are_named_by_their_path() -> None:
    data = {
        "levels": [{"usage": 0.5, "name": "x"}, {"usage": 1}],
        "passed": True,
        "n": 3,
        "bad": float("nan"),
    }
    assert numbers(data) == {"levels/1/usage": 0.5, "levels/2/usage": 1.0, "n": 3.0}
