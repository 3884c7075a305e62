"""Search spaces: ranges of the conf, checked against the model, with the configuration as it stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from tests.training.tuning.jobs import run_config

from recpipe.config import ConfigError, Configuration, read_parameters
from recpipe.config.files import block
from recpipe.training.tuning.space import COMMON, flatten, search_space

ROOT = Path(__file__).parents[3]
FILES = read_parameters(ROOT / "conf", "base")
LEARNING_RATE = "train.optimiser.learning_rate"


def test_ranges_become_distributions_that_contain_the_configuration():
    space = search_space(
        run_config(
            space={
                "dim": {"choices": [32, 64]},  # the conf has 16
                "layers": {"low": 2, "high": 4},  # 1
                "dropout": {"low": 0.2, "high": 0.5},  # 0.1
                "train": {"optimiser": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}},
            }
        ),
        {},
    )
    assert space.distributions() == {
        "dim": CategoricalDistribution([32, 64, 16]),
        "layers": IntDistribution(1, 4),
        "dropout": FloatDistribution(0.1, 0.5),
        LEARNING_RATE: FloatDistribution(1e-4, 1e-1, log=True),
    }
    first = {"dim": 16, "layers": 1, "dropout": 0.1, LEARNING_RATE: 0.01}
    assert space.first_params() == first
    assert space.suggest(FixedTrial(first)) == first
    assert space.description()["dropout"] == {"low": 0.1, "high": 0.5}


def test_the_models_own_ranges_are_over_the_common_ones_key_by_key_and_null_removes_one():
    common = {
        "dropout": {"low": 0.0, "high": 0.6},
        "train": {"optimiser": {"learning_rate": {"low": 1e-4, "high": 0.1}}},
    }
    own = {"dropout": {"high": 0.3}, "train": {"optimiser": {"learning_rate": None}}, "layers": {"choices": [1, 2]}}
    ranges = search_space(run_config(space=own), common).ranges
    assert list(ranges) == ["dropout", "layers"]
    assert (ranges["dropout"].low, ranges["dropout"].high) == (0.0, 0.3)
    choices = search_space(run_config(space={"dropout": {"choices": [0.1, 0.2]}}), common).ranges["dropout"]
    assert (choices.choices, choices.low) == ((0.1, 0.2), None)  # choices replace a range
    assert not search_space(run_config("popular", {}), common).ranges  # of models trained by gradient


def test_null_and_lists_are_choices():
    config = run_config("item_knn", {"last": {"choices": [1, 5]}})
    space = search_space(config, {})
    assert space.ranges["last"].choices == (1, 5, None)
    assert space.suggest(FixedTrial({"last": None})) == {"last": None}
    betas = search_space(
        run_config(space={"train.optimiser.betas": {"choices": [[0.9, 0.98]], "default": [0.9, 0.999]}}), {}
    )
    stored = betas.first_params()["train.optimiser.betas"]
    assert stored == "[0.9, 0.999]"
    assert betas.decode({"train.optimiser.betas": stored}) == {"train.optimiser.betas": [0.9, 0.999]}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"dimm": {"choices": [8]}}, r"unknown setting in models.sasrec.search_space 'dimm' \(did you mean 'dim'"),
        ({"train": {"optimizer": {"learning_rate": {"low": 1, "high": 2}}}}, r"did you mean 'train.optimiser'"),
        (
            {"dropout": {"lo": 0.1, "high": 0.2}},
            r"unknown setting 'models.sasrec.search_space.dropout.lo'.*did you mean 'lo",
        ),
        ({"dropout": {"low": 0.5, "high": 0.2}}, r"low is 0.5 and high 0.2; it must be low <= high"),
        ({"dropout": {"low": 0.0, "high": 0.2, "log": True}}, r"it must be 0 < low <= high"),
        ({"dropout": {"low": 0.1}}, r"search_space.dropout.low or high is missing: give both"),
        ({"dropout": 0.3}, r"search_space.dropout is 0.3; give \{low"),
        ({"dropout": {"low": "a", "high": 1}}, r"models.sasrec.search_space.dropout.low cannot be 'a'"),
        ({"dim": {"choices": []}}, r"choices is \[\]; give one or more"),
        ({"block": {"low": 1, "high": 2}}, r"block: the conf has 'sasrec', which lies in no range"),
        ({"heads": {"choices": [1, 3]}}, r"search_space.heads has 3, which sasrec refuses: .*dim 16 is not a multiple"),
        ({"train.optimiser.weight_decay": {"low": 0.0, "high": 0.1}}, r"has no value of it.*add `default:`"),
        ({"train.optimiser.weihgt_decay": {"low": 0.0, "high": 0.1, "default": 0.0}}, r"did you mean 'weight_decay'"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused_by_name(own, message):
    with pytest.raises(ConfigError, match=message):
        search_space(run_config(space=own), {})


def test_a_mistake_in_the_common_ranges_is_not_the_models():
    with pytest.raises(ConfigError, match=rf"^unknown setting in {COMMON} 'droput'"):
        search_space(run_config(space={}), {"droput": {"low": 0.0, "high": 0.5}})


def test_dots_and_blocks_are_one():
    nested = {"train": {"loss": {"t": {"low": 0, "high": 1}}, "optimiser": {"learning_rate": None}}}
    assert flatten(nested) == {"train.loss.t": {"low": 0, "high": 1}, LEARNING_RATE: None}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", block(FILES, "datasets"))
def test_every_model_has_a_search_space_that_it_accepts_on_every_data_set(dataset):
    configuration = Configuration(FILES, {"dataset": dataset})
    for model in configuration.model_names:
        space = search_space(configuration.run(model), configuration["tune"]["search_space"])
        assert len(space), f"{model} has nothing to tune"
        for name, distribution in space.distributions().items():
            assert not distribution.single(), f"{model} on {dataset}: {name} has one value"
            assert distribution._contains(distribution.to_internal_repr(space.first_params()[name]))
