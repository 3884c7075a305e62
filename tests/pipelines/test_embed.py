"""embed_text as a function, from the raw files of a log: which items have a text at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.config import DataPaths, build_config
from recpipe.config.schema import DatasetConfig, EmbedConfig
from recpipe.pipelines.embed import embed_images, embed_text
from recpipe.pipelines.ingest import fetch_source, ingest_log

EMBED = EmbedConfig(text="counts", image="none", refit=False)
ENCODERS = {"counts": {"kind": "tfidf", "width": 4, "ngrams": "char", "min_count": 1}}
ENGINE = {"name": "duckdb", "memory_limit": "1GB", "threads": 1, "spill_folder": None, "settings": {}}
LOG = "user_id,item_id,timestamp\n" + "".join(f"u{n % 3},s{n % 5},{n}\n" for n in range(30))


def dataset(**content: Any) -> DatasetConfig:
    columns = {name: name for name in ("user_id", "item_id", "timestamp")}
    files = {"interactions": "log.csv", "items": "items.csv"}
    options = {"columns": columns}
    block = {"source": "files", "title": "Shop", "files": files, "options": options, "content": content}
    return build_config(DatasetConfig, block, where="datasets.shop")


def paths(folder: Path) -> DataPaths:
    """The raw files are in ``folder`` itself."""
    return DataPaths(folder / "data", folder.parent, folder.name)


def items(folder: Path, items: str) -> pl.DataFrame:
    """Items of a log of s0 to s4, through ingest."""
    (folder / "log.csv").write_text(LOG)
    (folder / "items.csv").write_text(items)
    files = fetch_source(dataset(), paths(folder))
    table: pl.DataFrame = ingest_log(files, dataset(), {"engine": ENGINE}, paths(folder))[1]
    return table


def embedded(folder: Path, table: pl.DataFrame, template: str, tables: list[dict[str, Any]] | None = None) -> Any:
    shop = dataset(text={"template": template, "tables": tables or []})
    return embed_text(table, shop, EMBED, ENCODERS, paths(folder))


def test_an_item_without_a_name_is_not_embedded_by_its_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # s1 has no name, s2 a blank one, s3 a brand alone; s4 is in the log only
    table = items(tmp_path, "item_id,title,brand\ns0,red shoe,Acme\ns1,,\ns2,  ,\ns3,,Bolt\n")
    titles = dict(table.select("item_id", "title").iter_rows())
    assert [titles[item] for item in ("s1", "s2", "s3", "s4")] == ["s1", "s2", "s3", "s4"]  # to be shown
    with caplog.at_level(logging.INFO):
        made = embedded(tmp_path, table, "{title}. {brand}")
    present = dict(zip(made.item_ids.tolist(), made.present.tolist(), strict=True))
    assert present == {"s0": True, "s1": False, "s2": False, "s3": True, "s4": False}
    assert made.about["items"] == 5 and made.about["without_text"] == 3
    assert "4 items have no title but their id" in caplog.text


def test_an_items_file_without_titles(tmp_path: Path) -> None:
    made = embedded(tmp_path, items(tmp_path, "item_id,brand\ns0,Acme\ns1,\n"), "{title} {brand}")
    assert made.present.tolist() == [True, False, False, False, False]


def test_columns_of_a_further_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = items(tmp_path, "item_id,title\ns0,shoe\ns1,\n")
    (tmp_path / "plots.tsv").write_text("sku\tplot\ns4\ta story\ns0\tanother\n")
    with caplog.at_level(logging.INFO):
        made = embedded(
            tmp_path, table, "{title}. {plot}", [{"file": "plots.tsv", "item_id": "sku", "columns": ["plot"]}]
        )
    assert made.present.tolist() == [True, False, False, False, True]
    assert "2 of 5 items found in plots.tsv" in caplog.text


def test_vectors_made_elsewhere_stand_for_texts_or_images(tmp_path: Path) -> None:
    table = items(tmp_path, "item_id,title\ns0,shoe\n")
    pq.write_table(pa.table({"sku": ["s3", "s0"], "v": [[3.0, 4.0], [0.0, 1.0]]}), tmp_path / "v.parquet")
    own = {"own": {"kind": "file", "file": "v.parquet", "item_id": "sku", "column": "v"}}
    shop = dataset(text={"template": "{title}"}, image={})
    embed = EmbedConfig(text="own", image="own", refit=False)
    text = embed_text(table, shop, embed, own, paths(tmp_path))
    refused, image = embed_images(table, shop, embed, own, paths(tmp_path))
    for made in (text, image):
        assert made.present.tolist() == [True, False, False, True, False]
        assert made.vectors[3] == pytest.approx([0.6, 0.8])
    assert refused.columns == ["item_id", "image", "reason"] and refused.is_empty()
    assert not paths(tmp_path).cache("text").exists() and not paths(tmp_path).cache("image").exists()
    assert (text.about["modality"], image.about["modality"]) == ("text", "image")


def test_an_unknown_kind_of_encoder_is_refused(tmp_path: Path) -> None:
    table = items(tmp_path, "item_id,title\ns0,shoe\n")
    shop, embed = dataset(image={}), EmbedConfig(text="none", image="own", refit=False)
    with pytest.raises(ValueError, match="image_encoders.own.kind is 'tfidf'; allowed: encoder, file"):
        embed_images(table, shop, embed, {"own": {"kind": "tfidf"}}, paths(tmp_path))
    with pytest.raises(ValueError, match="path"):
        embed_images(table, shop, embed, {"own": {"kind": "file", "path": "x"}}, paths(tmp_path))


def test_without_content_there_is_nothing_to_embed(tmp_path: Path) -> None:
    table = items(tmp_path, "item_id,title\ns0,shoe\n")
    embed = EmbedConfig(text="counts", image="own", refit=False)
    with pytest.raises(ValueError, match="Shop.*no texts to embed"):
        embed_text(table, dataset(image={}), embed, ENCODERS, paths(tmp_path))
    with pytest.raises(ValueError, match="Shop.*no images to embed"):
        embed_images(table, dataset(), embed, ENCODERS, paths(tmp_path))
