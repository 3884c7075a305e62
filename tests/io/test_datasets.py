"""Kedro datasets: files and folders are complete or absent, also after a save that fails halfway."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import ibis
import numpy as np
import plotly.graph_objects as go
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError, Version
from polars.testing import assert_frame_equal
from tests.artefacts import names
from tests.reporting.runs_on_disk import VERSION, write_json

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.evaluate import Evaluation
from recpipe.io import datasets
from recpipe.io.datasets import (
    BundleDataset,
    EvaluationDataset,
    FiguresDataset,
    LazyParquetDataset,
    ObjectDataset,
    QuantizerDataset,
    RunsDataset,
)
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle
from recpipe.training.checkpoint import BEST, LAST, save_tree

FRAME = pl.DataFrame({"user_id": ["a", "b"], "items": [[1, 2], [3]]})


class Unwritable:
    """Nothing that JSON, polars or a text file can hold."""


FILES = [
    pytest.param(datasets.JSONDataset, {}, {"a": [1, None]}, {"a": 2}, id="json"),
    pytest.param(datasets.TextDataset, {}, "größer\n", "other", id="text"),
    pytest.param(datasets.TableDataset, {"file_format": "parquet"}, FRAME, FRAME.head(1), id="table"),
]


def same(found: object, expected: object) -> None:
    if isinstance(expected, pl.DataFrame):
        assert_frame_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize(("kind", "arguments", "first", "second"), FILES)
def test_files_round_trip_and_survive_a_failing_write(tmp_path, kind, arguments, first, second) -> None:
    dataset = kind(filepath=str(tmp_path / "folder" / "file"), **arguments)
    assert not dataset.exists()
    dataset.save(first)
    same(dataset.load(), first)
    with pytest.raises(DatasetError):
        dataset.save(Unwritable())
    same(dataset.load(), first)
    dataset.save(second)
    same(dataset.load(), second)
    assert names(tmp_path / "folder") == ["file"]


def test_a_json_that_breaks_off_in_the_middle_is_never_seen(tmp_path) -> None:
    dataset = datasets.JSONDataset(filepath=str(tmp_path / "file.json"))
    dataset.save({"whole": True})
    with pytest.raises(DatasetError):
        dataset.save({"first": list(range(10_000)), "then": Unwritable()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"whole": True}
    assert names(tmp_path) == ["file.json"]


def test_a_failed_version_is_no_version(tmp_path) -> None:
    path = str(tmp_path / "metrics.json")
    datasets.JSONDataset(filepath=path, version=Version(None, "2026-01-01T00.00.00.000Z")).save({"run": 1})
    with pytest.raises(DatasetError):
        datasets.JSONDataset(filepath=path, version=Version(None, "2026-01-02T00.00.00.000Z")).save(
            {"run": Unwritable()}
        )
    latest = datasets.JSONDataset(filepath=path, version=Version(None, None))
    assert latest.load() == {"run": 1}
    assert latest.list_versions(full_path=False) == ["2026-01-01T00.00.00.000Z"]


def test_tables_of_two_ingests_are_refused_and_the_next_ingest_mends_that(tmp_path) -> None:
    folder = tmp_path / "primary" / "shop"
    log = LazyParquetDataset(filepath=str(folder / "interactions.parquet"))
    manifest = datasets.IngestManifestDataset(
        filepath=str(tmp_path / "ingest_manifest.json"), tables={"path": str(folder)}
    )
    items = datasets.TableDataset(filepath=str(folder / "items.parquet"), file_format="parquet")

    def save(*outputs: object) -> None:
        for output in outputs:
            frame = pl.DataFrame({"number": [number]})
            if output is log:
                log.save(ibis.duckdb.connect().create_table("t", frame.to_arrow()))
            else:
                output.save(frame if output is items else {"number": number})

    for number in (1, 2):
        save(log, items, manifest)
        assert log.load() == folder / "interactions.parquet" and manifest.load() == {"number": number}
    number = 3
    save(log)
    with pytest.raises(DatasetError, match=r"interactions.parquet is damaged .*run `kedro run --pipelines=ingest`"):
        log.load()
    save(log, items, manifest)
    assert log.load() and items.load()["number"].to_list() == [3]


def test_text_is_previewed_as_text(tmp_path) -> None:
    dataset = datasets.TextDataset(filepath=str(tmp_path / "file.txt"))
    dataset.save("| a |\n<b>\nrest")
    assert dataset.preview(lines=2) == "```\n | a |\n <b>\n```"


CURVE = [{"epoch": 1, "step": 5, "loss": 2.0, "valid_ndcg@10": None}, {"epoch": 2, "step": 10, "loss": 1.5}]


def sequences(*lengths: int) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"user {n}" for n in range(len(lengths))], dtype=object)
    return Sequences(users, np.arange(1, offsets[-1] + 1, dtype=np.int32), None, offsets)


@pytest.mark.parametrize(
    ("holds", "data"),
    [
        ("vocabulary", Vocabulary(np.array(["x", "ÿ"], dtype=object))),
        ("sequences", sequences(3, 1)),
        ("fold", Fold(sequences(2, 1), sequences(1, 1))),
    ],
)
def test_objects_round_trip(tmp_path, holds, data) -> None:
    dataset = ObjectDataset(filepath=str(tmp_path / "deep" / "file.parquet"), holds=holds)
    assert not dataset.exists()
    dataset.save(data)
    assert dataset.exists()
    found = dataset.load()
    for part in ("histories", "targets") if holds == "fold" else (None,):
        mine, theirs = (getattr(each, part) if part else each for each in (data, found))
        for field in ("ids",) if holds == "vocabulary" else ("users", "items", "offsets"):
            np.testing.assert_array_equal(getattr(theirs, field), getattr(mine, field))


def test_objects_of_other_classes_are_refused(tmp_path) -> None:
    with pytest.raises(DatasetError, match="holds is 'os.system' in the catalog; allowed: embeddings, fold"):
        ObjectDataset(filepath=str(tmp_path / "file"), holds="os.system")
    with pytest.raises(DatasetError, match="this entry holds .*Fold, not dict"):
        ObjectDataset(filepath=str(tmp_path / "file"), holds="fold").save({})
    assert not names(tmp_path)


def test_a_quantizer_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    import recpipe.semantic_ids.quantizer as quantizers

    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    fitted = quantizers.build_quantizer("residual_kmeans", {"levels": 2, "codes": 4})
    fitted.fit(vectors, seed=1)
    here = QuantizerDataset(filepath=str(tmp_path / "quantizer"))
    assert not here.exists()
    with pytest.raises(DatasetError, match="not a quantizer.*missing"):
        here.load()
    here.save(fitted)
    assert here.load().hash == fitted.hash

    def broken(quantizer: object, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantizers, "save_quantizer", broken)
    with pytest.raises(DatasetError, match="No space left"):
        here.save(fitted)
    assert here.load().hash == fitted.hash
    assert names(tmp_path) == ["quantizer"]


def test_objects_preview_their_first_rows_without_vectors(tmp_path) -> None:
    from recpipe.content.embeddings import Embeddings

    data = Vocabulary(np.array(["x", "y", "z"], dtype=object))
    dataset = ObjectDataset(filepath=str(tmp_path / "v.parquet"), holds="vocabulary")
    dataset.save(data)
    assert dataset.preview(2)["data"] == [["x"], ["y"]]
    vectors = Embeddings(
        np.array(["x"], object), np.ones((1, 3), np.float32), np.ones(1, bool), np.array(["aa"], object), "s", {}
    )
    dataset = ObjectDataset(filepath=str(tmp_path / "e.parquet"), holds="embeddings")
    dataset.save(vectors)
    assert dataset.preview()["columns"] == ["item_id", "key"]
    dataset = ObjectDataset(filepath=str(tmp_path / "s.arrow"), holds="sequences")
    dataset.save(sequences(2, 1))
    assert dataset.preview(1)["data"][0][0] == "user 0" and dataset.preview(1)["columns"] == ["user_id", "items"]


def test_half_a_bundle_is_never_a_version(tmp_path, monkeypatch) -> None:
    import recpipe.training.bundle

    def broken(bundle: object, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recpipe.training.bundle, "save_bundle", broken)
    dataset = BundleDataset(filepath=str(tmp_path / "bundle"), version=Version(None, "v1"))
    with pytest.raises(DatasetError, match="No space left"):
        dataset.save(object())
    assert not BundleDataset(filepath=str(tmp_path / "bundle"), version=Version(None, None)).exists()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def bundle() -> Bundle:
    """An untrained SASRec with a curve."""
    model = build("sasrec", {"dim": 8, "layers": 1}, n_items=3, max_length=5)
    vocabulary = Vocabulary(np.array(["a", "b", "c"], object))
    events, protocol = np.arange(3), Protocol(dataset="d")
    return Bundle("sasrec", "sasrec", model, vocabulary, [None] * 3, events, protocol, {"seed": 1}, CURVE)


def test_a_bundle_is_saved_as_a_version_with_its_curve_beside_it(tmp_path, bundle) -> None:
    path, curves = str(tmp_path / "bundle"), tmp_path / "reporting" / "curves.parquet"
    for version in ("v1", "v2"):
        dataset = BundleDataset(filepath=path, curves={"path": str(curves)}, version=Version(None, version))
        dataset.save(replace(bundle, training={"seed": version}))
    latest = BundleDataset(filepath=path, version=Version(None, None))
    assert latest.exists() and latest.load().training == {"seed": "v2"}
    assert sorted(latest.list_versions(full_path=False)) == ["v1", "v2"]
    table = pq.read_table(curves)
    assert table.column_names == ["epoch", "step", "loss", "valid_ndcg@10"]
    assert table["loss"].to_pylist() == [2.0, 1.5] and table["valid_ndcg@10"].to_pylist() == [None, None]
    assert names(curves.parent) == ["curves.parquet"]


def test_the_bundle_just_saved_is_loaded_also_beside_one_of_the_future(tmp_path, bundle) -> None:
    path = str(tmp_path / "bundle")
    for version in ("2999-01-01T00.00.00.000Z", FIRST):
        dataset = BundleDataset(filepath=path, version=Version(None, version))
        dataset.save(replace(bundle, training={"seed": version}))
        assert dataset.load().training == {"seed": version}
    assert BundleDataset(filepath=path, version=Version(None, None)).load().training == {"seed": FIRST}
    chosen = BundleDataset(filepath=path, version=Version("2999-01-01T00.00.00.000Z", None))
    assert chosen.load().training == {"seed": "2999-01-01T00.00.00.000Z"}


def test_checkpoints_live_until_the_bundle_is_on_disk(tmp_path, bundle, monkeypatch) -> None:
    import recpipe.training.bundle

    work = tmp_path / "work"
    for name in (BEST, LAST):
        save_tree({}, work / name)
    dataset = BundleDataset(filepath=str(tmp_path / "bundle"))
    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="No space left"):
        patch.setattr(recpipe.training.bundle, "write_manifest", Mock(side_effect=OSError(28, "No space left")))
        dataset.save(replace(bundle, work_folder=work))
    assert names(work) == [BEST, LAST]
    dataset.save(replace(bundle, work_folder=work))
    assert list(work.iterdir()) == []


def test_the_curve_of_a_model_that_has_none_has_no_rows(tmp_path, bundle) -> None:
    curves = tmp_path / "curves.parquet"
    dataset = BundleDataset(filepath=str(tmp_path / "bundle"), curves={"path": str(curves)})
    dataset.save(replace(bundle, curve=[]))
    table = pq.read_table(curves)
    assert table.num_rows == 0 and {"epoch", "step", "loss"} <= set(table.column_names)


def test_without_a_place_for_it_no_curve_is_saved(tmp_path, bundle) -> None:
    BundleDataset(filepath=str(tmp_path / "bundle")).save(bundle)
    assert names(tmp_path) == ["bundle"]


def test_where_there_is_no_bundle_its_command_is_named_or_none_is_loaded(tmp_path) -> None:
    path = str(tmp_path / "06_models" / "shop" / "mf" / "seed_7" / "bundle")
    with pytest.raises(
        DatasetError,
        match=r"bundle does not exist: `kedro run --pipelines=train,evaluate "
        r"--params dataset=shop,model=mf,seed=7` trains it",
    ):
        BundleDataset(filepath=path, version=Version(None, None)).load()
    assert BundleDataset(filepath=path, version=Version(None, None), optional=True).load() is None


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
    return Evaluation({**METRICS, "seed": number}, RANKS.slice(0, number), LISTS, f"user_id,item_ids\n{number}\n")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_an_evaluation_is_five_files_with_a_record_of_the_latest_and_loads_as_its_metrics(tmp_path) -> None:
    assert not dataset(tmp_path).exists()
    dataset(tmp_path, FIRST).save(evaluation(1))
    assert dataset(tmp_path).exists()
    assert dataset(tmp_path).load() == {**METRICS, "seed": 1}
    assert files(tmp_path) == {
        f"reporting/metrics.json/{FIRST}/metrics.json",
        "reporting/metrics.json/latest.json",
        f"output/abc/test_recommendations.parquet/{FIRST}/test_recommendations.parquet",
        "output/abc/ranks.parquet",
        "output/abc/submission.csv",
        "output/abc/README.md",
    }
    assert pq.read_table(tmp_path / "output" / "abc" / "ranks.parquet").equals(RANKS.slice(0, 1))
    assert (tmp_path / "output" / "abc" / "submission.csv").read_text() == "user_id,item_ids\n1\n"
    assert "do not show them to users" in (tmp_path / "output" / "abc" / "README.md").read_text()


def test_an_evaluation_without_a_submission_leaves_none_of_an_earlier_one(tmp_path) -> None:
    dataset(tmp_path, FIRST).save(evaluation(1))
    dataset(tmp_path, SECOND).save(replace(evaluation(2), submission=None))
    assert "output/abc/submission.csv" not in files(tmp_path) and dataset(tmp_path).load()["seed"] == 2


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
    lists = {path.parent.name for path in (tmp_path / "output").rglob("test_recommendations.parquet") if path.is_file()}
    assert lists == {FIRST, SECOND}
    assert pq.read_table(tmp_path / "output" / "abc" / "ranks.parquet").num_rows == 2


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
        dataset(tmp_path, FIRST).save(
            Evaluation({"protocol": {"id": "abc"}, "odd": Unwritable()}, RANKS, LISTS, "text")
        )
    assert files(tmp_path) == {
        f"output/abc/test_recommendations.parquet/{FIRST}/test_recommendations.parquet",
        "output/abc/ranks.parquet",
        "output/abc/submission.csv",
        "output/abc/README.md",
    }


def test_the_preview_is_the_numbers_of_both_folds_and_the_cost(tmp_path) -> None:
    dataset(tmp_path, FIRST).save(evaluation(1))
    preview = dataset(tmp_path).preview()
    assert preview["columns"] == ["part", "name", "value"]
    assert preview["data"] == [["test", "ndcg@10", 0.5], ["test", "users", 2], ["cost", "device", "cpu"]]
    assert len(preview["index"]) == 3


def test_a_catalog_entry_saves_under_the_version_of_the_run(tmp_path) -> None:
    entry = {
        "type": "recpipe.io.datasets.EvaluationDataset",
        "filepath": str(tmp_path / "metrics.json"),
        "output": {"path": str(tmp_path / "output")},
        "versioned": True,
    }
    catalog = DataCatalog.from_config({"m_evaluation": entry}, save_version=FIRST)
    catalog.save("m_evaluation", evaluation(1))
    assert json.loads((tmp_path / "metrics.json" / FIRST / "metrics.json").read_text())["seed"] == 1
    assert catalog.load("m_evaluation")["seed"] == 1


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
    store = DataCatalog.from_config({"runs": {"type": "recpipe.io.datasets.RunsDataset", **entry}}).load("runs")
    assert {name: getattr(store, name) for name in NAMES} == {name: tmp_path / name for name in NAMES}
