"""Nodes of embed: short calls into recpipe.content."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recpipe.pipelines.blocks import ItemTable, content_block, embed_block, named

log = logging.getLogger(__name__)


def embed_text(
    items: Any,
    raw_folder: Path,
    datasets: dict[str, Any],
    dataset: str,
    embed: dict[str, Any],
    text_encoders: dict[str, Any],
    text_cache: Path,
) -> Any:
    """Vectors of the items' texts; the encoder is loaded only for texts that it has not embedded before."""
    from recpipe.content import templates
    from recpipe.content.text import EncoderConfig, embed_texts
    from recpipe.content.tfidf import TfidfConfig, embed_tfidf
    from recpipe.models.registry import configured
    from recpipe.training.allocator import keep_freed_memory

    content = content_block(datasets, dataset).text
    if content is None:
        raise ValueError(f"datasets.{dataset}.content.text is not given: there is no text to embed")
    chosen = embed_block(embed, datasets, dataset)
    name = chosen.text
    block = named(name, text_encoders, what="embed.text")
    where = f"text_encoders.{name}"
    table = items.to_arrow()
    for extra in content.tables:
        table = _with_table(table, extra, raw_folder)
    texts = templates.texts(table, content.template)
    ids = table["item_id"].to_pylist()
    if (kind := block.pop("kind", "encoder")) == "tfidf":
        config = configured(TfidfConfig, block, where=where)
        state = text_cache / name
        return embed_tfidf(
            ids, texts, config, state_folder=state, template=content.template, refit=chosen.refit
        )
    if kind != "encoder":
        raise ValueError(f"{where}.kind is {kind!r}; allowed: encoder, tfidf")
    keep_freed_memory()
    config = configured(EncoderConfig, block, where=where)
    return embed_texts(ids, texts, config, template=content.template, cache_folder=text_cache / name)


def embed_images(
    items: Any,
    raw_folder: Path,
    datasets: dict[str, Any],
    dataset: str,
    embed: dict[str, Any],
    image_encoders: dict[str, Any],
    image_cache: Path,
) -> tuple[Any, Any]:
    """What is wrong with which image, and vectors of the others."""
    import polars as pl

    from recpipe.content import image, image_sources
    from recpipe.models.registry import configured

    content = content_block(datasets, dataset).image
    if content is None:
        raise ValueError(f"datasets.{dataset}.content.image is not given: there are no images to embed")
    name = embed_block(embed, datasets, dataset).image
    block = named(name, image_encoders, what="embed.image")
    config = configured(image.ImageConfig, block, where=f"image_encoders.{name}")
    table = items.to_arrow()
    embeddings, refused = image.embed_images(
        table["item_id"].to_pylist(),
        image_sources.references(table, content),
        config,
        opener=image_sources.opener(content, raw_folder, image_cache / "downloads"),
        cache_folder=image_cache / name,
    )
    return pl.from_arrow(refused), embeddings


def join_embeddings(text_embeddings: Any, image_embeddings: Any) -> Any:
    """Text and image vectors side by side."""
    from recpipe.content.embeddings import joined

    return joined(text_embeddings, image_embeddings)


def _with_table(items: Any, extra: ItemTable, raw_folder: Path) -> Any:
    """`items` with the columns of a file beside the log, which are null for items that it does not know."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    from recpipe.content import templates

    path = (raw_folder / extra.file).resolve()
    if not path.is_relative_to(raw_folder.resolve()):
        raise ValueError(f"content.text.tables names {extra.file!r}, which is outside {raw_folder}")
    if not path.is_file():
        if not extra.optional:
            raise ValueError(f"content.text.tables names {extra.file!r}, which is not in {raw_folder}")
        log.warning("%s is not there: texts are made without %s", path.name, ", ".join(extra.columns))
        for name in extra.columns:
            items = items.append_column(name, pa.nulls(len(items), pa.string()))
        return items
    suffix = {".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".pq": "parquet"}.get(path.suffix)
    source = ds.dataset(path, format=suffix or path.suffix.removeprefix("."))
    columns = [extra.item_id, *extra.columns]
    if absent := [name for name in columns if name not in source.schema.names]:
        raise ValueError(f"{path.name} has no column {absent[0]!r}; it has {', '.join(source.schema.names)}")
    return templates.extra(items, source.to_table(columns=columns), extra.item_id)
