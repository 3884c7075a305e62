"""``--params``: what does not exist, or has another kind of value, is refused with key, place and nearest spelling."""

from __future__ import annotations

from typing import Any

import pytest
from tests.config.test_resolve import files

from recpipe.config import ConfigError, Configuration, ModelInfo, parse_overrides
from recpipe.config.files import Leaf
from recpipe.config.overrides import same_kind


def info(type_: str) -> ModelInfo:
    return ModelInfo({"dim": 64, "layers": 2, "bias": False}, takes_side=True, by_gradient=True)


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": 1, "model": "popular"},
        {"train": {"epochs": 1, "metric": "recall@5"}},
        {"train": {"optimiser": {"weight_decay": 0.1}}},  # arguments are checked by what takes them
        {"train": {"epochs": None}},
        {"protocol": {"history": 3}},
        {"models": {"net": {"train": {"epochs": 2}, "dim": 3}}},
        {"models": {"net": {"bias": True}}},  # a setting that no file names
        {"models": {"variant": {"dim": 3}}},  # of the model that it extends
        {"models": {"net": {"datasets": {"shop": {"dim": 3, "train": {"epochs": 1}}}}}},
        {"models": {"net": {"profiles": {"sparse": {"layers": 3}}}}},
        {"datasets": {"films": {"protocol": {"time": "query"}}}},
        {"semantic_ids": {"kinds": {"image": {"levels": 2}}}},
    ],
)
def test_what_exists_is_accepted(overrides: dict[str, Any]) -> None:
    Configuration(files(), overrides, info).check()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sed": 1}, r"unknown parameter 'sed' \(command line\) \(did you mean 'seed'\?\)"),
        ({"train": {"epoch": 1}}, r"'train.epoch' .* \(did you mean 'epochs'\?\); it belongs in conf"),
        ({"train": 3}, "train is a block; give one of its keys: epochs, optimiser"),
        ({"seed": {"a": 1}}, r"seed \(command line\) cannot be \{'a': 1\}"),
        ({"train": {"epochs": "many"}}, "train.epochs .* cannot be 'many': conf has 3"),
        ({"train": {"epochs": 1.5}}, "cannot be 1.5"),
        ({"train": {"epochs": True}}, "cannot be True"),
        ({"baselines": "popular"}, "baselines .* cannot be 'popular'"),
        ({"models": {"nett": {"dim": 3}}}, r"'models.nett' .*\(did you mean 'net'\?\)"),
        ({"models": {"net": {"dims": 3}}}, r"'models.net.dims' .*\(did you mean 'dim'\?\)"),
        ({"models": {"net": {"train": {"epoch": 3}}}}, r"'models.net.train.epoch' .*\(did you mean 'epochs'\?\)"),
        ({"models": {"net": {"bias": 3}}}, "models.net.bias .* cannot be 3: conf has False"),
        ({"models": {"net": {"datasets": {"film": {"dim": 3}}}}}, r"\(did you mean 'films'\?\)"),
        ({"datasets": {"films": {"protocol": {"histry": 1}}}}, r"\(did you mean 'history'\?\)"),
        ({"datasets": {"film": {"source": "x"}}}, r"'datasets.film' .*\(did you mean 'films'\?\)"),
        ({"semantic_ids": {"kinds": {"txt": {"levels": 2}}}}, r"'semantic_ids.kinds.txt' .*\(did you mean 'text'\?\)"),
        ({"semantic_ids": {"kinds": {"text": {"level": 2}}}}, r"\(did you mean 'levels'\?\)"),
    ],
)
def test_what_does_not_exist_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Configuration(files(), overrides, info).check()


def test_a_share_may_become_a_date_but_no_other_text() -> None:
    assert same_kind("2011-10-01", 0.1)
    assert not same_kind("tomorrow", 0.1)
    assert not same_kind("2011-10-01", 1)


def test_only_a_part_of_the_split_may_become_a_number_of_days() -> None:
    base = files()
    base["protocol"] = {**base["protocol"], "valid": Leaf(0.1, "", ""), "lift": Leaf(0.1, "", "")}
    Configuration(base, {"protocol": {"valid": "14d"}}, info).check()
    for name, value in (("lift", "14d"), ("valid", "0d"), ("valid", "14 days")):
        with pytest.raises(ConfigError, match=rf"protocol.{name} .* cannot be '{value}'"):
            Configuration(base, {"protocol": {name: value}}, info).check()


def test_params_are_read_as_kedro_reads_them() -> None:
    from kedro.framework.cli.utils import _split_params

    text = "dataset=ml-1m,train.window=50,train.lr=1e-3,a.b=true,a.c=null,model=sasrec+popular,seeds=42+123"
    assert parse_overrides(text) == _split_params(None, None, text)
    assert parse_overrides("") == {}
    with pytest.raises(ConfigError, match="'model' is no setting; write key=value"):
        parse_overrides("model")
