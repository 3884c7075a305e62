"""Every model of conf/base, resolved for every data set: its settings build it, its training is accepted."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.synthetic import catalogue_ids

from recpipe.config import Configuration, RunConfig, build_config, read_parameters
from recpipe.config.files import block, leaves
from recpipe.models.registry import build, model_class, side_config
from recpipe.training.losses import make_loss
from recpipe.training.optimisers import make_optimiser, make_schedule
from recpipe.training.settings import TrainSettings, check_settings

ROOT = Path(__file__).parents[2]
ITEMS, WINDOW = 20, 6
FILES = read_parameters(ROOT / "conf", "base")
MODELS, DATASETS, PROFILES = (list(block(FILES, key)) for key in ("models", "datasets", "profiles"))


@cache
def configuration(dataset: str) -> Configuration:
    return Configuration(FILES, {"dataset": dataset})


@cache
def run_config(model: str, dataset: str) -> RunConfig:
    return configuration(dataset).run(model)


@cache
def build_tiny(type_: str, settings: str, kinds: tuple[str, ...]) -> torch.nn.Module:
    ids = {kind: catalogue_ids(ITEMS) for kind in kinds}
    return build(type_, json.loads(settings), n_items=ITEMS, max_length=WINDOW, ids=ids)


def model_type(model: str) -> str:
    return run_config(model, DATASETS[0]).type


def is_closed_form(model: str) -> bool:
    return bool(model_class(model_type(model)).closed_form)


def parent(model: str) -> str | None:
    leaf = block(FILES, "models", model).get("extends")
    return None if leaf is None else leaf.value


def profiles_with_values(model: str | None) -> set[str]:
    """Profiles for which the model or a model that it extends has values."""
    if model is None:
        return set()
    return {*block(FILES, "models", model, "profiles"), *profiles_with_values(parent(model))}


def has_width(model: str) -> bool:
    """Whether the model has a width that should grow with the data: all but neighbours and popularity."""
    return bool({"dim", "factors"} & {field.name for field in fields(model_class(model_type(model)).Config)})


TRAINED = [model for model in MODELS if not is_closed_form(model)]
# Steps of nanoGPT-recommender, which are compared at one size.
ONE_SIZE = ("transformer", "transformer_generative", "siglip_oneshot", "with_decay", "all_data")


@pytest.mark.parametrize("model", MODELS)
def test_the_model_builds_for_every_data_set(model):
    for dataset in DATASETS:
        run = run_config(model, dataset)
        where = f"{model} on {dataset}"
        build_config(model_class(run.type).Config, run.settings, where=where)
        if side_config(run.type, run.side, where=where).empty:
            build_tiny(run.type, json.dumps(run.settings, sort_keys=True), run.ids)


@pytest.mark.parametrize("model", TRAINED)
def test_its_training_is_accepted_on_every_data_set(model):
    counts = torch.ones(ITEMS + 1)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    for dataset in DATASETS:
        run = run_config(model, dataset)
        settings = build_config(TrainSettings, run.train, where=f"{model} on {dataset}")
        check_settings(settings, model_class(run.type))
        loss = make_loss(settings.loss, counts, torch.arange(ITEMS + 1) > 0)
        assert torch.isfinite(loss(torch.ones(3, 4), torch.ones(ITEMS + 1, 4), torch.tensor([1, 2, 3])))
        optimiser = make_optimiser([weight], settings.optimiser)
        make_schedule(optimiser, settings.schedule, steps=10, epoch_steps=5)
        history = configuration(dataset)["protocol"]["history"]
        assert settings.batch_tokens > history, f"{dataset}: a step does not hold one sequence"
        assert settings.patience <= settings.max_epochs


@pytest.mark.parametrize("model", [model for model in MODELS if is_closed_form(model)])
def test_a_closed_form_model_has_no_train_block(model):
    own = block(FILES, "models", model)
    overrides = [block(own, key, name) for key in ("profiles", "datasets") for name in block(own, key)]
    assert not any("train" in values for values in (own, *overrides))


@pytest.mark.parametrize("model", MODELS)
def test_overrides_are_of_profiles_and_data_sets_that_exist(model):
    own = block(FILES, "models", model)
    assert set(block(own, "profiles")) <= set(PROFILES)
    assert set(block(own, "datasets")) <= set(DATASETS)


def test_every_profile_is_that_of_a_data_set():
    assert {configuration(dataset).profile for dataset in DATASETS} - {None} == set(PROFILES)


@pytest.mark.parametrize("model", [model for model in MODELS if has_width(model) and model not in ONE_SIZE])
def test_a_model_with_a_width_has_values_for_large_data_sets_and_a_trained_one_for_sparse_ones(model):
    """Values for small data sets may be the model's own."""
    needed = {"dense-large"} if is_closed_form(model) else {"dense-large", "sparse"}
    assert needed <= profiles_with_values(model)


@pytest.mark.parametrize("model", [model for model in MODELS if parent(model)])
def test_a_variant_repeats_no_value_of_the_model_that_it_extends(model):
    variant, extended = (dict(leaves(block(FILES, "models", name))) for name in (model, parent(model)))
    top = [key for key in variant if not key.startswith(("train.", "profiles.", "datasets."))]
    assert [key for key in top if key in extended and variant[key].value == extended[key].value] == []


def test_an_unknown_key_is_refused_with_the_nearest_spelling():
    settings = {**run_config("sasrec", "steam").settings, "drop_out": 0.5}
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        build("sasrec", settings, n_items=ITEMS, max_length=WINDOW)
    train = {**run_config("sasrec", "steam").train, "epochs": 3}
    with pytest.raises(ValueError, match="unknown setting 'sasrec.epochs'.*did you mean 'max_epochs'"):
        build_config(TrainSettings, train, where="sasrec")


def test_values_of_a_data_set_and_of_its_profile_reach_the_model():
    run = run_config("sasrec", "ml-20m")
    assert (run.settings["dim"], run.settings["layers"]) == (256, 2)
    assert run.train["loss"] == {"name": "sampled_softmax", "negatives": {"uniform": 3000}, "log_q": False}
    assert run.train["windows"] == "all"
    assert run_config("sasrec", "ml-1m").settings["dim"] == 64
    assert run_config("sasrec", "music4all").settings["dim"] == 128  # over the profile's 256
    assert run_config("sasrec", "steam").train["max_epochs"] == 100


def test_a_variant_is_its_parent_on_the_data_set_but_for_its_own_lines():
    lstm, gru = run_config("lstm", "amazon-beauty"), run_config("gru4rec", "amazon-beauty")
    assert (lstm.type, lstm.settings) == ("lstm", gru.settings)
    assert lstm.train == gru.train
    assert run_config("lstm", "ml-20m").train == {**run_config("gru4rec", "ml-20m").train, "max_epochs": 25}
    query, hstu = run_config("hstu_query", "ml-32m"), run_config("hstu", "ml-32m")
    assert query.settings == {**hstu.settings, "time_mode": "query"} and query.train == hstu.train
