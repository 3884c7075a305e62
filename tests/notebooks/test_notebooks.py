"""Every notebook runs on the data of `kedro run --env test --params modality=text` and is saved without output."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FIGURE = "application/vnd.plotly.v1+json"
SILENT = {"parameters", "overrides", "open", "train"}
PARAMETERS = {"02_train_and_compare": 'TRAIN = "item_knn"'}  # besides ENV


@pytest.fixture(scope="module")
def project_folder(whole_run_with_ids, tmp_path_factory) -> Path:
    """A copy of the project after a full run with semantic ids, with a folder for notebooks."""
    folder = shutil.copytree(whole_run_with_ids[0], tmp_path_factory.mktemp("notebooks") / "project", symlinks=True)
    (folder / "notebooks").mkdir()
    return folder


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request, project_folder, project, tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook after it ran; as in papermill, a cell after the parameters overrides them."""
    book = nbformat.read(request.param, as_version=4)
    (place,) = (n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    overrides = f'ENV = "test"\n{PARAMETERS.get(request.param.stem, "")}'
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(overrides, id="overrides"))
    resources = {"metadata": {"path": str(project_folder / "notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.setenv("PYTHONPATH", str(project / "src"))
        NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    return book


def test_every_cell_has_output(executed) -> None:
    outputs_of = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    assert {name for name, outputs in outputs_of.items() if not outputs} <= SILENT
    data = [output.get("data", {}) for outputs in outputs_of.values() for output in outputs]
    figures = [value[FIGURE] for value in data if FIGURE in value]
    assert len(figures) >= 2 and all(figure["data"] for figure in figures)


def test_trained_models_are_on_the_leaderboard_and_recommendations_have_titles(executed) -> None:
    text = {cell.id: "".join(map(str, cell.get("outputs", ()))) for cell in executed.cells}
    if "ask" in text:
        assert all(name in text["board"] for name in ("item_knn", "popular", "sasrec"))
        assert "LANTERN" in text["find"] and "probability" in text["ask"]


def test_the_service_of_a_notebook_answers_as_the_model_in_python(executed) -> None:
    cells = {cell.id: cell for cell in executed.cells}
    if "request" in cells:
        answers = [output["data"]["text/plain"] for output in cells["request"].outputs if "data" in output]
        items = [row["item_id"] for row in ast.literal_eval(answers[-1])["lists"][0]["items"]]
        assert len(items) == 3
        assert all(item in str(cells["recommend"].outputs) for item in items)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_saved_without_output(path) -> None:
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert set(book.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_with_what_they_show(path) -> None:
    title, what, questions, needs = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")[:4]
    assert title.startswith("# ") and what
    lines = questions.splitlines()
    assert len(lines) >= 3 and all(line.startswith("- ") and line.endswith("?") for line in lines)
    assert needs.startswith("Needs ") and "Takes seconds" in needs


def test_the_readme_names_all_notebooks(project) -> None:
    readme = (project / "README.md").read_text()
    assert [path.name for path in NOTEBOOKS if path.name not in readme] == []
