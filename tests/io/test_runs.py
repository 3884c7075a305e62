"""All runs of a data set as one Kedro dataset: what is on disk, and what this command has evaluated."""

from __future__ import annotations

from kedro.io import DataCatalog
from tests.reporting.runs_on_disk import VERSION, write_json

from recpipe.io.runs import RunsDataset

NAMES = ("reporting", "output", "models", "features")


def runs_dataset(folder) -> RunsDataset:
    return RunsDataset(**{name: {"path": str(folder / name)} for name in NAMES})


def test_runs_on_disk_come_as_one_store_that_is_the_same_until_it_is_released(tmp_path) -> None:
    dataset = runs_dataset(tmp_path)
    assert not dataset.exists() and dataset.load().metrics.readable() == {}
    dataset.release()
    write_json(tmp_path / "reporting" / "a" / "seed_1" / "metrics.json" / VERSION / "metrics.json", {"n": 1})
    store = dataset.load()
    assert dataset.exists() and store.metrics.readable() == {"a/seed_1": {"n": 1}}
    assert dataset.load() is store
    dataset.release()
    assert dataset.load() is not store


def test_saved_results_are_there_in_later_loads_and_win(tmp_path) -> None:
    dataset = runs_dataset(tmp_path)
    write_json(tmp_path / "reporting" / "a" / "seed_1" / "metrics.json" / VERSION / "metrics.json", {"n": 1})
    dataset.load()
    dataset.save({"a/seed_1": {"n": 2}})
    dataset.save({"b/seed_1": {"n": 3}})
    dataset.release()
    assert dataset.load().metrics.readable() == {"a/seed_1": {"n": 2}, "b/seed_1": {"n": 3}}
    assert not list(tmp_path.rglob("b"))  # its own entry writes it


def test_folders_of_a_catalog_entry_are_those_of_its_run_store(tmp_path) -> None:
    entry = {name: {"path": str(tmp_path / name)} for name in NAMES}
    store = DataCatalog.from_config({"runs": {"type": "recpipe.io.runs.RunsDataset", **entry}}).load("runs")
    assert {name: getattr(store, name) for name in NAMES} == {name: tmp_path / name for name in NAMES}
