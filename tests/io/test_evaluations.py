"""What evaluation leaves of a run, as one Kedro dataset: four files, of which the metrics come last."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError, Version
from tests.io.test_files import Unwritable

from recpipe.evaluation.evaluate import Evaluation
from recpipe.io.evaluations import EvaluationDataset

RANKS = pa.table({"user_id": ["a", "b"], "rank": [1, 0]})
LISTS = pa.table({"user_id": ["a", "a"], "item_id": ["x", "y"]})
METRICS = {
    "model": "m",
    "protocol": {"id": "abc"},
    "test": {"ndcg@10": 0.5, "users": 2, "by_group": {"x": 1}},
    "valid": None,
    "cost": {"device": "cpu"},
}
FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def dataset(folder: Path, version: str | None = None) -> EvaluationDataset:
    return EvaluationDataset(
        filepath=str(folder / "reporting" / "metrics.json"),
        output={"path": str(folder / "output")},
        version=Version(None, version),
    )


def evaluation(number: int) -> Evaluation:
    return Evaluation(
        {**METRICS, "seed": number}, RANKS.slice(0, number), LISTS, f"user_id,item_ids\n{number}\n"
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_is_four_files_and_loads_as_its_metrics(tmp_path) -> None:
    assert not dataset(tmp_path).exists()
    dataset(tmp_path, FIRST).save(evaluation(1))
    assert dataset(tmp_path).exists()
    assert dataset(tmp_path).load() == {**METRICS, "seed": 1}
    assert files(tmp_path) == {
        f"reporting/metrics.json/{FIRST}/metrics.json",
        f"output/recommendations.parquet/{FIRST}/recommendations.parquet",
        "output/ranks.parquet",
        "output/submission.csv",
    }
    assert pq.read_table(tmp_path / "output" / "ranks.parquet").equals(RANKS.slice(0, 1))
    assert (tmp_path / "output" / "submission.csv").read_text() == "user_id,item_ids\n1\n"


def test_metrics_and_recommendations_have_versions_and_the_latest_is_loaded(tmp_path) -> None:
    for number, version in enumerate((FIRST, SECOND), 1):
        dataset(tmp_path, version).save(evaluation(number))
    assert dataset(tmp_path).load()["seed"] == 2
    earlier = EvaluationDataset(
        filepath=str(tmp_path / "reporting" / "metrics.json"),
        output={"path": str(tmp_path / "output")},
        version=Version(FIRST, None),
    )
    assert earlier.load()["seed"] == 1
    lists = {
        path.parent.name for path in (tmp_path / "output").rglob("recommendations.parquet") if path.is_file()
    }
    assert lists == {FIRST, SECOND}
    assert pq.read_table(tmp_path / "output" / "ranks.parquet").num_rows == 2


@pytest.mark.parametrize(
    "broken",
    [
        Evaluation({**METRICS, "odd": Unwritable()}, RANKS, LISTS),
        Evaluation(METRICS, RANKS, Unwritable()),
        Evaluation(METRICS, RANKS, LISTS, Unwritable()),
    ],
    ids=["metrics", "recommendations", "submission"],
)
def test_a_failed_save_is_no_version_and_leaves_no_half_files(tmp_path, broken) -> None:
    """Metrics are written last: whatever fails, the run does not count."""
    dataset(tmp_path, FIRST).save(evaluation(1))
    with pytest.raises(DatasetError):
        dataset(tmp_path, SECOND).save(broken)
    assert dataset(tmp_path).load()["seed"] == 1
    assert f"reporting/metrics.json/{SECOND}/metrics.json" not in files(tmp_path)
    assert not [name for name in files(tmp_path) if name.endswith(".part")]


def test_nothing_but_the_metrics_is_missing_when_they_fail(tmp_path) -> None:
    with pytest.raises(DatasetError):
        dataset(tmp_path, FIRST).save(Evaluation({"odd": Unwritable()}, RANKS, LISTS, "text"))
    assert files(tmp_path) == {
        f"output/recommendations.parquet/{FIRST}/recommendations.parquet",
        "output/ranks.parquet",
        "output/submission.csv",
    }


def test_the_preview_is_the_numbers_of_both_folds_and_the_cost(tmp_path) -> None:
    dataset(tmp_path, FIRST).save(evaluation(1))
    preview = dataset(tmp_path).preview()
    assert preview["columns"] == ["part", "name", "value"]
    assert preview["data"] == [["test", "ndcg@10", 0.5], ["test", "users", 2], ["cost", "device", "cpu"]]
    assert len(preview["index"]) == 3


def test_a_catalog_entry_saves_under_the_version_of_the_run(tmp_path) -> None:
    entry = {
        "type": "recpipe.io.evaluations.EvaluationDataset",
        "filepath": str(tmp_path / "metrics.json"),
        "output": {"path": str(tmp_path / "output")},
        "versioned": True,
    }
    catalog = DataCatalog.from_config({"m_evaluation": entry}, save_version=FIRST)
    catalog.save("m_evaluation", evaluation(1))
    assert json.loads((tmp_path / "metrics.json" / FIRST / "metrics.json").read_text())["seed"] == 1
    assert catalog.load("m_evaluation")["seed"] == 1
