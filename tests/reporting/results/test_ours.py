"""Store of our results: means and intervals from runs on disk, merged by key; damaged stores are refused."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.reporting.runs_on_disk import ranks_of, write_json, write_runs

from recpipe.evaluation.metrics import metrics_from_ranks, user_metrics
from recpipe.evaluation.significance import UserMetric, compare
from recpipe.reporting.results.ours import ResultsStoreError, Value, collect, merge, read_store, write_store


def seed_42(folder):
    return folder / "08_reporting" / "shop" / "sasrec" / "seed_42"


def rows_of(folder, stored=None):
    rows, problems = collect(folder, "shop", stored or {})
    return {row.model: row for row in rows}, problems


@pytest.fixture
def data(tmp_path, make_run):
    return write_runs(tmp_path / "data", make_run, seeds=(42, 123))


def test_means_over_seeds_have_the_interval_of_the_bootstrap_over_users(data):
    rows, problems = rows_of(data)
    assert problems == [] and rows["sasrec"].seeds == (42, 123) and rows["popular"].seeds == (42,)
    ranks = [ranks_of("sasrec", seed) for seed in (42, 123)]
    expected = compare(UserMetric.of({"sasrec": ranks}, metric="ndcg@10")).estimates["sasrec"]
    value = rows["sasrec"].metrics["ndcg@10"]
    assert value.mean == pytest.approx(expected.mean, abs=1e-6)
    assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert rows["sasrec"].users == 150 and rows["sasrec"].commit == "0a1b2c3d4e5f"


def test_metrics_of_cold_targets_have_intervals_of_their_users(data, make_run):
    table = ranks_of("sasrec", 42)
    path = next(seed_42(data).rglob("metrics.json/*/metrics.json"))
    cold = table.filter(table["cold"])
    recall = float(np.mean(user_metrics(cold, cutoffs=[10])["recall@10"].to_numpy()))
    write_json(path, json.loads(path.read_text()) | {"cold_items": {"recall@10": recall}})
    shutil.rmtree(seed_42(data).with_name("seed_123"))
    value = rows_of(data)[0]["sasrec"].metrics["cold_recall@10"]
    assert value.low < recall < value.high


def test_hardware_of_a_run_is_kept(data):
    path = next(seed_42(data).rglob("metrics.json/*/metrics.json"))
    metrics = json.loads(path.read_text())
    write_json(path, metrics | {"cost": metrics["cost"] | {"hardware": "NVIDIA H200"}})
    assert rows_of(data)[0]["sasrec"].hardware == "NVIDIA H200"


def test_runs_without_or_with_other_ranks_have_no_interval_and_a_message(data):
    ranks = {path.relative_to(data).parts[2:4]: path for path in data.rglob("ranks.parquet")}
    ranks["popular", "seed_42"].unlink()
    shutil.copy(ranks["item_knn", "seed_42"], ranks["sasrec", "seed_123"])
    rows, problems = rows_of(data)
    assert rows["popular"].metrics["ndcg@10"].low is None and rows["sasrec"].metrics["ndcg@10"].low is None
    assert [problem.partition(":")[2] for problem in problems] == [
        " no ranks on disk, so no interval", " its ranks do not match its metrics, so no interval",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["twice", "fewer"])
def test_ranks_of_other_targets_give_no_interval(damage, data):
    path = next(path for path in data.rglob("ranks.parquet") if "seed_123" in path.parts)
    table = ranks_of("sasrec", 123)
    if damage == "twice":
        pq.write_table(pa.concat_tables([table, table.slice(0, 50)]), path)
    else:  # half of the users, with metrics of them
        pq.write_table(half := table.slice(0, 75), path)
        metrics = next(seed_42(data).with_name("seed_123").rglob("metrics.json/*/metrics.json"))
        write_json(metrics, json.loads(metrics.read_text()) | {"test": metrics_from_ranks(half, cutoffs=(1, 5, 10))})
    rows, problems = rows_of(data)
    assert rows["sasrec"].metrics["ndcg@10"].low is None
    assert len(problems) == 1 and ("listed twice" in problems[0] or "have 150 and 75 targets" in problems[0])


def test_a_damaged_run_is_left_out_with_a_message(data):
    next(seed_42(data).rglob("metrics.json/*/metrics.json")).write_text("{")
    rows, problems = rows_of(data)
    assert rows["sasrec"].seeds == (123,) and "metrics of sasrec/seed_42" in problems[0]


def test_rows_of_evaluations_that_the_store_has_are_not_computed_again(data, monkeypatch):
    rows, _ = rows_of(data)
    monkeypatch.setattr("recpipe.reporting.results.ours.bootstrap_means", lambda *_, **__: 1 / 0)
    assert rows_of(data, {row.key: row for row in rows.values()})[0] == rows


def test_the_store_returns_what_was_written_in_the_same_bytes(our_row, tmp_path):
    path = tmp_path / "ours.json"
    rows = merge({}, [our_row("b"), our_row("a", width=None, kinds_of_ids=("text",)), our_row("a", seeds=(1, 2))])
    write_store(path, rows)
    first = path.read_bytes()
    assert read_store(path) == rows and [row["model"] for row in json.loads(first)["rows"]] == ["a", "a", "b"]
    write_store(path, read_store(path))
    assert path.read_bytes() == first


def test_of_two_rows_with_one_key_the_newer_one_counts(our_row):
    old, new = our_row(ndcg=0.03, finished="2026-11-01"), our_row(ndcg=0.05, finished="2026-11-02")
    for first, second in ((old, new), (new, old)):
        assert list(merge({first.key: first}, [second]).values()) == [new]


def test_of_one_evaluation_the_row_with_an_interval_counts(our_row):
    bare, full = our_row(width=None), our_row()
    full = our_row(metrics=full.metrics | {"recall@10": Value(0.1, 0.05, 0.15)})
    for first, second in ((bare, full), (full, bare)):
        assert list(merge({first.key: first}, [second]).values()) == [full]


def test_other_settings_protocols_and_seeds_are_rows_of_their_own(our_row, protocols):
    rows = [our_row(), our_row(settings_id="ffff0000"), our_row(fields=protocols["sas"]), our_row(seeds=(7,))]
    assert len(merge({}, rows)) == 4


def test_a_row_gives_way_to_one_with_more_seeds_that_is_as_new(our_row):
    few, many = our_row(seeds=(42,)), our_row(seeds=(42, 123))
    assert list(merge({few.key: few}, [many]).values()) == [many]
    newer = our_row(seeds=(42,), finished="2026-12-01")
    assert len(merge({many.key: many}, [newer])) == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"version": 9, "rows": []}', '{"version": 1, "rows": [{"model": 3}]}']
)
def test_a_damaged_store_is_refused_with_what_to_do(tmp_path, text):
    path = tmp_path / "ours.json"
    path.write_text(text)
    with pytest.raises(ResultsStoreError, match=r"ours\.json cannot be read: .*git checkout -- .*or delete it"):
        read_store(path)


def test_no_store_is_an_empty_store(tmp_path):
    assert read_store(tmp_path / "ours.json") == {}
