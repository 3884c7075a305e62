"""One flipped bit in any artefact: 30 of 30 are refused, whatever the place; bundles of exchanged parts too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import plotly.graph_objects as go
import polars as pl
import pyarrow as pa
import pytest
import torch
from kedro.io.core import DatasetError, Version
from tests.artefacts import flip_bit
from tests.synthetic import random_sequences

from recpipe.content.embeddings import Embeddings
from recpipe.content.tfidf import TfidfConfig, embed_tfidf
from recpipe.content.vector_cache import VectorCache
from recpipe.data.atomic import atomic_folder
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.data.splits import TrainingData
from recpipe.evaluation.evaluate import Evaluation
from recpipe.io.datasets import EvaluationDataset, FiguresDataset, JSONDataset, LazyParquetDataset, TableDataset
from recpipe.models.registry import build
from recpipe.reporting.run_store import RunStore
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.semantic_ids.quantizer import build_quantizer, load_quantizer, save_quantizer
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.checkpoint import load_tree, save_tree

FLIPS = 30
VERSION = Version(None, "2026-01-01T00.00.00.000Z")
IDS = np.array([f"i{i}" for i in range(9)], dtype=object)
CODES = np.array([[i // 3, i % 3] for i in range(9)], np.int32)
FRAME = pl.DataFrame({"item_id": IDS.tolist(), "price": [0.5 * i for i in range(9)]})
Read = Callable[[], Any]  # reads an artefact completely
REFUSALS = (ValueError, DatasetError)


def bundle_of(seed: int = 1, history: int = 200) -> Bundle:
    torch.manual_seed(seed)
    model = build("sasrec", {"dim": 8, "layers": 1}, n_items=9, max_length=5)
    protocol = Protocol(dataset="d", history=history)
    return Bundle("sasrec", "sasrec", model, Vocabulary(IDS), [None] * 9, np.arange(9), protocol, {"seed": seed})


def write_bundle(folder: Path, **changes: int) -> Path:
    with atomic_folder(folder) as part:
        save_bundle(bundle_of(**changes), part)
    return folder


def bundle(folder: Path) -> Read:
    write_bundle(folder / "bundle")
    return lambda: load_bundle(folder / "bundle")


def checkpoint(folder: Path) -> Read:
    save_tree({"weights": torch.arange(50.0), "epoch": 3}, folder / "last.safetensors")
    return lambda: load_tree(folder / "last.safetensors")


def embeddings(folder: Path) -> Read:
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    keys = np.array([f"{i:064x}" for i in range(9)], object)
    Embeddings(IDS, vectors, np.ones(9, bool), keys, "space").write(folder / "e.parquet")
    return lambda: Embeddings.read(folder / "e.parquet")


def vocabulary(folder: Path) -> Read:
    Vocabulary(IDS).write(folder / "v.parquet")
    return lambda: Vocabulary.read(folder / "v.parquet")


def sequences(folder: Path) -> Read:
    random_sequences(20, 9).write(folder / "s.arrow")
    return lambda: Sequences.read(folder / "s.arrow")


def fold(folder: Path) -> Read:
    Fold(random_sequences(20, 9), random_sequences(20, 9)).write(folder / "f.arrow")
    return lambda: Fold.read(folder / "f.arrow")


def training_data(folder: Path) -> Read:
    some = random_sequences(20, 9)
    fields = Protocol(dataset="d").to_dict()
    TrainingData(fields, Vocabulary(IDS), some, Fold(some, some)).write(folder / "split")

    def read() -> None:
        data = TrainingData.read(folder / "split")
        assert data.protocol and data.vocabulary and data.train_set and data.valid_set

    return read


def semantic_ids(folder: Path) -> Read:
    added = np.zeros(9, bool)
    SemanticIds(IDS, CODES, CODES, added, (3, 3), {"quantizer": "q"}).write(folder / "ids.parquet")
    return lambda: SemanticIds.read(folder / "ids.parquet")


def prefix_tree(folder: Path) -> Read:
    PrefixTree.build(CODES, (3, 3)).write(folder / "tree.safetensors")
    return lambda: PrefixTree.read(folder / "tree.safetensors")


def quantizer(folder: Path) -> Read:
    fitted = build_quantizer("residual_kmeans", {"levels": 2, "codes": 4})
    fitted.fit(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), seed=1)
    with atomic_folder(folder / "quantizer") as part:
        save_quantizer(fitted, part)
    return lambda: load_quantizer(folder / "quantizer")


def interactions(folder: Path) -> Read:
    dataset = LazyParquetDataset(filepath=str(folder / "interactions.parquet"))
    dataset.save(ibis.duckdb.connect().create_table("log", FRAME.to_arrow()))
    return dataset.load


def interactions_as_a_table(folder: Path) -> Read:
    interactions(folder)
    dataset = LazyParquetDataset(filepath=str(folder / "interactions.parquet"), load_as="table")
    return lambda: dataset.load().execute()


def items(folder: Path) -> Read:
    dataset = TableDataset(filepath=str(folder / "items.parquet"), file_format="parquet")
    dataset.save(FRAME)
    return dataset.load


def json_value(folder: Path) -> Read:
    dataset = JSONDataset(filepath=str(folder / "quality.json"))
    dataset.save({"usage": [0.25] * 9})
    return dataset.load


def figures(folder: Path) -> Read:
    dataset = FiguresDataset(path=str(folder), preview="usage")
    dataset.save({"usage": go.Figure(go.Bar(y=[1, 2]))})
    return dataset.load


def evaluation(folder: Path) -> RunStore:
    place = "sasrec/seed_1"
    dataset = EvaluationDataset(
        filepath=str(folder / "r" / place / "metrics.json"), output={"path": str(folder / "o" / place)}, version=VERSION
    )
    ranks = {name: [1] for name in ("user_id", "target", "rank", "history", "cold")}
    lists = {name: [1] for name in ("user_id", "rank", "item_id", "probability")}
    dataset.save(
        Evaluation({"protocol": {"id": "abc"}, "test": {"ndcg@10": 0.5}}, pa.table(ranks), pa.table(lists), "user_id\n")
    )
    return RunStore(folder / "r", folder / "o", folder / "m", folder / "f")


def metrics(folder: Path) -> Read:
    evaluation(folder)
    shutil.rmtree(folder / "o")
    path, output = folder / "r/sasrec/seed_1/metrics.json", {"path": str(folder)}
    return lambda: EvaluationDataset(filepath=str(path), output=output, version=Version(None, None)).load()


def ranks(folder: Path) -> Read:
    store = evaluation(folder)

    def read() -> None:
        again = RunStore(store.reporting, store.output, store.models, store.features)
        for kind in ("metrics", "ranks", "recommendations"):
            files = getattr(again, kind)
            assert [name for name in files if files[name] is not None] == ["sasrec/seed_1/abc"]

    return read


KINDS = (
    bundle,
    checkpoint,
    embeddings,
    vocabulary,
    sequences,
    fold,
    training_data,
    semantic_ids,
    prefix_tree,
    quantizer,
    interactions,
    interactions_as_a_table,
    items,
    json_value,
    figures,
    metrics,
    ranks,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_thirty_of_thirty_flipped_bits_are_refused_by_name(tmp_path, kind) -> None:
    read = kind(tmp_path)
    read()
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and _is_read(path)]
    for seed in range(FLIPS):
        file = files[seed % len(files)]
        content = file.read_bytes()
        flip_bit(file, seed)
        with pytest.raises(REFUSALS, match=file.name.replace(".", r"\.")):
            read()
        file.write_bytes(content)
    read()


def _is_read(path: Path) -> bool:
    """Files that decide a result: not their digests, which are no content, and not what only people read."""
    return path.name[0] != "." and path.name not in ("submission.csv", "README.md")


def test_damaged_shards_and_states_are_computed_again(tmp_path) -> None:
    keys, vectors = [f"{i:064x}" for i in range(9)], np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    texts = [f"red shoe number {i % 3}" for i in range(9)]
    expected = embed_tfidf(IDS.tolist(), texts, TfidfConfig(width=2, min_count=1), state_folder=tmp_path / "s").vectors
    for seed in range(FLIPS):
        VectorCache(tmp_path / "c").add(keys, vectors)
        (shard,) = (tmp_path / "c").glob("*.safetensors")
        flip_bit(shard, seed)
        assert not VectorCache(tmp_path / "c").get(keys)[0].any() and not list((tmp_path / "c").iterdir())
        files = [path for path in sorted((tmp_path / "s").rglob("*")) if path.is_file()]
        flip_bit(files[seed % len(files)], seed)
        again = embed_tfidf(IDS.tolist(), texts, TfidfConfig(width=2, min_count=1), state_folder=tmp_path / "s")
        np.testing.assert_array_equal(again.vectors, expected)


@pytest.mark.parametrize("name", ["items.parquet", "model.safetensors", "config.json"])
def test_parts_of_another_bundle_of_the_same_shape_are_refused(tmp_path, name) -> None:
    """Reordered items, foreign weights, a protocol with another field."""
    folder, other = write_bundle(tmp_path / "a"), write_bundle(tmp_path / "b", seed=2, history=100)
    if name == "items.parquet":
        table = pl.read_parquet(other / name)
        table.reverse().write_parquet(other / name)
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=f"{name} is damaged or was changed by hand"):
        load_bundle(folder)


def test_a_bundle_of_an_earlier_version_is_read_and_a_new_one_without_manifest_is_not(tmp_path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has lost its manifest.json.*run `kedro run --pipelines=train`"):
        load_bundle(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 1}))
    assert load_bundle(folder).name == "sasrec"
    for text, reason in (("{", "is damaged"), ("[]", "is damaged"), ('{"format": 3}', "has format 3; this version")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config.json {reason}"):
            load_bundle(folder)
