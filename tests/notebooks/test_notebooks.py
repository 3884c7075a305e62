"""Every notebook runs from top to bottom on what `kedro run --env test` left, and is saved as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PARAMETERS = {"02_train_and_compare": 'TRAIN = "item_knn"'}  # besides ENV


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory) -> Path:
    """A copy of the project after a whole run, with a folder for notebooks."""
    folder = shutil.copytree(whole_run[0], tmp_path_factory.mktemp("notebooks") / "project", symlinks=True)
    (folder / "notebooks").mkdir()
    return folder


@pytest.fixture
def executed(request, finished, project, tmp_path, monkeypatch) -> nbformat.NotebookNode:
    """The notebook after it ran, with its parameters replaced as papermill does it: by a cell behind theirs."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(project / "src"))
    book = nbformat.read(request.param, as_version=4)
    (place,) = (n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    given = f'ENV = "test"\n{PARAMETERS.get(request.param.stem, "")}'
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    client = NotebookClient(
        book,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(finished / "notebooks")}},
    )
    return client.execute()


@pytest.mark.parametrize("executed", NOTEBOOKS, ids=lambda path: path.stem, indirect=True)
def test_it_runs_on_small_data_and_shows_something_in_every_part(executed) -> None:
    shown = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    silent = {cell.id for cell in executed.cells if cell.cell_type == "code" and not cell.outputs}
    assert silent <= {"parameters", "open", "train", executed.cells[2].id}, silent
    kinds = {kind for outputs in shown.values() for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.plotly.v1+json" in kinds
    for outputs in shown.values():
        for output in outputs:
            drawn = output.get("data", {}).get("application/vnd.plotly.v1+json")
            assert drawn is None or drawn["data"]


@pytest.mark.parametrize("executed", NOTEBOOKS[1:2], ids=lambda path: path.stem, indirect=True)
def test_what_was_trained_in_the_notebook_stands_on_its_leaderboard_and_answers_have_titles(executed) -> None:
    told = {cell.id: "".join(map(str, cell.get("outputs", ()))) for cell in executed.cells}
    assert all(name in told["board"] for name in ("item_knn", "popular", "sasrec"))
    assert "LANTERN" in told["find"] and "probability" in told["ask"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_saved_without_output(path) -> None:
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert set(book.metadata) == {"kernelspec", "language_info"}


def test_there_are_the_four_that_the_readme_names(project) -> None:
    told = (project / "README.md").read_text()
    assert len(NOTEBOOKS) == 4
    assert [path.name for path in NOTEBOOKS if path.name not in told] == []
