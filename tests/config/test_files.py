"""Parameter files: read once, one environment over the other, faults named with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from recpipe.config import ConfigError, read_parameters, read_yaml
from recpipe.config.files import leaves, to_tree, to_values

ROOT = Path(__file__).parents[2]


def conf(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        file = folder / "conf" / name.replace("__", "/").replace("_yml", ".yml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "conf"


@pytest.mark.parametrize("env", ["base", "test", "spark"])
def test_the_projects_files_are_read_as_kedro_reads_them(env: str) -> None:
    """Kedro's own loader is the oracle: the same values from the same files, environments merged at any depth."""
    loader = OmegaConfigLoader(
        str(ROOT / "conf"),
        base_env="base",
        default_run_env=env,
        merge_strategy={"parameters": "soft", "globals": "soft"},
    )
    values = to_tree({**loader["globals"], **loader["parameters"]}, "")  # dots in a search space are blocks
    assert to_values(read_parameters(ROOT / "conf", env)) == to_values(values)


def test_an_environment_wins_key_by_key(tmp_path: Path) -> None:
    folder = conf(
        tmp_path,
        base__parameters__train_yml="train: {a: 1, b: {c: 2, d: 3}}",
        local__parameters_yml="train: {b: {c: 4}}",
        base__globals_yml="seed: 1",
        base__catalog_yml="train: {a: 9}",
        base__parameters___hidden__x_yml="train: {a: 5}",
    )
    (folder / "base" / "parameters" / "_hidden").rename(folder / "base" / "parameters" / ".hidden")
    tree = read_parameters(folder)
    assert to_values(tree) == {"train": {"a": 1, "b": {"c": 4, "d": 3}}, "seed": 1}
    origins = {key: leaf.file for key, leaf in leaves(tree)}
    assert origins["train.b.c"] == "conf/local/parameters.yml"
    assert origins["train.b.d"] == "conf/base/parameters/train.yml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {a: 1", r"conf/base/parameters/b.yml, line 2, column \d+: broken YAML"),
        ("train:\n  a: 1\n  a: 2\n", r"b.yml, line 2, .*the key 'a' stands twice in one block"),
        ("train: {z: 1}\n", "train.z stands in two files, conf/base/parameters/a.yml and conf/base/parameters/b.yml"),
        ("- a\n- b\n", "b.yml holds a list; it must hold keys with values"),
        ("train: {y: '${globals:seed}'}", r"b.yml: train.y is '\$\{globals:seed\}'; parameters have no interpolation"),
        ("train: {y: !!python/object:os.system x}", "b.yml.*broken YAML"),
    ],
)
def test_faults_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    folder = conf(tmp_path, base__parameters__a_yml="train: {z: 0}", base__parameters__b_yml=text)
    with pytest.raises(ConfigError, match=message):
        read_parameters(folder)


def test_folders_and_environments_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folder 'base'"):
        read_parameters(tmp_path)
    with pytest.raises(ConfigError, match="no environment 'tset' in .*there are base"):
        read_parameters(conf(tmp_path, base__parameters_yml="a: 1"), "tset")


def test_values_are_those_of_yaml_with_plain_floats_and_dates_as_text() -> None:
    text = "a: 1e-3\nb: 2.5E4\nc: 2011-10-01\nd: [1, 2e1]\ne: true\nf: null\ng: 'x'\nh: .5\n"
    values = {"a": 1e-3, "b": 2.5e4, "c": "2011-10-01", "d": [1, 20.0], "e": True, "f": None, "g": "x", "h": 0.5}
    assert read_yaml(text) == values
    assert yaml.safe_load("c: 2011-10-01")["c"] != "2011-10-01"
    anchors = "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n"
    assert read_yaml(anchors) == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}
