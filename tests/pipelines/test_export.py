"""Nodes that write ids and sequences for other code, and nodes that read ids: what goes out comes back in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.semantic_ids.test_export import ITEMS, PROTOCOL, VOCABULARY, ids_of, log_of
from tests.semantic_ids.test_foreign import config

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
from recpipe.data.splits import TrainingData, split
from recpipe.pipelines import export, semantic_ids


def test_ids_leave_by_one_pipeline_and_enter_by_the_other(tmp_path: Path) -> None:
    parts = split(log_of([5, 6, 1]), PROTOCOL)
    data = TrainingData(PROTOCOL.to_dict(), VOCABULARY, parts.train, parts.valid)
    paths = DataPaths(tmp_path / "data", tmp_path / "raw", "shop")
    ids = ids_of(np.random.default_rng(0).permutation(ITEMS * 3).reshape(ITEMS, 3).astype(np.int32))
    sequences = export.export_sequences(data, parts.test, paths, PROTOCOL)
    with pytest.raises(ValueError, match="the split on disk is of another protocol .split, valid, test differ"):
        export.export_sequences(data, parts.test, paths, replace(PROTOCOL, split="ratio"))
    about = export.export_ids(ids, data, paths, config().model_copy(update={"kind": "text"}))
    written = {path.name for path in paths.export.iterdir()}
    assert {*sequences["files"], *about["files"]} == written
    assert len(json.loads((paths.export / "shop.inter.json").read_text())) == sequences["users"] == 2

    paths.raw.mkdir(parents=True)
    for name in ("shop.text.index.json", "shop.item2id"):
        (paths.export / name).rename(paths.raw / name)
    settings = config("keep", file="shop.text.index.json", item_map="shop.item2id", codes=about["sizes"])
    items = pl.DataFrame({"item_id": VOCABULARY.ids.tolist(), "title": [f"title {n}" for n in range(ITEMS)]})
    back = semantic_ids.import_ids(items, settings, paths)
    assert (back.codes == ids.codes).all() and back.sizes == ids.sizes
    figures, quality = semantic_ids.measure_foreign_ids(settings, back, items, DatasetConfig(source="files"))
    assert set(figures) == {"usage", "sunburst"} and quality["items"] == ITEMS
    json.dumps(quality, allow_nan=False)
