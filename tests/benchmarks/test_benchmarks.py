"""Every benchmark runs from beginning to end with --quick and prints a table with numbers."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys

import pytest
from tests.conftest import PROJECT

from recpipe.models.registry import model_class, types

pytestmark = pytest.mark.slow

FOLDER = PROJECT / "benchmarks"
OTHER = {"harness", "http_load", "litserve_service", "poster_vectors"}  # parts of others; a converter of image files
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in OTHER)
MODELS = tuple(name for name in types() if not model_class(name).closed_form)
ROWS = {  # a number in a row that starts with one of these words
    "batch_lists": ("1,000 users x 10 events, sasrec:", "60 users x 50 items: evaluation"),
    "classical": ("ncf popular recpipe", "ncf ease recpipe", "recbole ials recpipe", "recbole slim recpipe"),
    "cold_items": ("item_knn", "popular"),
    "data_parallel": ("padded", "packed"),
    "decoding": ("5 4 fast", "5 4 no end", "5 4 plain", "1,000"),
    "embedding": ("title ours, fp32", "title ours, bf16", "title ours, nothing changed"),
    "evaluation": ("60 users x 50 items: median",),
    "generative": ("sasrec seen allowed", "tiger seen excluded", "parallel_tiger seen allowed"),
    "item_index": ("clustered ivf", "clustered hnsw", "uniform ivf"),
    "large_ingest": ("bare DuckDB", "recpipe sequences and split", "recpipe / bare DuckDB:"),
    "large_ingest --recipe music4all": ("recpipe all",),
    "large_catalogue": ("popular", "svd", "item_knn", "user_knn"),
    "large_catalogue --million": ("step", "rank", "read", "fit", "assign", "quality", "tree"),
    "large_log": ("log:", "split:", "training:", "ranking:"),
    "lightgcn": ("recpipe LightGCN",),
    "mamba2": ("ours, chunk 10", "transformers, chunk 20", "sasrec", "mamba4rec"),
    "packing": ("padded to the maximum", "buckets of like length", "packed, rows of 50", "max, all places"),
    "parallel_codes": ("4 16", "500"),
    "prefix_tree": ("300 arrays", "300 dictionaries", "2", "4"),
    "refit": ("training", "refit", "refit / training, seconds per target:"),
    "sampling": ("recpipe", "bare, step by step", "bare, whole file to Parquet"),
    "semantic_ids": ("faiss", "opq", "pq", "residual_kmeans", "rqvae", "pqvae"),
    "serving": ("recommend, batches of 64", "HTTP, one client", "HTTP, all clients", "HTTP, half load"),
    "significance": ("bootstrap means", "sign flips", "all of compare()"),
    "training": ("recpipe SASRec, T 200, lightning loop", "recpipe SASRec, T 50, lightning loop"),
    "training --models all": MODELS,
    "tuning": ("trial 0", "trial / alone, seconds:"),
    "tuning --kills 1 --trials 2": ("kill 1", "finished trials:", "lost:"),
    "update": ("stale", "update", "refit"),
}
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(\.\d+)?(e[-+]\d+)?%?(?![\w.])")


@pytest.fixture
def main(monkeypatch, tmp_path):
    """`main(name)` of a benchmark, in a folder without data; loggers are left as they were."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("recpipe.training.module")
    level = log.level

    def imported(name: str):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module.main

    yield imported
    log.setLevel(level)
    sys.modules.pop("harness", None)


def test_every_benchmark_is_run_here():
    assert {command.split()[0] for command in ROWS} == set(BENCHMARKS)


@pytest.mark.parametrize("command", ROWS)
def test_quick_prints_its_table(command, main, capfd):
    name, *words = command.split()
    main(name)(["--quick", *words])
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    for row in ROWS[command]:
        rest = [line.removeprefix(row) for line in lines if f"{line} ".startswith(f"{row} ")]
        assert rest, f"no row of {row} in\n" + "\n".join(lines)
        assert all(NUMBER.search(each) and "nan" not in each.lower() for each in rest)


def test_a_peer_that_is_not_installed_is_named(main, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    main("embedding")(["--quick"])
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["title", "sentence-transformers", "not", "installed"] in lines
    assert any(line[:3] == ["title", "ours,", "bf16"] for line in lines)
