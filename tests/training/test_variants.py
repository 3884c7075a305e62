"""Variants of a model in a study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from recpipe.config import RunConfig
from recpipe.training.variants import AS_CONFIGURED, Study, variants

TRAIN = {"window": None, "windows": "all", "layout": "padded", "schedule": {"name": "constant"}}
SIDE = {"vectors": "none", "items": "none"}
SASREC = RunConfig(
    name="sasrec",
    dataset="d",
    type="sasrec",
    settings={"dim": 64, "dropout": 0.2},
    train=TRAIN,
    side=SIDE,
    cold_users={},
)


def of_type(type_: str, **changes: Any) -> RunConfig:
    return replace(SASREC, name=type_, type=type_, settings={}, **changes)


def test_a_setting_takes_each_value_once_and_other_settings_stay():
    selection, left_out = variants(Study("train.window", "8+16+8"), SASREC)
    assert [(each.name, each.value, each.config.train) for each in selection] == [
        ("8", 8, {**TRAIN, "window": 8}),
        ("16", 16, {**TRAIN, "window": 16}),
    ]
    assert all(replace(each.config, train=TRAIN) == SASREC for each in selection)
    assert SASREC.train["window"] is None
    assert left_out == {}
    assert [each.config.settings["dim"] for each in variants(Study("dim", 32), SASREC)[0]] == [32]


def test_only_parts_that_a_model_has_are_removed():
    parts = {
        "dropout": {"dropout": 0.0, "attention_dropout": 0.0},  # the second is 0 already
        "positions": {"positions": False},  # by default there
        "time": {"time_mode": "none"},  # another model's
        "long users": {"train.windows": "last"},
        "packing": {"train.layout": "padded"},  # it is not packed
        "text": {"side.vectors": "none"},
    }
    selection, left_out = variants(Study(without=parts), SASREC)
    assert [each.name for each in selection] == [
        AS_CONFIGURED,
        *(f"without {n}" for n in ("dropout", "positions", "long users")),
    ]
    assert dict(selection[0].overrides) == {}
    assert selection[0].config == SASREC
    assert dict(selection[1].overrides) == {"dropout": 0.0}
    assert selection[2].config.settings == {**SASREC.settings, "positions": False}
    assert selection[3].config.train == {**TRAIN, "windows": "last"}
    assert sorted(left_out) == ["packing", "text", "time"]
    with_side = of_type("sasrec", side={**SIDE, "vectors": "text"})
    assert variants(Study(without=parts), with_side)[0][-1].config.side == SIDE


def test_closed_form_models_are_studied_with_and_without_weights():
    selection, _ = variants(Study("train.weights", "true+false"), of_type("svd"))
    assert [each.config.train["weights"] for each in selection] == [True, False]
    with pytest.raises(ValueError, match=r"content_knn have no setting train.weights"):
        variants(Study("train.weights", "false"), of_type("content_knn"))


def test_a_model_without_the_setting_is_refused_by_name():
    with pytest.raises(ValueError, match=r"models of type svd have no setting train.window; there are .*factors"):
        variants(Study("train.window", "8"), of_type("svd"))
    with pytest.raises(ValueError, match="no setting widht"):
        variants(Study("widht", "8"), SASREC)


@pytest.mark.parametrize(
    "block", [{}, {"setting": "dim"}, {"values": "1"}, {"setting": "dim", "values": 1, "without": {"a": {"b": 1}}}]
)
def test_a_study_has_values_or_removals(block):
    with pytest.raises(ValueError, match="a study has a setting with values"):
        Study(**block)
