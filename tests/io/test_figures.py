"""Figures as one Kedro dataset: a file each, whole or as it was, one of them previewed."""

from __future__ import annotations

import json

import plotly.graph_objects as go
import pytest
from kedro.io.core import DatasetError
from tests.io.test_files import Unwritable, names

from recpipe.io.figures import FiguresDataset

BARS, EMPTY = go.Figure(go.Bar(y=[1, 2])), go.Figure()


def test_figures_are_files_of_their_names_and_load_by_name(tmp_path) -> None:
    dataset = FiguresDataset(path=str(tmp_path / "figures"), preview="bars")
    assert not dataset.exists() and dataset.load() == {}
    dataset.save({"bars": BARS, "empty": EMPTY})
    assert dataset.exists()
    assert names(tmp_path / "figures") == ["bars.json", "empty.json"]
    assert dataset.load() == {"bars": BARS, "empty": EMPTY}
    assert dataset.file("bars") == tmp_path / "figures" / "bars.json"
    dataset.save({"bars": EMPTY})
    assert dataset.load() == {"bars": EMPTY, "empty": EMPTY}


def test_a_suffix_keeps_them_apart_from_other_files_of_the_folder(tmp_path) -> None:
    (tmp_path / "quality.json").write_text('{"passed": true}')
    dataset = FiguresDataset(path=str(tmp_path), preview="usage", suffix="_figure.json")
    dataset.save({"usage": BARS})
    assert names(tmp_path) == ["quality.json", "usage_figure.json"]
    assert dataset.load() == {"usage": BARS}


def test_a_figure_that_cannot_be_written_leaves_the_one_of_before(tmp_path) -> None:
    dataset = FiguresDataset(path=str(tmp_path), preview="bars")
    dataset.save({"bars": BARS})
    with pytest.raises(DatasetError):
        dataset.save({"bars": Unwritable()})
    assert dataset.load() == {"bars": BARS}
    assert names(tmp_path) == ["bars.json"]


def test_the_preview_is_the_chosen_figure(tmp_path) -> None:
    dataset = FiguresDataset(path=str(tmp_path), preview="bars")
    dataset.save({"bars": BARS, "empty": EMPTY})
    assert dict(dataset.preview()) == json.loads(BARS.to_json())
