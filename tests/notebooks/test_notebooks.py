"""Every notebook runs from top to bottom on what `kedro run --env test` left, and is saved as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FIGURE = "application/vnd.plotly.v1+json"
SILENT = {"parameters", "given", "open", "train"}
PARAMETERS = {"02_train_and_compare": 'TRAIN = "item_knn"'}  # besides ENV


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory) -> Path:
    """A copy of the project after a whole run, with a folder for notebooks."""
    folder = shutil.copytree(whole_run[0], tmp_path_factory.mktemp("notebooks") / "project", symlinks=True)
    (folder / "notebooks").mkdir()
    return folder


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request, finished, project, tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook after it ran, with its parameters replaced as papermill does it: by a cell behind theirs."""
    book = nbformat.read(request.param, as_version=4)
    (place,) = (n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    given = f'ENV = "test"\n{PARAMETERS.get(request.param.stem, "")}'
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(given, id="given"))
    where = {"metadata": {"path": str(finished / "notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.setenv("PYTHONPATH", str(project / "src"))
        NotebookClient(book, timeout=120, kernel_name="python3", resources=where).execute()
    return book


def test_it_runs_on_small_data_and_every_cell_shows_something(executed) -> None:
    shown = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    assert {name for name, outputs in shown.items() if not outputs} <= SILENT
    data = [output.get("data", {}) for outputs in shown.values() for output in outputs]
    figures = [each[FIGURE] for each in data if FIGURE in each]
    assert len(figures) >= 2 and all(figure["data"] for figure in figures)


def test_what_a_notebook_trained_stands_on_its_leaderboard_and_answers_have_titles(executed) -> None:
    told = {cell.id: "".join(map(str, cell.get("outputs", ()))) for cell in executed.cells}
    if "ask" in told:
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
