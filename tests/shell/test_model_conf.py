"""Every model's conf block, resolved for every data set of conf/base: what `train` would be given, at tiny sizes."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.config import OmegaConfigLoader
from tests.synthetic import catalogue_ids

from recpipe.models.registry import ModelSpec, build, configured, model_class, resolve, side_config
from recpipe.pipelines.blocks import protocol_of
from recpipe.training.losses import make_loss
from recpipe.training.optim import make_optimiser
from recpipe.training.schedules import make_schedule
from recpipe.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
ITEMS, WINDOW = 20, 6
CONF: dict[str, Any] = OmegaConfigLoader(
    conf_source=str(ROOT / "conf"), base_env="base", default_run_env="base"
)["parameters"]
MODELS, DATASETS = CONF["models"], CONF["datasets"]
COVERED = ("ml-100k", "ml-1m", "ml-10m", "ml-20m", "steam", "music4all")  # and an Amazon set


def learns_widths(name: str) -> bool:
    """Whether the model has a width that should grow with the data: all but neighbours and popularity."""
    widths = {"dim", "factors"} & {field.name for field in fields(model_class(MODELS[name]["type"]).Config)}
    return bool(widths)


VARIANTS = ("bpr", "esasrec", "gsasrec", "sasrec_bce", "sasrec_sampled")
TUNED = [name for name, block in MODELS.items() if learns_widths(name) and name in (block["type"], *VARIANTS)]


@cache
def built(type_: str, settings: str, modalities: tuple[str, ...]) -> torch.nn.Module:
    ids = {modality: catalogue_ids(ITEMS) for modality in modalities}
    return build(type_, json.loads(settings), n_items=ITEMS, max_length=WINDOW, ids=ids)


def train_settings(spec: ModelSpec, name: str) -> TrainSettings:
    settings: TrainSettings = configured(TrainSettings, {**CONF["train"], **spec.train}, where=name)
    return settings


@pytest.mark.parametrize("name", MODELS)
def test_the_block_builds_for_every_data_set(name):
    for dataset in DATASETS:
        spec = resolve(MODELS[name], dataset)
        where = f"{name} on {dataset}"
        configured(model_class(spec.type).Config, spec.config, where=where)
        if side_config(spec, where=where).empty:
            built(spec.type, json.dumps(spec.config, sort_keys=True), spec.ids)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if not model_class(MODELS[name]["type"]).closed_form]
)
def test_its_training_is_accepted_on_every_data_set(name):
    counts = torch.ones(ITEMS + 1)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    for dataset in DATASETS:
        settings = train_settings(resolve(MODELS[name], dataset), f"{name} on {dataset}")
        loss = make_loss(settings.loss, counts)
        value = loss(torch.ones(3, 4), torch.ones(ITEMS + 1, 4), torch.tensor([1, 2, 3]))
        assert torch.isfinite(value)
        optimiser = make_optimiser([weight], settings.optimiser)
        make_schedule(optimiser, settings.schedule, steps=10, epoch_steps=5)
        history = protocol_of(CONF["protocol"], DATASETS, dataset).history
        assert settings.batch_tokens > history, f"{dataset}: a step does not hold one sequence"
        assert settings.patience <= settings.max_epochs


@pytest.mark.parametrize("name", [name for name in MODELS if model_class(MODELS[name]["type"]).closed_form])
def test_a_model_without_the_trainer_has_no_train_block(name):
    for dataset in DATASETS:
        assert resolve(MODELS[name], dataset).train == {}


@pytest.mark.parametrize("name", MODELS)
def test_overrides_are_of_data_sets_that_exist(name):
    assert set(MODELS[name].get("datasets") or {}) <= set(DATASETS)


@pytest.mark.parametrize("name", TUNED)
def test_a_model_with_a_width_says_what_it_is_on_every_kind_of_data(name):
    """``{}`` says that the values of the block are that data set's own."""
    own = MODELS[name]["datasets"]
    assert [dataset for dataset in COVERED if dataset not in own] == []
    assert any(dataset.startswith("amazon-") for dataset in own)


def test_an_unknown_key_is_refused():
    block = {**MODELS["sasrec"], "datasets": {"steam": {"drop_out": 0.5, "train": {"epochs": 3}}}}
    spec = resolve(block, "steam")
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        build(spec.type, spec.config, n_items=ITEMS, max_length=WINDOW)
    with pytest.raises(ValueError, match="unknown setting 'epochs'"):
        train_settings(spec, "sasrec")


def test_values_of_one_data_set_reach_the_model():
    spec = resolve(MODELS["sasrec"], "ml-20m")
    assert (spec.config["dim"], spec.config["layers"]) == (256, 2)
    assert spec.train["loss"] == {"name": "sampled_softmax", "negatives": {"uniform": 3000}, "log_q": False}
    assert spec.train["windows"] == "all"
    assert resolve(MODELS["sasrec"], "ml-1m").config["dim"] == 64
