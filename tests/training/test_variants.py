"""Which trainings a study makes of a model's settings."""

import pytest

from recpipe.models.registry import ModelSpec
from recpipe.training.variants import WHOLE, Study, variants

TRAIN = {"window": None, "windows": "last", "layout": "padded", "schedule": {"name": "constant"}}
SIDE = {"vectors": "none", "items": "none"}
SASREC = ModelSpec("sasrec", {"dim": 64, "dropout": 0.2}, {"windows": "all"}, {})


def test_a_setting_takes_each_value_once_and_leaves_the_rest():
    made, left_out = variants(Study("train.window", "8+16+8"), SASREC, TRAIN, SIDE)
    assert [(each.name, each.value, each.spec.train) for each in made] == [
        ("8", 8, {"windows": "all", "window": 8}),
        ("16", 16, {"windows": "all", "window": 16}),
    ]
    assert all(each.spec.config == SASREC.config for each in made)
    assert SASREC.train == {"windows": "all"}
    assert left_out == {}
    assert [each.spec.config["dim"] for each in variants(Study("dim", 32), SASREC, TRAIN, SIDE)[0]] == [32]


def test_only_what_a_model_has_is_taken_away():
    parts = {
        "dropout": {"dropout": 0.0, "attention_dropout": 0.0},  # the second is 0 already
        "positions": {"positions": False},  # by default there
        "time": {"time_mode": "none"},  # another model's
        "long users": {"train.windows": "last"},
        "packing": {"train.layout": "padded"},  # it is not packed
        "text": {"side.vectors": "none"},
    }
    made, left_out = variants(Study(without=parts), SASREC, TRAIN, SIDE)
    assert [each.name for each in made] == [
        WHOLE,
        *(f"without {n}" for n in ("dropout", "positions", "long users")),
    ]
    assert dict(made[0].changed) == {}
    assert made[0].spec == SASREC
    assert dict(made[1].changed) == {"dropout": 0.0}
    assert made[2].spec.config == {**SASREC.config, "positions": False}
    assert made[3].spec.train == {"windows": "last"}
    assert sorted(left_out) == ["packing", "text", "time"]
    told = ModelSpec("sasrec", {}, {}, {"vectors": "text"})
    assert variants(Study(without=parts), told, TRAIN, SIDE)[0][-1].spec.side == {"vectors": "none"}


def test_a_model_without_the_setting_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"models of type svd have no setting train.window; there are .*factors"
    ):
        variants(Study("train.window", "8"), ModelSpec("svd", {}, {}, {}), TRAIN, SIDE)
    with pytest.raises(ValueError, match="no setting widht"):
        variants(Study("widht", "8"), SASREC, TRAIN, SIDE)


@pytest.mark.parametrize(
    "block",
    [{}, {"setting": "dim"}, {"values": "1"}, {"setting": "dim", "values": 1, "without": {"a": {"b": 1}}}],
)
def test_a_study_is_of_one_kind(block):
    with pytest.raises(ValueError, match="a study has a setting with values"):
        Study(**block)
