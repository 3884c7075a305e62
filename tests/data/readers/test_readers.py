"""The data sets that come with the project: every block is one that `fetch` and `read` understand."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ibis.backends.duckdb import Backend

from recpipe.config import Configuration, build_config, read_parameters
from recpipe.config.files import Tree, block, merge, to_tree
from recpipe.config.run_config import BY_DATASET
from recpipe.config.schema import DatasetConfig
from recpipe.data import readers, sampling
from recpipe.data.files.fetch import SourceMissingError, fetch
from recpipe.data.readers import files, read, reader_names

CONF = Path(__file__).parents[3] / "conf"
FOLDER = CONF / "base/parameters/datasets"
FILES = read_parameters(CONF, "base")
KEYS = {"title", "source", "licence", "citation", "files", "bad_rows", "steps"}


def block_of(name: str, files: Tree = FILES) -> dict[str, Any]:
    """The data set as `fetch` and `read` get it: without the blocks in which it overrides others."""
    values = Configuration(files, {"dataset": name}).parameters()["datasets"][name]
    dataset = build_config(DatasetConfig, values, where=name)
    return dataset.model_dump(exclude_unset=True)


@pytest.mark.parametrize("name", block(FILES, "datasets"))
def test_every_data_set_of_the_project(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = block_of(name)
    assert set(values) >= KEYS
    assert (FOLDER / f"{name}.yml").exists(), "one file per data set, of its name"
    readers.check(values, where=name)

    def offline(url: str, path: Path, *, checksum: str | None) -> Path:
        assert url.startswith("https://") and "{" not in url
        assert checksum is None or checksum.partition(":")[0] in ("md5", "sha256")
        raise ConnectionError("no network")

    monkeypatch.setattr(importlib.import_module("recpipe.data.files.fetch"), "download", offline)
    with pytest.raises(SourceMissingError, match=r"Put .* into"):
        fetch(values, tmp_path)


def test_the_uncommented_template_reads_a_log(tmp_path: Path, reading: Any) -> None:
    text = (FOLDER / "my_log.yml").read_text()
    start = text.index("# datasets:")
    end = text.index("#\n# One sequence per row")
    template = yaml.safe_load("\n".join(line[2:] for line in text[start:end].splitlines()))
    values = block_of("my_log", merge(FILES, to_tree(template, "my_log.yml")))
    readers.check(values, where="my_log")
    (tmp_path / "e.csv").write_text("visitor;sku;happened_at;stars;quantity\nv;1;2024-05-01T12:30:00+02:00;5;2\n")
    (tmp_path / "p.csv").write_text("sku,name,brand,description,picture_url\n1,Cup,B,big,http://x\n")
    tables = reading(values["source"], values["options"], interactions=tmp_path / "e.csv", items=tmp_path / "p.csv")
    log, items = tables.interactions.to_pyarrow().to_pylist(), tables.items.to_pyarrow().to_pylist()
    assert (log[0]["timestamp"], log[0]["rating"], log[0]["weight"], log[0]["problem"]) == (1714559400, 5.0, 2.0, None)
    assert items == [
        {"item_id": "1", "title": "Cup", "text": "Cup. B. big", "image": "http://x", "brand": "B", "description": "big"}
    ]


def test_the_template_names_every_key_column_step_and_argument() -> None:
    text = (FOLDER / "my_log.yml").read_text()
    options = [field.name for field in dataclasses.fields(files.Options)]
    keys = [*options, *files.LOG_COLUMNS, *DatasetConfig.model_fields, *BY_DATASET, *block(FILES, "protocol")]
    assert [name for name in keys if not re.search(rf"\b{name}\b", text)] == []
    for name, step in sampling.STEPS.items():
        lines = [line for line in text.splitlines() if re.search(rf"step: {name}\b.*}} +# \w", line)]
        assert lines, name
        for argument in list(inspect.signature(step).parameters)[1:]:
            assert any(f" {argument}: " in line for line in lines), (name, argument)
        example = yaml.safe_load(lines[0][lines[0].index("{") :])
        sampling.check([example])


def test_an_unknown_source_is_refused(con: Backend) -> None:
    assert reader_names() == ["amazon", "files", "movielens", "music4all", "numbered_lists", "online_retail", "steam"]
    for source in ("movielense", "fetch", "../movielens", "os"):
        with pytest.raises(ValueError, match="choose amazon, files, movielens"):
            read({"source": source}, {"files": {}}, con)
