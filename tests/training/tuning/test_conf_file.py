"""The conf file of a tuned model: resolved on its data set it is the best trial, elsewhere the parent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from recpipe.config import ConfigError, Configuration, RunConfig
from recpipe.training.tuning.conf_file import TunedModel, check_writable, write
from recpipe.training.tuning.results import conf_block
from recpipe.training.variants import with_overrides

BASE = {
    "globals": {"dataset": "shop", "model": "sasrec", "seed": 1, "data": "data", "raw": "raw", "init_from": "none",
                "accelerate": "auto", "seeds": None, "baselines": None},
    "parameters": {
        "datasets": {"shop": {"profile": "sparse"}, "other": {}},
        "profiles": {"sparse": {}},
        "train": {"loss": {"name": "full_softmax"}, "optimiser": {"name": "adam", "learning_rate": 0.001}},
        "side": {},
        "cold_users": {},
        "models": {
            "sasrec": {
                "type": "sasrec", "dim": 64, "dropout": 0.1,
                "profiles": {"sparse": {"dropout": 0.5, "train": {"optimiser": {"weight_decay": 0.1}}}},
                "datasets": {"shop": {"dim": 128, "train": {"loss": {"name": "bce", "negatives": {"uniform": 1}}}}},
            }
        },
    },
}  # fmt: skip


def conf(folder: Path) -> Path:
    (folder / "conf/base").mkdir(parents=True)
    for name, values in BASE.items():
        (folder / f"conf/base/{name}.yml").write_text(yaml.safe_dump(values))
    return folder / "conf"


def resolved(folder: Path, model: str, dataset: str = "shop") -> RunConfig:
    return Configuration.read(folder, overrides={"dataset": dataset}).run(model)


def file_of(folder: Path) -> Path:
    return folder / "local/parameters/models/sasrec_tuned.yml"


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 32, "dropout": 0.0625, "train.optimiser.learning_rate": 1.2345678901234567e-05},
        {"train.optimiser.weight_decay": 0.25, "train.loss.negatives.uniform": 256, "layers": 3},
        {"train.loss.name": "bpr", "train.optimiser.name": "sgd", "dim": 128},
        {"train.window": None, "train.optimiser.betas": [0.9, 0.98], "dim": 128, "dropout": 0.5},
        {},
        {"side.items": "genre", "dim": 32},
    ],
)
def test_the_tuned_model_has_the_settings_of_the_trial_on_its_data_set_and_no_others_elsewhere(tmp_path, settings):
    folder = conf(tmp_path)
    parent = resolved(folder, "sasrec")
    parent = replace(parent, train={"window": 50, **parent.train})
    trial = with_overrides(parent, settings)
    write(file_of(folder), TunedModel("sasrec", "shop", conf_block(parent, trial), "about"))
    tuned = resolved(folder, "sasrec_tuned")
    assert tuned.settings == trial.settings
    assert {"window": 50, **tuned.train} == trial.train
    assert replace(resolved(folder, "sasrec_tuned", "other"), name="sasrec") == resolved(folder, "sasrec", "other")


def test_the_second_data_set_is_added_and_a_second_study_replaces_the_first(tmp_path):
    folder = conf(tmp_path)
    for dataset, dim, about in (("shop", 8, "first"), ("other", 16, "second"), ("shop", 32, "third")):
        write(file_of(folder), TunedModel("sasrec", dataset, {"dim": dim}, about))
    dims = [resolved(folder, "sasrec_tuned", dataset).settings["dim"] for dataset in ("shop", "other")]
    assert dims == [32, 16]
    text = file_of(folder).read_text()
    assert "# shop: third" in text and "# other: second" in text and "first" not in text


def test_a_file_that_people_wrote_is_not_overwritten(tmp_path):
    folder = conf(tmp_path)
    file_of(folder).parent.mkdir(parents=True)
    file_of(folder).write_text("models: {sasrec_tuned: {extends: sasrec, dim: 4}}\n")
    for action in (
        lambda: check_writable(file_of(folder)),
        lambda: write(file_of(folder), TunedModel("sasrec", "shop", {}, "")),
    ):
        with pytest.raises(ConfigError, match=r"sasrec_tuned.yml was not written by the pipeline tune.*rename"):
            action()
    assert "dim: 4" in file_of(folder).read_text()
    check_writable(folder / "absent.yml")
