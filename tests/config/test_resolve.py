"""One order of precedence: defaults < data set < model < model x profile < model x data set < command line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from recpipe.config import ConfigError, Configuration, ModelInfo, read_parameters, resolve
from recpipe.config.files import Tree, leaves, merge, to_tree, to_values
from recpipe.config.run_config import TOP_LEVEL

FILES: dict[str, Any] = {
    "dataset": "films",
    "model": "net",
    "seed": 42,
    "seeds": None,
    "init_from": "none",
    "accelerate": "auto",
    "modality": "auto",
    "study": "length",
    "baselines": ["popular"],
    "profiles": {"dense": "many events a user", "sparse": "few"},
    "protocol": {"split": "leave_one_out", "history": 200, "time": "none"},
    "cold_users": {"segments": "none", "novelty": 0.0},
    "train": {"epochs": 3, "optimiser": {"name": "adam", "rate": 0.1}, "metric": "ndcg@10"},
    "side": {"vectors": "none", "items": "none", "users": "none", "events": "none"},
    "semantic_ids": {"quantizer": "rqvae", "levels": 3, "kinds": {"text_parts": {"quantizer": "opq"}}},
    "datasets": {
        "films": {"source": "files", "profile": "dense", "protocol": {"history": 50}},
        "shop": {"source": "files", "cold_users": {"segments": "country"}, "baselines": []},
    },
    "models": {
        "net": {
            "type": "net",
            "dim": 64,
            "profiles": {"dense": {"dim": 128, "train": {"epochs": 5}}},
            "datasets": {"films": {"train": {"epochs": 7}}},
        },
        "variant": {"extends": "net", "layers": 4, "datasets": {"shop": {"dim": 8}}},
        "popular": {"type": "popular"},
    },
}


def files(**changed: Any) -> Tree:
    return to_tree({**FILES, **changed}, "conf")


def test_every_layer_wins_over_those_below_it_and_no_other() -> None:
    """All subsets of the layers, against the plain rule: the last one that says something."""
    layers = [
        ("train",),
        ("datasets", "films", "train"),
        ("models", "net", "train"),
        ("models", "net", "profiles", "dense", "train"),
        ("models", "net", "datasets", "films", "train"),
    ]
    bare = to_tree(
        {**FILES, "train": {"epochs": 0}, "models": {"net": {"type": "net"}, "popular": {"type": "popular"}}}, "conf"
    )
    for size in range(1, len(layers) + 1):
        for chosen in combinations(range(len(layers)), size):
            overrides = [nested(layers[number], {"epochs": number + 1}) for number in chosen]
            tree = merge(bare, *(to_tree(each, "conf") for each in overrides))
            assert resolve(tree).train["epochs"] == max(chosen) + 1
    paths = [path for path in layers if path != layers[0]]
    for path in [("train",), *paths]:
        overrides = nested(path, {"epochs": 9})
        assert resolve(files(), overrides=overrides).train["epochs"] == 9
    both = {"train": {"epochs": 8}, "models": {"net": {"train": {"epochs": 9}}}}
    assert resolve(files(), overrides=both).train["epochs"] == 9


def nested(path: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    for name in reversed(path):
        values = {name: values}
    return values


def test_merging_is_deep_and_another_choice_brings_its_own_arguments() -> None:
    same = {"models": {"net": {"train": {"optimiser": {"rate": 0.5}}}}}
    assert resolve(files(), overrides=same).train["optimiser"] == {"name": "adam", "rate": 0.5}
    other = {"models": {"net": {"train": {"optimiser": {"name": "sgd"}}}}}
    assert resolve(files(), overrides=other).train["optimiser"] == {"name": "sgd"}


def test_a_variant_is_its_parent_on_that_data_set_with_the_lines_that_differ() -> None:
    films = resolve(files(), "films", "variant")
    assert (films.type, films.settings, films.train["epochs"]) == ("net", {"dim": 128, "layers": 4}, 7)
    shop = resolve(files(), "shop", "variant")
    assert (shop.settings, shop.train["epochs"]) == ({"dim": 8, "layers": 4}, 3)
    assert resolve(files(), "films", "net").settings == {"dim": 128}


def test_blocks_of_a_data_set_win_over_the_common_ones_and_lose_to_the_command_line() -> None:
    configuration = Configuration(files())
    assert configuration["protocol"]["history"] == 50
    assert Configuration(files(), {"protocol": {"history": 9}})["protocol"]["history"] == 9
    shop = Configuration(files(), {"dataset": "shop"})
    assert shop["protocol"]["history"] == 200
    assert shop["cold_users"] == {"segments": "country", "novelty": 0.0}
    assert shop["baselines"] == []
    assert configuration["baselines"] == ["popular"]


def test_a_kind_of_ids_has_all_settings_and_its_own_over_them() -> None:
    kinds = Configuration(files(), {"semantic_ids": {"levels": 4}})["semantic_ids"]["kinds"]
    assert kinds["text"] == {"quantizer": "rqvae", "levels": 4}
    assert kinds["text_parts"] == {"quantizer": "opq", "levels": 4}


def test_side_information_for_all_models_passes_over_those_that_read_none() -> None:
    def info(type_: str) -> ModelInfo:
        return ModelInfo({}, takes_side=type_ == "net", by_gradient=True)

    configuration = Configuration(files(), {"side": {"vectors": "text"}}, info)
    assert configuration.run("net").vectors == ("text",)
    assert configuration.run("popular").vectors == ()
    own = Configuration(files(), {"models": {"popular": {"side": {"vectors": "text"}}}}, info)
    assert own.run("popular").vectors == ("text",)  # which the model refuses by name


def test_every_value_knows_where_it_comes_from() -> None:
    configuration = Configuration(files(), {"train": {"metric": "recall@10"}})
    origins = configuration.origins(["net"])
    assert origins["models.net.train.epochs"].origin == "conf: models.net.datasets.films.train.epochs"
    assert origins["models.net.train.metric"].file == "command line"
    assert origins["protocol.history"].origin == "conf: datasets.films.protocol.history"
    values = to_values(configuration.tree("net"))
    assert {key: leaf.value for key, leaf in leaves(to_tree(values, ""))} == {
        key.removeprefix("models.net."): leaf.value for key, leaf in origins.items() if key.startswith("models.net.")
    }


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"a": {"extends": "b"}, "b": {"extends": "c"}, "c": {"extends": "a"}}, "circle: a extends b extends c"),
        ({"a": {"extends": "a"}}, "circle: a extends a"),
        ({"a": {"extends": "nett"}, "net": {"type": "net"}}, r"'nett', an unknown model \(did you mean 'net'\?\)"),
        ({"a": {"dim": 3}}, "models.a has no type"),
        (
            {"a": {"type": "net", "profiles": {"dens": {}}}},
            r"unknown profile of models.a 'dens' \(did you mean 'dense'",
        ),
        (
            {"a": {"type": "net", "datasets": {"film": {"dim": 3}}}},
            r"dataset of models.a 'film' \(did you mean 'films'",
        ),
        (
            {"a": {"type": "net", "datasets": {"films": {"type": "popular"}}}},
            "datasets.films.type: datasets may override settings, not the type",
        ),
    ],
)
def test_models_that_cannot_be_resolved_are_refused_by_name(models: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Configuration(files(models=models)).check()


def test_a_block_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'trian' \(did you mean 'train'\?\)"):
        Configuration(files(trian={"window": 3})).check()
    with pytest.raises(ConfigError, match=r"train is 5; it must be a block"):
        Configuration(files(train=5)).check()


def test_the_names_of_the_top_level_are_those_of_the_conf(project: Path) -> None:
    assert set(read_parameters(project / "conf", "base")) == set(TOP_LEVEL)


@pytest.mark.parametrize(("value", "expected"), [("auto", True), ("off", False), (False, False)])
def test_accelerate_is_auto_or_off(value: object, expected: bool) -> None:
    assert Configuration(files(), {"accelerate": value}).run("net").accelerate is expected
    with pytest.raises(ConfigError, match="accelerate is 'fast'; allowed: auto, off"):
        Configuration(files(), {"accelerate": "fast"}).run("net")


def test_a_profile_that_does_not_exist_is_refused() -> None:
    datasets = {"films": {"source": "files", "profile": "dens"}}
    with pytest.raises(ConfigError, match=r"unknown profile 'dens' \(did you mean 'dense'\?\).*datasets.films.profile"):
        Configuration(files(datasets=datasets)).check()
    with pytest.raises(ConfigError, match=r"unknown dataset 'film' \(did you mean 'films'\?\)"):
        Configuration(files(), {"dataset": "film"}).check()
    with pytest.raises(ConfigError, match=r"unknown model 'nett' \(did you mean 'net'\?\)"):
        Configuration(files()).run("nett")


def test_a_model_that_reads_the_items_of_another_names_one_that_exists() -> None:
    models = {
        **FILES["models"],
        "reader": {"type": "net", "side": {"vectors": "collaborative"}, "collaborative": "nett"},
    }
    with pytest.raises(ConfigError, match=r"models.reader.collaborative is 'nett' \(did you mean 'net'\?\)"):
        Configuration(files(models=models)).run("reader")
    with pytest.raises(ConfigError, match="unknown vectors of models.net.side 'txt'"):
        Configuration(files(), {"side": {"vectors": "txt"}}).run("net")


def test_a_data_set_that_is_like_another_has_its_settings_below_its_own() -> None:
    films = {
        "source": "files", "files": {"interactions": "f.csv"}, "options": {"a": 1}, "profile": "dense",
        "steps": [{"step": "last", "k": 3}], "baselines": ["net"], "protocol": {"history": 50, "time": "query"},
        "content": {"text": {}},
    }  # fmt: skip
    mine = {"source": "files", "like": "films", "protocol": {"history": 7}, "train": None, "steps": None}
    tree = files(datasets={"films": films, "mine": mine, "shop": {"source": "files", "like": "mine"}})
    configuration = Configuration(tree, {"dataset": "mine"})
    configuration.check()
    assert configuration["protocol"] == {"split": "leave_one_out", "history": 7, "time": "query"}
    assert configuration["baselines"] == ["net"] and configuration.profile == "dense"
    assert configuration["datasets"]["mine"] == {
        "source": "files", "like": "films", "profile": "dense", "steps": [{"step": "last", "k": 3}]
    }  # fmt: skip
    assert configuration.run("net").train["epochs"] == 7  # models.net.datasets.films
    assert configuration.run("net").settings["dim"] == 128  # models.net.profiles.dense
    own = {"dataset": "mine", "datasets": {"mine": {"profile": None, "steps": [], "protocol": {"time": "none"}}}}
    changed = Configuration(tree, own)
    changed.check()
    assert changed.profile is None and changed["protocol"]["time"] == "none"
    assert changed["datasets"]["mine"]["steps"] == []
    assert Configuration(tree, {"dataset": "films"})["protocol"]["history"] == 50
    for name, like, message in (
        ("mine", "film", r"unknown data set 'film' \(did you mean 'films'\?\)"),
        ("mine", "mine", "unknown data set 'mine'"),
        ("shop", "mine", "which is like another data set itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            Configuration(tree, {"dataset": name, "datasets": {name: {"like": like}}}).check()
