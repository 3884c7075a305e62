"""What recpipe relies on in Kedro's private side: these fail when Kedro changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro_datasets.json import JSONDataset
from tests.artefacts import names

from recpipe import pipeline_registry
from recpipe.kedro_compat import (
    SessionWithOneLoader,
    WholeFile,
    file_of,
    loaded_file,
    nodes_to_resume_from,
    reload_pipelines,
    unwrapped,
)


def test_pipelines_are_registered_again_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def register() -> dict[str, Pipeline]:
        calls.append(1)
        return {"__default__": Pipeline([])}

    monkeypatch.setattr(pipeline_registry, "register_pipelines", register)
    for expected in (1, 2):
        reload_pipelines()
        assert list(pipelines) == list(pipelines) == ["__default__"]
        assert len(calls) == expected
    monkeypatch.undo()
    reload_pipelines()


def test_a_session_makes_its_loader_once_and_the_context_gets_the_same(project: Path, session_in) -> None:
    with session_in(project) as session:
        assert isinstance(session, SessionWithOneLoader)
        assert session.load_context().config_loader is session.config_loader is session._get_config_loader()


def test_a_sibling_is_of_the_same_project_and_environment(project_copy: Path, session_in) -> None:
    with session_in(project_copy, env="test", runtime_params={"seed": 1}) as session:
        other = session.sibling({"seed": 2})
    assert isinstance(other, KedroSession)
    assert other is not session
    assert (other.store["env"], other.store["runtime_params"]) == ("test", {"seed": 2})
    assert other._project_path == session._project_path


def test_kedro_asks_the_method_that_we_override_for_its_loader() -> None:
    assert "_get_config_loader" in KedroSession.load_context.__code__.co_names


def test_a_run_goes_on_where_the_files_are(tmp_path: Path) -> None:
    nodes = [node(lambda a: a, before, after, name=after) for before, after in ("ab", "bc", "cd")]
    catalog = DataCatalog({"b": JSONDataset(filepath=str(tmp_path / "b.json")), "c": MemoryDataset()})
    catalog.save("b", 1)
    assert nodes_to_resume_from(Pipeline(nodes), {nodes[2]}, catalog) == {"c"}


def test_files_of_datasets(tmp_path: Path) -> None:
    dataset = JSONDataset(filepath=str(tmp_path / "a.json"))
    assert file_of(dataset) == tmp_path / "a.json"
    assert loaded_file(dataset) == tmp_path / "a.json"
    assert file_of(object()) is None


def test_a_stock_method_can_be_called_without_kedros_checks(tmp_path: Path) -> None:
    calls: list[str] = []

    class Once(JSONDataset):
        def load(self) -> object:
            calls.append("load")
            return unwrapped(super().load)(self)

    (tmp_path / "a.json").write_text("[1]")
    assert isinstance(Once(filepath=str(tmp_path / "a.json")), AbstractDataset)
    assert Once(filepath=str(tmp_path / "a.json")).load() == [1]
    assert calls == ["load"]


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    class Whole(WholeFile, JSONDataset):
        pass

    dataset = Whole(filepath=str(tmp_path / "a.json"))
    dataset.save({"a": 1})
    with pytest.raises(Exception, match="not JSON serializable"):
        dataset.save({"a": 2, "b": object()})
    assert dataset.load() == {"a": 1}
    assert names(tmp_path) == ["a.json"]
